//! One normalized, immutable fact with a stable id, and the parts providers fill in.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    id::{EventId, InstanceId, TenantId},
    phone::Phone,
};

mod provider;

pub use provider::Provider;

/// What kind of fact an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventType {
    /// A contact wrote to the business: content, edit, revoke or reaction.
    MessageReceived = 0,
    /// A message left the provider toward WhatsApp, or the business typed it in its phone app.
    MessageSent = 1,
    /// A message reached the contact's phone.
    MessageDelivered = 2,
    /// The contact read the message, or played a voice message.
    MessageRead = 3,
    /// A message could not be delivered.
    MessageFailed = 4,
    /// Every status again, for those who select it, and the only event of statuses without their own.
    MessageStatusUpdated = 5,
    /// A contact asked to stop.
    RecipientOptedOut = 6,
    /// A contact asked to start again.
    RecipientOptedIn = 7,
    /// What is not about a message: templates, account, quality, calls; raw.
    ProviderEvent = 8,
    /// The operator's test event.
    WebhookTest = 9,
}

impl EventType {
    /// Every event, in the order of the numbers.
    pub const ALL: [Self; 10] = [
        Self::MessageReceived,
        Self::MessageSent,
        Self::MessageDelivered,
        Self::MessageRead,
        Self::MessageFailed,
        Self::MessageStatusUpdated,
        Self::RecipientOptedOut,
        Self::RecipientOptedIn,
        Self::ProviderEvent,
        Self::WebhookTest,
    ];

    /// Events that a webhook subscription can select; the test event goes where it is sent.
    pub const SELECTABLE: [Self; 9] = [
        Self::MessageReceived,
        Self::MessageSent,
        Self::MessageDelivered,
        Self::MessageRead,
        Self::MessageFailed,
        Self::MessageStatusUpdated,
        Self::RecipientOptedOut,
        Self::RecipientOptedIn,
        Self::ProviderEvent,
    ];

    /// The name in webhook bodies and filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MessageReceived => "message.received",
            Self::MessageSent => "message.sent",
            Self::MessageDelivered => "message.delivered",
            Self::MessageRead => "message.read",
            Self::MessageFailed => "message.failed",
            Self::MessageStatusUpdated => "message.status_updated",
            Self::RecipientOptedOut => "recipient.opted_out",
            Self::RecipientOptedIn => "recipient.opted_in",
            Self::ProviderEvent => "provider.event",
            Self::WebhookTest => "webhook.test",
        }
    }

    /// The event of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// A bit of its own.
    pub(crate) const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// The WhatsApp user an event is about. Prints masked.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Contact {
    /// The phone number; none when the contact is known only by user id.
    pub phone: Option<Phone>,
    /// The provider's user id (Meta: business-scoped user id).
    pub user_id: Option<Box<str>>,
    /// The profile name.
    pub name: Option<Box<str>>,
    /// The user name.
    pub username: Option<Box<str>>,
}

impl Contact {
    /// The phone number, or else the user id: what identifies the contact in derived ids.
    pub fn key(&self) -> &str {
        self.phone.as_ref().map(Phone::as_str).or(self.user_id.as_deref()).unwrap_or_default()
    }
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Contact({:?}, user id {})",
            self.phone,
            if self.user_id.is_some() { "set" } else { "unset" }
        )
    }
}

/// One event of one instance.
#[derive(Clone)]
pub struct Event {
    /// Derived from the provider's ids.
    pub id: EventId,
    /// What kind of fact it is.
    pub event_type: EventType,
    /// The tenant of the instance.
    pub tenant_id: TenantId,
    /// The instance it belongs to.
    pub instance_id: InstanceId,
    /// The instance's display name when the event came.
    pub instance_name: Arc<str>,
    /// The person.
    pub contact: Contact,
    /// The business number.
    pub business_phone: Option<Phone>,
    /// When it happened, by the provider's clock; our receive time when the provider gave none.
    pub event_time: Timestamp,
    /// Whether `event_time` is ours because the provider gave none; the body says so.
    pub is_time_ours: bool,
    /// When the agent took the callback.
    pub receive_time: Timestamp,
    /// What happened.
    pub content: Content,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({}, {})", self.id, self.event_type.name())
    }
}

/// What happened.
#[derive(Clone)]
pub enum Content {
    /// A message of a contact, or an echo of one of the business.
    Message(Box<Message>),
    /// A status of a message of the business.
    Status(Box<Status>),
    /// A contact opted out or in.
    OptOut(Box<OptOutNotice>),
    /// Anything else, raw.
    Provider(ProviderNotice),
    /// The operator's test.
    Test {
        /// The webhook subscription under test.
        subscription_id: crate::id::WebhookSubscriptionId,
    },
}

/// A message. Optional parts are left out of the webhook body when absent.
#[derive(Clone, Default, Serialize)]
pub struct Message {
    /// The provider's id of the message.
    #[serde(skip)]
    pub external_message_id: Option<Box<str>>,
    /// `text`, `image`, `button`, …; `unsupported` for what we do not know.
    #[serde(skip)]
    pub message_type: Box<str>,
    /// The text, caption or title.
    #[serde(skip)]
    pub text: Option<Box<str>>,
    /// The provider's own word for a type that we map to `unsupported`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_type: Option<Box<str>>,
    /// Image, video, document, audio or sticker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<Media>,
    /// The choice of a button, list or flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// The message this one answers or forwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<MessageContext>,
    /// A place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// A reaction to a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reaction: Option<Reaction>,
    /// The ad or post that the contact came from, as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referral: Option<Box<RawValue>>,
    /// A list of contact cards, as the provider gave them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contacts: Option<Box<RawValue>>,
    /// An order, as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Box<RawValue>>,
    /// A system notice (number changed, …), as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<Box<RawValue>>,
    /// The state of the contact's encryption identity, as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Box<RawValue>>,
    /// The message that an edit or a revoke is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_message_id: Option<Box<str>>,
    /// The group it was written in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<Box<str>>,
    /// What went wrong on the provider's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ProviderError>,
    /// Of what the business sent: `app` for its phone app, `api` for the provider's API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
    /// The sender's own text for correlation, where the provider repeats it on the answer (Vonage:
    /// `client_ref`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Box<str>>,
    /// WhatsApp's own id of the message, where the provider's id is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whatsapp_message_id: Option<Box<str>>,
    /// The whole item, for types that we do not know, and where the other fields do not say all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Box<RawValue>>,
}

/// A file of a message.
#[derive(Clone, Default, Serialize)]
pub struct Media {
    /// The provider's id of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Box<str>>,
    /// Where it can be fetched, usually with the provider's credential and for minutes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Box<str>>,
    /// The MIME type, parameters included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<Box<str>>,
    /// SHA-256 as the provider writes it (Meta: base64).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Box<str>>,
    /// The name of a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<Box<str>>,
    /// Whether audio was recorded as a voice message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voice: Option<bool>,
    /// Whether a sticker moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub animated: Option<bool>,
}

/// The choice of a button, list or flow.
#[derive(Clone, Default, Serialize)]
pub struct Reply {
    /// `button`, `button_reply`, `list_reply`, `nfm_reply`, …: the provider's word.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub reply_type: Option<Box<str>>,
    /// The id or payload of the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Box<str>>,
    /// The label of the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<Box<str>>,
    /// The second line of a list row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Box<str>>,
    /// The answers of a flow: JSON when the provider's text is JSON, otherwise that text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Box<RawValue>>,
}

/// What a message answers or forwards.
#[derive(Clone, Default, Serialize)]
pub struct MessageContext {
    /// The provider's id of the message answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Box<str>>,
    /// Who wrote that message: a phone number in E.164, or else as the provider names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Box<str>>,
    /// Whether it was forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<bool>,
    /// Whether it was forwarded many times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequently_forwarded: Option<bool>,
    /// The product asked about, as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referred_product: Option<Box<RawValue>>,
}

/// A place.
#[derive(Clone, Default, Serialize)]
pub struct Location {
    /// Degrees north.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latitude: Option<f64>,
    /// Degrees east.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longitude: Option<f64>,
    /// The name of the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Box<str>>,
    /// Its page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Box<str>>,
}

/// A reaction to a message.
#[derive(Clone, Default, Serialize)]
pub struct Reaction {
    /// The message reacted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<Box<str>>,
    /// The emoji; null when the reaction was taken back.
    pub emoji: Option<Box<str>>,
}

/// What went wrong on the provider's side.
#[derive(Clone, Default, Serialize)]
pub struct ProviderError {
    /// The provider's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// A short text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<Box<str>>,
    /// A longer text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<str>>,
}

/// A status of a message of the business.
#[derive(Clone, Default, Serialize)]
pub struct Status {
    /// The provider's id of the message.
    #[serde(skip)]
    pub external_message_id: Option<Box<str>>,
    /// The provider's word in lower case: `sent`, `delivered`, `read`, `played`, `failed`, …
    #[serde(skip)]
    pub status: Box<str>,
    /// The recipient as the provider names it, for the event's id.
    #[serde(skip)]
    pub recipient: Box<str>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ProviderError>,
    /// What it costs, as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pricing: Option<Box<RawValue>>,
    /// The conversation it was billed to, as the provider gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Box<RawValue>>,
    /// The sender's own text for correlation (Meta: `biz_opaque_callback_data`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Box<str>>,
    /// WhatsApp's own id of the message, where the provider's id is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whatsapp_message_id: Option<Box<str>>,
    /// The group it was written in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<Box<str>>,
    /// The whole item, where the status has no event of its own, and where the other fields do not say all of
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Box<RawValue>>,
}

/// A contact opted out or in.
#[derive(Clone, Default, Serialize)]
pub struct OptOutNotice {
    /// `recipient_requested_stop`, `recipient_requested_start`, `provider_preference`, `provider_error`,
    /// `imported` or `operator`.
    #[serde(skip)]
    pub reason: &'static str,
    /// The text the contact wrote.
    #[serde(skip)]
    pub message_text: Option<Box<str>>,
    /// The provider's id of the message that carried it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_message_id: Option<Box<str>>,
    /// `non_essential` or `marketing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'static str>,
    /// The keyword matched, folded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyword: Option<Box<str>>,
}

/// What is not about a message.
#[derive(Clone)]
pub struct ProviderNotice {
    /// The provider's word for it (Meta: `changes[].field`).
    pub field: Box<str>,
    /// The item as the provider gave it.
    pub raw: Box<RawValue>,
}
