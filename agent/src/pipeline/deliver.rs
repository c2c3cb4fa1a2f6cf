//! Delivers what is in the buffer: each event to each of its subscriptions, until the destination takes it
//! or the schedule ends.
//!
//! One task decides ([`Deliverer::run`]): which delivery is next ([`queue`]), and whether its subscription is
//! active, paused or gone. Attempts ([`attempt`]) run beside it, at most so many per subscription and in
//! all, and dial out only through the [`guard`]. What became of them goes back to the buffer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use gateway_core::{
    delivery::DeliveryState,
    destination::AddressPolicy,
    retry,
    snapshot::{Snapshot, SubscriptionConfig},
};
use gateway_proto::v1;
use gateway_runtime::clock;
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::{control_plane::Identity, metrics::Metrics, snapshot::SnapshotHandle};

use super::buffer::{Buffer, Outcome, Owed};

mod queue;
mod guard;
mod failure;
mod attempt;
mod standing;
#[cfg(test)]
mod tests;

pub use guard::ClientError;

use attempt::Attempter;
use queue::Queues;
use standing::{Gone, Standing, Standings};

/// Attempts that run at once over all subscriptions. When there are as many, deliveries wait in memory for
/// their turn.
const ATTEMPTS_MAX: usize = 512;
/// How long attempts that run may go on at the end. What does not end is attempted again after the start.
const DRAIN: Duration = Duration::from_secs(5);
/// How long to wait with a delivery that cannot be read from disk.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait that is believed: the schedule's longest delay, jitter included. A clock that jumped cannot
/// make a delivery wait longer.
const WAIT_MAX: Duration = Duration::from_secs(29 * 3_600);

/// What deliveries need to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// This agent's id, for the attempts.
    pub agent_id: String,
    /// Which addresses destinations may have.
    pub address_policy: AddressPolicy,
}

impl Config {
    /// As the agent is set up.
    pub fn of(config: &crate::config::Config, identity: &Identity) -> Self {
        Self {
            agent_id: identity.agent_id.clone(),
            address_policy: AddressPolicy::new(config.allow_destination_cidr.clone()),
        }
    }
}

/// The deliverer. It ends only when told to.
pub struct Deliverer {
    buffer: Buffer,
    snapshot: SnapshotHandle,
    attempter: Attempter,
    queues: Queues,
    standings: Standings,
    running: JoinSet<Ended>,
    /// Which delivery a running attempt belongs to, so that not even a panic loses one.
    deliveries: HashMap<Id, (u32, u64)>,
    /// Per subscription the events that are attempted, each with what is cancelled when the attempt ends.
    attempted: HashMap<u32, BTreeMap<u64, CancellationToken>>,
    /// Where the clock of [`Queues`] begins.
    origin: Instant,
}

/// What a task of the deliverer did.
enum Ended {
    /// An attempt was made.
    Attempt { subscription: u32, event: u64, next: AfterAttempt },
    /// Deliveries of a subscription were recorded as held or cancelled.
    Announced { subscription: u32 },
}

enum AfterAttempt {
    /// Nothing more.
    Settled,
    /// Due after this long.
    Wait(Duration),
    /// The destination is gone, with the configuration that was used.
    Gone(Arc<SubscriptionConfig>),
}

impl Deliverer {
    /// A deliverer for what is in `buffer`, by the configuration of `snapshot`.
    ///
    /// # Errors
    /// When the HTTP clients cannot be set up.
    pub fn new(
        config: Config,
        snapshot: SnapshotHandle,
        buffer: Buffer,
        metrics: Metrics,
    ) -> Result<Self, ClientError> {
        let attempter =
            Attempter::new(config.address_policy, &[], &config.agent_id, metrics, retry::next_attempt)?;
        Ok(Self::with_attempter(attempter, snapshot, buffer))
    }

    fn with_attempter(attempter: Attempter, snapshot: SnapshotHandle, buffer: Buffer) -> Self {
        Self {
            buffer,
            snapshot,
            attempter,
            queues: Queues::default(),
            standings: Standings::default(),
            running: JoinSet::new(),
            deliveries: HashMap::new(),
            attempted: HashMap::new(),
            origin: Instant::now(),
        }
    }

    /// Delivers until `stop`. Attempts that run then have a few seconds to end.
    ///
    /// # Errors
    /// Never; the result is for the supervisor.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut changed = self.snapshot.changed();
        while !self.snapshot.is_ready() {
            tokio::select! {
                _ = changed.changed() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        let mut config = self.snapshot.load();
        loop {
            self.take_new(&config);
            self.queues.wake(self.now_ms());
            self.start_due(&config);
            let wake = self.wake_at();
            tokio::select! {
                ended = self.running.join_next_with_id(), if !self.running.is_empty() => {
                    self.finish(ended, &config);
                    while let Some(ended) = self.running.try_join_next_with_id() {
                        self.finish(Some(ended), &config);
                    }
                }
                () = self.buffer.new_deliveries() => {}
                _ = changed.changed() => {
                    config = self.snapshot.load();
                    for subscription in self.queues.subscriptions() {
                        self.evaluate(subscription, &config);
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
                () = stop.cancelled() => break,
            }
        }
        self.drain().await;
        Ok(())
    }

    /// Lets what runs end, for a while.
    async fn drain(mut self) {
        // Cancel safe: what does not end is attempted again after the next start.
        let all_ended = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all_ended).await.is_err() {
            info!(count = self.running.len(), "stopping with attempts unfinished; they will be repeated");
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wake_at(&self) -> Instant {
        let due = self.queues.next_due().map(|due| self.origin + Duration::from_millis(due));
        let far = Instant::now() + Duration::from_secs(3_600);
        due.map_or(far, |due| due.min(far))
    }

    /// Takes over deliveries that the buffer has for us.
    fn take_new(&mut self, config: &Snapshot) {
        let now = self.now_ms();
        let wall_ms = clock::now().as_millisecond();
        let mut to_hold: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for delivery in self.buffer.take_new_deliveries() {
            let subscription = delivery.subscription;
            if !self.queues.has(subscription) {
                self.evaluate(subscription, config);
            }
            let wait = wait_until(delivery.due_ms, wall_ms);
            match self.standings.of(subscription) {
                Standing::Active(_) if delivery.held => {
                    self.queues.add(subscription, delivery.event, now, now)
                }
                Standing::Active(_) => {
                    let due = now.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                    self.queues.add(subscription, delivery.event, due, now);
                }
                Standing::Held if delivery.held => self.queues.add(subscription, delivery.event, now, now),
                Standing::Held | Standing::Deleted => {
                    to_hold.entry(subscription).or_default().push(delivery.event);
                }
            }
        }
        for (subscription, events) in to_hold {
            self.announce(subscription, events);
        }
    }

    /// Looks up what the configuration says about a subscription, and brings its queue into line.
    fn evaluate(&mut self, subscription: u32, config: &Snapshot) {
        let id = self.buffer.subscription_id(subscription);
        let before = self.standings.of(subscription).clone();
        let after = self.standings.evaluate(subscription, config.look_up_subscription(id.as_str()));
        self.queues.set_mode(subscription, self.standings.mode(subscription));
        match (&before, &after) {
            (Standing::Held, Standing::Held) | (Standing::Deleted, Standing::Deleted) => {}
            (_, Standing::Held | Standing::Deleted) => {
                let events = self.queues.take_all(subscription);
                self.announce(subscription, events);
            }
            (Standing::Held, Standing::Active(_)) => {
                let now = self.now_ms();
                for event in self.queues.take_all(subscription) {
                    self.queues.add(subscription, event, now, now);
                }
            }
            _ => {}
        }
    }

    /// Records deliveries as held or cancelled. Held ones stay in the queue. Until that is recorded, no
    /// attempt of the subscription starts, so that nothing overtakes it.
    fn announce(&mut self, subscription: u32, events: Vec<u64>) {
        if events.is_empty() {
            return;
        }
        let state = match self.standings.of(subscription) {
            Standing::Deleted => DeliveryState::Cancelled,
            _ => DeliveryState::Held,
        };
        let now = self.now_ms();
        if state == DeliveryState::Held {
            for event in &events {
                self.queues.add(subscription, *event, now, now);
            }
        }
        self.standings.begin_announcing(subscription);
        self.queues.set_mode(subscription, self.standings.mode(subscription));
        let buffer = self.buffer.clone();
        self.running.spawn(async move {
            for event in events {
                let outcome = Outcome { event, subscription, state, due_ms: None, attempt: None, gone: None };
                buffer.settle(outcome).await;
            }
            Ended::Announced { subscription }
        });
    }

    /// Starts what is due, as far as the limits allow.
    fn start_due(&mut self, config: &Snapshot) {
        while self.running.len() < ATTEMPTS_MAX {
            let Some((subscription, event)) = self.queues.start_next() else { break };
            let Standing::Active(settings) = self.standings.of(subscription).clone() else {
                // The queue of a subscription that is not active gives nothing out.
                debug_assert!(false, "an attempt of an inactive subscription, version {}", config.version);
                self.queues.ended(subscription);
                continue;
            };
            let (buffer, attempter) = (self.buffer.clone(), self.attempter.clone());
            let of_subscription = self.attempted.entry(subscription).or_default();
            let earlier: Vec<(u64, CancellationToken)> =
                of_subscription.range(..event).map(|(event, ended)| (*event, ended.clone())).collect();
            let ended = CancellationToken::new();
            of_subscription.insert(event, ended.clone());
            let attempt = self.running.spawn(async move {
                // Cancelled also by a panic.
                let _ended = ended.drop_guard();
                let next = make_attempt(&buffer, &attempter, subscription, event, settings, earlier).await;
                Ended::Attempt { subscription, event, next }
            });
            self.deliveries.insert(attempt.id(), (subscription, event));
        }
    }

    /// Counts an attempt as no longer running.
    fn attempt_ended(&mut self, subscription: u32, event: u64) {
        self.queues.ended(subscription);
        if let Some(of_subscription) = self.attempted.get_mut(&subscription) {
            of_subscription.remove(&event);
            if of_subscription.is_empty() {
                self.attempted.remove(&subscription);
            }
        }
    }

    fn finish(&mut self, ended: Option<Result<(Id, Ended), JoinError>>, config: &Snapshot) {
        let (subscription, event, next) = match ended {
            Some(Ok((id, Ended::Attempt { subscription, event, next }))) => {
                self.deliveries.remove(&id);
                (subscription, event, next)
            }
            Some(Ok((_, Ended::Announced { subscription }))) => {
                self.standings.end_announcing(subscription);
                self.queues.set_mode(subscription, self.standings.mode(subscription));
                return self.forget_if_idle(subscription);
            }
            Some(Err(panic)) => {
                error!(error = &panic as &dyn std::error::Error, "failed to finish an attempt: it panicked");
                let Some((subscription, event)) = self.deliveries.remove(&panic.id()) else { return };
                (subscription, event, AfterAttempt::Wait(UNREADABLE_PAUSE))
            }
            None => return,
        };
        self.attempt_ended(subscription, event);
        let now = self.now_ms();
        match next {
            AfterAttempt::Settled => {}
            AfterAttempt::Wait(delay) => {
                let delay_ms = u64::try_from(delay.min(WAIT_MAX).as_millis()).unwrap_or(u64::MAX);
                match self.standings.of(subscription) {
                    Standing::Active(_) => {
                        self.queues.add(subscription, event, now.saturating_add(delay_ms), now);
                    }
                    Standing::Held | Standing::Deleted => self.announce(subscription, vec![event]),
                }
            }
            AfterAttempt::Gone(settings) => {
                info!(
                    gateway.instance.id = %settings.instance_id,
                    subscription = %settings.id,
                    "a destination answered 410; its deliveries are held"
                );
                self.standings.gone(subscription, Gone::of(&settings));
                self.evaluate(subscription, config);
                self.queues.add(subscription, event, now, now);
            }
        }
        self.forget_if_idle(subscription);
    }

    fn forget_if_idle(&mut self, subscription: u32) {
        if !self.standings.is_announcing(subscription) && self.queues.drop_if_idle(subscription) {
            self.standings.forget(subscription);
        }
    }
}

/// How long a time of the wall clock is away, as far as the clock can be believed: from here on only a clock
/// that does not jump counts, so that a jump costs each delivery at most one early attempt.
fn wait_until(due_ms: i64, wall_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(due_ms.saturating_sub(wall_ms)).unwrap_or(0)).min(WAIT_MAX)
}

/// Waits before the first attempt of what a contact decided until those of the contact's events before it have
/// ended, so that the message is known before what it means. All other deliveries wait for nothing.
async fn wait_for_earlier(
    buffer: &Buffer,
    subscription: u32,
    owed: &Owed,
    earlier: Vec<(u64, CancellationToken)>,
) {
    if owed.attempts > 0 || !owed.log.event.starts_with("recipient.") {
        return;
    }
    for (event, ended) in earlier {
        // One that is settled meanwhile, or cannot be read, is not waited for.
        if let Ok(Some(before)) = buffer.load(event, subscription).await
            && before.attempts == 0
            && is_same_contact(&before.log, &owed.log)
        {
            ended.cancelled().await;
        }
    }
}

fn is_same_contact(one: &v1::InboundLog, other: &v1::InboundLog) -> bool {
    let is_same = |one: &str, other: &str| !one.is_empty() && one == other;
    one.instance_id == other.instance_id
        && (is_same(&one.contact_user_id, &other.contact_user_id)
            || is_same(&one.from_phone, &other.from_phone))
}

/// Makes one attempt and records it. `earlier` are the attempts of earlier events that run.
async fn make_attempt(
    buffer: &Buffer,
    attempter: &Attempter,
    subscription: u32,
    event: u64,
    settings: Arc<SubscriptionConfig>,
    earlier: Vec<(u64, CancellationToken)>,
) -> AfterAttempt {
    let owed = match buffer.load(event, subscription).await {
        Ok(Some(owed)) => owed,
        Ok(None) => return AfterAttempt::Settled,
        Err(failure) => {
            debug!(error = &failure as &dyn std::error::Error, "failed to read an event; trying again");
            return AfterAttempt::Wait(UNREADABLE_PAUSE);
        }
    };
    wait_for_earlier(buffer, subscription, &owed, earlier).await;
    let outcome = attempter.attempt(event, subscription, &owed, &settings).await;
    let delay_ms = outcome.due_ms.map(|due_ms| due_ms.saturating_sub(clock::now().as_millisecond()));
    let state = outcome.state;
    buffer.settle(outcome).await;
    match state {
        DeliveryState::Held => AfterAttempt::Gone(settings),
        DeliveryState::Pending => {
            AfterAttempt::Wait(Duration::from_millis(u64::try_from(delay_ms.unwrap_or(0)).unwrap_or(0)))
        }
        _ => AfterAttempt::Settled,
    }
}
