//! Only a subscription that really had nothing but failures is found, whatever is reported when.

use std::collections::BTreeMap;

use super::*;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// A table and what is in memory of it.
struct World {
    table: BTreeMap<Box<str>, StoredStreak>,
    failing: FailingSubscriptions,
}

/// Seconds after an arbitrary day.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn attempt(start: i64, failure: v1::AttemptFailure) -> StagedAttempt {
    let attempt = v1::DeliveryAttempt {
        subscription_id: "sub_1".into(),
        start_time: Some(time::to_proto(at(start))),
        failure: failure.into(),
        ..Default::default()
    };
    StagedAttempt { log_seq: 1, attempt_seq: 0, is_first: true, attempt, previous: None }
}

fn failed(starts: impl IntoIterator<Item = i64>) -> Vec<StagedAttempt> {
    starts.into_iter().map(|start| attempt(start, v1::AttemptFailure::Status)).collect()
}

fn delivered(start: i64) -> Vec<StagedAttempt> {
    vec![attempt(start, v1::AttemptFailure::Unspecified)]
}

/// The starts of `count` attempts, evenly from `first` to `last`.
fn spread(first: i64, last: i64, count: i64) -> impl Iterator<Item = i64> {
    (0..count).map(move |index| first + (last - first) * index / (count - 1))
}

impl World {
    fn new() -> Self {
        Self { table: BTreeMap::new(), failing: FailingSubscriptions::new([]) }
    }

    fn write(&mut self, rows: Vec<StoredStreak>) {
        self.table.extend(rows.into_iter().map(|row| (row.subscription_id.clone(), row)));
    }

    /// Reports attempts at `now`, as the writer does, and gives what is to be paused.
    fn report(&mut self, now: i64, attempts: &[StagedAttempt]) -> Option<FailingSubscription> {
        let changed = self.failing.changed(attempts, at(now));
        self.write(changed.rows(at(now)));
        self.failing.committed(changed, at(now)).pop()
    }

    /// Reports each attempt when it was made.
    fn live(&mut self, attempts: Vec<StagedAttempt>) -> Option<FailingSubscription> {
        let mut found = None;
        for attempt in attempts {
            let start = time::from_proto(attempt.attempt.start_time.as_ref().unwrap()).unwrap();
            let now = start.as_second() - at(0).as_second();
            found = self.report(now, &[attempt]).or(found);
        }
        found
    }

    /// What is in memory is lost, and what is too old leaves the table.
    fn crash(mut self, now: i64) -> Self {
        self.table.retain(|_, row| row.write_time >= at(now).as_microsecond() - micros(FORGET_AFTER));
        Self { failing: FailingSubscriptions::new(self.table.values().cloned()), table: self.table }
    }

    fn written(&self) -> Option<(Option<i64>, u64)> {
        self.table.values().next().map(|row| (row.failing_since, row.failure_count))
    }
}

/// Five days and twelve attempts are needed, both; the first and the number of the failures are told.
#[test]
fn five_days_and_twelve_attempts_are_needed() {
    for (last, count, is_found) in [
        (6 * DAY, 11, false),
        (5 * DAY - 1, 12, false),
        (5 * DAY - 1, 1_000, false),
        (5 * DAY, 12, true),
        (9 * DAY, 72, true),
    ] {
        let mut world = World::new();
        let found = world.report(last, &failed(spread(0, last, count)));
        let expected = FailingSubscription {
            subscription_id: "sub_1".into(),
            since: at(0),
            attempt_count: count.unsigned_abs(),
            time: at(last),
        };
        assert_eq!(found, is_found.then_some(expected), "{count} attempts until {last}");
    }
}

/// A success begins the count anew, and failures that are the gateway's own do not count.
#[test]
fn a_success_resets() {
    let mut world = World::new();
    assert_eq!(world.live(failed(spread(0, 5 * DAY - 60, 50))), None);
    assert_eq!(world.live(delivered(5 * DAY - 30)), None);
    assert_eq!(world.live(failed(spread(5 * DAY, 10 * DAY - 60, 50))), None);
    let ours = attempt(10 * DAY + 5, v1::AttemptFailure::Gateway);
    assert_eq!(world.live(vec![ours]), None);
    let found = world.live(failed([10 * DAY])).unwrap();
    assert_eq!((found.since, found.attempt_count), (at(5 * DAY), 51));
}

/// Attempts of an agent that was away do not count against a success that came after them, even when they
/// are reported later and span many days.
#[test]
fn late_failures_do_not_outvote_a_newer_success() {
    let mut world = World::new();
    assert_eq!(world.live(delivered(6 * DAY)), None);
    assert_eq!(world.report(6 * DAY + 60, &failed(spread(0, 6 * DAY, 100))), None);
    assert_eq!(world.report(6 * DAY + 60, &failed([6 * DAY + 10])), None);
    let mut world = world.crash(6 * DAY + 60);
    assert_eq!(world.report(6 * DAY + 90, &failed(spread(0, 6 * DAY, 100))), None);
    let found = world.live(failed(spread(7 * DAY, 12 * DAY, 12))).unwrap();
    assert!(found.since >= at(6 * DAY + 10), "{found:?}");
}

/// A success reported late counts from when it was made: what failed after it goes on, from the last failure
/// that is known to be after it.
#[test]
fn late_successes_count_from_their_time() {
    let mut world = World::new();
    world.live(failed(spread(0, 4 * DAY, 100)));
    assert_eq!(world.report(4 * DAY, &delivered(3 * DAY)), None);
    assert_eq!(world.live(failed(spread(4 * DAY + 1, 8 * DAY, 100))), None);
    let found = world.live(failed([9 * DAY])).unwrap();
    assert_eq!(found.since, at(4 * DAY));
    let mut world = World::new();
    world.live(failed(spread(DAY, 4 * DAY, 20)));
    assert_eq!(world.report(4 * DAY, &delivered(0)), None, "a success before the failures");
    assert_eq!(world.live(failed([6 * DAY])).unwrap().since, at(DAY));
}

/// An agent whose clock is days ahead cannot make days of minutes.
#[test]
fn clocks_ahead_are_not_believed() {
    let mut world = World::new();
    assert_eq!(world.live(failed(spread(0, 60, 20))), None);
    assert_eq!(world.report(120, &failed(spread(0, 30 * DAY, 20))), None);
    let mut unset = failed([0]);
    unset[0].attempt.start_time = None;
    assert_eq!(world.report(180, &unset), None);
}

/// Days of failures survive crashes; so does the success that ends them, however quickly the crash follows.
#[test]
fn crashes_forget_neither_failures_nor_their_end() {
    let mut world = World::new();
    for day in 0..5 {
        assert_eq!(world.live(failed(spread(day * DAY, (day + 1) * DAY - HOUR, 10))), None);
        world = world.crash((day + 1) * DAY);
    }
    let found = world.live(failed([5 * DAY + 60])).unwrap();
    assert_eq!((found.since, found.attempt_count), (at(0), 51));
    world.live(failed([5 * DAY + 61]));
    assert_eq!(world.live(delivered(5 * DAY + 62)), None);
    let mut world = world.crash(5 * DAY + 63);
    assert_eq!(world.live(failed(spread(5 * DAY + 64, 10 * DAY, 100))), None);
}

/// Forgetting, as a resume does, begins the count anew, also after a crash, and also for attempts that began
/// before it and are reported after it.
#[test]
fn forgotten_failures_count_no_more() {
    let mut world = World::new();
    assert!(world.live(failed(spread(0, 5 * DAY, 20))).is_some());
    let row = world.failing.forget("sub_1", at(5 * DAY + 60), at(5 * DAY + 60)).unwrap();
    world.write(vec![row]);
    assert_eq!(world.failing.forget("sub_unknown", at(5 * DAY), at(5 * DAY)), None);
    let mut world = world.crash(5 * DAY + 61);
    assert_eq!(world.report(5 * DAY + 70, &failed(spread(0, 5 * DAY + 60, 20))), None);
    assert_eq!(world.live(failed(spread(5 * DAY + 100, 10 * DAY, 20))), None);
    let found = world.live(failed([10 * DAY + 100])).unwrap();
    assert_eq!((found.since, found.attempt_count), (at(5 * DAY + 100), 21));
}

/// A pause is asked for once, and again after a minute for as long as it is not in effect.
#[test]
fn a_pause_is_asked_for_again() {
    let mut world = World::new();
    assert!(world.live(failed(spread(0, 5 * DAY, 20))).is_some());
    assert_eq!(world.live(failed([5 * DAY + 1, 5 * DAY + 59])), None);
    assert!(world.live(failed([5 * DAY + 60])).is_some());
}

/// The table is written now and then only, and at the end of the process; a flapping destination costs as
/// little as a dead one.
#[test]
fn the_table_is_written_rarely() {
    let mut world = World::new();
    world.live(delivered(0));
    assert_eq!(world.written(), Some((None, 0)));
    for second in 1..600 {
        let flapping: Vec<_> = failed([second]).into_iter().chain(delivered(second)).collect();
        assert!(world.failing.changed(&flapping, at(second)).due.is_empty(), "{second}");
        world.report(second, &flapping);
    }
    world.live(failed([600]));
    assert_eq!(world.written(), Some((Some(at(600).as_microsecond()), 1)));
    world.live(failed(601..1_199));
    assert_eq!(world.written(), Some((Some(at(600).as_microsecond()), 1)));
    world.write(world.failing.unwritten(at(1_199)));
    assert_eq!(world.written(), Some((Some(at(600).as_microsecond()), 599)));
    let world = world.crash(61 * DAY);
    assert_eq!(world.written(), None, "subscriptions without attempts are forgotten in the end");
}
