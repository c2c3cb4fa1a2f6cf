//! The companies that call us. A provider's code proves a callback genuine and says what is in it; it knows
//! nothing of instances, configuration versions or the buffer. Adding one is a file `provider/<name>.rs`, its
//! fixtures, and a line in [`provider`].
//!
//! A provider's folder has, as far as it needs them: `authenticate`, what proves a callback; `envelope`, what a body
//! is about; `message` and its `content`; `status`; `preference`, a contact's decisions; `contact`, who a person is.
//! What several share is beside the folders, under the same names; `json` reads, `body` keeps what is passed on raw,
//! `credential`, `signature`, `signed_request` and `jwt` prove.

use std::{borrow::Cow, mem};

use gateway_core::{
    event::{Contact, EventType, Message, Provider as ProviderName, Status},
    opt_out::OptOutScope,
    phone::Phone,
    snapshot::RouteConfig,
};
use jiff::Timestamp;
use serde_json::value::RawValue;

mod request;
mod refusal;
mod credential;
mod signature;
mod signed_request;
mod jwt;
pub mod json;
mod body;
pub mod contact;
mod message;
mod status;
mod preference;
mod jid;
mod login;
mod meta;
mod dialog360;
mod twilio;
mod vonage;
mod infobip;
mod gupshup;
mod messagebird;
mod bird;
mod waha;
mod evolution;
#[cfg(test)]
pub(crate) mod tests;

pub use refusal::{Refusal, Refusals};
pub use request::CallbackRequest;

/// Most items of one callback. Meta batches at most 1,000 updates
/// (developers.facebook.com/docs/graph-api/webhooks/getting-started). A callback with more is refused with
/// 413: nobody sends one, and each item costs far more memory than the bytes that name it.
pub const ITEMS_MAX: usize = 10_000;

/// What a provider's code can do.
pub trait Provider: Send + Sync {
    /// Answers the provider's question whether the address is ours: the challenge to send back. Most ask none.
    ///
    /// # Errors
    /// Why it is not answered.
    fn handshake(&self, _route: &RouteConfig, _query: &str) -> Result<String, Refusal> {
        Err(Refusal::NoHandshake)
    }

    /// Whether the provider can be set up to send callbacks by `GET`, their content in the query.
    fn calls_by_get(&self) -> bool {
        false
    }

    /// Whether the provider appends a segment of its own to the path of its callbacks.
    fn extends_path(&self) -> bool {
        false
    }

    /// Proves that the route's provider account made the request, over the raw bytes, in constant time.
    ///
    /// # Errors
    /// Why it is not proved.
    fn authenticate(
        &self,
        route: &RouteConfig,
        request: &CallbackRequest,
        now: Timestamp,
    ) -> Result<(), Refusal>;

    /// Whether the provider sends bodies of this media type (lower case, without parameters).
    fn accepts(&self, media_type: &str) -> bool {
        media_type == "application/json"
    }

    /// What is normalized of a request.
    fn content<'a>(&self, request: &'a CallbackRequest) -> &'a [u8] {
        &request.body
    }

    /// What the content says, by number. Odd items are kept raw; only a content that cannot be read at all fails.
    ///
    /// # Errors
    /// When the content is not in the provider's format, or has too many items.
    fn normalize<'a>(&self, content: &'a [u8]) -> Result<Vec<Part<'a>>, NormalizeError>;

    /// What the provider wants to read in the answer to an accepted callback.
    fn reply(&self, _content: &[u8]) -> Reply {
        Reply::EMPTY
    }
}

/// The code of a provider: the closed list.
pub fn provider(name: ProviderName) -> &'static dyn Provider {
    match name {
        ProviderName::Meta => &meta::Meta,
        ProviderName::Dialog360 => &dialog360::Dialog360,
        ProviderName::Twilio => &twilio::Twilio,
        ProviderName::Vonage => &vonage::Vonage,
        ProviderName::Infobip => &infobip::Infobip,
        ProviderName::Gupshup => &gupshup::Gupshup,
        ProviderName::MessageBird => &messagebird::MessageBird,
        ProviderName::Bird => &bird::Bird,
        ProviderName::Waha => &waha::Waha,
        ProviderName::Evolution => &evolution::Evolution,
    }
}

/// The body of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Its media type; empty for none.
    pub content_type: &'static str,
    /// The text.
    pub body: &'static str,
}

impl Reply {
    /// Nothing.
    pub const EMPTY: Self = Self { content_type: "", body: "" };
}

/// Why a genuine body gives no items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NormalizeError {
    /// The body is not JSON in UTF-8, or whatever the provider's format is.
    #[error("read body: it is not in the provider's format")]
    Unreadable,
    /// The body has more than [`ITEMS_MAX`] items.
    #[error("read body: it has more than {ITEMS_MAX} items")]
    TooManyItems,
}

/// What a callback says about one number, or one account.
pub struct Part<'a> {
    /// The number or account.
    pub target: Target,
    /// What is said, in the provider's order.
    pub items: Vec<Item>,
    /// The pieces of a content with just this part, as JSON text, which gives the same part when it is
    /// normalized.
    pub original: Vec<Cow<'a, str>>,
}

/// The number or account that a part of a callback is about.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The provider's name of the number.
    pub number: Option<Box<str>>,
    /// Another name of it, which decides when nobody claims the first.
    pub other_number: Option<Box<str>>,
    /// The number as people write it.
    pub display_phone: Option<Box<str>>,
    /// The provider's account.
    pub account_id: Option<Box<str>>,
    /// Whether the two numbers are the sides of a report, of which either may be the business's: only who knows
    /// the instances can tell. The items are told as if the first was.
    pub either_side: bool,
}

impl Part<'_> {
    /// The same, where the second number of two sides is the business's: the contact is the first.
    pub fn turn(&mut self) {
        let Target { number, other_number, display_phone, .. } = &mut self.target;
        mem::swap(number, other_number);
        display_phone.clone_from(number);
        for item in &mut self.items {
            if let Item::Status(item) = item {
                item.contact = contact::of_field(other_number.clone());
                item.status.recipient = other_number.clone().unwrap_or_default();
            }
        }
    }
}

/// One thing that a provider says.
#[derive(Clone)]
pub enum Item {
    /// A contact or the business wrote.
    Message(Box<MessageItem>),
    /// A message of the business got a status.
    Status(Box<StatusItem>),
    /// A contact decided about messages with the provider's own means.
    Preference(Box<PreferenceItem>),
    /// A contact is known by another phone number or user id from now on.
    ContactChange(Box<ContactChange>),
    /// Anything else, raw.
    Notice(Box<NoticeItem>),
}

/// A message.
#[derive(Clone)]
pub struct MessageItem {
    /// The person: the sender, of an echo the recipient.
    pub contact: Contact,
    /// What was written.
    pub message: Message,
    /// The provider's id of the message, or a hash of the item when it has none.
    pub identity: Box<str>,
    /// Whether the business wrote it, in its phone app.
    pub is_echo: bool,
    /// The business number, where the item names it.
    pub business_phone: Option<Phone>,
    /// When it was written.
    pub time: Option<Timestamp>,
}

/// A status of a message of the business.
#[derive(Clone)]
pub struct StatusItem {
    /// The recipient.
    pub contact: Contact,
    /// What happened to the message.
    pub status: Status,
    /// The provider's id of the message, or a hash of the item when it has none.
    pub identity: Box<str>,
    /// The event of this status; none when it has no event of its own.
    pub event_type: Option<EventType>,
    /// When it happened.
    pub time: Option<Timestamp>,
}

/// A contact's decision about messages.
#[derive(Clone)]
pub struct PreferenceItem {
    /// The person.
    pub contact: Contact,
    /// Which messages.
    pub scope: OptOutScope,
    /// Whether the contact wants no more of them.
    pub opts_out: bool,
    /// Whether a failed send told us; otherwise the contact used the provider's own control.
    pub from_error: bool,
    /// The message that failed, or that carried the decision.
    pub external_message_id: Option<Box<str>>,
    /// How its repeat is known.
    pub identity: PreferenceIdentity,
    /// When the contact decided.
    pub time: Option<Timestamp>,
}

/// How the repeat of a decision is known: it must not undo a newer one.
#[derive(Clone, PartialEq, Eq)]
pub enum PreferenceIdentity {
    /// The message or status right before it carried it, and is repeated with it.
    ItemBefore,
    /// It came alone. What tells it from all others of the provider and the number.
    Own(Box<str>),
    /// It came alone, and cannot be told from the same decision made anew.
    Unknown,
}

/// A contact is known by another phone number or user id.
#[derive(Clone)]
pub struct ContactChange {
    /// As known before.
    pub from: Contact,
    /// As known now.
    pub to: Contact,
}

/// What is not about a message.
#[derive(Clone)]
pub struct NoticeItem {
    /// The provider's word for it.
    pub field: Box<str>,
    /// The item as the provider gave it.
    pub raw: Box<RawValue>,
    /// What tells it from all others of the provider.
    pub identity: Box<str>,
    /// When it happened.
    pub time: Option<Timestamp>,
}
