//! Signing webhooks and verifying callbacks.
//!
//! Webhooks follow Standard Webhooks, <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Header with the event's id: the same in every attempt.
pub const WEBHOOK_ID: &str = "webhook-id";
/// Header with the attempt's time in unix seconds.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Header with one or more signatures, separated by one space.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
/// How far the timestamp of a webhook may be from the receiver's clock, in seconds, as the official
/// libraries have it.
pub const TOLERANCE_SECONDS: i64 = 300;

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

/// Verifies a webhook as its receiver: any `v1` signature of the header that fits any secret is enough.
///
/// # Errors
/// When it is not genuine, or too old.
pub fn verify_webhook(
    secrets: &[WebhookSecret],
    headers: WebhookHeaders<'_>,
    body: &[u8],
    now_seconds: i64,
) -> Result<(), VerifyError> {
    let timestamp: i64 = headers.timestamp.parse().map_err(|_| VerifyError::Header(WEBHOOK_TIMESTAMP))?;
    if now_seconds.abs_diff(timestamp) > TOLERANCE_SECONDS.unsigned_abs() {
        return Err(VerifyError::Timestamp);
    }
    let expected: Vec<_> = secrets.iter().map(|secret| secret.mac(headers.id, timestamp, body)).collect();
    let genuine = headers
        .signature
        .split(' ')
        .filter_map(|token| token.strip_prefix("v1,"))
        .filter_map(|encoded| STANDARD.decode(encoded).ok())
        .any(|signature| expected.iter().any(|mac| bool::from(mac.as_slice().ct_eq(&signature))));
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

/// Whether `signature` is HMAC-SHA256 of `message` under `key`, in constant time.
pub fn hmac_sha256_matches(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.verify_slice(signature).is_ok()
}

/// HMAC-SHA256 of `message` under `key`.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_01J0QZ6K7W8X9Y0Z1A2B3C4D5E";
    const TIMESTAMP: i64 = 1_735_689_600;
    const BODY: &str = r#"{"type":"whatsapp.message.received","timestamp":"2025-01-01T00:00:00.000Z","data":{"from":"5511999990000","text":"olá 👋"}}"#;
    const T1: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const T1_SIGNATURE: &str = "v1,5YFNYlKpt28VZVejVB9//OWgFsEGNBwl6p49kvfvNYM=";

    /// Vectors that the official Python, JavaScript and Rust libraries agree on.
    #[test]
    fn signs_as_the_official_libraries_do() {
        let vectors = [
            (T1, T1_SIGNATURE),
            (
                "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
                "v1,Jxjy2oMmRnBAhbeju5lwy6brBMt9penyIbZTj4oI9s0=",
            ),
            ("whsec_H2+m9p0YXmCG0E5zMDYb+QAaO40M5REX", "v1,HKyXYTA8W3h+yAveti6J++fTnpxNQ9uky3Kdq4OBzX0="),
        ];
        assert_eq!(BODY.len(), 126);
        for (secret, signature) in vectors {
            let secret = WebhookSecret::parse(secret).unwrap();
            assert_eq!(secret.sign(ID, TIMESTAMP, BODY.as_bytes()), signature);
            let official = standardwebhooks::Webhook::new(&secret.reveal()).unwrap();
            assert_eq!(official.sign(ID, TIMESTAMP, BODY.as_bytes()).unwrap(), signature);
        }
    }

    /// During a rotation the header carries two signatures, and a receiver with either secret accepts.
    #[test]
    fn any_fitting_signature_is_enough() {
        let header = format!("v1,AAAA {T1_SIGNATURE} v1a,AAAA");
        let headers = WebhookHeaders { id: ID, timestamp: "1735689600", signature: &header };
        let secrets = [WebhookSecret::parse(T1).unwrap()];
        assert_eq!(verify_webhook(&secrets, headers, BODY.as_bytes(), TIMESTAMP + 300), Ok(()));
    }

    /// One changed byte, an old timestamp, an empty signature or a missing one is refused.
    #[test]
    fn forgeries_are_refused() {
        let secrets = [WebhookSecret::parse(T1).unwrap()];
        let verify = |id, timestamp, signature, body: &str, now| {
            verify_webhook(&secrets, WebhookHeaders { id, timestamp, signature }, body.as_bytes(), now)
        };
        let good = |signature| verify(ID, "1735689600", signature, BODY, TIMESTAMP);
        assert_eq!(good(T1_SIGNATURE), Ok(()));
        for signature in ["", "v1,", "v1", T1_SIGNATURE.trim_start_matches("v1,")] {
            assert_eq!(good(signature), Err(VerifyError::Signature), "{signature}");
        }
        let changed = BODY.replace("olá", "ola");
        assert_eq!(verify(ID, "1735689600", T1_SIGNATURE, &changed, TIMESTAMP), Err(VerifyError::Signature));
        assert_eq!(verify("x", "1735689600", T1_SIGNATURE, BODY, TIMESTAMP), Err(VerifyError::Signature));
        assert_eq!(
            verify(ID, "1735689600", T1_SIGNATURE, BODY, TIMESTAMP + 301),
            Err(VerifyError::Timestamp)
        );
        assert_eq!(
            verify(ID, "now", T1_SIGNATURE, BODY, TIMESTAMP),
            Err(VerifyError::Header(WEBHOOK_TIMESTAMP))
        );
    }

    /// Secrets of a wrong form are refused, and a good one never prints.
    #[test]
    fn secrets_are_checked_and_masked() {
        for bad in ["", "whsec_", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "whsec_AAEC", "whsec_***"] {
            assert_eq!(WebhookSecret::parse(bad), Err(InvalidSecret), "{bad}");
        }
        assert_eq!(format!("{:?}", WebhookSecret::parse(T1).unwrap()), "WebhookSecret(••••)");
    }
}
