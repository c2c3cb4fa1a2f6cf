//! `X-Hub-Signature-256: sha256=<64 hex digits>`: HMAC-SHA256 of the raw body under the app secret,
//! <https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads>. The older
//! `X-Hub-Signature` (SHA-1) may come beside it and proves nothing.

use gateway_core::{
    signature::{decode_hex, hmac_sha256_matches},
    snapshot::{RouteConfig, RouteSecretKind},
};

use crate::provider::{CallbackRequest, Refusal};

const HEADER: &str = "x-hub-signature-256";
const PREFIX: &[u8] = b"sha256=";

/// Whether the signature fits the body under any live app secret of the route.
pub fn verify(route: &RouteConfig, request: &CallbackRequest) -> Result<(), Refusal> {
    let signature = request.single_header(HEADER)?.ok_or(Refusal::MissingSignature)?;
    let signature = decode(signature.as_bytes()).ok_or(Refusal::MalformedSignature)?;
    let (mut fits, mut secrets) = (false, 0_usize);
    // Every secret is tried, so that the time does not tell which one fits.
    for secret in route.secrets_of(RouteSecretKind::MetaAppSecret).filter(|secret| !secret.is_empty()) {
        fits |= hmac_sha256_matches(secret.as_bytes(), &request.body, &signature);
        secrets += 1;
    }
    match (fits, secrets) {
        (true, _) => Ok(()),
        (false, 0) => Err(Refusal::MissingSecret),
        (false, _) => Err(Refusal::WrongSignature),
    }
}

fn decode(value: &[u8]) -> Option<[u8; 32]> {
    decode_hex(value.strip_prefix(PREFIX)?)
}
