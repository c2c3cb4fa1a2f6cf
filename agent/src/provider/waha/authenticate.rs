//! `X-Webhook-Hmac: <128 hex digits>`, HMAC-SHA512 of the raw body, with `X-Webhook-Hmac-Algorithm: sha512`,
//! <https://waha.devlike.pro/docs/how-to/events/#hmac-authentication>; or a custom header, where HMAC is off.
//! `X-Webhook-Timestamp` is not signed and proves nothing.

use gateway_core::{
    signature::{decode_hex, hmac_sha512_matches},
    snapshot::{RouteConfig, RouteSecretKind},
};

use crate::provider::{CallbackRequest, Refusal, credential, signature};

const SIGNATURE: &str = "x-webhook-hmac";
const ALGORITHM: &str = "x-webhook-hmac-algorithm";

/// Whether the request is signed with a live key of the route, or, when the route has no key, carries one of
/// its headers.
pub fn verify(route: &RouteConfig, request: &CallbackRequest) -> Result<(), Refusal> {
    if route.callback_token_suffices {
        return Ok(());
    }
    let keys = || route.secrets_of(RouteSecretKind::WahaHmacKey).filter(|key| !key.is_empty());
    if keys().next().is_none() {
        return credential::verify(route, request);
    }
    let given = request.single_header(SIGNATURE)?.ok_or(Refusal::MissingSignature)?;
    let algorithm = request.single_header(ALGORITHM)?.ok_or(Refusal::MissingSignature)?;
    if algorithm != "sha512" {
        return Err(Refusal::WrongAlgorithm);
    }
    let given: [u8; 64] = decode_hex(given.as_bytes()).ok_or(Refusal::MalformedSignature)?;
    signature::verify(keys(), |key| hmac_sha512_matches(key, &request.body, &given))
}
