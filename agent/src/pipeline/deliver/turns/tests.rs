//! Many subscriptions at once.

use std::num::NonZeroU32;

use super::*;

const LIMITS: Limits = Limits { concurrency_max: 8, rate: None, ordering_attempts_max: None };

fn entry(event: u64) -> Entry {
    Entry { event, ..Entry::default() }
}

/// Subscriptions with this many deliveries each.
fn turns(subscriptions: std::ops::Range<u32>, deliveries: u64) -> Turns {
    let mut turns = Turns::new(Tuning::default());
    for subscription in subscriptions {
        turns.set_limits(subscription, Some(LIMITS), 0);
        (0..deliveries).for_each(|event| turns.add(subscription, entry(event), 0, 0));
    }
    turns
}

fn started(turns: &mut Turns, now: u64) -> Vec<(u32, u64)> {
    std::iter::from_fn(|| turns.start_next(now))
        .map(|(subscription, entry)| (subscription, entry.event))
        .collect()
}

/// A subscription with a backlog takes turns with the others, and never runs more than its limit.
#[test]
fn subscriptions_take_turns() {
    let mut turns = turns(1..3, 0);
    turns.set_limits(1, Some(Limits { concurrency_max: 2, ..LIMITS }), 0);
    (0..10).for_each(|event| turns.add(1, entry(event), 0, 0));
    turns.add(2, entry(100), 0, 0);
    assert_eq!(started(&mut turns, 0), [(1, 0), (2, 100), (1, 1)]);
    turns.ended(1, 0, Some(1), 0);
    assert_eq!(started(&mut turns, 0), [(1, 2)]);
}

/// Deliveries become ready at their time, earliest first, and the next time is known.
#[test]
fn waits_until_due() {
    let mut turns = turns(1..2, 0);
    turns.add(1, entry(7), 500, 0);
    turns.add(1, entry(8), 200, 0);
    assert_eq!((turns.next_due(), started(&mut turns, 0).len()), (Some(200), 0));
    turns.wake(200);
    assert_eq!(started(&mut turns, 200), [(1, 8)]);
    assert_eq!(turns.next_due(), Some(500));
    turns.wake(1_000);
    assert_eq!(started(&mut turns, 1_000), [(1, 7)]);
    assert_eq!(turns.next_due(), Some(IDLE_KEPT_MS));
}

/// A limited rate needs nothing but its timer to go on.
#[test]
fn rate_sets_a_timer() {
    let mut turns = turns(1..2, 0);
    turns.set_limits(1, Some(Limits { rate: NonZeroU32::new(10), ..LIMITS }), 0);
    (0..100).for_each(|event| turns.add(1, entry(event), 0, 0));
    let (mut now, mut count) = (0, 0);
    while now < 3_000 {
        for (subscription, event) in started(&mut turns, now) {
            turns.ended(subscription, event, Some(1), now);
            count += 1;
        }
        now = turns.next_due().unwrap();
        turns.wake(now);
    }
    assert!((27..=33).contains(&count), "{count}");
}

/// Destinations hang with all that they may run, and those that answer go on as if they were alone, known ones
/// and new ones.
#[test]
fn hanging_destinations_leave_slots() {
    for hanging in [64, 100, 400] {
        let healthy = 1_000;
        let mut turns = turns(0..hanging, 100);
        started(&mut turns, 0);
        for subscription in [healthy, healthy + 1] {
            turns.set_limits(subscription, Some(LIMITS), 0);
            for event in 0..1_000 {
                let now = 100 + event;
                turns.add(subscription, entry(event), now, now);
                let began = started(&mut turns, now);
                assert!(began.contains(&(subscription, event)), "{hanging} hang");
                turns.ended(subscription, event, Some(1), now);
            }
        }
        assert!(turns.in_flight() < ATTEMPTS_MAX - 64);
        (2_000..2_008).for_each(|event| turns.add(healthy, entry(event), 2_000, 2_000));
        let began =
            started(&mut turns, 2_000).into_iter().filter(|(subscription, _)| *subscription == healthy);
        assert_eq!(began.count(), 8, "up to its own limit");
    }
}

/// Destinations that were quick and all begin to hang in one instant do not get everything either.
#[test]
fn sudden_silence_leaves_slots() {
    for hanging in [64, 100, 250] {
        let mut turns = turns(0..hanging, 0);
        let healthy = 1_000;
        turns.set_limits(healthy, Some(LIMITS), 0);
        for subscription in (0..hanging).chain([healthy]) {
            turns.add(subscription, entry(0), 0, 0);
            started(&mut turns, 0);
            turns.ended(subscription, 0, Some(1), 0);
        }
        for subscription in 0..hanging {
            (1..100).for_each(|event| turns.add(subscription, entry(event), 0, 0));
        }
        started(&mut turns, 0);
        for event in 1..100 {
            turns.add(healthy, entry(event), 5_000, 5_000);
            assert_eq!(started(&mut turns, 5_000), [(healthy, event)], "{hanging} hang");
            turns.ended(healthy, event, Some(1), 5_000);
        }
    }
}

/// Even when everybody is refused, whoever was gets a turn as soon as attempts end, and all deliveries are made.
#[test]
fn refused_subscriptions_come_back() {
    let mut turns = turns(0..2_000, 3);
    let (mut now, mut made) = (0, 0);
    let mut running = started(&mut turns, now);
    assert!(running.len() < ATTEMPTS_MAX);
    while let Some((subscription, event)) = running.pop() {
        now += 1;
        turns.ended(subscription, event, Some(20_000), now);
        made += 1;
        running.extend(started(&mut turns, now));
    }
    assert_eq!((made, turns.in_flight()), (6_000, 0));
}

/// What is known about a destination outlives its last delivery for a minute at least, and failures longer;
/// then nothing is left.
#[test]
fn idle_queues_are_dropped() {
    let mut turns = turns(1..3, 1);
    for (subscription, event) in started(&mut turns, 0) {
        turns.ended(subscription, event, Some(1), 0);
    }
    turns.change(2, 0, |queue| queue.breaker().failed(0, 0.0));
    assert_eq!(turns.sweep(IDLE_KEPT_MS - 1), [0; 0]);
    assert_eq!(turns.sweep(IDLE_KEPT_MS), [0; 0]);
    assert_eq!(turns.sweep(2 * IDLE_KEPT_MS), [1]);
    turns.set_limits(2, None, 0);
    assert_eq!(turns.sweep(3 * IDLE_KEPT_MS), [2]);
    assert_eq!((turns.next_due(), turns.subscriptions()), (None, vec![]));
}

/// A destination that is slow, but not dead, gets as many attempts at once as it may have while there is room.
#[test]
fn slow_destinations_keep_their_concurrency() {
    let mut turns = turns(1..2, 0);
    turns.set_limits(1, Some(Limits { concurrency_max: 40, ..LIMITS }), 0);
    turns.add(1, entry(0), 0, 0);
    assert_eq!(started(&mut turns, 0).len(), 1);
    turns.ended(1, 0, Some(10_000), 10_000);
    (1..100).for_each(|event| turns.add(1, entry(event), 10_000, 10_000));
    assert_eq!(started(&mut turns, 10_000).len(), 40);
}
