//! `Authorization: Bearer <JWT>`, signed with the account's signature secret,
//! <https://developer.vonage.com/en/getting-started/concepts/webhooks#decoding-signed-webhooks>. The token alone
//! only shows that somebody once got one: `payload_hash` ties it to the body. Vonage's own libraries leave that
//! check to their users (Vonage/vonage-python-sdk `jwt/src/vonage_jwt/verify_jwt.py`).

use gateway_core::snapshot::{RouteConfig, RouteSecretKind};
use jiff::Timestamp;

use crate::provider::{
    CallbackRequest, Refusal,
    jwt::{self, Algorithm, Claims},
    signature::is_sha256_of,
};

/// How far `iat` of a token without `exp` may be from our clock, in seconds. Wider than usual, because a queued
/// callback may keep the token of its first attempt.
const AGE_SECONDS_MAX: u64 = 15 * 60;

/// Whether the token fits a live secret of the route, the body, the account and the time.
pub fn verify(route: &RouteConfig, request: &CallbackRequest, now: Timestamp) -> Result<(), Refusal> {
    if route.callback_token_suffices {
        return Ok(());
    }
    let secrets = || route.secrets_of(RouteSecretKind::VonageSignatureSecret);
    if secrets().all(str::is_empty) {
        return Err(Refusal::MissingSecret);
    }
    // The account's setting of a signing method is about SMS alone: these callbacks are always signed so.
    let claims = jwt::verify(jwt::bearer(request)?, secrets(), &[Algorithm::HS256])?;
    is_of_account(route, &claims)?;
    is_of_now(&claims, now)?;
    is_of_body(&claims, &request.body)
}

/// Whether the token is of the account or the application that the route is for.
fn is_of_account(route: &RouteConfig, claims: &Claims) -> Result<(), Refusal> {
    let Some(ours) = route.provider_account_id.as_deref() else { return Ok(()) };
    let is_ours = ["api_key", "application_id"].into_iter().any(|name| claims.text(name) == Some(ours));
    if is_ours { Ok(()) } else { Err(Refusal::WrongAccount) }
}

fn is_of_now(claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
    let now = now.as_second();
    let is_live = if claims.has("exp") {
        now < claims.seconds("exp").ok_or(Refusal::MalformedSignature)?
    } else {
        now.abs_diff(claims.seconds("iat").ok_or(Refusal::MalformedSignature)?) <= AGE_SECONDS_MAX
    };
    if is_live { Ok(()) } else { Err(Refusal::Expired) }
}

fn is_of_body(claims: &Claims, body: &[u8]) -> Result<(), Refusal> {
    let fits = match claims.text("payload_hash") {
        Some(hash) => is_sha256_of(hash, body),
        None => body.is_empty(),
    };
    if fits { Ok(()) } else { Err(Refusal::WrongBodyHash) }
}
