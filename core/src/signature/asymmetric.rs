//! The asymmetric signature of Standard Webhooks, `v1a`: ed25519 (RFC 8032) over the same bytes as `v1`.
//! Receivers check it with a public key, so that nothing they hold can sign.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::Signer as _;

const KEY_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";
const SEED_BYTES: usize = 32;

/// The text is not a key of Standard Webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct InvalidKey(&'static str);

const NOT_A_KEY: InvalidKey = InvalidKey("`whsk_` and the base64 of an ed25519 seed and its public key");
const NOT_PUBLIC: InvalidKey = InvalidKey("`whpk_` and the base64 of an ed25519 public key of 32 bytes");

/// An ed25519 key that signs webhooks: `whsk_` and the base64 of the seed and the public key. Prints masked.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Reads `whsk_…`: seed and public key, as Svix writes it, or the seed alone.
    ///
    /// # Errors
    /// When prefix, base64 or length are wrong, or the public key is not the seed's.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let encoded = text.strip_prefix(KEY_PREFIX).ok_or(NOT_A_KEY)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| NOT_A_KEY)?;
        let (seed, public) = bytes.split_at_checked(SEED_BYTES).ok_or(NOT_A_KEY)?;
        let key = Self::from_seed(seed.try_into().map_err(|_| NOT_A_KEY)?);
        if public.is_empty() || public == key.0.verifying_key().as_bytes() { Ok(key) } else { Err(NOT_A_KEY) }
    }

    /// The key of 32 random bytes.
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The text form, which carries the secret.
    pub fn reveal(&self) -> String {
        format!("{KEY_PREFIX}{}", STANDARD.encode(self.0.to_keypair_bytes()))
    }

    /// The key with which receivers check its signatures.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// `v1a,` and the base64 of the signature over `id.timestamp.body`.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signature = self.0.sign(&signed_bytes(id, timestamp, body));
        format!("v1a,{}", STANDARD.encode(signature.to_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(••••)")
    }
}

/// An ed25519 key that checks webhooks. Displays as `whpk_` and its base64; it is no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// Reads `whpk_…`.
    ///
    /// # Errors
    /// When prefix, base64 or length are wrong, or it is not a point of the curve.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let encoded = text.strip_prefix(PUBLIC_PREFIX).ok_or(NOT_PUBLIC)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| NOT_PUBLIC)?;
        let bytes = bytes.as_slice().try_into().map_err(|_| NOT_PUBLIC)?;
        ed25519_dalek::VerifyingKey::from_bytes(bytes).map(Self).map_err(|_| NOT_PUBLIC)
    }

    /// Whether `signature`, 64 bytes, is of these bytes. Keys and signatures that would fit several messages
    /// (RFC 8032, 5.1.7 and small-order points) do not.
    pub fn verifies(&self, id: &str, timestamp: i64, body: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature).is_ok_and(|signature| {
            self.0.verify_strict(&signed_bytes(id, timestamp, body), &signature).is_ok()
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", STANDARD.encode(self.0.as_bytes()))
    }
}

/// `id.timestamp.body`, in one piece because ed25519 reads it twice.
fn signed_bytes(id: &str, timestamp: i64, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{id}.{timestamp}.").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
