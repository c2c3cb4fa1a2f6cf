//! Delivers what is in the buffer: each event to each of its subscriptions, until the destination takes it
//! or the schedule ends.
//!
//! ```text
//!  buffer ──▶ Deliverer ──▶ Schedule ◀──▶ Runner ──▶ Attempter ──▶ destination
//!             new events,   turns, one     at most      dials out only
//!             timers,       queue per      512          through `dial`
//!             configuration subscription     └──▶ buffer: what became of it
//! ```
//!
//! [`schedule`] knows everything and waits for nothing: which delivery is next ([`turns`], [`queue`]), whether
//! its destination works ([`breaker`]), is to be spared ([`rate`]), wants its contacts in order ([`order`]), and
//! whether its subscription is active, paused or gone ([`standing`]). A [`runner`] makes attempts ([`attempt`])
//! one after the other, decides what follows ([`outcome`]), and ends when there is none to make. One task
//! ([`Deliverer::run`]) looks after the rest: new deliveries, timers, and changes of the configuration. While the
//! agent drains, one more gives away what cannot be made now ([`give`]).

use std::{sync::Arc, time::Duration};

use gateway_core::destination::AddressPolicy;
use gateway_runtime::clock;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{control_plane::Identity, metrics::Metrics, snapshot::SnapshotHandle};

use super::buffer::{Buffer, OpenDelivery};

mod schedule;
mod turns;
mod queue;
mod breaker;
mod rate;
mod order;
mod standing;
mod runner;
mod give;
mod outcome;
mod dial;
mod failure;
mod attempt;
#[cfg(test)]
mod tests;

pub use dial::ClientError;

use attempt::Attempter;
use queue::Tuning;
use runner::{Runner, WallClock, collect};
use schedule::{Schedule, Start, ToRecord};

/// How long attempts that run may go on at the end. What does not end is attempted again after the start.
const DRAIN: Duration = Duration::from_secs(5);
/// Deliveries that are taken over, or attempts that are started, before others get the lock.
const AT_ONCE: usize = 512;
/// Longest sleep, when there is no timer.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

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
    runner: Arc<Runner>,
    /// Runners, and those who record what is held.
    tasks: JoinSet<()>,
    starts: Vec<Start>,
}

impl Deliverer {
    /// A deliverer for what is in `buffer`, by the configuration of `snapshot`. It is made inside the runtime.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        config: Config,
        snapshot: SnapshotHandle,
        buffer: Buffer,
        metrics: Metrics,
    ) -> Result<Self, ClientError> {
        let attempter = Attempter::new(config.address_policy, &config.agent_id, metrics)?;
        Ok(Self::with(attempter, snapshot, buffer, clock::now, Tuning::default()))
    }

    fn with(
        attempter: Attempter,
        snapshot: SnapshotHandle,
        buffer: Buffer,
        wall: WallClock,
        tuning: Tuning,
    ) -> Self {
        let runner = Runner::new(buffer, snapshot, attempter, wall, Schedule::new(tuning));
        Self { runner: Arc::new(runner), tasks: JoinSet::new(), starts: Vec::new() }
    }

    /// Delivers until `stop`. Attempts that run then have a few seconds to end.
    ///
    /// # Errors
    /// Never; the result is for the supervisor.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let runner = Arc::clone(&self.runner);
        let mut changed = runner.snapshot.changed();
        while !runner.snapshot.is_ready() {
            tokio::select! {
                _ = changed.changed() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        self.tasks.spawn(give::give_away(Arc::clone(&runner), stop.clone()));
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        loop {
            self.take_new().await;
            self.start_due();
            self.reap();
            let wake_at = self.fall_asleep();
            if timer.deadline() != wake_at {
                timer.as_mut().reset(wake_at);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                _ = changed.changed() => {
                    let to_record = runner.evaluate_all();
                    self.record(to_record);
                }
                () = runner.wake.notified() => {}
                () = runner.buffer.new_deliveries() => {}
                () = &mut timer => {}
            }
        }
        self.drain().await;
        Ok(())
    }

    /// Lets what runs end, for a while.
    async fn drain(mut self) {
        self.runner.lock().stop();
        // Cancel safe: what does not end is attempted again after the next start.
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all_ended).await.is_err() {
            let count = self.runner.lock().in_flight();
            info!(count, "stopping with attempts unfinished; they will be repeated");
        }
    }

    fn fall_asleep(&self) -> Instant {
        let far = Instant::now() + SLEEP_MAX;
        let next_due = self.runner.lock().fall_asleep();
        next_due.map_or(far, |due| self.runner.instant(due).min(far))
    }

    /// Takes over deliveries that the buffer has for us. The first of many are attempted before the last are
    /// taken.
    async fn take_new(&mut self) {
        let deliveries = self.runner.buffer.take_new_deliveries();
        let mut chunks = deliveries.chunks(AT_ONCE).peekable();
        while let Some(chunk) = chunks.next() {
            let to_record = self.take(chunk);
            self.record(to_record);
            if chunks.peek().is_some() {
                self.start_due();
                tokio::task::yield_now().await;
            }
        }
    }

    fn take(&self, deliveries: &[OpenDelivery]) -> Vec<ToRecord> {
        let runner = &*self.runner;
        let (config, now, wall) = (runner.snapshot.load(), runner.now(), runner.wall());
        let mut to_record = Vec::new();
        let mut schedule = runner.lock();
        for delivery in deliveries {
            let subscription = delivery.subscription;
            if !schedule.knows(subscription) {
                let id = runner.buffer.subscription_id(subscription);
                schedule.evaluate(subscription, config.look_up_subscription(id.as_str()), now);
            }
            if let Some(state) = schedule.take(delivery, now, wall) {
                collect(&mut to_record, subscription, delivery.event, state);
            }
        }
        to_record
    }

    /// Records deliveries as held or cancelled, beside everything else.
    fn record(&mut self, to_record: Vec<ToRecord>) {
        for to_record in to_record {
            let runner = Arc::clone(&self.runner);
            self.tasks.spawn(async move { runner.record(to_record).await });
        }
    }

    /// Starts what is due, as far as the limits allow.
    fn start_due(&mut self) {
        loop {
            let now = self.runner.now();
            let mut schedule = self.runner.lock();
            schedule.wake(now);
            self.starts.extend(std::iter::from_fn(|| schedule.start(now)).take(AT_ONCE));
            drop(schedule);
            if self.starts.is_empty() {
                return;
            }
            for start in self.starts.drain(..) {
                self.tasks.spawn(Arc::clone(&self.runner).run(start));
            }
        }
    }

    /// Lets go of tasks that have ended.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(panic) = ended {
                error!(error = &panic as &dyn std::error::Error, "failed to finish an attempt: it panicked");
            }
        }
    }
}
