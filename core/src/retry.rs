//! When to try a delivery again. Pure: the caller brings the clock and the randomness.

use std::time::Duration;

/// Delay before each attempt, the first included, when a subscription brings none: 12 attempts, never under
/// 73 h in all.
pub const SCHEDULE: [Duration; 12] = [
    Duration::ZERO,
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(12 * 3600),
    Duration::from_secs(24 * 3600),
];

/// How much a delay may grow by chance, so that deliveries that failed together do not return together.
const JITTER_SHARE: f64 = 0.2;

/// Longest `Retry-After` that is honoured.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again after this long.
    After(Duration),
    /// The schedule is used up.
    Exhausted,
}

/// What follows when attempt number `attempt` (from 1) failed. `schedule` holds the delay before each attempt,
/// the first included. `random` is in 0..1. A destination's `Retry-After` makes the delay longer, up to 24 h,
/// never shorter.
pub fn next_attempt(schedule: &[Duration], attempt: u32, retry_after: Option<Duration>, random: f64) -> Next {
    let Some(delay) = usize::try_from(attempt).ok().and_then(|index| schedule.get(index)) else {
        return Next::Exhausted;
    };
    let jittered = delay.mul_f64(1.0 + JITTER_SHARE * random.clamp(0.0, 1.0));
    let asked = retry_after.unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX);
    Next::After(jittered.max(asked))
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or an HTTP date relative to `now`. None for nonsense;
/// a date in the past is zero.
pub fn parse_retry_after(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The documented schedule spans at least 73 hours without any jitter.
    #[test]
    fn schedule_lasts_three_days() {
        let total: Duration = SCHEDULE.iter().sum();
        assert!(total >= Duration::from_secs(73 * 3600), "{total:?}");
    }

    /// After the twelfth attempt there is no thirteenth.
    #[test]
    fn schedule_ends() {
        assert_eq!(next_attempt(&SCHEDULE, 11, None, 0.0), Next::After(SCHEDULE[11]));
        assert_eq!(next_attempt(&SCHEDULE, 12, None, 0.0), Next::Exhausted);
        assert_eq!(next_attempt(&SCHEDULE, u32::MAX, None, 0.0), Next::Exhausted);
        let own = [Duration::ZERO, Duration::from_secs(7)];
        assert_eq!(next_attempt(&own, 1, None, 0.0), Next::After(own[1]));
        assert_eq!(next_attempt(&own, 2, None, 0.0), Next::Exhausted);
        assert_eq!(next_attempt(&[], 1, None, 0.0), Next::Exhausted);
    }

    /// Both forms of `Retry-After` are read; nonsense is ignored and huge numbers are cut.
    #[test]
    fn retry_after_is_read() {
        let now: jiff::Timestamp = "2015-10-21T07:28:00Z".parse().unwrap();
        let read = |value| parse_retry_after(value, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Wed, 21 Oct 2015 07:30:00 GMT"), Some(Duration::from_secs(120)));
        assert_eq!(read("Wed, 21 Oct 2015 07:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999999999999999"), Some(RETRY_AFTER_MAX));
        for nonsense in ["", "-5", "soon", "1.5", "0x10"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(next_attempt(&SCHEDULE, 1, read("1000000000000"), 0.0), Next::After(RETRY_AFTER_MAX));
    }

    proptest! {
        /// A delay is never shorter than the schedule says and never longer by more than the jitter.
        #[test]
        fn jitter_is_bounded(attempt in 1_u32..12, random in 0.0..1.0_f64) {
            let base = SCHEDULE[attempt as usize];
            let Next::After(delay) = next_attempt(&SCHEDULE, attempt, None, random) else { panic!("schedule ended early") };
            prop_assert!(delay >= base && delay <= base.mul_f64(1.2001));
        }
    }
}
