//! `X-Hub-Signature-256: sha256=<64 hex digits>`: HMAC-SHA256 of the raw body under the app secret,
//! <https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads>. The older
//! `X-Hub-Signature` (SHA-1) may come beside it and proves nothing.

use gateway_core::{
    signature::{decode_hex, hmac_sha256_matches},
    snapshot::{RouteConfig, RouteSecretKind},
};

use crate::provider::{CallbackRequest, Refusal, signature};

const HEADER: &str = "x-hub-signature-256";
const PREFIX: &[u8] = b"sha256=";

/// Whether the signature fits the body under any live app secret of the route.
pub fn verify(route: &RouteConfig, request: &CallbackRequest) -> Result<(), Refusal> {
    let given = request.single_header(HEADER)?.ok_or(Refusal::MissingSignature)?;
    let given = decode(given.as_bytes()).ok_or(Refusal::MalformedSignature)?;
    signature::verify(route.secrets_of(RouteSecretKind::MetaAppSecret), |secret| {
        hmac_sha256_matches(secret, &request.body, &given)
    })
}

fn decode(value: &[u8]) -> Option<[u8; 32]> {
    decode_hex(value.strip_prefix(PREFIX)?)
}
