//! A webhook subscription: which events of an instance go to which destination.

mod headers;
mod pace;
mod authentication;
mod tls;

use std::{num::NonZeroU32, time::Duration};

use gateway_proto::v1;

use crate::{
    destination::{AddressPolicy, DestinationUrl},
    filter::{EventFilter, PATTERNS_MAX},
    id::{InstanceId, TenantId, WebhookSubscriptionId},
    inbound_route::SecretValue,
    instance::{DISPLAY_NAME_CHARS_MAX, check_text},
    snapshot::{Authentication, ClientCertificate, Ordering},
    violation::FieldViolations,
};
use authentication::read_authentication;
use headers::read_headers;
use pace::{read_concurrency, read_ordering, read_rate, read_retry_delays, read_timeout};
use tls::{check_extra_ca, read_client_certificate};

pub use authentication::{
    PASSWORD_CHARS_MAX, SCOPE_BYTES_MAX, SCOPES_MAX, TOKEN_BYTES_MAX, USERNAME_CHARS_MAX,
};
pub use headers::{HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, HEADERS_MAX};
pub use pace::{
    ATTEMPT_TIMEOUT_MAX, ATTEMPT_TIMEOUT_MIN, CONCURRENCY_MAX, ORDERING_ATTEMPTS_MAX, RATE_PER_SECOND_MAX,
    RETRY_DELAY_MAX, RETRY_DELAY_MIN, RETRY_DELAYS_MAX, RETRY_DELAYS_TOTAL_MAX,
};
pub use tls::{CHAIN_CERTIFICATES_MAX, EXTRA_CA_CERTIFICATES_MAX, KEY_PEM_BYTES_MAX, PEM_BYTES_MAX};

/// What is read back in place of a secret, and what, when written, keeps the stored one.
pub const SECRET_MASK: &str = "***";
/// Longest pause reason, in characters.
pub const PAUSE_REASON_CHARS_MAX: usize = 200;

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
    /// Delay after each failed attempt; none for the default schedule.
    pub retry_delays: Option<Box<[Duration]>>,
    /// Attempts begun per second on one agent; none for no limit.
    pub rate_per_second_max: Option<NonZeroU32>,
    /// In which order deliveries are attempted.
    pub ordering: Ordering,
    /// How webhooks prove to the destination that they may come in.
    pub authentication: Option<Authentication>,
    /// The certificate shown to a destination that asks for one.
    pub client_certificate: Option<ClientCertificate>,
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
        let retry_delays = read_retry_delays(violations, proto.retry_policy.as_ref());
        let rate_per_second_max = read_rate(violations, proto.rate_per_second_max);
        let ordering = read_ordering(violations, proto);
        let authentication = read_authentication(violations, proto, &headers, policy);
        let client_certificate = read_client_certificate(violations, proto.client_certificate.as_ref());
        check_extra_ca(violations, &proto.extra_ca_pem);
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
            retry_delays,
            rate_per_second_max,
            ordering,
            authentication,
            client_certificate,
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

#[cfg(test)]
mod tests;
