//! Deliveries that another agent is to make, because this one drains: all that waits for its time or is held, and
//! what was due for some time and did not get its turn.

use super::{Entry, Queue, pop};

/// For what is due: since when it is waited for. It is not known of each delivery when it became due, so those that
/// are there together are waited for together, and what comes meanwhile is waited for after them.
#[derive(Debug)]
pub(super) struct Patience {
    ends: u64,
    /// How many of the first ready ones are waited for.
    ready: usize,
    /// How many of the first held ones.
    held: usize,
}

impl Patience {
    /// The first one left its queue.
    pub(super) fn started(&mut self, from_held: bool) {
        let count = if from_held { &mut self.held } else { &mut self.ready };
        *count = count.saturating_sub(1);
    }
}

impl Queue {
    /// Takes out what another agent is to make now, so many at most. What is left is to be attempted here, or asked
    /// for again soon.
    pub(in super::super) fn give_away(&mut self, max: usize, now: u64, given: &mut Vec<Entry>) {
        let end = given.len() + max;
        if self.limits.is_none() {
            self.patience = None;
            while given.len() < end && self.give_held(given) {}
            return;
        }
        self.wake(now);
        while given.len() < end
            && let Some(waiting) = self.waiting.pop()
        {
            self.give(waiting.entry, given);
        }
        self.give_overdue(end, now, given);
    }

    /// Gives nothing away any more.
    pub(in super::super) fn keep(&mut self) {
        self.patience = None;
    }

    fn give_overdue(&mut self, end: usize, now: u64, given: &mut Vec<Entry>) {
        let Some(mut patience) = self.patience.take() else {
            if !self.ready.is_empty() || !self.held.is_empty() {
                let ends = now.saturating_add(super::super::schedule::millis(self.tuning.give_patience));
                self.patience = Some(Patience { ends, ready: self.ready.len(), held: self.held.len() });
            }
            return;
        };
        if now >= patience.ends {
            while given.len() < end && patience.ready > 0 {
                let Some(entry) = pop(&mut self.ready) else { break };
                patience.ready -= 1;
                self.give(entry, given);
            }
            while given.len() < end && patience.held > 0 && self.give_held(given) {
                patience.held -= 1;
            }
        }
        let is_waited_for = patience.ready.min(self.ready.len()) + patience.held.min(self.held.len()) > 0;
        self.patience = Some(patience).filter(|_| is_waited_for);
    }

    fn give_held(&mut self, given: &mut Vec<Entry>) -> bool {
        let held = pop(&mut self.held);
        let is_some = held.is_some();
        held.into_iter().for_each(|entry| self.give(entry, given));
        is_some
    }

    /// Others of its contact that this agent has go on.
    fn give(&mut self, entry: Entry, given: &mut Vec<Entry>) {
        given.push(entry);
        self.release(entry);
    }
}
