//! Genuine sample callbacks: the body as the provider writes it, and what proves it. One file per provider.

mod jwt;
mod random;
mod meta;
mod twilio;
mod vonage;
mod infobip;
mod gupshup;
mod messagebird;
mod bird;
mod waha;
mod evolution;

use gateway_core::{
    event::Provider,
    inbound_route::{basic_authorization, header_line},
    phone::{Phone, normalize_phone},
};
use gateway_sdk::Timestamp;
use rand::RngExt as _;
use serde_json::value::RawValue;

use super::Status;

/// The name of the contact in samples.
const CONTACT_NAME: &str = "Sample Contact";
const JSON: &str = "application/json";

/// The business number that is called.
#[derive(Clone, Copy)]
pub struct Number<'a> {
    /// What names it at the provider: Meta `phone_number_id`, a channel id, a session, …
    pub provider_number_id: &'a str,
    /// In E.164.
    pub phone_number: &'a str,
    /// The provider's account, where its callbacks name one; None for one of the sample's own.
    pub account_id: Option<&'a str>,
}

impl<'a> Number<'a> {
    /// The phone number without `+`.
    fn digits(&self) -> &'a str {
        self.phone_number.trim_start_matches('+')
    }
}

/// What happens at the provider.
#[derive(Clone, Copy)]
pub enum Happening<'a> {
    /// The contact writes a text.
    Text(&'a str),
    /// A message of the business gets a status.
    Status(Status),
}

/// Whom a sample is about, and when it happens.
pub struct Scene<'a> {
    pub number: Number<'a>,
    pub contact: Phone,
    pub now: Timestamp,
}

/// The body of a callback.
struct Draft {
    body: String,
    message_id: String,
}

/// One callback to send.
pub struct Sample {
    /// The body.
    pub body: String,
    /// Its media type.
    pub content_type: &'static str,
    /// The provider's id of the message, new for every sample.
    pub message_id: String,
    /// The contact.
    pub contact: Phone,
}

/// What shows that a callback is genuine.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// The provider's signature with this secret.
    Signature(&'a str),
    /// HTTP Basic authentication with this `user:password`.
    Basic(&'a str),
    /// This `name: value` of a header.
    Header(&'a str),
    /// Nothing but the token in the callback URL.
    Token,
}

/// A callback to be signed.
struct Unsigned<'a> {
    url: &'a str,
    body: &'a str,
    account_id: Option<&'a str>,
    now: Timestamp,
}

/// The contact when none is given.
pub fn default_phone() -> Phone {
    normalize_phone("+966500000001").expect("this is a phone number")
}

/// A contact that has most probably not opted out yet.
pub fn random_phone() -> Phone {
    let number = rand::rng().random_range(10_000_000..100_000_000_u32);
    normalize_phone(&format!("+9665{number}")).expect("this is a phone number")
}

impl Sample {
    /// The callback of a provider that tells of `happening`.
    pub fn new(provider: Provider, scene: Scene<'_>, happening: Happening<'_>) -> Self {
        let draft = match provider {
            Provider::Meta | Provider::Dialog360 => meta::draft,
            Provider::Twilio => twilio::draft,
            Provider::Vonage => vonage::draft,
            Provider::Infobip => infobip::draft,
            Provider::Gupshup => gupshup::draft,
            Provider::MessageBird => messagebird::draft,
            Provider::Bird => bird::draft,
            Provider::Waha => waha::draft,
            Provider::Evolution => evolution::draft,
        };
        let content_type =
            if provider == Provider::Twilio { "application/x-www-form-urlencoded" } else { JSON };
        let Draft { body, message_id } = draft(&scene, happening);
        Self { body, content_type, message_id, contact: scene.contact }
    }

    /// The body as JSON: a form is a text.
    pub fn json(&self) -> serde_json::Result<Box<RawValue>> {
        match self.content_type {
            JSON => RawValue::from_string(self.body.clone()),
            _ => serde_json::value::to_raw_value(&self.body),
        }
    }

    /// The headers with which the provider would send it to `url` at `now`; None when `proof` is not of its form.
    pub fn headers(
        &self,
        provider: Provider,
        proof: Proof<'_>,
        number: Number<'_>,
        url: &str,
        now: Timestamp,
    ) -> Option<Vec<(String, String)>> {
        let unsigned = Unsigned { url, body: &self.body, account_id: number.account_id, now };
        let own = |(name, value): (&str, String)| (name.to_owned(), value);
        Some(match proof {
            Proof::Token => Vec::new(),
            Proof::Basic(credential) => vec![own(("authorization", basic_authorization(credential)?))],
            Proof::Header(line) => {
                header_line(line).map(|(name, value)| vec![own((name, value.to_owned()))])?
            }
            Proof::Signature(secret) => {
                signature(provider, secret, &unsigned)?.into_iter().map(own).collect()
            }
        })
    }
}

/// The headers that sign a callback; None for providers that sign nothing.
fn signature(
    provider: Provider,
    secret: &str,
    unsigned: &Unsigned<'_>,
) -> Option<Vec<(&'static str, String)>> {
    match provider {
        Provider::Meta => Some(meta::sign(secret, unsigned)),
        Provider::Twilio => Some(twilio::sign(secret, unsigned)),
        Provider::Vonage => Some(vonage::sign(secret, unsigned)),
        Provider::MessageBird => Some(messagebird::sign(secret, unsigned)),
        Provider::Bird => Some(bird::sign(secret, unsigned)),
        Provider::Waha => Some(waha::sign(secret, unsigned)),
        Provider::Evolution => Some(evolution::sign(secret, unsigned)),
        Provider::Dialog360 | Provider::Infobip | Provider::Gupshup => None,
    }
}

impl Status {
    /// The event of its own.
    pub const fn event(self) -> &'static str {
        match self {
            Self::Sent => "message.sent",
            Self::Delivered => "message.delivered",
            Self::Read => "message.read",
            Self::Failed => "message.failed",
        }
    }
}

#[cfg(test)]
mod tests;
