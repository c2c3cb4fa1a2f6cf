//! `Authorization: Bearer <JWT>` (HS256), which Evolution API makes when its webhook has a header `jwt_key`, or any
//! header that it was told to send: EvolutionAPI/evolution-api
//! `src/api/integrations/event/webhook/webhook.controller.ts`. Either shows that the caller knows a secret; nothing
//! signs the body.

use gateway_core::snapshot::{RouteConfig, RouteSecretKind};
use jiff::Timestamp;

use crate::provider::{
    CallbackRequest, Refusal, credential,
    jwt::{self, Algorithm, Claims},
};

/// How long before `exp` a token can be made: they live 10 minutes, and clocks may be an hour apart.
const AHEAD_SECONDS_MAX: i64 = 3600 + 600;
/// How long after `exp` a token is still taken, in seconds. A callback is tried for 20 minutes with the token of
/// its first attempt, which expires after 10, and what is answered with 401 is never tried again.
const EXPIRED_SECONDS_MAX: i64 = 3600;

/// Whether the request carries a token of a live key or one of the route's headers.
pub fn verify(route: &RouteConfig, request: &CallbackRequest, now: Timestamp) -> Result<(), Refusal> {
    if route.callback_token_suffices {
        return Ok(());
    }
    let by_header = credential::verify(route, request);
    let keys = || route.secrets_of(RouteSecretKind::EvolutionJwtKey).filter(|key| !key.is_empty());
    if by_header.is_ok() || keys().next().is_none() {
        return by_header;
    }
    let by_token = jwt::bearer(request)
        .and_then(|token| jwt::verify(token, keys(), &[Algorithm::HS256]))
        .and_then(|claims| judge(&claims, now));
    match (by_token, by_header) {
        // A wrong header says more than a token that is not there.
        (Err(Refusal::MissingSignature), Err(Refusal::WrongCredential)) => Err(Refusal::WrongCredential),
        (by_token, _) => by_token,
    }
}

/// Whether the token is for callbacks, which it always says because a key may serve for something else too, and of
/// this hour.
fn judge(claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
    for (name, ours) in [("app", "evolution"), ("action", "webhook")] {
        if claims.text(name) != Some(ours) {
            return Err(Refusal::WrongCredential);
        }
    }
    let end = claims.seconds("exp").ok_or(Refusal::MalformedSignature)?;
    let age = now.as_second().saturating_sub(end);
    if (-AHEAD_SECONDS_MAX..=EXPIRED_SECONDS_MAX).contains(&age) { Ok(()) } else { Err(Refusal::Expired) }
}
