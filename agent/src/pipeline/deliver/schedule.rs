//! All that the deliverer knows, behind one lock: the queues and where their subscriptions stand. Nothing here
//! waits; whoever holds the lock decides and lets go.

use std::{collections::HashSet, sync::Arc, time::Duration};

use gateway_core::{
    delivery::DeliveryState,
    snapshot::{Snapshot, SubscriptionConfig, SubscriptionLookup},
};
use jiff::Timestamp;

use crate::pipeline::buffer::OpenDelivery;

use super::{
    outcome,
    queue::{Entry, Queue, Tuning},
    standing::{Standing, Standings},
    turns::Turns,
};

/// An attempt to make. It counts as running until [`Schedule::finish`].
pub(super) struct Start {
    pub(super) subscription: u32,
    pub(super) entry: Entry,
    /// As they were when it was handed out.
    pub(super) settings: Arc<SubscriptionConfig>,
    /// Which settings they were, counting the configurations.
    pub(super) generation: u64,
}

/// How an attempt ended.
pub(super) struct Done {
    pub(super) next: Next,
    pub(super) health: Health,
    /// How long it took; none when nothing was sent.
    pub(super) took: Option<Duration>,
}

/// What follows for the delivery.
pub(super) enum Next {
    /// Nothing: it is settled.
    Settled,
    /// It is due again after this long.
    Wait(Duration),
    /// The destination is gone; the delivery is recorded as held.
    Gone(Used),
}

/// With what an attempt was made.
pub(super) struct Used {
    pub(super) settings: Arc<SubscriptionConfig>,
    /// The configuration now.
    pub(super) config: Arc<Snapshot>,
}

/// What the attempt says about the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing: none was needed, or it was not begun.
    Unknown,
    /// Nothing: it could not be made, for a cause on this machine.
    Unmade,
    /// It works.
    Good,
    /// It does not.
    Bad,
    /// It asks for fewer requests, perhaps for as long.
    Busy(Option<Duration>),
}

/// Deliveries whose new state is to be recorded in the buffer.
#[derive(Debug)]
pub(super) struct ToRecord {
    pub(super) subscription: u32,
    pub(super) events: Vec<u64>,
    pub(super) state: DeliveryState,
}

/// What the deliverer knows. Times are milliseconds of a clock that never jumps, but for the due times of the
/// buffer.
pub(super) struct Schedule {
    turns: Turns,
    standings: Standings,
    /// Counts the configurations that were looked at.
    generation: u64,
    /// Subscriptions that were resumed before all their deliveries were recorded as held.
    unrecorded: HashSet<u32>,
    /// Up to when nobody looks at the timers.
    asleep_until: u64,
    /// Attempts that wait until an earlier one has ended.
    waiting_for_others: usize,
    is_stopping: bool,
}

impl Schedule {
    pub(super) fn new(tuning: Tuning) -> Self {
        Self {
            turns: Turns::new(tuning),
            standings: Standings::default(),
            generation: 0,
            unrecorded: HashSet::new(),
            asleep_until: 0,
            waiting_for_others: 0,
            is_stopping: false,
        }
    }

    /// Whether the subscription was evaluated.
    pub(super) fn knows(&self, subscription: u32) -> bool {
        self.turns.has(subscription)
    }

    /// Looks up what a configuration says about a subscription, and brings its queue into line.
    pub(super) fn evaluate(
        &mut self,
        subscription: u32,
        lookup: SubscriptionLookup<'_>,
        now: u64,
    ) -> Option<ToRecord> {
        let before = self.standings.of(subscription).clone();
        let after = self.standings.evaluate(subscription, lookup);
        self.turns.set_limits(subscription, after.limits(), now);
        if !before.is_same(&after) {
            // Somebody acted: what failed before may work now.
            self.turns.change(subscription, now, Queue::forget_failures);
        }
        if before.is_same_kind(&after) {
            return None;
        }
        match after {
            Standing::Active(_) => None,
            Standing::Held => {
                let all = self.unrecorded.remove(&subscription);
                let events = self.turns.change(subscription, now, |queue| queue.hold_all(all))?;
                to_record(subscription, events, DeliveryState::Held)
            }
            Standing::Deleted => {
                let events = self.turns.change(subscription, now, Queue::take_all)?;
                to_record(subscription, events, DeliveryState::Cancelled)
            }
        }
    }

    /// All subscriptions were evaluated anew: attempts that have not begun look their settings up again.
    pub(super) const fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Subscriptions that are, or just were, owed something.
    pub(super) fn subscriptions(&self) -> Vec<u32> {
        self.turns.subscriptions()
    }

    /// Takes over a delivery of the buffer. Its subscription was evaluated. Says as what it is to be recorded,
    /// if so.
    pub(super) fn take(
        &mut self,
        delivery: &OpenDelivery,
        now: u64,
        wall: Timestamp,
    ) -> Option<DeliveryState> {
        let subscription = delivery.subscription;
        let entry = Entry {
            event: delivery.event,
            contact: delivery.contact,
            attempts: delivery.attempts,
            had_quick: outcome::had_quick(delivery),
            is_held: delivery.held,
        };
        match self.standings.of(subscription) {
            Standing::Deleted => return Some(DeliveryState::Cancelled),
            Standing::Active(settings) if !delivery.held => {
                let wait = outcome::wait(delivery, &settings.retry_schedule, wall);
                self.turns.add(subscription, entry, now.saturating_add(millis(wait)), now);
            }
            Standing::Active(_) | Standing::Held => {
                self.turns.change(subscription, now, |queue| queue.add_held(entry));
            }
        }
        let is_held = matches!(self.standings.of(subscription), Standing::Held);
        (is_held && !delivery.held).then_some(DeliveryState::Held)
    }

    /// The next attempt to make, if there is one and a slot for it.
    pub(super) fn start(&mut self, now: u64) -> Option<Start> {
        if self.is_stopping {
            return None;
        }
        loop {
            let (subscription, entry) = self.turns.start_next(now)?;
            if let Standing::Active(settings) = self.standings.of(subscription) {
                let settings = Arc::clone(settings);
                return Some(Start { subscription, entry, settings, generation: self.generation });
            }
            // The queue of a subscription that is not active gives nothing out.
            debug_assert!(false, "an attempt of an inactive subscription");
            self.turns.ended(subscription, entry.event, None, now);
            self.turns.change(subscription, now, |queue| queue.add_held(entry));
        }
    }

    /// The settings with which to make an attempt that is about to begin; none when it may not begin any more.
    pub(super) fn settings(&self, subscription: u32) -> Option<Arc<SubscriptionConfig>> {
        match self.standings.of(subscription) {
            Standing::Active(settings) => Some(Arc::clone(settings)),
            Standing::Held | Standing::Deleted => None,
        }
    }

    /// An attempt ended. Says what is to be recorded beside its outcome.
    pub(super) fn finish(
        &mut self,
        subscription: u32,
        entry: Entry,
        done: Done,
        now: u64,
    ) -> Option<ToRecord> {
        self.turns.ended(subscription, entry.event, done.took.map(millis), now);
        let standing = self.standings.of(subscription).clone();
        let state = self.turns.change(subscription, now, |queue| {
            tell(queue, done.health, now);
            match (&done.next, standing) {
                (Next::Settled, _) => queue.release(entry),
                (Next::Gone(_), _) => queue.add_held(entry),
                (Next::Wait(delay), Standing::Active(_)) => {
                    queue.release_if_parked(entry);
                    queue.add(entry, now.saturating_add(millis(*delay)), now);
                }
                (Next::Wait(_), Standing::Held) => {
                    queue.add_held(entry);
                    return (!entry.is_held).then_some(DeliveryState::Held);
                }
                (Next::Wait(_), Standing::Deleted) => {
                    queue.release(entry);
                    return Some(DeliveryState::Cancelled);
                }
            }
            None
        });
        match (done.next, state.flatten()) {
            (Next::Gone(used), _) => {
                let Used { settings, config } = used;
                let id = settings.id.clone();
                self.standings.gone(subscription, settings);
                self.evaluate(subscription, config.look_up_subscription(id.as_str()), now)
            }
            (_, Some(state)) => to_record(subscription, vec![entry.event], state),
            (_, None) => None,
        }
    }

    /// Whether a state is still to be recorded for all deliveries that were noted for it. If not, those that
    /// were not recorded are remembered.
    pub(super) fn goes_on(&mut self, to_record: &ToRecord) -> bool {
        let goes_on = match self.standings.of(to_record.subscription) {
            Standing::Active(_) => to_record.state != DeliveryState::Held,
            Standing::Held | Standing::Deleted => true,
        };
        if !goes_on {
            self.unrecorded.insert(to_record.subscription);
        }
        goes_on
    }

    /// Makes ready what is due, and forgets what nobody needs.
    pub(super) fn wake(&mut self, now: u64) {
        self.turns.wake(now);
        for subscription in self.turns.sweep(now) {
            self.standings.forget(subscription);
            self.unrecorded.remove(&subscription);
        }
    }

    /// Takes out what another agent is to make now, so many at most: subscription and delivery. Others may have become
    /// due by it: see [`Self::needs_waking`].
    pub(super) fn give_away(&mut self, max: usize, now: u64) -> Vec<(u32, Entry)> {
        self.turns.give_away(max, now)
    }

    /// Nothing is given away any more.
    pub(super) fn keep(&mut self) {
        self.turns.keep();
    }

    /// Until when whoever looks at the timers may sleep, unless [`Self::needs_waking`]; none for ever.
    pub(super) fn fall_asleep(&mut self) -> Option<u64> {
        let next_due = self.turns.next_due();
        self.asleep_until = next_due.unwrap_or(u64::MAX);
        next_due
    }

    /// Whether there is something to start that nobody starts, or a timer before the one that is waited for.
    pub(super) fn needs_waking(&self) -> bool {
        !self.is_stopping
            && (self.turns.has_next() || self.turns.next_due().is_some_and(|due| due < self.asleep_until))
    }

    /// Events of a subscription before this one that are attempted now.
    pub(super) fn running_before(&self, subscription: u32, event: u64) -> Vec<u64> {
        self.turns.queue(subscription).map(|queue| queue.running_before(event)).unwrap_or_default()
    }

    /// Whether an attempt runs.
    pub(super) fn is_running(&self, subscription: u32, event: u64) -> bool {
        self.turns.queue(subscription).is_some_and(|queue| queue.is_running(event))
    }

    /// Attempts that wait until an earlier one has ended.
    pub(super) const fn waiting_for_others(&mut self) -> &mut usize {
        &mut self.waiting_for_others
    }

    /// Attempts that run.
    pub(super) const fn in_flight(&self) -> usize {
        self.turns.in_flight()
    }

    /// Starts nothing more.
    pub(super) const fn stop(&mut self) {
        self.is_stopping = true;
    }
}

fn tell(queue: &mut Queue, health: Health, now: u64) {
    match health {
        Health::Unknown => {}
        // A backlog is not run through in vain.
        Health::Unmade => queue.breaker().pause(now, None),
        Health::Good => queue.breaker().succeeded(),
        Health::Bad => queue.breaker().failed(now, rand::random()),
        Health::Busy(asked) => {
            queue.breaker().failed(now, rand::random());
            queue.breaker().slow_down(now, asked);
        }
    }
}

fn to_record(subscription: u32, events: Vec<u64>, state: DeliveryState) -> Option<ToRecord> {
    (!events.is_empty()).then_some(ToRecord { subscription, events, state })
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
