//! The live secrets of a route: one more, one less, and that something is left that proves its callbacks.

use gateway_core::{
    event::Provider,
    inbound_route::{RouteSecretKind, SECRETS_PER_KIND_MAX, SecretValue},
    time,
    violation::FieldViolations,
};
use gateway_proto::v1;
use jiff::Timestamp;
use tonic::Status;

use super::{new_id, status};
use crate::store::inbound_routes::StoredRoute;

/// The kind of a secret to add, of those that the route's provider takes, when the value has its form.
pub(super) fn check(stored: &StoredRoute, kind: i32, value: &str) -> Result<RouteSecretKind, Status> {
    let mut violations = FieldViolations::new();
    let provider = Provider::from_proto(stored.route.provider);
    let kinds = provider.map(RouteSecretKind::of).unwrap_or_default();
    let wanted = RouteSecretKind::from_proto(kind).filter(|kind| kinds.contains(kind));
    let Some((provider, kind)) = provider.zip(wanted) else {
        let names: Vec<_> = kinds.iter().map(|kind| kind.to_proto().as_str_name()).collect();
        let description =
            format!("must be {} on a route of {}", names.join(" or "), stored.route.provider().as_str_name());
        violations.add("kind", description);
        if value.is_empty() {
            violations.add("value", "must be set");
        }
        return Err(status::invalid(violations));
    };
    kind.check(provider, &mut violations, "value", value);
    violations.into_result(kind).map_err(status::invalid)
}

/// A secret that is live already, or one too many, is refused.
pub(super) fn refuse_superfluous(
    stored: &StoredRoute,
    kind: RouteSecretKind,
    value: &str,
) -> Result<(), Status> {
    let kind = i32::from(kind.to_proto());
    let mut live = stored.config.secrets.iter().filter(|secret| secret.kind == kind);
    if let Some(same) = live.clone().find(|secret| secret.value == value) {
        let message = format!("this value is live already as secret `{}`", same.id);
        return Err(status::conflict("SECRET_EXISTS", message));
    }
    if live.nth(SECRETS_PER_KIND_MAX - 1).is_some() {
        let message = format!(
            "the route has {SECRETS_PER_KIND_MAX} live secrets of this kind; remove one with \
             RemoveInboundRouteSecret first"
        );
        return Err(status::failed_precondition("TOO_MANY_SECRETS", message));
    }
    Ok(())
}

/// Adds a secret, and gives it as operators see it.
pub(super) fn add(
    stored: &mut StoredRoute,
    kind: RouteSecretKind,
    value: &SecretValue,
    now: Timestamp,
) -> v1::InboundRouteSecret {
    let (id, kind) = (new_id("key_"), kind.to_proto().into());
    let shown = v1::InboundRouteSecret {
        id: id.clone(),
        kind,
        fingerprint: value.fingerprint(),
        create_time: Some(time::to_proto(now)),
    };
    let value = value.reveal().to_owned();
    stored.config.secrets.push(v1::InboundRouteSecretValue { id, kind, value });
    stored.route.secrets.push(shown.clone());
    shown
}

/// Removes a secret, unless nothing would prove callbacks without it.
pub(super) fn remove(stored: &mut StoredRoute, secret_id: &str) -> Result<(), Status> {
    let secrets = &stored.config.secrets;
    let secret = secrets.iter().find(|secret| secret.id == secret_id);
    let number = secret.ok_or_else(|| status::not_found("inbound route secret", secret_id))?.kind;
    let is_last_of_kind = secrets.iter().filter(|secret| secret.kind == number).count() == 1;
    let is_indispensable = RouteSecretKind::from_proto(number).is_some_and(RouteSecretKind::is_indispensable);
    if is_last_of_kind && is_indispensable {
        let message = format!(
            "secret `{secret_id}` is the last one of its kind; add another with AddInboundRouteSecret first"
        );
        return Err(status::failed_precondition("LAST_SECRET", message));
    }
    if secrets.len() == 1 && !stored.config.callback_token_suffices {
        let message = format!(
            "secret `{secret_id}` is the last one, and nothing would prove callbacks without it; add another with \
             AddInboundRouteSecret first, or set `callback_token_suffices` with UpdateInboundRoute"
        );
        return Err(status::failed_precondition("LAST_SECRET", message));
    }
    stored.config.secrets.retain(|secret| secret.id != secret_id);
    stored.route.secrets.retain(|secret| secret.id != secret_id);
    Ok(())
}

/// A route without a secret takes callbacks by the token in their path, or none.
pub(super) fn require_proof(stored: &StoredRoute) -> Result<(), Status> {
    if stored.config.callback_token_suffices || !stored.config.secrets.is_empty() {
        return Ok(());
    }
    let message = "`callback_token_suffices` cannot become false: the route has no secret, so that nothing would \
                   prove its callbacks; add one with AddInboundRouteSecret first, or leave the field out of the \
                   update mask";
    Err(status::failed_precondition("NO_SECRET", message))
}
