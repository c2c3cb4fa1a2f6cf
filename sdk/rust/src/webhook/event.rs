//! The events of webhook bodies as types. Unknown events become [`Event::Unknown`], unknown fields are kept
//! in `extra`, so that writing an event again loses nothing. Nothing here prints what people wrote.

mod parts;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use parts::{Contact, Location, Media, MessageContent, MessageContext, ProviderError, Reaction, Reply};

/// The body is not an event. It says where, and nothing of what is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read webhook body as an event: {what} at line {line} column {column}")]
pub struct ParseError {
    what: &'static str,
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for ParseError {
    fn from(error: serde_json::Error) -> Self {
        let what = if error.is_data() { "a field is missing or of another type" } else { "it is not JSON" };
        Self { what, line: error.line(), column: error.column() }
    }
}

/// One event of one instance.
#[derive(Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Event {
    /// `message.received`: a contact wrote to the business.
    MessageReceived(Box<MessageReceived>),
    /// `message.sent`: a message left the provider, or the business typed it in its phone app.
    MessageSent(Box<MessageStatus>),
    /// `message.delivered`: a message reached the contact's phone.
    MessageDelivered(Box<MessageStatus>),
    /// `message.read`: the contact read the message.
    MessageRead(Box<MessageStatus>),
    /// `message.failed`: a message could not be delivered.
    MessageFailed(Box<MessageStatus>),
    /// `message.status_updated`: any status, for those who selected it.
    MessageStatusUpdated(Box<MessageStatus>),
    /// `recipient.opted_out`: a contact asked to stop.
    RecipientOptedOut(Box<OptOutChange>),
    /// `recipient.opted_in`: a contact asked to start again.
    RecipientOptedIn(Box<OptOutChange>),
    /// `provider.event`: what is not about a message.
    ProviderEvent(Box<ProviderNotice>),
    /// `webhook.test`: the operator's test.
    WebhookTest(Box<WebhookTest>),
    /// An event that this version does not know, whole.
    Unknown(Map<String, Value>),
}

#[derive(Deserialize)]
struct Head {
    event: String,
}

impl Event {
    /// Reads a body. Only for bytes whose origin is proven: see [`super::WebhookVerifier::verify`].
    ///
    /// # Errors
    /// When it is not a JSON object with an `event`, or a known event lacks its fields.
    pub fn from_slice(body: &[u8]) -> Result<Self, ParseError> {
        let head: Head = serde_json::from_slice(body)?;
        Ok(match head.event.as_str() {
            "message.received" => Self::MessageReceived(serde_json::from_slice(body)?),
            "message.sent" => Self::MessageSent(serde_json::from_slice(body)?),
            "message.delivered" => Self::MessageDelivered(serde_json::from_slice(body)?),
            "message.read" => Self::MessageRead(serde_json::from_slice(body)?),
            "message.failed" => Self::MessageFailed(serde_json::from_slice(body)?),
            "message.status_updated" => Self::MessageStatusUpdated(serde_json::from_slice(body)?),
            "recipient.opted_out" => Self::RecipientOptedOut(serde_json::from_slice(body)?),
            "recipient.opted_in" => Self::RecipientOptedIn(serde_json::from_slice(body)?),
            "provider.event" => Self::ProviderEvent(serde_json::from_slice(body)?),
            "webhook.test" => Self::WebhookTest(serde_json::from_slice(body)?),
            _ => Self::Unknown(serde_json::from_slice(body)?),
        })
    }

    /// The event's name, as in the body.
    pub fn name(&self) -> &str {
        match self {
            Self::Unknown(body) => text(body, "event"),
            known => known.common().map_or("", |common| &common.event),
        }
    }

    /// The event's id, the same as `webhook-id`.
    pub fn event_id(&self) -> &str {
        match self {
            Self::Unknown(body) => text(body, "event_id"),
            known => known.common().map_or("", |common| &common.event_id),
        }
    }

    /// The instance the event belongs to.
    pub fn instance_id(&self) -> &str {
        match self {
            Self::Unknown(body) => text(body, "instance_id"),
            known => known.common().map_or("", |common| &common.instance_id),
        }
    }

    /// What every known event carries; none for an unknown one.
    pub fn common(&self) -> Option<&Common> {
        match self {
            Self::MessageReceived(event) => Some(&event.common),
            Self::MessageSent(event)
            | Self::MessageDelivered(event)
            | Self::MessageRead(event)
            | Self::MessageFailed(event)
            | Self::MessageStatusUpdated(event) => Some(&event.common),
            Self::RecipientOptedOut(event) | Self::RecipientOptedIn(event) => Some(&event.common),
            Self::ProviderEvent(event) => Some(&event.common),
            Self::WebhookTest(event) => Some(&event.common),
            Self::Unknown(_) => None,
        }
    }
}

fn text<'a>(body: &'a Map<String, Value>, key: &str) -> &'a str {
    body.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({}, {})", self.name(), self.event_id())
    }
}

/// What every event carries.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// The event's name.
    pub event: String,
    /// The instance the event belongs to.
    pub instance_id: String,
    /// The instance's display name when the event came.
    pub instance_name: String,
    /// When it happened, by the provider's clock.
    #[serde(with = "parts::rfc3339")]
    pub timestamp: Timestamp,
    /// The event's id, the same as `webhook-id`.
    pub event_id: String,
}

/// A contact wrote to the business.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageReceived {
    /// What every event carries.
    #[serde(flatten)]
    pub common: Common,
    /// The contact's phone number in E.164; none when only `contact.user_id` is known.
    pub from: Option<String>,
    /// The provider's id of the message.
    pub external_message_id: Option<String>,
    /// The business number in E.164.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Who wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// `text`, `image`, `button`, …; `unsupported` for what the gateway does not know.
    pub message_type: String,
    /// The text, caption or title.
    pub message_text: Option<String>,
    /// The sender's own text for correlation, where the provider repeats it on the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// WhatsApp's own id of the message, where `external_message_id` is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whatsapp_message_id: Option<String>,
    /// What else the message carries.
    #[serde(flatten)]
    pub content: MessageContent,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A status of a message of the business.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageStatus {
    /// What every event carries.
    #[serde(flatten)]
    pub common: Common,
    /// The contact's phone number in E.164; none when only `contact.user_id` is known.
    pub to: Option<String>,
    /// `sent`, `delivered`, `read`, `played` or `failed`; of `message.status_updated` the provider's word.
    pub status: String,
    /// The provider's id of the message.
    pub external_message_id: Option<String>,
    /// The business number in E.164.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whom the message is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// Why the message failed; `content.error` stays none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProviderError>,
    /// What it costs, as the provider gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pricing: Option<Value>,
    /// The conversation it was billed to, as the provider gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Value>,
    /// The sender's own text for correlation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// WhatsApp's own id of the message, where `external_message_id` is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whatsapp_message_id: Option<String>,
    /// For what the business wrote itself: `text`, `image`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_type: Option<String>,
    /// For what the business wrote itself: the text, caption or title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_text: Option<String>,
    /// For what the business wrote itself: what else the message carries.
    #[serde(flatten)]
    pub content: MessageContent,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A contact opted out or in.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct OptOutChange {
    /// What every event carries.
    #[serde(flatten)]
    pub common: Common,
    /// The contact's phone number in E.164; none when only `contact.user_id` is known.
    pub from: Option<String>,
    /// `recipient_requested_stop`, `recipient_requested_start`, `provider_preference`, `provider_error`,
    /// `imported` or `operator`.
    pub reason: String,
    /// What the contact wrote.
    pub message_text: Option<String>,
    /// The business number in E.164.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// The provider's id of the message that carried the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_message_id: Option<String>,
    /// `non_essential` or `marketing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The keyword matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyword: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What is not about a message: templates, account, quality, calls.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ProviderNotice {
    /// What every event carries.
    #[serde(flatten)]
    pub common: Common,
    /// The provider's word for it (Meta: `changes[].field`).
    pub provider_field: String,
    /// The item as the provider gave it.
    pub raw: Value,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The operator's test.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct WebhookTest {
    /// What every event carries.
    #[serde(flatten)]
    pub common: Common,
    /// The webhook subscription under test.
    pub subscription_id: String,
    /// A fixed text.
    pub message_text: String,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

macro_rules! masked {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}, {})", stringify!($name), self.common.event, self.common.event_id)
            }
        }
    )*};
}

masked!(MessageReceived MessageStatus OptOutChange ProviderNotice WebhookTest);

impl fmt::Debug for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Common({}, {})", self.event, self.event_id)
    }
}
