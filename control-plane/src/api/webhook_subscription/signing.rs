//! The secrets and keys that sign webhooks: newest first, everywhere. The first is the one that the API
//! shows, and the first with which agents sign.

use std::time::Duration;

use gateway_core::{
    signature::{SigningKey, WebhookSecret},
    time,
};
use gateway_proto::v1;
use jiff::Timestamp;
use tonic::Status;

use super::status;

/// How long the old secret signs beside the new one when the caller does not say.
const GRACE_PERIOD_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
/// Longest grace period.
const GRACE_PERIOD_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Most secrets that sign at once: each costs a signature in every webhook's header.
const SIGNING_SECRETS_MAX: usize = 5;

/// A fresh symmetric secret.
pub(super) fn new_secret(now: Timestamp) -> v1::SigningSecret {
    let secret =
        WebhookSecret::from_key(&rand::random::<[u8; 32]>()).expect("32 bytes are enough and not too many");
    v1::SigningSecret { value: secret.reveal(), expire_time: None, create_time: Some(time::to_proto(now)) }
}

/// A fresh ed25519 key.
pub(super) fn new_key(now: Timestamp) -> v1::SigningSecret {
    let key = SigningKey::from_seed(&rand::random());
    v1::SigningSecret { value: key.reveal(), expire_time: None, create_time: Some(time::to_proto(now)) }
}

/// The newest public key, with which receivers check `v1a`; empty unless the subscription asks for that.
pub(super) fn public_key(config: &v1::WebhookSubscriptionConfig) -> String {
    let is_asked_for =
        config.webhook_subscription.as_ref().is_some_and(|subscription| subscription.asymmetric_signature);
    let newest = config.signing_keys.first().filter(|_| is_asked_for);
    let key = newest.and_then(|newest| SigningKey::parse(&newest.value).ok());
    key.map_or_else(String::new, |key| key.public().to_string())
}

/// How long old secrets sign beside the new one.
pub(super) fn read_grace_period(grace_period: Option<&prost_types::Duration>) -> Result<Duration, Status> {
    let Some(grace_period) = grace_period else { return Ok(GRACE_PERIOD_DEFAULT) };
    time::duration_from_proto(grace_period)
        .filter(|grace_period| *grace_period <= GRACE_PERIOD_MAX)
        .ok_or_else(|| status::invalid_field("grace_period", "must be between 0s and 7 days (604800s)"))
}

/// Puts the new secret or key first; those before it end at `expire_time` at the latest, and ended ones go.
pub(super) fn rotate(
    secrets: &mut Vec<v1::SigningSecret>,
    newest: v1::SigningSecret,
    now: Timestamp,
    expire_time: Timestamp,
) -> Result<(), Status> {
    for secret in secrets.iter_mut() {
        let end = secret.expire_time.as_ref().and_then(time::from_proto);
        let end = end.map_or(expire_time, |end| end.min(expire_time));
        secret.expire_time = Some(time::to_proto(end));
    }
    let is_live = |secret: &v1::SigningSecret| {
        secret.expire_time.as_ref().and_then(time::from_proto).is_some_and(|end| end > now)
    };
    secrets.retain(is_live);
    if secrets.len() >= SIGNING_SECRETS_MAX {
        let message = format!(
            "{SIGNING_SECRETS_MAX} secrets sign already; wait until one ends, or rotate with a `grace_period` of 0s"
        );
        return Err(status::failed_precondition("TOO_MANY_SECRETS", message));
    }
    secrets.insert(0, newest);
    Ok(())
}
