//! Deliveries of one contact one after the other. Only what is attempted, waits for its next attempt or is held
//! has a place here, and what had to wait behind it; a backlog that was never tried costs nothing. Pure.

use std::collections::{HashMap, VecDeque, hash_map};

use super::queue::Entry;

/// The order of one subscription.
#[derive(Debug)]
pub(super) struct Order {
    attempts_max: u32,
    contacts: HashMap<u32, Contact>,
}

#[derive(Debug)]
struct Contact {
    /// The delivery whose turn it is.
    head: u64,
    /// Those that came after it, oldest first.
    behind: VecDeque<Entry>,
}

impl Order {
    /// Deliveries with this many failed attempts are parked: they go on by their schedule and hold nobody.
    pub(super) fn new(attempts_max: u32) -> Self {
        Self { attempts_max, contacts: HashMap::new() }
    }

    pub(super) const fn attempts_max(&self) -> u32 {
        self.attempts_max
    }

    /// Whether it is the delivery's turn. If not, it is kept here until [`Self::release`] gives it back.
    pub(super) fn admit(&mut self, entry: Entry) -> bool {
        if self.is_free(entry) {
            return true;
        }
        match self.contacts.entry(entry.contact) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Contact { head: entry.event, behind: VecDeque::new() });
                true
            }
            hash_map::Entry::Occupied(mut occupied) => {
                let contact = occupied.get_mut();
                if contact.head == entry.event {
                    return true;
                }
                let place = contact.behind.partition_point(|other| other.event < entry.event);
                contact.behind.insert(place, entry);
                false
            }
        }
    }

    /// A delivery is settled, or parked: the next of its contact, whose turn it now is.
    pub(super) fn release(&mut self, entry: Entry) -> Option<Entry> {
        let contact = self.contacts.get_mut(&entry.contact).filter(|contact| contact.head == entry.event)?;
        let next = contact.behind.pop_front();
        match next {
            Some(next) => contact.head = next.event,
            None => drop(self.contacts.remove(&entry.contact)),
        }
        next
    }

    /// Whether a delivery goes its own way: it has no contact, or is parked.
    pub(super) fn is_free(&self, entry: Entry) -> bool {
        entry.contact == 0 || u32::from(entry.attempts) >= self.attempts_max
    }

    /// Takes out everything that waits behind another, and forgets all turns but those of `running`.
    pub(super) fn take_behind(&mut self, running: &[u64], taken: &mut Vec<Entry>) {
        self.contacts.retain(|_, contact| {
            taken.extend(contact.behind.drain(..));
            running.contains(&contact.head)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: u64, contact: u32) -> Entry {
        Entry { event, contact, ..Entry::default() }
    }

    /// The later deliveries of a contact wait for the first, in their order; other contacts, and events
    /// without one, do not.
    #[test]
    fn contacts_are_in_order() {
        let mut order = Order::new(3);
        assert!(order.admit(entry(1, 7)));
        assert!(!order.admit(entry(5, 7)));
        assert!(!order.admit(entry(2, 7)));
        assert!(order.admit(entry(3, 8)) && order.admit(entry(4, 0)) && order.admit(entry(6, 0)));
        assert!(order.admit(entry(1, 7)), "it is still its turn when it is tried again");
        assert_eq!(order.release(entry(4, 0)), None);
        assert_eq!(order.release(entry(1, 7)), Some(entry(2, 7)));
        assert!(!order.admit(entry(9, 7)));
        assert_eq!(order.release(entry(2, 7)), Some(entry(5, 7)));
        assert_eq!(order.release(entry(5, 7)), Some(entry(9, 7)));
        assert_eq!(order.release(entry(9, 7)), None);
        assert_eq!(order.release(entry(3, 8)), None);
        assert!(order.contacts.is_empty(), "nothing is left in memory");
    }

    /// What failed often enough is parked: it needs no turn, and its end takes nobody else's.
    #[test]
    fn parked_deliveries_hold_nobody() {
        let mut order = Order::new(3);
        let failed = Entry { attempts: 3, ..entry(1, 7) };
        assert!(order.admit(entry(1, 7)) && !order.admit(entry(2, 7)));
        assert!(order.is_free(failed));
        assert_eq!(order.release(failed), Some(entry(2, 7)));
        assert!(order.admit(failed));
        assert_eq!(order.release(failed), None);
        assert!(!order.admit(entry(3, 7)), "the second still has its turn");
    }

    /// Everything can be taken out; who is being attempted keeps its turn.
    #[test]
    fn running_keep_their_turn() {
        let mut order = Order::new(3);
        for (event, contact) in [(1, 7), (2, 7), (3, 8), (4, 8)] {
            order.admit(entry(event, contact));
        }
        let mut taken = Vec::new();
        order.take_behind(&[1], &mut taken);
        taken.sort_unstable_by_key(|entry| entry.event);
        assert_eq!(taken, [entry(2, 7), entry(4, 8)]);
        assert!(!order.admit(entry(2, 7)) && order.admit(entry(4, 8)));
    }
}
