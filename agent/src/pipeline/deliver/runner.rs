//! Makes attempts, one after the other, as long as there is a next one. A runner that ends an attempt takes the
//! next delivery itself: under load nobody has to be woken in between.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gateway_core::{delivery::DeliveryState, snapshot::SubscriptionConfig};
use gateway_proto::v1;
use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};
use tracing::{debug, info};

use crate::{
    pipeline::buffer::{Buffer, Outcome, Owed},
    snapshot::SnapshotHandle,
};

use super::{
    attempt::{Attempter, Verdict},
    outcome::{self, Decision},
    queue::Entry,
    schedule::{Done, Health, Next, Schedule, Start, ToRecord, Used},
};

/// How long to wait with a delivery that cannot be read from disk.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);
/// So many deliveries are recorded as held before it is looked whether they still are.
const RECORD_AT_ONCE: usize = 256;

/// Says what time it is.
pub(super) type WallClock = fn() -> Timestamp;

/// What all runners share.
pub(super) struct Runner {
    pub(super) buffer: Buffer,
    pub(super) snapshot: SnapshotHandle,
    attempter: Attempter,
    wall: WallClock,
    /// Where the clock of the schedule begins.
    origin: Instant,
    schedule: Mutex<Schedule>,
    generation: AtomicU64,
    /// Wakes whoever looks at the timers.
    pub(super) wake: Notify,
    /// Wakes attempts that wait for others.
    ended: Notify,
}

impl Runner {
    pub(super) fn new(
        buffer: Buffer,
        snapshot: SnapshotHandle,
        attempter: Attempter,
        wall: WallClock,
        schedule: Schedule,
    ) -> Self {
        Self {
            buffer,
            snapshot,
            attempter,
            wall,
            origin: Instant::now(),
            schedule: Mutex::new(schedule),
            generation: AtomicU64::new(0),
            wake: Notify::new(),
            ended: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds on a clock that never jumps.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The time by the wall clock.
    pub(super) fn wall(&self) -> Timestamp {
        (self.wall)()
    }

    /// The instant of a time of [`Self::now`].
    pub(super) fn instant(&self, at: u64) -> Instant {
        self.origin + Duration::from_millis(at)
    }

    /// Looks at the configuration again.
    pub(super) fn evaluate_all(&self) -> Vec<ToRecord> {
        let config = self.snapshot.load();
        let subscriptions = self.lock().subscriptions();
        let mut to_record = Vec::new();
        for subscription in subscriptions {
            let id = self.buffer.subscription_id(subscription);
            let lookup = config.look_up_subscription(id.as_str());
            to_record.extend(self.lock().evaluate(subscription, lookup, self.now()));
        }
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.lock().set_generation(generation);
        to_record
    }

    /// Makes attempts until there is none to make.
    pub(super) async fn run(self: Arc<Self>, first: Start) {
        let mut next = Some(first);
        while let Some(start) = next {
            let mut claim = Claim { runner: &self, start, is_open: true };
            let (entry, done) = self.attempt(&claim.start).await;
            claim.is_open = false;
            let (to_record, started) = self.finish(claim.start.subscription, entry, done);
            next = match to_record {
                Some(to_record) => {
                    self.record(to_record).await;
                    self.start()
                }
                None => started,
            };
        }
    }

    /// Ends an attempt and begins the next, unless something has to be recorded before.
    fn finish(&self, subscription: u32, entry: Entry, mut done: Done) -> (Option<ToRecord>, Option<Start>) {
        let now = self.now();
        let mut schedule = self.lock();
        if let Next::Gone(used) = &mut done.next {
            // Recording took a while. A newer one that was looked at since must not be undone by an older one.
            used.config = self.snapshot.load();
        }
        let to_record = schedule.finish(subscription, entry, done, now);
        let next = if to_record.is_none() { schedule.start(now) } else { None };
        if *schedule.waiting_for_others() > 0 {
            self.ended.notify_waiters();
        }
        if schedule.needs_waking() {
            self.wake.notify_one();
        }
        (to_record, next)
    }

    fn start(&self) -> Option<Start> {
        self.lock().start(self.now())
    }

    /// Records deliveries as held or cancelled. Ends early when they are not held any more.
    pub(super) async fn record(&self, to_record: ToRecord) {
        let (subscription, state) = (to_record.subscription, to_record.state);
        for events in to_record.events.chunks(RECORD_AT_ONCE) {
            if !self.lock().goes_on(&to_record) {
                return;
            }
            for event in events {
                let outcome =
                    Outcome { event: *event, subscription, state, due_ms: None, attempt: None, gone: None };
                self.buffer.settle(outcome).await;
            }
        }
    }

    /// Makes one attempt and records it.
    async fn attempt(&self, start: &Start) -> (Entry, Done) {
        let (subscription, mut entry) = (start.subscription, start.entry);
        let unmade = |delay| Done { next: Next::Wait(delay), health: Health::Unmade, took: None };
        let owed = match self.buffer.load(entry.event, subscription).await {
            Ok(Some(owed)) => owed,
            Ok(None) => return (entry, Done { next: Next::Settled, health: Health::Unknown, took: None }),
            Err(failure) => {
                debug!(error = &failure as &dyn std::error::Error, "failed to read an event; trying again");
                return (entry, unmade(UNREADABLE_PAUSE));
            }
        };
        if owed.attempts == 0 && owed.log.event.starts_with("recipient.") {
            self.wait_for_earlier(subscription, entry.event, &owed.log).await;
        }
        // Paused meanwhile: then it is held.
        let Some(settings) = self.settings(start) else {
            return (entry, Done { next: Next::Wait(Duration::ZERO), health: Health::Unknown, took: None });
        };
        let begun = Instant::now();
        let made = self.attempter.attempt(&owed, &settings).await;
        let took = Some(begun.elapsed());

        let number = made.attempt.attempt_number;
        let schedule = &settings.retry_schedule;
        let gives_away = self.gives_away();
        let decision = outcome::decide(&made.verdict, number, entry.had_quick, schedule, rand::random());
        let health = health(&made.verdict);
        let next = match decision {
            Decision::Unmade { delay } => {
                debug!(error = made.attempt.error, "failed to make an attempt; trying again");
                return (entry, unmade(delay));
            }
            Decision::Delivered | Decision::Exhausted => Next::Settled,
            Decision::Gone => {
                note_gone(&settings);
                Next::Gone(Used { settings: Arc::clone(&settings), config: self.snapshot.load() })
            }
            Decision::Again { delay, is_quick } => {
                entry.had_quick |= is_quick;
                if gives_away { Next::Settled } else { Next::Wait(delay) }
            }
        };
        entry.attempts = u16::try_from(number).unwrap_or(u16::MAX);
        entry.is_held = false;
        let outcome = outcome::outcome(decision, made, subscription, entry, &settings, self.wall());
        if let Some(mut outcome) = outcome {
            if matches!(next, Next::Settled) {
                outcome.state = outcome.state.given_away();
            }
            self.buffer.settle(outcome).await;
        }
        (entry, Done { next, health, took })
    }

    /// Whether what fails goes to another agent: this one drains, and few enough hand-overs are on their way.
    pub(super) fn gives_away(&self) -> bool {
        self.snapshot.drain().hands_over() && self.buffer.may_hand_over()
    }

    /// The newest settings for an attempt that is about to begin; none when it may not begin any more.
    fn settings(&self, start: &Start) -> Option<Arc<SubscriptionConfig>> {
        if start.generation == self.generation.load(Ordering::Acquire) {
            return Some(Arc::clone(&start.settings));
        }
        self.lock().settings(start.subscription)
    }

    /// Waits before the first attempt of what a contact decided until those of the contact's events before it
    /// have ended, so that the message is known before what it means. All other deliveries wait for nothing.
    async fn wait_for_earlier(&self, subscription: u32, event: u64, log: &v1::InboundLog) {
        let earlier = self.lock().running_before(subscription, event);
        for event in earlier {
            // One that is settled meanwhile, or cannot be read, is not waited for.
            if let Ok(Some(before)) = self.buffer.load(event, subscription).await
                && before.attempts == 0
                && is_same_contact(&before, log)
            {
                self.wait_for(subscription, event).await;
            }
        }
    }

    /// Waits until an attempt has ended.
    async fn wait_for(&self, subscription: u32, event: u64) {
        let _waiting = Waiting::begin(self);
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // From here on no end is missed.
            ended.as_mut().enable();
            if !self.lock().is_running(subscription, event) {
                return;
            }
            ended.await;
        }
    }
}

/// Counts an attempt that waits for others, so that nobody is woken when there is none.
struct Waiting<'a>(&'a Runner);

impl<'a> Waiting<'a> {
    fn begin(runner: &'a Runner) -> Self {
        *runner.lock().waiting_for_others() += 1;
        Self(runner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.lock().waiting_for_others() -= 1;
    }
}

/// An attempt that runs. Not even a panic loses its delivery.
struct Claim<'a> {
    runner: &'a Runner,
    start: Start,
    is_open: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let Start { subscription, entry, .. } = self.start;
            let done = Done { next: Next::Wait(UNREADABLE_PAUSE), health: Health::Unknown, took: None };
            // It is recorded as it was before; whoever looks at the timers goes on.
            drop(self.runner.lock().finish(subscription, entry, done, self.runner.now()));
            self.runner.wake.notify_one();
        }
    }
}

const fn health(verdict: &Verdict) -> Health {
    match *verdict {
        Verdict::Delivered => Health::Good,
        Verdict::Gone => Health::Unknown,
        Verdict::Failed { ours: true, .. } => Health::Unmade,
        Verdict::Failed { slow_down: true, retry_after, .. } => Health::Busy(retry_after),
        Verdict::Failed { .. } => Health::Bad,
    }
}

fn note_gone(settings: &SubscriptionConfig) {
    info!(
        gateway.instance.id = %settings.instance_id,
        subscription = %settings.id,
        "a destination answered 410; its deliveries are held"
    );
}

fn is_same_contact(before: &Owed, log: &v1::InboundLog) -> bool {
    let is_same = |one: &str, other: &str| !one.is_empty() && one == other;
    before.log.instance_id == log.instance_id
        && (is_same(&before.log.contact_user_id, &log.contact_user_id)
            || is_same(&before.log.from_phone, &log.from_phone))
}

/// Deliveries to be recorded as held or cancelled, collected by subscription.
pub(super) fn collect(to_record: &mut Vec<ToRecord>, subscription: u32, event: u64, state: DeliveryState) {
    let known =
        to_record.iter_mut().rev().find(|known| known.subscription == subscription && known.state == state);
    match known {
        Some(known) => known.events.push(event),
        None => to_record.push(ToRecord { subscription, events: vec![event], state }),
    }
}
