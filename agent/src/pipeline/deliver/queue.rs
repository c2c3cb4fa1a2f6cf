//! What one subscription is owed, and which of it may be attempted when. Pure: times are milliseconds of a
//! clock that the caller brings and that never jumps.
//!
//! ```text
//!             due                 its turn
//!  waiting ────────▶ ready ──┬─────────────────▶ running ──▶ settled
//!     ▲                      │                      │
//!     │        held ─────────┘ 50 per second        │
//!     └─────────────────────────────────────────────┘ failed
//! ```
//!
//! What another agent is to make leaves from anywhere but from `running` ([`give`]).
//!
//! What was held while the subscription was paused goes out at a limited rate once it is not, in turns with what
//! is new, so that neither a destination that has just come back is flooded nor a new event has to wait for
//! the backlog. A subscription with a rate of its own drains at that rate.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
    num::NonZeroU32,
    time::Duration,
};

use super::{breaker::Breaker, order::Order, rate::Rate};

mod give;

use give::Patience;

/// An attempt that takes longer than this is slow: it may be about to hang.
pub(super) const SLOW_MS: u64 = 1_000;
/// From this size on, room that is not used any more is given back.
const SHRINK_LEN: usize = 4_096;

/// An open delivery, in 16 bytes: there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// The event's number.
    pub(super) event: u64,
    /// Hash of its contact; 0 when it has none.
    pub(super) contact: u32,
    /// Attempts made.
    pub(super) attempts: u16,
    /// Whether one of them was the quick retry.
    pub(super) had_quick: bool,
    /// Whether it is recorded as held, or about to be.
    pub(super) is_held: bool,
}

/// How deliveries of a subscription are attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Attempts that may run at once.
    pub(super) concurrency_max: usize,
    /// Attempts that may begin per second; none for no limit.
    pub(super) rate: Option<NonZeroU32>,
    /// For contacts in order: failed attempts after which a delivery holds its contact no longer.
    pub(super) ordering_attempts_max: Option<u32>,
}

/// What differs in tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// Time between probes of a destination whose breaker is open.
    pub(super) probe_interval: Duration,
    /// How many held deliveries begin per second, for a subscription without a rate of its own.
    pub(super) resume_per_second: NonZeroU32,
    /// How long what is due may wait for its turn before it is given away, and up to as much more.
    pub(super) give_patience: Duration,
}

/// So long something else may stand in the way of a due delivery: a rate, a breaker, those before it.
const GIVE_PATIENCE: Duration = Duration::from_secs(10);

impl Default for Tuning {
    fn default() -> Self {
        let resume_per_second = NonZeroU32::new(50).expect("50 is not 0");
        Self { probe_interval: Duration::from_secs(30), resume_per_second, give_patience: GIVE_PATIENCE }
    }
}

/// How the attempts of a subscription go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// The last one that ended was not slow, and those that run make progress.
    Quick,
    /// None ended yet, and those that run did not run for long.
    Unknown,
    /// The last one that ended was slow, or none ended for as long.
    Slow,
}

impl Pace {
    /// All, the best first.
    pub(super) const ALL: [Self; 3] = [Self::Quick, Self::Unknown, Self::Slow];
}

/// A delivery that is not due yet. The one that is due first is the greatest, as the heap wants it.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    due: u64,
    entry: Entry,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.entry.event).cmp(&(self.due, self.entry.event))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The queue of a subscription.
#[derive(Debug)]
pub(super) struct Queue {
    /// None while nothing of it may be attempted.
    limits: Option<Limits>,
    tuning: Tuning,
    running: Vec<u64>,
    /// Due, in the order in which they became so.
    ready: VecDeque<Entry>,
    waiting: BinaryHeap<Waiting>,
    /// Held, oldest first, or held before and not attempted since.
    held: VecDeque<Entry>,
    order: Option<Order>,
    breaker: Breaker,
    rate: Option<Rate>,
    resume: Rate,
    /// Whose turn it is when there are both held and new ones.
    is_turn_of_held: bool,
    /// When an attempt ended last, or began after none ran.
    progress: u64,
    /// Whether the last attempt that ended was not slow; none before the first.
    was_quick: Option<bool>,
    /// While deliveries are given away.
    patience: Option<Patience>,
}

impl Queue {
    /// Empty, with nothing allowed.
    pub(super) fn new(tuning: Tuning, now: u64) -> Self {
        Self {
            limits: None,
            tuning,
            running: Vec::new(),
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            held: VecDeque::new(),
            order: None,
            breaker: Breaker::new(tuning.probe_interval),
            rate: None,
            resume: Rate::new(tuning.resume_per_second, now),
            is_turn_of_held: false,
            progress: now,
            was_quick: None,
            patience: None,
        }
    }

    /// Uses these limits from now on; none stops it.
    pub(super) fn set_limits(&mut self, limits: Option<Limits>, now: u64) {
        self.limits = limits;
        let Some(limits) = limits else { return };
        if self.rate.as_ref().map(Rate::per_second) != limits.rate {
            self.rate = limits.rate.map(|rate| Rate::new(rate, now));
        }
        let resume_rate = limits.rate.unwrap_or(self.tuning.resume_per_second);
        if self.resume.per_second() != resume_rate {
            self.resume = Rate::new(resume_rate, now);
        }
        if self.order.as_ref().map(Order::attempts_max) != limits.ordering_attempts_max {
            self.reorder(limits.ordering_attempts_max);
        }
    }

    /// Attempts that run.
    pub(super) const fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// Whether an attempt of this event runs.
    pub(super) fn is_running(&self, event: u64) -> bool {
        self.running.contains(&event)
    }

    /// Events before this one that are attempted, oldest first.
    pub(super) fn running_before(&self, event: u64) -> Vec<u64> {
        let mut events: Vec<u64> = self.running.iter().copied().filter(|other| *other < event).collect();
        events.sort_unstable();
        events
    }

    /// Whether nothing is owed and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.ready.is_empty() && self.waiting.is_empty() && self.held.is_empty()
    }

    /// Whether it is to be kept even when it is idle: there are failures to remember.
    pub(super) const fn has_memory(&self) -> bool {
        self.limits.is_some() && !self.breaker.is_plain()
    }

    /// How its attempts go.
    pub(super) fn pace(&self, now: u64) -> Pace {
        let is_stuck = !self.running.is_empty() && now.saturating_sub(self.progress) > SLOW_MS;
        match self.was_quick {
            _ if is_stuck => Pace::Slow,
            None => Pace::Unknown,
            Some(true) => Pace::Quick,
            Some(false) => Pace::Slow,
        }
    }

    /// The breaker, to be told how an attempt went.
    pub(super) const fn breaker(&mut self) -> &mut Breaker {
        &mut self.breaker
    }

    /// Closes the breaker, whatever was before.
    pub(super) fn forget_failures(&mut self) {
        self.breaker = Breaker::new(self.tuning.probe_interval);
    }

    /// Adds a delivery that is due at `due`.
    pub(super) fn add(&mut self, entry: Entry, due: u64, now: u64) {
        if due <= now {
            self.ready.push_back(entry);
        } else if self.admit(entry) {
            self.waiting.push(Waiting { due, entry });
        }
    }

    /// Adds a delivery that is held, or was until now.
    pub(super) fn add_held(&mut self, mut entry: Entry) {
        entry.is_held = true;
        if self.admit(entry) {
            self.held.push_back(entry);
        }
    }

    /// Makes everything held, in the order of the events. Returns those that were not, or all.
    pub(super) fn hold_all(&mut self, all: bool) -> Vec<u64> {
        let entries = self.take_entries();
        let new = entries.iter().filter(|entry| all || !entry.is_held).map(|entry| entry.event).collect();
        entries.into_iter().for_each(|entry| self.add_held(entry));
        new
    }

    /// Takes everything out that does not run, in the order of the events.
    pub(super) fn take_all(&mut self) -> Vec<u64> {
        self.take_entries().into_iter().map(|entry| entry.event).collect()
    }

    fn take_entries(&mut self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = std::mem::take(&mut self.held).into();
        entries.extend(std::mem::take(&mut self.ready));
        entries.extend(std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.entry));
        if let Some(order) = &mut self.order {
            order.take_behind(&self.running, &mut entries);
        }
        entries.sort_unstable_by_key(|entry| entry.event);
        entries
    }

    /// Puts everything into another order, or none. What runs counts as without contact.
    fn reorder(&mut self, attempts_max: Option<u32>) {
        let mut waiting = std::mem::take(&mut self.waiting).into_vec();
        let held = std::mem::take(&mut self.held);
        if let Some(order) = &mut self.order {
            let mut ready: Vec<Entry> = std::mem::take(&mut self.ready).into();
            order.take_behind(&[], &mut ready);
            ready.sort_unstable_by_key(|entry| entry.event);
            self.ready = ready.into();
        }
        self.order = attempts_max.map(Order::new);
        waiting.sort_unstable_by_key(|waiting| waiting.entry.event);
        for waiting in waiting {
            if self.admit(waiting.entry) {
                self.waiting.push(waiting);
            }
        }
        held.into_iter().for_each(|entry| self.add_held(entry));
    }

    fn admit(&mut self, entry: Entry) -> bool {
        self.order.as_mut().is_none_or(|order| order.admit(entry))
    }

    /// Lets the next delivery of its contact go on, if `entry` is settled or parked.
    pub(super) fn release(&mut self, entry: Entry) {
        let Some(next) = self.order.as_mut().and_then(|order| order.release(entry)) else { return };
        if next.is_held {
            self.held.push_front(next);
        } else {
            self.ready.push_front(next);
        }
    }

    /// Lets the contact of a delivery go on if that one failed so often that it is parked.
    pub(super) fn release_if_parked(&mut self, entry: Entry) {
        if self.order.as_ref().is_some_and(|order| order.is_free(entry)) {
            self.release(entry);
        }
    }

    /// Makes ready what is due.
    pub(super) fn wake(&mut self, now: u64) {
        while self.waiting.peek().is_some_and(|waiting| waiting.due <= now) {
            self.ready.extend(self.waiting.pop().map(|waiting| waiting.entry));
        }
        if self.waiting.capacity() > SHRINK_LEN && self.waiting.len() < self.waiting.capacity() / 4 {
            self.waiting.shrink_to(self.waiting.len() * 2);
        }
    }

    /// When the first of those that wait is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.waiting.peek().map(|waiting| waiting.due)
    }

    /// When an attempt may start. None when there is nothing to attempt, or nothing may be before one ends.
    pub(super) fn start_at(&mut self, now: u64) -> Option<u64> {
        let limits = self.limits?;
        if self.running.len() >= limits.concurrency_max.min(self.breaker.allowed()) {
            return None;
        }
        let there = match (self.ready.is_empty(), self.held.is_empty()) {
            (false, _) => now,
            (true, false) => self.resume.free_at(now),
            (true, true) => return None,
        };
        let rate = self.rate.as_mut().map_or(now, |rate| rate.free_at(now));
        Some(there.max(rate).max(self.breaker.free_at()))
    }

    /// The next delivery to attempt, when [`Self::start_at`] allows it. It counts as running until
    /// [`Self::ended`]. None when all that is there waits for others of its contact.
    pub(super) fn start(&mut self, now: u64) -> Option<Entry> {
        let entry = self.next_entry(now)?;
        if let Some(rate) = &mut self.rate {
            rate.take(now);
        }
        self.breaker.started(now, rand::random());
        if self.running.is_empty() {
            self.progress = now;
        }
        self.running.push(entry.event);
        Some(entry)
    }

    fn next_entry(&mut self, now: u64) -> Option<Entry> {
        loop {
            let may_resume = !self.held.is_empty() && self.resume.free_at(now) <= now;
            let from_held = may_resume && (self.is_turn_of_held || self.ready.is_empty());
            let entry = pop(if from_held { &mut self.held } else { &mut self.ready })?;
            if let Some(patience) = &mut self.patience {
                patience.started(from_held);
            }
            if !self.admit(entry) {
                continue;
            }
            if from_held {
                self.resume.take(now);
            }
            self.is_turn_of_held = !from_held;
            return Some(entry);
        }
    }

    /// The attempt of an event ended, after this many milliseconds; none when nothing was sent.
    pub(super) fn ended(&mut self, event: u64, took: Option<u64>, now: u64) {
        if let Some(place) = self.running.iter().position(|other| *other == event) {
            self.running.swap_remove(place);
        }
        self.progress = now;
        self.was_quick = took.map(|took| took <= SLOW_MS).or(self.was_quick);
    }
}

/// Takes the first out, and gives back room that a backlog needed once.
fn pop(queue: &mut VecDeque<Entry>) -> Option<Entry> {
    let entry = queue.pop_front();
    if queue.capacity() > SHRINK_LEN && queue.len() < queue.capacity() / 4 {
        queue.shrink_to(queue.len() * 2);
    }
    entry
}

#[cfg(test)]
mod tests;
