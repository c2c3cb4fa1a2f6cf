//! Secrets that an update would send to another host. Whoever may change a subscription may not read its secrets: so
//! they stay with the host that they were given for, and a move to another one takes them anew.
//!
//! What only signs may stay: signing secrets, and the key of the client certificate, never leave the agent. So may
//! `extra_ca_pem` change: it says who may vouch for the host, not which host it is.

use gateway_core::{
    destination::is_same_origin, violation::FieldViolations, webhook_subscription::SECRET_MASK,
};
use gateway_proto::v1::{self, DestinationAuthentication, destination_authentication::Method};

use super::secrets::{header_field, secret};

const MOVED: &str = "send them again, or clear them: they would go to another host, as `destination_url` has another \
                     scheme, host or port than before";
const TOKEN_URL_MOVED: &str =
    "send it again: it would go to another host, as `token_url` has another scheme, host or port than before";

/// The stored secrets that an update of `fields` keeps, and sends to another host than before. A field that the update
/// does not name keeps its secrets, and so does the mask in the place of a value.
pub(super) fn kept_secrets(
    stored: &v1::WebhookSubscription,
    wanted: &v1::WebhookSubscription,
    fields: &[&str],
) -> FieldViolations {
    let mut violations = FieldViolations::new();
    let is_named = |field| fields.contains(&field);
    let (before, after) = (stored.authentication.as_ref(), wanted.authentication.as_ref());
    if is_named("destination_url") && !is_same_origin(&stored.destination_url, &wanted.destination_url) {
        if is_named("headers") {
            let mut kept: Vec<_> = wanted.headers.iter().filter(|(_, value)| *value == SECRET_MASK).collect();
            kept.sort();
            kept.iter().for_each(|(name, _)| violations.add(header_field(name), MOVED));
        } else if !stored.headers.is_empty() {
            violations.add("webhook_subscription.headers", MOVED);
        }
        if is_named("authentication") {
            note_kept(&mut violations, after, MOVED);
        } else if before.is_some() {
            violations.add("webhook_subscription.authentication", MOVED);
        }
    } else if is_named("authentication") && !is_same_token_url(before, after) {
        note_kept(&mut violations, after, TOKEN_URL_MOVED);
    }
    violations
}

/// Notes the secret of a way to authenticate when the mask keeps it.
fn note_kept(
    violations: &mut FieldViolations,
    wanted: Option<&DestinationAuthentication>,
    description: &str,
) {
    let mut method = wanted.and_then(|wanted| wanted.method.clone());
    if let Some((path, _)) = method.as_mut().map(secret).filter(|(_, value)| *value == SECRET_MASK) {
        violations.add(format!("webhook_subscription.authentication.{path}"), description);
    }
}

/// Whether a client secret that is kept goes to the host that it goes to now.
fn is_same_token_url(
    before: Option<&DestinationAuthentication>,
    after: Option<&DestinationAuthentication>,
) -> bool {
    let method = |of: Option<&DestinationAuthentication>| of.and_then(|of| of.method.clone());
    match (method(before), method(after)) {
        (Some(Method::Oauth2(before)), Some(Method::Oauth2(after))) => {
            is_same_origin(&before.token_url, &after.token_url)
        }
        _ => true,
    }
}
