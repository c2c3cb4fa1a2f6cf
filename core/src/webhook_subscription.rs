//! A webhook subscription: which events of an instance go to which destination.

use std::{collections::HashMap, time::Duration};

use gateway_proto::v1;

use crate::{
    destination::{AddressPolicy, DestinationUrl},
    filter::{EventFilter, PATTERNS_MAX},
    id::{InstanceId, TenantId, WebhookSubscriptionId},
    inbound_route::SecretValue,
    instance::{DISPLAY_NAME_CHARS_MAX, check_text},
    snapshot::{ATTEMPT_TIMEOUT_DEFAULT, CONCURRENCY_DEFAULT},
    time,
    violation::FieldViolations,
};

/// Most custom headers of one subscription.
pub const HEADERS_MAX: usize = 32;
/// Longest value of a custom header, in bytes.
pub const HEADER_VALUE_BYTES_MAX: usize = 4_096;
/// Longest name of a custom header, in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 256;
/// What is read back in place of a header's value, and what, when written, keeps the stored value.
pub const HEADER_MASK: &str = "***";
/// Shortest attempt timeout.
pub const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Longest attempt timeout.
pub const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Most attempts at once on one agent.
pub const CONCURRENCY_MAX: usize = 64;
/// Longest pause reason, in characters.
pub const PAUSE_REASON_CHARS_MAX: usize = 200;

/// Header names that HTTP or the gateway owns.
const HEADERS_DENIED: [&str; 14] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "user-agent",
    "traceparent",
    "tracestate",
    "keep-alive",
    "forwarded",
];
/// Beginnings of header names that HTTP, proxies or the gateway own.
const HEADER_PREFIXES_DENIED: [&str; 4] = ["webhook-", "content-", "proxy-", "x-forwarded-"];

/// Whether a webhook subscription is delivering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionState {
    /// Deliveries are attempted.
    Active,
    /// Deliveries are made and held.
    Paused,
}

/// A validated webhook subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSubscription {
    /// Its id.
    pub id: WebhookSubscriptionId,
    /// The tenant of the instance.
    pub tenant_id: TenantId,
    /// The instance whose events are delivered.
    pub instance_id: InstanceId,
    /// Where to.
    pub destination: DestinationUrl,
    /// Which events.
    pub filter: EventFilter,
    /// Whether it is delivering.
    pub state: SubscriptionState,
    /// Custom headers: lower-case names, in their order; values are visible ASCII, spaces and tabs.
    pub headers: Box<[(Box<str>, SecretValue)]>,
    /// Longest whole attempt.
    pub attempt_timeout: Duration,
    /// Most attempts at once on one agent.
    pub concurrency_max: usize,
}

impl WebhookSubscription {
    /// Validates a subscription as a caller gives it.
    ///
    /// # Errors
    /// Every bad field, as a path from `webhook_subscription`.
    pub fn from_proto(
        proto: &v1::WebhookSubscription,
        policy: &AddressPolicy,
    ) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let violations = &mut violations;
        let id = read_id::<WebhookSubscriptionId>(violations, "webhook_subscription.id", &proto.id);
        let tenant_id = read_id::<TenantId>(violations, "webhook_subscription.tenant_id", &proto.tenant_id);
        let instance_id =
            read_id::<InstanceId>(violations, "webhook_subscription.instance_id", &proto.instance_id);
        let name = &proto.display_name;
        check_text(violations, "webhook_subscription.display_name", name, 0, DISPLAY_NAME_CHARS_MAX);
        let destination = DestinationUrl::parse(&proto.destination_url, policy)
            .map_err(|error| violations.add("webhook_subscription.destination_url", error.to_string()));
        let filter = read_events(violations, &proto.events);
        let headers = read_headers(violations, &proto.headers);
        let attempt_timeout = read_timeout(violations, proto.attempt_timeout.as_ref());
        let concurrency_max = read_concurrency(violations, proto.concurrency_max);
        let violations = std::mem::take(violations);
        let (Some(id), Some(tenant_id), Some(instance_id), Ok(destination)) =
            (id, tenant_id, instance_id, destination)
        else {
            return Err(violations);
        };
        violations.into_result(Self {
            id,
            tenant_id,
            instance_id,
            destination,
            filter,
            state: match proto.state() {
                v1::WebhookSubscriptionState::Paused => SubscriptionState::Paused,
                v1::WebhookSubscriptionState::Active | v1::WebhookSubscriptionState::Unspecified => {
                    SubscriptionState::Active
                }
            },
            headers,
            attempt_timeout,
            concurrency_max,
        })
    }
}

fn read_id<T: std::str::FromStr<Err = crate::id::InvalidId>>(
    violations: &mut FieldViolations,
    field: &str,
    text: &str,
) -> Option<T> {
    text.parse().map_err(|error: crate::id::InvalidId| violations.add(field, error.to_string())).ok()
}

fn read_events(violations: &mut FieldViolations, events: &[String]) -> EventFilter {
    const FIELD: &str = "webhook_subscription.events";
    if events.is_empty() {
        violations.add(FIELD, "must name at least one event, such as `message.received`, `message.*` or `*`");
    } else if events.len() > PATTERNS_MAX {
        violations.add(FIELD, format!("must have at most {PATTERNS_MAX} values"));
    }
    EventFilter::parse(events).unwrap_or_else(|error| {
        violations.add(format!("{FIELD}[{}]", error.index), error.to_string());
        EventFilter::default()
    })
}

fn read_headers(
    violations: &mut FieldViolations,
    headers: &HashMap<String, String>,
) -> Box<[(Box<str>, SecretValue)]> {
    const FIELD: &str = "webhook_subscription.headers";
    if headers.len() > HEADERS_MAX {
        violations.add(FIELD, format!("must have at most {HEADERS_MAX} headers"));
        return Box::default();
    }
    let mut read: Vec<(Box<str>, SecretValue)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if let Err(problem) = check_header_name(&lower) {
            violations.add(format!("{FIELD}[{}]", shown(name)), problem);
        } else if let Err(problem) = check_header_value(value) {
            violations.add(format!("{FIELD}[{lower}]"), problem);
        } else if read.iter().any(|(known, _)| **known == lower) {
            violations.add(format!("{FIELD}[{lower}]"), "must be given once: header names ignore case");
        }
        read.push((lower.into(), SecretValue::new(value)));
    }
    read.sort_by(|(one, _), (other, _)| one.cmp(other));
    read.into()
}

/// A header name in an error: cut, and without characters that could break a log line.
fn shown(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(64).collect()
}

fn check_header_name(lower: &str) -> Result<(), &'static str> {
    // RFC 9110, 5.6.2: a field name is a token.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if lower.is_empty() || lower.len() > HEADER_NAME_BYTES_MAX || !lower.bytes().all(is_token) {
        return Err("must be a header name: letters, digits and `-`");
    }
    let is_denied = HEADERS_DENIED.contains(&lower)
        || HEADER_PREFIXES_DENIED.iter().any(|prefix| lower.starts_with(prefix));
    if is_denied { Err("must not be a header that HTTP or the gateway sets itself") } else { Ok(()) }
}

fn check_header_value(value: &str) -> Result<(), &'static str> {
    if value.len() > HEADER_VALUE_BYTES_MAX {
        return Err("must have a value of at most 4096 bytes");
    }
    // RFC 9110, 5.5, without obs-text: anything else could end the header early or be read differently.
    if value.bytes().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e)) {
        Ok(())
    } else {
        Err("must have a value of visible ASCII characters, spaces and tabs")
    }
}

fn read_timeout(violations: &mut FieldViolations, timeout: Option<&prost_types::Duration>) -> Duration {
    let Some(timeout) = timeout else { return ATTEMPT_TIMEOUT_DEFAULT };
    match time::duration_from_proto(timeout) {
        Some(timeout) if (ATTEMPT_TIMEOUT_MIN..=ATTEMPT_TIMEOUT_MAX).contains(&timeout) => timeout,
        _ => {
            violations.add("webhook_subscription.attempt_timeout", "must be between 1s and 30s");
            ATTEMPT_TIMEOUT_DEFAULT
        }
    }
}

fn read_concurrency(violations: &mut FieldViolations, concurrency: i32) -> usize {
    match usize::try_from(concurrency) {
        Ok(0) => CONCURRENCY_DEFAULT,
        Ok(concurrency @ 1..=CONCURRENCY_MAX) => concurrency,
        _ => {
            violations.add("webhook_subscription.concurrency_max", "must be between 1 and 64, or 0 for 8");
            CONCURRENCY_DEFAULT
        }
    }
}

#[cfg(test)]
mod tests;
