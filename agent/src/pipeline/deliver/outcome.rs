//! What follows an attempt. Pure: the caller brings the clock and the randomness.
//!
//! | the attempt | the delivery |
//! |---|---|
//! | 2xx | delivered |
//! | 410 | held; the subscription is reported as gone |
//! | the first one, no connection within a second | once more at once: the quick retry |
//! | 429, 503 | by the schedule, not before `Retry-After`, or a minute when there is none |
//! | any other failure, timeouts too | by the schedule, not before `Retry-After` |
//! | any failure after the schedule's last delay | exhausted |
//! | not made, for a cause on this machine | tried again in a second, and not counted |
//!
//! The quick retry is an attempt like others, numbered and recorded, that uses up no step of the schedule: with
//! it a schedule of n delays makes n + 2 attempts. So a delivery has to remember that it had one. The buffer
//! keeps two numbers of a delivery, attempts and due time; the lowest bit of the due time is the mark. See
//! [`due_ms`].

use std::time::Duration;

use gateway_core::{
    delivery::DeliveryState,
    retry::{self, Next},
    snapshot::SubscriptionConfig,
    time::to_proto,
};
use gateway_proto::v1;
use jiff::Timestamp;

use crate::pipeline::buffer::{OpenDelivery, Outcome};

use super::{
    attempt::{Made, Verdict},
    queue::Entry,
};

/// The quick retry comes after this long, and up to as much more.
const QUICK_DELAY: Duration = Duration::from_millis(250);
/// Least wait after 429 or 503 without `Retry-After`.
const BUSY_DELAY: Duration = Duration::from_secs(60);
/// How long to wait with an attempt that could not be made, and up to as much more.
const UNMADE_DELAY: Duration = Duration::from_secs(1);
/// How much longer than its schedule says a delivery may wait by chance.
const JITTER_MAX: f64 = 1.2;

/// What follows an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing: the destination has it.
    Delivered,
    /// Nothing before somebody acts: the destination is gone.
    Gone,
    /// Another attempt.
    Again {
        /// After this long.
        delay: Duration,
        /// Whether it is the quick retry.
        is_quick: bool,
    },
    /// Nothing: the schedule is used up.
    Exhausted,
    /// The same attempt, after this long: none was made.
    Unmade {
        /// How long.
        delay: Duration,
    },
}

/// What follows attempt number `number` (from 1). `had_quick`: one of them was, or it is, the quick retry.
/// `random` is in 0..1.
pub(super) fn decide(
    verdict: &Verdict,
    number: u32,
    had_quick: bool,
    schedule: &[Duration],
    random: f64,
) -> Decision {
    let (retry_after, slow_down) = match *verdict {
        Verdict::Delivered => return Decision::Delivered,
        Verdict::Gone => return Decision::Gone,
        Verdict::Failed { ours: true, .. } => {
            return Decision::Unmade { delay: UNMADE_DELAY.mul_f64(1.0 + random) };
        }
        Verdict::Failed { quick: true, .. } if number == 1 => {
            return Decision::Again { delay: QUICK_DELAY.mul_f64(1.0 + random), is_quick: true };
        }
        Verdict::Failed { retry_after, slow_down, .. } => (retry_after, slow_down),
    };
    match retry::next_attempt(schedule, number - u32::from(had_quick), retry_after, random) {
        Next::After(delay) if slow_down && retry_after.is_none() => {
            Decision::Again { delay: delay.max(BUSY_DELAY), is_quick: false }
        }
        Next::After(delay) => Decision::Again { delay, is_quick: false },
        Next::Exhausted => Decision::Exhausted,
    }
}

/// A decision as the buffer records it, with the attempt, which `entry` counts. None when none was made.
pub(super) fn outcome(
    decision: Decision,
    made: Made,
    subscription: u32,
    entry: Entry,
    config: &SubscriptionConfig,
    now: Timestamp,
) -> Option<Outcome> {
    let (state, due_ms) = match decision {
        Decision::Delivered => (DeliveryState::Delivered, None),
        // Its time means nothing, but the mark of the quick retry does.
        Decision::Gone => (DeliveryState::Held, Some(due_ms(now, Duration::ZERO, entry.had_quick))),
        Decision::Exhausted => (DeliveryState::Exhausted, None),
        Decision::Again { delay, .. } => (DeliveryState::Pending, Some(due_ms(now, delay, entry.had_quick))),
        Decision::Unmade { .. } => return None,
    };
    let gone = (decision == Decision::Gone).then(|| v1::DestinationGone {
        subscription_id: config.id.as_str().to_owned(),
        destination_url: config.destination.as_str().to_owned(),
        time: Some(to_proto(now)),
    });
    Some(Outcome { event: entry.event, subscription, state, due_ms, attempt: Some(made.attempt), gone })
}

/// The due time that the buffer keeps: the next even millisecond after the delay, and one more when the delivery
/// had its quick retry.
pub(super) fn due_ms(now: Timestamp, delay: Duration, had_quick: bool) -> i64 {
    let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    let due_ms = now.as_millisecond().saturating_add(delay_ms).saturating_add(2);
    (due_ms & !1) | i64::from(had_quick)
}

/// Whether a delivery had its quick retry, by its due time. An event that was not attempted has any due time.
pub(super) const fn had_quick(delivery: &OpenDelivery) -> bool {
    delivery.had_quick_retry()
}

/// How long a delivery of the buffer has to wait. From here on only a clock that does not jump counts. The wall
/// clock is believed as far as the schedule allows: one that jumped makes a delivery wait no longer than its
/// longest delay, or come once too early.
pub(super) fn wait(delivery: &OpenDelivery, schedule: &[Duration], now: Timestamp) -> Duration {
    let left_ms = delivery.due_ms.saturating_sub(now.as_millisecond());
    if delivery.attempts == 0 {
        // The due time of a new event is when it came.
        let first = schedule.first().copied().unwrap_or_default();
        let first_ms = i64::try_from(first.as_millis()).unwrap_or(i64::MAX);
        return millis(left_ms.saturating_add(first_ms)).min(first);
    }
    let longest = schedule.iter().max().copied().unwrap_or_default();
    millis(left_ms).min(longest.mul_f64(JITTER_MAX).max(retry::RETRY_AFTER_MAX))
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use gateway_core::retry::{RETRY_AFTER_MAX, SCHEDULE};
    use proptest::prelude::*;

    use super::*;

    const FAILED: Verdict =
        Verdict::Failed { retry_after: None, slow_down: false, quick: false, ours: false };

    fn busy(retry_after: Option<u64>) -> Verdict {
        let retry_after = retry_after.map(Duration::from_secs);
        Verdict::Failed { retry_after, slow_down: true, quick: false, ours: false }
    }

    fn again(seconds: u64) -> Decision {
        Decision::Again { delay: Duration::from_secs(seconds), is_quick: false }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    /// A failure is followed by the schedule's next delay, with up to a fifth more, and the last by nothing.
    #[test]
    fn failures_follow_the_schedule() {
        let decide = |number, random| decide(&FAILED, number, false, &SCHEDULE, random);
        assert_eq!((decide(1, 0.0), decide(2, 0.0), decide(11, 0.0)), (again(5), again(30), again(86_400)));
        assert_eq!(decide(1, 1.0), again(6));
        assert_eq!(decide(12, 0.0), Decision::Exhausted);
        assert_eq!(super::decide(&Verdict::Delivered, 1, false, &SCHEDULE, 0.0), Decision::Delivered);
        assert_eq!(super::decide(&Verdict::Gone, 1, false, &SCHEDULE, 0.0), Decision::Gone);
    }

    /// `Retry-After` makes the wait longer, up to a day, and never shorter than the schedule; a busy
    /// destination that does not say how long gets a minute at least.
    #[test]
    fn busy_destinations_are_given_time() {
        let decide = |verdict: Verdict, number| decide(&verdict, number, false, &SCHEDULE, 0.0);
        assert_eq!(decide(busy(None), 1), again(60));
        assert_eq!(decide(busy(None), 3), again(300), "the schedule asks for more");
        assert_eq!(decide(busy(Some(20)), 1), again(20));
        assert_eq!(decide(busy(Some(0)), 1), again(5));
        assert_eq!(decide(busy(Some(1_000_000_000_000)), 1), again(RETRY_AFTER_MAX.as_secs()));
        let failed =
            |retry_after| Verdict::Failed { retry_after, slow_down: false, quick: false, ours: false };
        assert_eq!(decide(failed(Some(Duration::from_secs(600))), 1), again(600));
        assert_eq!(decide(busy(None), 12), Decision::Exhausted);
    }

    /// A first attempt without connection is repeated at once, once; neither takes a step of the schedule,
    /// whose delays all follow, also when they are few.
    #[test]
    fn quick_retry_takes_no_step() {
        let refused = Verdict::Failed { retry_after: None, slow_down: false, quick: true, ours: false };
        let schedule = [0, 7, 9].map(Duration::from_secs);
        for (random, delay_ms) in [(0.0, 250), (1.0, 500)] {
            let delay = Duration::from_millis(delay_ms);
            let expected = Decision::Again { delay, is_quick: true };
            assert_eq!(decide(&refused, 1, false, &schedule, random), expected);
        }
        let after_quick = |number| decide(&refused, number, true, &schedule, 0.0);
        assert_eq!(
            (after_quick(2), after_quick(3), after_quick(4)),
            (again(7), again(9), Decision::Exhausted)
        );
        let without = |number| decide(&refused, number, false, &schedule, 0.0);
        assert_eq!((without(2), without(3)), (again(9), Decision::Exhausted));
    }

    /// A destination that is gone leaves the mark of the quick retry as it was: also when it answered the first
    /// attempt, whose due time is any.
    #[test]
    fn gone_keeps_the_mark() {
        use crate::pipeline::deliver::tests::{snapshot, subscription};
        use gateway_core::snapshot::SubscriptionLookup;
        let config = snapshot([subscription("sub_a", "https://hooks.example.com/")]);
        let SubscriptionLookup::Known(settings) = config.look_up_subscription("sub_a") else {
            panic!("it is known");
        };
        for had_quick in [false, true] {
            let attempt = v1::DeliveryAttempt::default();
            let made = Made { attempt, verdict: Verdict::Gone };
            let entry = Entry { event: 1, attempts: 1, had_quick, ..Entry::default() };
            let recorded = outcome(Decision::Gone, made, 1, entry, settings, at(1_800_000_000_001)).unwrap();
            assert_eq!(recorded.state, DeliveryState::Held);
            assert_eq!(recorded.due_ms.unwrap() & 1 == 1, had_quick);
        }
    }

    /// What fails on this machine is tried again soon and uses nothing up.
    #[test]
    fn our_faults_do_not_count() {
        let ours = Verdict::Failed { retry_after: None, slow_down: false, quick: true, ours: true };
        for number in [1, 12] {
            let expected = Decision::Unmade { delay: Duration::from_secs(1) };
            assert_eq!(decide(&ours, number, false, &SCHEDULE, 0.0), expected);
        }
    }

    /// A clock that jumped while the agent was down makes nobody wait longer than the longest delay, and a new
    /// event not at all.
    #[test]
    fn clock_jumps_are_bounded() {
        const DAY_MS: i64 = 86_400_000;
        let due_ms = 1_800_000_000_000;
        let delivery =
            |attempts| OpenDelivery { event: 1, subscription: 1, due_ms, held: false, attempts, contact: 0 };
        let longest = SCHEDULE[11].mul_f64(1.2);
        for (attempts, clock_ms, expected) in [
            (1, due_ms - 5_000, Duration::from_secs(5)),
            (1, due_ms - 5_000 - 3_600_000, Duration::from_secs(3_605)),
            (1, due_ms - 2 * DAY_MS, longest),
            (1, 0, longest),
            (1, due_ms + DAY_MS, Duration::ZERO),
            (0, due_ms - DAY_MS, Duration::ZERO),
            (0, due_ms + DAY_MS, Duration::ZERO),
        ] {
            assert_eq!(wait(&delivery(attempts), &SCHEDULE, at(clock_ms)), expected, "{attempts} {clock_ms}");
        }
        let short = [0, 5].map(Duration::from_secs);
        assert_eq!(wait(&delivery(1), &short, at(0)), RETRY_AFTER_MAX, "which may have been asked for");
    }

    proptest! {
        /// The due time is never before the delay is over, at most three milliseconds after, and brings the mark
        /// of the quick retry back.
        #[test]
        fn due_time_carries_the_mark(now_ms in 0_i64..4_000_000_000_000, delay_ms in 0_u64..200_000_000, quick: bool) {
            let delay = Duration::from_millis(delay_ms);
            let due_ms = due_ms(at(now_ms), delay, quick);
            let over = due_ms - now_ms - i64::try_from(delay_ms).unwrap();
            prop_assert!((1..=3).contains(&over), "{over}");
            let delivery = OpenDelivery { event: 1, subscription: 1, due_ms, held: false, attempts: 1, contact: 0 };
            prop_assert_eq!(had_quick(&delivery), quick);
            prop_assert_eq!(had_quick(&OpenDelivery { attempts: 0, ..delivery }), false);
        }

        /// The wait read back at once is what was decided, so that a restart changes nothing.
        #[test]
        fn restarts_change_no_time(number in 1_u32..12, random in 0.0..1.0_f64, now_ms in 0_i64..4_000_000_000_000) {
            let Decision::Again { delay, .. } = decide(&FAILED, number, false, &SCHEDULE, random) else {
                return Err(TestCaseError::fail("ended early"));
            };
            let due_ms = due_ms(at(now_ms), delay, false);
            let delivery = OpenDelivery { event: 1, subscription: 1, due_ms, held: false, attempts: 1, contact: 0 };
            let read = wait(&delivery, &SCHEDULE, at(now_ms));
            prop_assert!(read.abs_diff(delay) <= Duration::from_millis(2), "{read:?} {delay:?}");
        }
    }
}
