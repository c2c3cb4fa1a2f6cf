//! How fast, how often and in which order deliveries are attempted.

use std::{num::NonZeroU32, time::Duration};

use gateway_proto::v1;

use crate::{
    snapshot::{ATTEMPT_TIMEOUT_DEFAULT, CONCURRENCY_DEFAULT, ORDERING_ATTEMPTS_DEFAULT, Ordering},
    time,
    violation::FieldViolations,
};

/// Shortest attempt timeout.
pub const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Longest attempt timeout.
pub const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Most attempts at once on one agent.
pub const CONCURRENCY_MAX: usize = 64;
/// Most delays of a retry policy.
pub const RETRY_DELAYS_MAX: usize = 20;
/// Shortest delay of a retry policy.
pub const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
/// Longest delay of a retry policy.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Longest sum of the delays of a retry policy.
pub const RETRY_DELAYS_TOTAL_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Most attempts begun per second on one agent that can be asked for.
pub const RATE_PER_SECOND_MAX: u32 = 1_000;
/// Most failed attempts for which an ordered delivery can hold its contact.
pub const ORDERING_ATTEMPTS_MAX: u32 = 20;

/// The longest whole attempt.
pub(super) fn read_timeout(
    violations: &mut FieldViolations,
    timeout: Option<&prost_types::Duration>,
) -> Duration {
    let Some(timeout) = timeout else { return ATTEMPT_TIMEOUT_DEFAULT };
    match time::duration_from_proto(timeout) {
        Some(timeout) if (ATTEMPT_TIMEOUT_MIN..=ATTEMPT_TIMEOUT_MAX).contains(&timeout) => timeout,
        _ => {
            violations.add("webhook_subscription.attempt_timeout", "must be between 1s and 30s");
            ATTEMPT_TIMEOUT_DEFAULT
        }
    }
}

/// Attempts that run at once.
pub(super) fn read_concurrency(violations: &mut FieldViolations, concurrency: i32) -> usize {
    match usize::try_from(concurrency) {
        Ok(0) => CONCURRENCY_DEFAULT,
        Ok(concurrency @ 1..=CONCURRENCY_MAX) => concurrency,
        _ => {
            violations.add("webhook_subscription.concurrency_max", "must be between 1 and 64, or 0 for 8");
            CONCURRENCY_DEFAULT
        }
    }
}

/// The delays of a retry policy. None for the default schedule.
pub(super) fn read_retry_delays(
    violations: &mut FieldViolations,
    policy: Option<&v1::RetryPolicy>,
) -> Option<Box<[Duration]>> {
    const FIELD: &str = "webhook_subscription.retry_policy.delays";
    let policy = policy?;
    if policy.delays.is_empty() {
        violations.add(FIELD, "must have at least one value; leave `retry_policy` out for the default");
    } else if policy.delays.len() > RETRY_DELAYS_MAX {
        violations.add(FIELD, format!("must have at most {RETRY_DELAYS_MAX} values"));
        return None;
    }
    let allowed = RETRY_DELAY_MIN..=RETRY_DELAY_MAX;
    let mut delays = Vec::with_capacity(policy.delays.len());
    for (index, delay) in policy.delays.iter().enumerate() {
        match time::duration_from_proto(delay).filter(|delay| allowed.contains(delay)) {
            Some(delay) => delays.push(delay),
            None => violations.add(format!("{FIELD}[{index}]"), "must be between 1s and 24h (86400s)"),
        }
    }
    if delays.iter().sum::<Duration>() > RETRY_DELAYS_TOTAL_MAX {
        violations.add(FIELD, "must be at most 7 days (604800s) in all; shorten or remove delays");
    }
    Some(delays.into())
}

/// Attempts begun per second. None for no limit.
pub(super) fn read_rate(violations: &mut FieldViolations, rate: i32) -> Option<NonZeroU32> {
    match u32::try_from(rate) {
        Ok(rate @ 0..=RATE_PER_SECOND_MAX) => NonZeroU32::new(rate),
        _ => {
            let description = "must be between 1 and 1000, or 0 for no limit";
            violations.add("webhook_subscription.rate_per_second_max", description);
            None
        }
    }
}

/// The order of deliveries.
pub(super) fn read_ordering(violations: &mut FieldViolations, proto: &v1::WebhookSubscription) -> Ordering {
    let attempts_max = match u32::try_from(proto.ordering_attempts_max) {
        Ok(0) => ORDERING_ATTEMPTS_DEFAULT,
        Ok(attempts @ 1..=ORDERING_ATTEMPTS_MAX) => attempts,
        _ => {
            let description = "must be between 1 and 20, or 0 for 5";
            violations.add("webhook_subscription.ordering_attempts_max", description);
            ORDERING_ATTEMPTS_DEFAULT
        }
    };
    match v1::DeliveryOrdering::try_from(proto.ordering) {
        Ok(v1::DeliveryOrdering::Contact) => Ordering::Contact { attempts_max },
        Ok(v1::DeliveryOrdering::None | v1::DeliveryOrdering::Unspecified) => Ordering::None,
        Err(_) => {
            let description = "must be DELIVERY_ORDERING_NONE or DELIVERY_ORDERING_CONTACT";
            violations.add("webhook_subscription.ordering", description);
            Ordering::None
        }
    }
}
