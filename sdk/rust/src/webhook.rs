//! What a receiver of webhooks needs: verify first, then parse.
//!
//! ```
//! use gateway_sdk::{Timestamp, webhook::{Event, WebhookVerifier}};
//!
//! fn receive(headers: &http::HeaderMap, body: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//!     // The secret comes from `GetSigningSecret`; during a rotation give the old one too. With
//!     // `asymmetric_signature` its public key (`whpk_…`) does as well, and is no secret.
//!     let verifier = WebhookVerifier::new(["whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="])?;
//!     let verified = verifier.verify(headers, body, Timestamp::now())?;
//!     // The same event may come more than once: `verified.id()` is the key to tell.
//!     match verified.parse()? {
//!         Event::MessageReceived(message) => drop(message.message_text),
//!         Event::RecipientOptedOut(opt_out) => drop(opt_out.from),
//!         _ => {}
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Webhooks are signed as <https://www.standardwebhooks.com> describes, so that its libraries verify them in
//! other languages.

pub mod event;

use gateway_core::signature::{self, PublicKey, WebhookHeaders, WebhookSecret};
use http::HeaderMap;
use jiff::Timestamp;

pub use event::{Event, ParseError};
pub use gateway_core::signature::{
    InvalidKey, InvalidSecret, TOLERANCE_SECONDS, VerifyError, WEBHOOK_ID, WEBHOOK_SIGNATURE,
    WEBHOOK_TIMESTAMP,
};

/// Proves that webhooks come from the gateway. Prints no secret.
#[derive(Debug, Clone)]
pub struct WebhookVerifier {
    secrets: Vec<WebhookSecret>,
    public_keys: Vec<PublicKey>,
}

/// What a [`WebhookVerifier`] was given cannot verify anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVerifier {
    /// Nothing was given.
    #[error("verify webhooks without a secret: give `whsec_…` or `whpk_…`")]
    Nothing,
    /// A signing secret is malformed.
    #[error("read a signing secret")]
    Secret(#[from] InvalidSecret),
    /// A public key is malformed.
    #[error("read a public key")]
    PublicKey(#[from] InvalidKey),
}

impl WebhookVerifier {
    /// Takes what is live of signing secrets (`whsec_` and base64, for `v1`) and public keys (`whpk_` and
    /// base64, for `v1a`), one or more. A webhook is genuine when any of them fits.
    ///
    /// # Errors
    /// When one is malformed, or there is none.
    pub fn new<S: AsRef<str>>(keys: impl IntoIterator<Item = S>) -> Result<Self, InvalidVerifier> {
        let (mut secrets, mut public_keys) = (Vec::new(), Vec::new());
        for key in keys {
            let key = key.as_ref();
            if key.starts_with("whpk_") {
                public_keys.push(PublicKey::parse(key)?);
            } else {
                secrets.push(WebhookSecret::parse(key)?);
            }
        }
        if secrets.is_empty() && public_keys.is_empty() {
            return Err(InvalidVerifier::Nothing);
        }
        Ok(Self { secrets, public_keys })
    }

    /// Verifies a request from its headers and its body, byte for byte as received: before any JSON parser
    /// or text decoding. `now` is the receiver's clock; a webhook more than 300 seconds away is refused.
    ///
    /// # Errors
    /// When the webhook is not genuine, or too old; answer 401 and do nothing else with it.
    pub fn verify<'a>(
        &self,
        headers: &HeaderMap,
        body: &'a [u8],
        now: Timestamp,
    ) -> Result<Verified<'a>, VerifyError> {
        let header = |name: &'static str| {
            let mut values = headers.get_all(name).iter();
            match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
                (Some(value), None) => Ok(value),
                _ => Err(VerifyError::Header(name)),
            }
        };
        let id = header(WEBHOOK_ID)?;
        self.verify_parts(id, header(WEBHOOK_TIMESTAMP)?, header(WEBHOOK_SIGNATURE)?, body, now)
    }

    /// The same from the values of `webhook-id`, `webhook-timestamp` and `webhook-signature`.
    ///
    /// # Errors
    /// As [`WebhookVerifier::verify`].
    pub fn verify_parts<'a>(
        &self,
        id: &str,
        timestamp: &str,
        signature: &str,
        body: &'a [u8],
        now: Timestamp,
    ) -> Result<Verified<'a>, VerifyError> {
        if id.is_empty() {
            return Err(VerifyError::Header(WEBHOOK_ID));
        }
        let headers = WebhookHeaders { id, timestamp, signature };
        let now = now.as_second();
        signature::verify_webhook_with(&self.secrets, &self.public_keys, headers, body, now)?;
        Ok(Verified { id: id.to_owned(), body })
    }
}

/// A webhook that was proven genuine.
#[derive(Clone)]
pub struct Verified<'a> {
    id: String,
    body: &'a [u8],
}

impl<'a> Verified<'a> {
    /// The `webhook-id`, which is the event's id: the same in every attempt and replay. Keep the ids you have
    /// handled, and do nothing when one comes again.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The body, byte for byte.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Reads the body.
    ///
    /// # Errors
    /// When it is not an event. Events and fields that this version does not know are no error.
    pub fn parse(&self) -> Result<Event, ParseError> {
        Event::from_slice(self.body)
    }
}

impl std::fmt::Debug for Verified<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verified({}, {} bytes)", self.id, self.body.len())
    }
}

#[cfg(test)]
mod tests;
