//! `X-Hub-Signature-256: sha256=<64 hex digits>`: HMAC-SHA256 of the raw body under the app secret,
//! <https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads>. The older
//! `X-Hub-Signature` (SHA-1) may come beside it and proves nothing.

use gateway_core::{
    signature::hmac_sha256_matches,
    snapshot::{RouteConfig, RouteSecretKind},
};
use http::HeaderMap;

use crate::provider::Refusal;

const HEADER: &str = "x-hub-signature-256";
const PREFIX: &[u8] = b"sha256=";

/// Whether the signature fits the body under any live app secret of the route.
pub fn verify(route: &RouteConfig, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let mut values = headers.get_all(HEADER).iter();
    let signature = match (values.next(), values.next()) {
        (None, _) => return Err(Refusal::MissingSignature),
        (Some(value), None) => decode(value.as_bytes()).ok_or(Refusal::MalformedSignature)?,
        (Some(_), Some(_)) => return Err(Refusal::MalformedSignature),
    };
    let (mut fits, mut secrets) = (false, 0_usize);
    // Every secret is tried, so that the time does not tell which one fits.
    for secret in route.secrets_of(RouteSecretKind::MetaAppSecret).filter(|secret| !secret.is_empty()) {
        fits |= hmac_sha256_matches(secret.as_bytes(), body, &signature);
        secrets += 1;
    }
    match (fits, secrets) {
        (true, _) => Ok(()),
        (false, 0) => Err(Refusal::MissingSecret),
        (false, _) => Err(Refusal::WrongSignature),
    }
}

fn decode(value: &[u8]) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = value.strip_prefix(PREFIX)?.try_into().ok()?;
    let mut signature = [0; 32];
    for (byte, pair) in signature.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex(pair[0])? << 4 | hex(pair[1])?;
    }
    Some(signature)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
