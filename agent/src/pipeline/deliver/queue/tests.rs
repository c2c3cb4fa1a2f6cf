//! One subscription's queue.

use super::*;

const LIMITS: Limits = Limits { concurrency_max: 8, rate: None, ordering_attempts_max: None };

fn queue(limits: Limits) -> Queue {
    let mut queue = Queue::new(Tuning::default(), 0);
    queue.set_limits(Some(limits), 0);
    queue
}

fn entry(event: u64) -> Entry {
    Entry { event, ..Entry::default() }
}

fn of_contact(event: u64, contact: u32) -> Entry {
    Entry { event, contact, ..Entry::default() }
}

/// Starts what may start now.
fn started(queue: &mut Queue, now: u64) -> Vec<u64> {
    let mut events = Vec::new();
    while queue.start_at(now).is_some_and(|at| at <= now) {
        events.extend(queue.start(now).map(|entry| entry.event));
    }
    events
}

/// An attempt of the event fails, and is due again at `due`.
fn fail(queue: &mut Queue, entry: Entry, due: u64, now: u64) -> Entry {
    let entry = Entry { attempts: entry.attempts + 1, ..entry };
    queue.ended(entry.event, Some(1), now);
    queue.breaker().failed(now, 0.0);
    queue.release_if_parked(entry);
    queue.add(entry, due, now);
    entry
}

fn succeed(queue: &mut Queue, entry: Entry, now: u64) {
    queue.ended(entry.event, Some(1), now);
    queue.breaker().succeeded();
    queue.release(entry);
}

/// A delivery takes as much memory as promised: a backlog of millions is 16 bytes each, and those that failed 24.
#[test]
fn deliveries_are_small() {
    assert_eq!((size_of::<Entry>(), size_of::<Waiting>()), (16, 24));
}

/// No more run at once than allowed, and a change of the limit counts from the next start on.
#[test]
fn concurrency_is_limited() {
    let mut queue = queue(Limits { concurrency_max: 2, ..LIMITS });
    (0..9).for_each(|event| queue.add(entry(event), 0, 0));
    assert_eq!(started(&mut queue, 0), [0, 1]);
    succeed(&mut queue, entry(0), 0);
    assert_eq!(started(&mut queue, 0), [2]);
    queue.set_limits(Some(Limits { concurrency_max: 4, ..LIMITS }), 0);
    assert_eq!(started(&mut queue, 0), [3, 4]);
    queue.set_limits(None, 0);
    succeed(&mut queue, entry(1), 0);
    assert_eq!(started(&mut queue, 0), [0; 0]);
}

/// While the breaker is open one delivery is tried every half a minute, each time the one due first, so that
/// none is used up; all others keep their attempts, however many there are.
#[test]
fn dead_destination_is_probed() {
    let mut queue = queue(LIMITS);
    (0..100_000).for_each(|event| queue.add(entry(event), 0, 0));
    let mut now = 0;
    let mut tried = 0;
    for _ in 0..2 {
        let events = started(&mut queue, now);
        tried += events.len() as u64;
        events.into_iter().for_each(|event| _ = fail(&mut queue, entry(event), 3_600_000, now));
    }
    assert_eq!(tried, 16, "what ran when the tenth failed is over first");
    let mut probed = Vec::new();
    for _ in 0..20 {
        let at = queue.start_at(now).unwrap();
        assert!((30_000..=36_000).contains(&(at - now)), "{at} {now}");
        now = at;
        let events = started(&mut queue, now);
        assert_eq!(events.len(), 1);
        fail(&mut queue, entry(events[0]), now + 3_600_000, now);
        probed.extend(events);
    }
    let expected: Vec<u64> = (tried..).take(20).collect();
    assert_eq!(probed, expected);

    now = queue.start_at(now).unwrap();
    let probe = started(&mut queue, now)[0];
    succeed(&mut queue, entry(probe), now);
    let mut at_once = Vec::new();
    for _ in 0..5 {
        let events = started(&mut queue, now);
        at_once.push(events.len());
        events.into_iter().for_each(|event| succeed(&mut queue, entry(event), now));
    }
    assert_eq!(at_once, [1, 2, 4, 8, 8], "it comes back without a storm");
}

/// One delivery that fails and fails is attempted by its own schedule, not by the breaker's.
#[test]
fn probes_are_due() {
    let mut queue = queue(LIMITS);
    queue.add(entry(1), 0, 0);
    let mut failing = entry(1);
    for _ in 0..12 {
        assert_eq!(started(&mut queue, 0), [1]);
        failing = fail(&mut queue, Entry { had_quick: true, ..failing }, 0, 0);
        if queue.start_at(0) != Some(0) {
            break;
        }
    }
    assert_eq!(failing.attempts, 10);
    let now = queue.start_at(0).unwrap();
    assert_eq!(started(&mut queue, now), [1]);
    fail(&mut queue, failing, 7_200_000, now);
    assert_eq!((queue.start_at(now), queue.next_due()), (None, Some(7_200_000)));
}

/// With a rate, attempts begin at that rate and no faster, whatever the concurrency.
#[test]
fn rate_is_kept() {
    let mut queue = queue(Limits { rate: NonZeroU32::new(10), ..LIMITS });
    (0..100).for_each(|event| queue.add(entry(event), 0, 0));
    let (mut now, mut count) = (0, 0);
    while now < 3_000 {
        now = queue.start_at(now).unwrap();
        let event = queue.start(now).unwrap();
        succeed(&mut queue, event, now);
        count += 1;
    }
    assert!((27..=33).contains(&count), "{count}");
    queue.set_limits(Some(LIMITS), now);
    assert_eq!(queue.start_at(now), Some(now), "a limit that is lifted is lifted at once");
}

/// What was held goes out at its own rate once the subscription is active again, oldest first, and a new event
/// does not wait for it.
#[test]
fn held_deliveries_drain_slowly() {
    let mut queue = queue(LIMITS);
    (0..1_000).for_each(|event| queue.add(entry(event), 0, 0));
    queue.add(entry(1_000), 5_000, 0);
    queue.set_limits(None, 0);
    assert_eq!(queue.hold_all(false).len(), 1_001);
    queue.add_held(entry(1_001));
    assert_eq!(queue.hold_all(false), [0; 0], "nothing is recorded twice");
    assert_eq!(queue.hold_all(true).len(), 1_002);
    queue.wake(10_000);
    assert_eq!((queue.start_at(10_000), queue.next_due()), (None, None));

    queue.set_limits(Some(LIMITS), 10_000);
    let (mut now, mut drained, mut new) = (10_000, Vec::new(), 0);
    queue.add(entry(5_000), now, now);
    while now < 12_000 {
        for event in started(&mut queue, now) {
            succeed(&mut queue, entry(event), now);
            if event < 5_000 { drained.push(event) } else { new = now }
        }
        now = queue.start_at(now).unwrap().max(now + 1);
    }
    assert!((90..=110).contains(&drained.len()), "{}", drained.len());
    assert!(drained.is_sorted());
    assert_eq!(new, 10_000);
    let own = Limits { rate: NonZeroU32::new(500), ..LIMITS };
    queue.set_limits(Some(own), now);
    let before = now;
    let mut count = 0;
    while now < before + 1_000 {
        started(&mut queue, now).into_iter().for_each(|event| {
            succeed(&mut queue, entry(event), now);
            count += 1;
        });
        now += 1;
    }
    assert!((450..=550).contains(&count), "{count} at the subscription's own rate");
}

/// In order: a failing delivery holds its contact and nobody else; after so many failures it is parked, goes
/// on by its own schedule, and the others follow in their order.
#[test]
fn failing_head_holds_its_contact_only() {
    let mut queue = queue(Limits { ordering_attempts_max: Some(2), ..LIMITS });
    for (event, contact) in [(1, 7), (2, 7), (3, 8), (4, 0), (5, 7), (6, 8)] {
        queue.add(of_contact(event, contact), 0, 0);
    }
    assert_eq!(started(&mut queue, 0), [1, 3, 4]);
    let head = fail(&mut queue, of_contact(1, 7), 100, 0);
    succeed(&mut queue, of_contact(3, 8), 0);
    assert_eq!(started(&mut queue, 0), [6]);
    queue.wake(100);
    assert_eq!(started(&mut queue, 100), [1]);
    fail(&mut queue, head, 200, 100);
    assert_eq!(started(&mut queue, 100), [2]);
    queue.wake(200);
    assert_eq!(started(&mut queue, 200), [1], "parked, it does not wait for the second");
    succeed(&mut queue, of_contact(2, 7), 200);
    assert_eq!(started(&mut queue, 200), [5]);
}

/// The order survives a restart: the buffer hands deliveries out in the order of their events, and the failing
/// head among them still holds its contact until it is due, the parked one does not.
#[test]
fn order_survives_a_restart() {
    let mut queue = queue(Limits { ordering_attempts_max: Some(3), ..LIMITS });
    queue.add(Entry { attempts: 2, ..of_contact(1, 7) }, 1_000, 0);
    queue.add(of_contact(2, 7), 0, 0);
    queue.add(Entry { attempts: 3, ..of_contact(3, 8) }, 1_000, 0);
    queue.add(of_contact(4, 8), 0, 0);
    assert_eq!(started(&mut queue, 0), [4]);
    queue.wake(1_000);
    assert_eq!(started(&mut queue, 1_000), [1, 3]);
    succeed(&mut queue, of_contact(1, 7), 1_000);
    assert_eq!(started(&mut queue, 1_000), [2]);
}

/// Pausing and resuming keeps the order: a new event of a contact does not overtake those that were held.
#[test]
fn order_survives_a_pause() {
    let limits = Limits { ordering_attempts_max: Some(3), ..LIMITS };
    let mut queue = queue(limits);
    for (event, contact) in [(1, 7), (2, 7), (3, 8)] {
        queue.add(of_contact(event, contact), 0, 0);
    }
    assert_eq!(started(&mut queue, 0), [1, 3]);
    queue.set_limits(None, 0);
    assert_eq!(queue.hold_all(false), [2]);
    queue.set_limits(Some(limits), 0);
    queue.add(of_contact(9, 7), 0, 0);
    queue.add(of_contact(10, 9), 0, 0);
    assert_eq!(started(&mut queue, 0), [10], "1 is still attempted");
    succeed(&mut queue, of_contact(1, 7), 0);
    assert_eq!(started(&mut queue, 1_000), [2]);
    succeed(&mut queue, of_contact(2, 7), 1_000);
    assert_eq!(started(&mut queue, 1_000), [9]);
}

/// Order can be switched on and off while deliveries are open, and none is lost.
#[test]
fn order_can_change() {
    let ordered = Limits { ordering_attempts_max: Some(3), ..LIMITS };
    let mut queue = queue(LIMITS);
    queue.add(Entry { attempts: 1, ..of_contact(1, 7) }, 100, 0);
    queue.add(of_contact(2, 7), 0, 0);
    queue.set_limits(Some(ordered), 0);
    queue.add(of_contact(3, 7), 0, 0);
    assert_eq!(started(&mut queue, 0), [0; 0]);
    queue.set_limits(Some(LIMITS), 0);
    assert_eq!(started(&mut queue, 0), [2, 3]);
    queue.wake(100);
    assert_eq!(started(&mut queue, 100), [1]);
}

/// Takes out all that is to be given away now.
fn given(queue: &mut Queue, now: u64) -> Vec<u64> {
    let mut given = Vec::new();
    queue.give_away(usize::MAX / 2, now, &mut given);
    given.into_iter().map(|entry| entry.event).collect()
}

/// What waits for its time is given away at once, what is due after it had its chance for a while; what runs is not,
/// and what comes later has a chance of its own.
#[test]
fn due_deliveries_have_their_chance() {
    let mut queue = queue(Limits { concurrency_max: 1, ..LIMITS });
    (0..3).for_each(|event| queue.add(entry(event), 0, 0));
    (3..6).for_each(|event| queue.add(entry(event), 1_000 * (7 - event), 0));
    assert_eq!(started(&mut queue, 0), [0]);
    assert_eq!(given(&mut queue, 0), [5, 4, 3], "those due first come first");
    assert_eq!(given(&mut queue, 9_999), [0; 0]);
    queue.add(entry(7), 9_999, 9_999);
    succeed(&mut queue, entry(0), 9_999);
    assert_eq!(started(&mut queue, 9_999), [1]);
    assert_eq!(given(&mut queue, 10_000), [2]);
    assert_eq!(given(&mut queue, 10_000), [0; 0], "it begins anew");
    assert_eq!(given(&mut queue, 19_999), [0; 0]);
    assert_eq!(given(&mut queue, 20_000), [7]);
    assert!(queue.is_running(1));

    queue.add(entry(8), 20_000, 20_000);
    assert_eq!(given(&mut queue, 20_000), [0; 0]);
    queue.keep();
    assert_eq!(given(&mut queue, 90_000), [0; 0], "what was before counts no more");
}

/// Portions are as large as asked for, and nothing is left out between them; what is held goes at once where nothing
/// may be attempted, in the order of its contacts, and after a while where it may.
#[test]
fn held_deliveries_are_given_in_order() {
    let mut ordered = queue(Limits { ordering_attempts_max: Some(3), ..LIMITS });
    (0..50).for_each(|event| ordered.add(of_contact(event, 1 + u32::try_from(event % 2).unwrap()), 0, 0));
    ordered.hold_all(false);
    ordered.set_limits(None, 0);
    let mut all = Vec::new();
    for size in [1, 7, 40, 40] {
        let before = all.len();
        ordered.give_away(size, 0, &mut all);
        assert_eq!(all.len() - before, size.min(50 - before));
    }
    for contact in [1, 2] {
        let of_one = all.iter().filter(|entry| entry.contact == contact).map(|entry| entry.event);
        assert!(of_one.is_sorted(), "{all:?}");
    }
    assert!(ordered.is_idle() && all.iter().all(|entry| entry.is_held));

    let mut resumed = queue(LIMITS);
    (0..10).for_each(|event| resumed.add_held(entry(event)));
    assert_eq!(given(&mut resumed, 0), [0; 0]);
    assert!(!started(&mut resumed, 0).is_empty());
    let rest = given(&mut resumed, 10_000);
    assert!(rest.len() + resumed.in_flight() == 10 && !rest.is_empty());
}
