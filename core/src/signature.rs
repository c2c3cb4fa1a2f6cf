//! Signing webhooks and verifying callbacks.
//!
//! Webhooks follow Standard Webhooks, <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

mod asymmetric;
mod hash;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

pub use asymmetric::{InvalidKey, PublicKey, SigningKey};
pub use hash::{
    decode_hex, encode_hex, hmac_sha1, hmac_sha1_matches, hmac_sha256, hmac_sha256_matches, hmac_sha512,
    hmac_sha512_matches, sha256_hex,
};

/// Header with the event's id: the same in every attempt.
pub const WEBHOOK_ID: &str = "webhook-id";
/// Header with the attempt's time in unix seconds.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Header with one or more signatures, separated by one space.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
/// How far the timestamp of a webhook may be from the receiver's clock, in seconds, as the official
/// libraries have it.
pub const TOLERANCE_SECONDS: i64 = 300;
/// Most `v1a` signatures of one header that are checked: each costs much more than one of `v1`, and anybody
/// can send many.
pub const ASYMMETRIC_SIGNATURES_MAX: usize = 16;

const SECRET_PREFIX: &str = "whsec_";
const SECRET_BYTES_MIN: usize = 24;
const SECRET_BYTES_MAX: usize = 64;

/// A symmetric Standard Webhooks secret: `whsec_` and the base64 of 24 to 64 bytes. Prints masked.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret {
    key: Box<[u8]>,
}

/// The text is not a Standard Webhooks secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `whsec_` and the base64 of 24 to 64 bytes")]
pub struct InvalidSecret;

impl WebhookSecret {
    /// Reads `whsec_…`.
    ///
    /// # Errors
    /// When prefix, base64 or length are wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(InvalidSecret)?;
        let key = STANDARD.decode(encoded).map_err(|_| InvalidSecret)?;
        Self::from_key(&key)
    }

    /// A secret of these bytes.
    ///
    /// # Errors
    /// When there are fewer than 24 or more than 64.
    pub fn from_key(key: &[u8]) -> Result<Self, InvalidSecret> {
        if (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&key.len()) {
            Ok(Self { key: key.into() })
        } else {
            Err(InvalidSecret)
        }
    }

    /// The text form, which carries the secret.
    pub fn reveal(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(&self.key))
    }

    /// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        format!("v1,{}", STANDARD.encode(self.mac(id, timestamp, body)))
    }

    fn mac(&self, id: &str, timestamp: i64, body: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebhookSecret(••••)")
    }
}

/// Why a webhook is not genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A header is missing, or is not what its format says.
    #[error("read header `{0}`: it is missing or malformed")]
    Header(&'static str),
    /// The timestamp is more than [`TOLERANCE_SECONDS`] away.
    #[error("check timestamp: it is more than 300 seconds away from this clock")]
    Timestamp,
    /// No signature of the header fits the body and a secret.
    #[error("check signature: none fits the body")]
    Signature,
}

/// Verifies a webhook by its symmetric signatures (`v1`): one signature that fits one secret is enough.
///
/// # Errors
/// When it is not genuine, or too old.
pub fn verify_webhook(
    secrets: &[WebhookSecret],
    headers: WebhookHeaders<'_>,
    body: &[u8],
    now_seconds: i64,
) -> Result<(), VerifyError> {
    verify_webhook_with(secrets, &[], headers, body, now_seconds)
}

/// Verifies a webhook by its symmetric (`v1`) and asymmetric (`v1a`) signatures: one signature that fits one
/// secret or one key is enough. At most [`ASYMMETRIC_SIGNATURES_MAX`] of `v1a` are looked at.
///
/// # Errors
/// When it is not genuine, or too old.
pub fn verify_webhook_with(
    secrets: &[WebhookSecret],
    keys: &[PublicKey],
    headers: WebhookHeaders<'_>,
    body: &[u8],
    now_seconds: i64,
) -> Result<(), VerifyError> {
    let timestamp: i64 = headers.timestamp.parse().map_err(|_| VerifyError::Header(WEBHOOK_TIMESTAMP))?;
    if now_seconds.abs_diff(timestamp) > TOLERANCE_SECONDS.unsigned_abs() {
        return Err(VerifyError::Timestamp);
    }
    let signatures = |prefix: &'static str| {
        headers
            .signature
            .split(' ')
            .filter_map(move |token| token.strip_prefix(prefix))
            .filter_map(|encoded| STANDARD.decode(encoded).ok())
    };
    let expected: Vec<_> = secrets.iter().map(|secret| secret.mac(headers.id, timestamp, body)).collect();
    let genuine = signatures("v1,")
        .any(|signature| expected.iter().any(|mac| bool::from(mac.as_slice().ct_eq(&signature))))
        || signatures("v1a,")
            .take(ASYMMETRIC_SIGNATURES_MAX)
            .any(|signature| keys.iter().any(|key| key.verifies(headers.id, timestamp, body, &signature)));
    if genuine { Ok(()) } else { Err(VerifyError::Signature) }
}

/// The three Standard Webhooks headers of one request.
#[derive(Debug, Clone, Copy)]
pub struct WebhookHeaders<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`.
    pub timestamp: &'a str,
    /// `webhook-signature`.
    pub signature: &'a str,
}

#[cfg(test)]
mod tests;
