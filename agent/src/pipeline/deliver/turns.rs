//! Whose delivery is next: a turn for each subscription in order, so that none waits for another, and slots
//! that no destination can use up. Pure: times are milliseconds of a clock that the caller brings and that
//! never jumps.
//!
//! There are [`ATTEMPTS_MAX`] slots, one for each attempt that runs. A destination that hangs keeps its slots
//! until its attempts time out, and a hundred of them could keep all. So a subscription gets at most a share of
//! the slots that are free, at least one: the fewer are left, the less anybody may take of them. And the last
//! slots are not for everybody. Both depend on how the attempts of the subscription go ([`Pace`]):
//!
//! | attempts | most at once | slots left to others |
//! |---|---|---|
//! | end quickly | a quarter of the free slots | none |
//! | none ended yet | 64 when all slots are free, 16 when half, 4 when a quarter are | 64 |
//! | are slow | the same | 128 |
//!
//! Who is refused a slot gets the next turn when an attempt has ended.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::queue::{Entry, Limits, Pace, Queue, Tuning};

/// Attempts that run at once over all subscriptions. When there are as many, deliveries wait for their turn.
pub(super) const ATTEMPTS_MAX: usize = 512;
/// A queue with nothing in it is kept as long, and up to as much more, for what it knows about its destination.
pub(super) const IDLE_KEPT_MS: u64 = 60_000;

/// Where a subscription stands in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Turn {
    #[default]
    None,
    InLine,
    /// There was no slot for it.
    Refused,
}

struct Place {
    queue: Queue,
    turn: Turn,
    timer: Option<u64>,
    was_used: bool,
}

/// The queues of all subscriptions that are, or just were, owed something.
pub(super) struct Turns {
    tuning: Tuning,
    places: HashMap<u32, Place>,
    line: VecDeque<u32>,
    /// Those for whom there was no slot, by their pace.
    refused: [VecDeque<u32>; Pace::ALL.len()],
    timers: BTreeSet<(u64, u32)>,
    in_flight: usize,
    sweep_at: u64,
}

impl Turns {
    pub(super) fn new(tuning: Tuning) -> Self {
        Self {
            tuning,
            places: HashMap::new(),
            line: VecDeque::new(),
            refused: Default::default(),
            timers: BTreeSet::new(),
            in_flight: 0,
            sweep_at: IDLE_KEPT_MS,
        }
    }

    /// Whether the subscription has a queue.
    pub(super) fn has(&self, subscription: u32) -> bool {
        self.places.contains_key(&subscription)
    }

    /// Subscriptions that have a queue.
    pub(super) fn subscriptions(&self) -> Vec<u32> {
        self.places.keys().copied().collect()
    }

    /// Attempts that run.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether somebody stands in line.
    pub(super) fn has_next(&self) -> bool {
        !self.line.is_empty()
    }

    /// Sets what a subscription may do, making its queue when it has none.
    pub(super) fn set_limits(&mut self, subscription: u32, limits: Option<Limits>, now: u64) {
        let tuning = self.tuning;
        let place = self.places.entry(subscription).or_insert_with(|| Place {
            queue: Queue::new(tuning, now),
            turn: Turn::None,
            timer: None,
            was_used: true,
        });
        place.queue.set_limits(limits, now);
        self.refresh(subscription, now);
    }

    /// Adds a delivery that is due at `due`, if the subscription has a queue.
    pub(super) fn add(&mut self, subscription: u32, entry: Entry, due: u64, now: u64) {
        self.change(subscription, now, |queue| queue.add(entry, due, now));
    }

    /// Changes the queue of a subscription, if it has one.
    pub(super) fn change<T>(
        &mut self,
        subscription: u32,
        now: u64,
        change: impl FnOnce(&mut Queue) -> T,
    ) -> Option<T> {
        let place = self.places.get_mut(&subscription)?;
        place.was_used = true;
        let changed = change(&mut place.queue);
        self.refresh(subscription, now);
        Some(changed)
    }

    /// Looks at the queue of a subscription, if it has one.
    pub(super) fn queue(&self, subscription: u32) -> Option<&Queue> {
        self.places.get(&subscription).map(|place| &place.queue)
    }

    /// Makes ready what is due.
    pub(super) fn wake(&mut self, now: u64) {
        while let Some((_, subscription)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            if let Some(place) = self.places.get_mut(&subscription) {
                place.queue.wake(now);
            } else {
                self.timers.pop_first();
            }
            self.refresh(subscription, now);
        }
    }

    /// When [`Self::wake`] or [`Self::sweep`] is to be called next.
    pub(super) fn next_due(&self) -> Option<u64> {
        let sweep_at = (!self.places.is_empty()).then_some(self.sweep_at);
        self.timers.first().map(|(at, _)| *at).into_iter().chain(sweep_at).min()
    }

    /// The next delivery to attempt. It counts as running until [`Self::ended`].
    pub(super) fn start_next(&mut self, now: u64) -> Option<(u32, Entry)> {
        while let Some(subscription) = self.line.pop_front() {
            let Some(place) = self.places.get_mut(&subscription) else { continue };
            if place.turn != Turn::InLine {
                continue;
            }
            place.turn = Turn::None;
            if place.queue.start_at(now).is_none_or(|at| at > now) {
                self.refresh(subscription, now);
                continue;
            }
            let pace = place.queue.pace(now);
            if !has_slot(pace, place.queue.in_flight(), self.in_flight) {
                place.turn = Turn::Refused;
                self.refused[pace as usize].push_back(subscription);
                continue;
            }
            let entry = place.queue.start(now);
            self.in_flight += usize::from(entry.is_some());
            self.refresh(subscription, now);
            if let Some(entry) = entry {
                return Some((subscription, entry));
            }
        }
        None
    }

    /// An attempt ended, after this many milliseconds; none when nothing was sent.
    pub(super) fn ended(&mut self, subscription: u32, event: u64, took: Option<u64>, now: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.call_refused();
        let Some(place) = self.places.get_mut(&subscription) else { return };
        place.queue.ended(event, took, now);
        if place.turn == Turn::Refused {
            place.turn = Turn::None;
        }
        self.refresh(subscription, now);
    }

    /// A slot is free: puts one of those who were refused in line again, or all of them when all slots are free.
    fn call_refused(&mut self) {
        for (pace, refused) in Pace::ALL.into_iter().zip(&mut self.refused) {
            if !has_slot(pace, 0, self.in_flight) {
                return;
            }
            while let Some(subscription) = refused.pop_front() {
                let place = self.places.get_mut(&subscription);
                let Some(place) = place.filter(|place| place.turn == Turn::Refused) else { continue };
                place.turn = Turn::InLine;
                self.line.push_back(subscription);
                if self.in_flight > 0 {
                    return;
                }
            }
        }
    }

    /// Takes out what another agent is to make, so many at most, with whose it is.
    pub(super) fn give_away(&mut self, max: usize, now: u64) -> Vec<(u32, Entry)> {
        let (mut given, mut of_one, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for (subscription, place) in &mut self.places {
            place.queue.give_away(max - given.len(), now, &mut of_one);
            if !of_one.is_empty() {
                place.was_used = true;
                changed.push(*subscription);
                given.extend(of_one.drain(..).map(|entry| (*subscription, entry)));
            }
            if given.len() >= max {
                break;
            }
        }
        changed.into_iter().for_each(|subscription| self.refresh(subscription, now));
        given
    }

    /// Nothing is given away any more.
    pub(super) fn keep(&mut self) {
        self.places.values_mut().for_each(|place| place.queue.keep());
    }

    /// Drops the queues that were not used for a while and have nothing to remember. Returns whose.
    pub(super) fn sweep(&mut self, now: u64) -> Vec<u32> {
        if now < self.sweep_at {
            return Vec::new();
        }
        self.sweep_at = now + IDLE_KEPT_MS;
        let mut dropped = Vec::new();
        self.places.retain(|subscription, place| {
            let is_kept = place.was_used || !place.queue.is_idle() || place.queue.has_memory();
            place.was_used = false;
            if !is_kept {
                dropped.push(*subscription);
            }
            is_kept
        });
        dropped
    }

    /// Gives the subscription its turn and its timer.
    fn refresh(&mut self, subscription: u32, now: u64) {
        let Some(place) = self.places.get_mut(&subscription) else { return };
        let start_at = place.queue.start_at(now);
        if start_at.is_some_and(|at| at <= now) && place.turn == Turn::None {
            place.turn = Turn::InLine;
            self.line.push_back(subscription);
        }
        let timer = start_at.filter(|at| *at > now).into_iter().chain(place.queue.next_due()).min();
        if timer != place.timer {
            if let Some(old) = place.timer {
                self.timers.remove(&(old, subscription));
            }
            if let Some(new) = timer {
                self.timers.insert((new, subscription));
            }
            place.timer = timer;
        }
    }
}

/// Whether a subscription whose attempts go like this, of which so many run, may take one of the slots that are
/// left.
fn has_slot(pace: Pace, running: usize, in_flight: usize) -> bool {
    let free = ATTEMPTS_MAX.saturating_sub(in_flight);
    // Falls with the square: what may hang must leave room long before all slots are taken.
    let careful = free * free / (ATTEMPTS_MAX * 8);
    let (share, left_to_others) = match pace {
        Pace::Quick => (free / 4, 0),
        Pace::Unknown => (careful, 64),
        Pace::Slow => (careful, 128),
    };
    free > left_to_others && running < share.max(1)
}

#[cfg(test)]
mod tests;
