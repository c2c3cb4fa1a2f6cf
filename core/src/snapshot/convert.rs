//! From the messages of the config stream to what agents use, with every bad field named.

use std::{
    num::NonZeroU32,
    sync::{Arc, LazyLock},
    time::Duration,
};

use gateway_proto::v1;
use jiff::Timestamp;

use super::{
    ATTEMPT_TIMEOUT_DEFAULT, CONCURRENCY_DEFAULT, InstanceConfig, PolicyConfig, RouteConfig, RouteSecret,
    RouteSecretKind, SubscriptionConfig,
    destination_settings::{authentication, client_certificate, ordering},
};
use crate::{
    event::Provider,
    filter::EventFilter,
    id::InstanceId,
    opt_out::{KeywordSet, OptOutPolicy},
    phone::normalize_phone,
    retry,
    signature::{SigningKey, WebhookSecret},
    time::{duration_from_proto, from_proto},
    violation::FieldViolations,
};

/// The policy of an instance, its keywords compiled.
pub(super) fn policy_config(
    policy: &v1::OptOutPolicy,
) -> Result<(InstanceId, PolicyConfig), FieldViolations> {
    let mut violations = FieldViolations::new();
    let id = parsed(&policy.instance_id, "instance_id", &mut violations);
    let policy = OptOutPolicy::try_from(policy)?;
    let keywords = KeywordSet::of(&policy);
    match id {
        Some(id) => violations.into_result((id, PolicyConfig { policy, keywords })),
        None => Err(violations),
    }
}

pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
    field: &str,
    violations: &mut FieldViolations,
) -> Option<T> {
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            violations.add(field, error.to_string());
            None
        }
    }
}

impl TryFrom<&v1::InboundRouteConfig> for RouteConfig {
    type Error = FieldViolations;

    fn try_from(route: &v1::InboundRouteConfig) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let id = parsed(&route.id, "id", &mut violations);
        let provider = Provider::from_proto(route.provider);
        if provider.is_none() {
            violations.add("provider", "is not known to this agent; update the agent");
        }
        if route.callback_token.is_empty() {
            violations.add("callback_token", "must not be empty");
        }
        let mut secrets = Vec::with_capacity(route.secrets.len());
        for (index, secret) in route.secrets.iter().enumerate() {
            let Some(kind) = RouteSecretKind::from_proto(secret.kind) else {
                let description = "is not known to this agent; update the agent";
                violations.add(format!("secrets[{index}].kind"), description);
                continue;
            };
            secrets.push(RouteSecret { kind, value: secret.value.as_str().into() });
        }
        let (Some(id), Some(provider)) = (id, provider) else { return Err(violations) };
        violations.into_result(Self {
            id,
            provider,
            callback_token: route.callback_token.as_str().into(),
            provider_account_id: optional(&route.provider_account_id),
            secrets,
            callback_token_suffices: route.callback_token_suffices,
        })
    }
}

impl TryFrom<&v1::Instance> for InstanceConfig {
    type Error = FieldViolations;

    fn try_from(instance: &v1::Instance) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let id = parsed(&instance.id, "id", &mut violations);
        let tenant_id = parsed(&instance.tenant_id, "tenant_id", &mut violations);
        let inbound_route_id = parsed(&instance.inbound_route_id, "inbound_route_id", &mut violations);
        if instance.provider_number_id.is_empty() {
            violations.add("provider_number_id", "must not be empty");
        }
        let (Some(id), Some(tenant_id), Some(inbound_route_id)) = (id, tenant_id, inbound_route_id) else {
            return Err(violations);
        };
        violations.into_result(Self {
            id,
            tenant_id,
            display_name: instance.display_name.as_str().into(),
            inbound_route_id,
            provider_number_id: instance.provider_number_id.as_str().into(),
            phone: normalize_phone(&instance.phone_number),
            provider_account_id: optional(&instance.provider_account_id),
        })
    }
}

impl TryFrom<&v1::WebhookSubscriptionConfig> for SubscriptionConfig {
    type Error = FieldViolations;

    fn try_from(config: &v1::WebhookSubscriptionConfig) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let unset = v1::WebhookSubscription::default();
        let subscription = config.webhook_subscription.as_ref().unwrap_or(&unset);
        let id = parsed(&subscription.id, "id", &mut violations);
        let instance_id = parsed(&subscription.instance_id, "instance_id", &mut violations);
        let destination = parsed(&subscription.destination_url, "destination_url", &mut violations);
        let events = match EventFilter::parse(&subscription.events) {
            Ok(events) => events,
            Err(error) => {
                violations.add(format!("events[{}]", error.index), error.to_string());
                EventFilter::default()
            }
        };
        let signing_secrets = signing_secrets(config, &mut violations);
        let signing_keys = signing_keys(config, subscription.asymmetric_signature, &mut violations);
        let retry_schedule = retry_schedule(subscription, &mut violations);
        let authentication = authentication(subscription, &mut violations);
        let (Some(id), Some(instance_id), Some(destination)) = (id, instance_id, destination) else {
            return Err(violations);
        };
        let timeout = subscription.attempt_timeout.as_ref().and_then(duration_from_proto);
        violations.into_result(Self {
            id,
            instance_id,
            destination,
            events,
            paused: subscription.state() == v1::WebhookSubscriptionState::Paused,
            headers: sorted_headers(subscription),
            attempt_timeout: timeout.unwrap_or(ATTEMPT_TIMEOUT_DEFAULT),
            concurrency_max: usize::try_from(subscription.concurrency_max)
                .ok()
                .filter(|limit| *limit > 0)
                .unwrap_or(CONCURRENCY_DEFAULT),
            signing_secrets,
            signing_keys,
            retry_schedule,
            rate_per_second_max: u32::try_from(subscription.rate_per_second_max)
                .ok()
                .and_then(NonZeroU32::new),
            ordering: ordering(subscription),
            authentication,
            client_certificate: client_certificate(subscription).map(Arc::new),
            extra_ca_pem: (!subscription.extra_ca_pem.is_empty())
                .then(|| subscription.extra_ca_pem.as_str().into()),
        })
    }
}

/// The delay before each attempt, the first included.
fn retry_schedule(
    subscription: &v1::WebhookSubscription,
    violations: &mut FieldViolations,
) -> Arc<[Duration]> {
    // Nearly all have the same, and an agent may have 100,000 of them.
    static DEFAULT: LazyLock<Arc<[Duration]>> = LazyLock::new(|| retry::SCHEDULE.into());
    let Some(policy) = &subscription.retry_policy else { return Arc::clone(&DEFAULT) };
    let delays = policy.delays.iter().enumerate().map(|(index, delay)| {
        duration_from_proto(delay).unwrap_or_else(|| {
            violations.add(format!("retry_policy.delays[{index}]"), "must not be negative");
            Duration::ZERO
        })
    });
    std::iter::once(Duration::ZERO).chain(delays).collect()
}

fn sorted_headers(subscription: &v1::WebhookSubscription) -> Vec<(Box<str>, Box<str>)> {
    let mut headers: Vec<(Box<str>, Box<str>)> = subscription
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect();
    headers.sort();
    headers
}

fn signing_secrets(
    config: &v1::WebhookSubscriptionConfig,
    violations: &mut FieldViolations,
) -> Vec<(WebhookSecret, Option<Timestamp>)> {
    let mut secrets = Vec::with_capacity(config.signing_secrets.len());
    for (index, secret) in config.signing_secrets.iter().enumerate() {
        match WebhookSecret::parse(&secret.value) {
            Ok(value) => secrets.push((value, secret.expire_time.as_ref().and_then(from_proto))),
            Err(error) => violations.add(format!("signing_secrets[{index}].value"), error.to_string()),
        }
    }
    if secrets.is_empty() {
        violations.add("signing_secrets", "must hold at least one usable secret");
    }
    secrets
}

fn signing_keys(
    config: &v1::WebhookSubscriptionConfig,
    is_asked_for: bool,
    violations: &mut FieldViolations,
) -> Vec<(SigningKey, Option<Timestamp>)> {
    if !is_asked_for {
        return Vec::new();
    }
    let mut keys = Vec::with_capacity(config.signing_keys.len());
    for (index, key) in config.signing_keys.iter().enumerate() {
        match SigningKey::parse(&key.value) {
            Ok(value) => keys.push((value, key.expire_time.as_ref().and_then(from_proto))),
            Err(error) => violations.add(format!("signing_keys[{index}].value"), error.to_string()),
        }
    }
    if keys.is_empty() {
        violations.add("signing_keys", "must hold at least one usable key");
    }
    keys
}

fn optional(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
