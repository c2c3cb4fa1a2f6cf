//! Which delivery is next: per subscription what is ready and what waits for its time, and a turn for each
//! subscription in order, so that none waits for another. Pure: times are milliseconds of a clock that the
//! caller brings and that never jumps.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
};

/// Whether deliveries of a subscription are attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are, at most so many at once.
    Active {
        /// Attempts that may run at once.
        concurrency_max: usize,
    },
    /// They stay where they are.
    Parked,
}

struct Queue {
    mode: Mode,
    in_flight: usize,
    /// Due, in the order in which they became so.
    ready: VecDeque<u64>,
    /// Not due yet: time and event.
    waiting: BinaryHeap<Reverse<(u64, u64)>>,
    has_turn: bool,
    timer: Option<u64>,
}

impl Queue {
    fn can_start(&self) -> bool {
        match self.mode {
            Mode::Active { concurrency_max } => !self.ready.is_empty() && self.in_flight < concurrency_max,
            Mode::Parked => false,
        }
    }
}

/// The queues of all subscriptions that are owed something.
#[derive(Default)]
pub(super) struct Queues {
    queues: HashMap<u32, Queue>,
    turns: VecDeque<u32>,
    timers: BTreeSet<(u64, u32)>,
}

impl Queues {
    /// Whether the subscription has a queue.
    pub(super) fn has(&self, subscription: u32) -> bool {
        self.queues.contains_key(&subscription)
    }

    /// Subscriptions that have a queue.
    pub(super) fn subscriptions(&self) -> Vec<u32> {
        self.queues.keys().copied().collect()
    }

    /// Sets the mode of a subscription, making its queue when it has none.
    pub(super) fn set_mode(&mut self, subscription: u32, mode: Mode) {
        let queue = self.queues.entry(subscription).or_insert_with(|| Queue {
            mode,
            in_flight: 0,
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            has_turn: false,
            timer: None,
        });
        queue.mode = mode;
        self.refresh(subscription);
    }

    /// Adds a delivery that is due at `due`, if the subscription has a queue.
    pub(super) fn add(&mut self, subscription: u32, event: u64, due: u64, now: u64) {
        let Some(queue) = self.queues.get_mut(&subscription) else { return };
        if due <= now {
            queue.ready.push_back(event);
        } else {
            queue.waiting.push(Reverse((due, event)));
        }
        self.refresh(subscription);
    }

    /// Takes everything that waits out of a queue.
    pub(super) fn take_all(&mut self, subscription: u32) -> Vec<u64> {
        let Some(queue) = self.queues.get_mut(&subscription) else { return Vec::new() };
        let mut events: Vec<u64> = std::mem::take(&mut queue.ready).into();
        events.extend(
            std::mem::take(&mut queue.waiting)
                .into_sorted_vec()
                .into_iter()
                .rev()
                .map(|Reverse((_, event))| event),
        );
        self.refresh(subscription);
        events
    }

    /// Drops the queue of a subscription that is owed nothing and has no attempt running.
    pub(super) fn drop_if_idle(&mut self, subscription: u32) -> bool {
        let Some(queue) = self.queues.get(&subscription) else { return false };
        let is_idle = queue.in_flight == 0 && queue.ready.is_empty() && queue.waiting.is_empty();
        if is_idle && let Some(queue) = self.queues.remove(&subscription) {
            if queue.has_turn {
                self.turns.retain(|turn| *turn != subscription);
            }
            if let Some(timer) = queue.timer {
                self.timers.remove(&(timer, subscription));
            }
        }
        is_idle
    }

    /// Makes ready what is due.
    pub(super) fn wake(&mut self, now: u64) {
        while let Some((due, subscription)) = self.timers.first().copied() {
            if due > now {
                break;
            }
            if let Some(queue) = self.queues.get_mut(&subscription) {
                while let Some(Reverse((due, _))) = queue.waiting.peek() {
                    if *due > now {
                        break;
                    }
                    if let Some(Reverse((_, event))) = queue.waiting.pop() {
                        queue.ready.push_back(event);
                    }
                }
            }
            self.refresh(subscription);
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// The next delivery to attempt: of the subscription whose turn it is. It counts as running until
    /// [`Self::ended`].
    pub(super) fn start_next(&mut self) -> Option<(u32, u64)> {
        while let Some(subscription) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&subscription) else { continue };
            queue.has_turn = false;
            if !queue.can_start() {
                continue;
            }
            let event = queue.ready.pop_front();
            queue.in_flight += 1;
            self.refresh(subscription);
            if let Some(event) = event {
                return Some((subscription, event));
            }
        }
        None
    }

    /// An attempt of the subscription ended.
    pub(super) fn ended(&mut self, subscription: u32) {
        if let Some(queue) = self.queues.get_mut(&subscription) {
            queue.in_flight = queue.in_flight.saturating_sub(1);
        }
        self.refresh(subscription);
    }

    /// Gives the subscription its turn and its timer.
    fn refresh(&mut self, subscription: u32) {
        let Some(queue) = self.queues.get_mut(&subscription) else { return };
        if queue.can_start() && !queue.has_turn {
            queue.has_turn = true;
            self.turns.push_back(subscription);
        }
        let timer = queue.waiting.peek().map(|Reverse((due, _))| *due);
        if timer != queue.timer {
            if let Some(old) = queue.timer {
                self.timers.remove(&(old, subscription));
            }
            if let Some(new) = timer {
                self.timers.insert((new, subscription));
            }
            queue.timer = timer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: Mode = Mode::Active { concurrency_max: 2 };

    /// A subscription with a backlog takes turns with the others, and never runs more than its limit.
    #[test]
    fn subscriptions_take_turns() {
        let mut queues = Queues::default();
        queues.set_mode(1, ACTIVE);
        queues.set_mode(2, ACTIVE);
        (0..10).for_each(|event| queues.add(1, event, 0, 0));
        queues.add(2, 100, 0, 0);
        let started: Vec<_> = std::iter::from_fn(|| queues.start_next()).collect();
        assert_eq!(started, [(1, 0), (2, 100), (1, 1)]);
        queues.ended(1);
        assert_eq!(queues.start_next(), Some((1, 2)));
        assert_eq!(queues.start_next(), None);
    }

    /// Deliveries become ready at their time, earliest first, and the next time is known.
    #[test]
    fn waits_until_due() {
        let mut queues = Queues::default();
        queues.set_mode(1, ACTIVE);
        queues.add(1, 7, 500, 0);
        queues.add(1, 8, 200, 0);
        assert_eq!((queues.next_due(), queues.start_next()), (Some(200), None));
        queues.wake(200);
        assert_eq!((queues.next_due(), queues.start_next()), (Some(500), Some((1, 8))));
        queues.wake(1_000);
        assert_eq!((queues.next_due(), queues.start_next()), (None, Some((1, 7))));
    }

    /// Parked deliveries do not start, can be taken out, and start again once active.
    #[test]
    fn parked_deliveries_stay() {
        let mut queues = Queues::default();
        queues.set_mode(1, ACTIVE);
        queues.add(1, 7, 0, 0);
        queues.add(1, 8, 100, 0);
        queues.add(1, 9, 50, 0);
        queues.set_mode(1, Mode::Parked);
        queues.wake(200);
        assert_eq!(queues.start_next(), None);
        assert_eq!(queues.take_all(1), [7, 9, 8]);
        assert_eq!(queues.next_due(), None);
        queues.add(1, 7, 0, 200);
        queues.set_mode(1, ACTIVE);
        assert_eq!(queues.start_next(), Some((1, 7)));
        assert!(!queues.drop_if_idle(1), "an attempt runs");
        queues.ended(1);
        assert!(queues.drop_if_idle(1));
        assert!(!queues.has(1));
    }
}
