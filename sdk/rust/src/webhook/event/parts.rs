//! The parts of events. Every field is optional: what is not known is not in the body. Parts print nothing of
//! what people wrote.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
        pub struct $name {
            $(
                $(#[$field_doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*
            /// Fields that this version does not know.
            #[serde(flatten)]
            pub extra: Map<String, Value>,
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(••••)"))
            }
        }
    )*};
}

parts! {
    /// The WhatsApp user an event is about.
    Contact {
        /// The profile name.
        name: String,
        /// The provider's user id (Meta: business-scoped user id).
        user_id: String,
        /// The user name.
        username: String,
    }

    /// Image, video, document, audio or sticker.
    Media {
        /// The provider's id of the file.
        id: String,
        /// Where it can be fetched, usually with the provider's credential and for minutes only.
        url: String,
        /// The MIME type, parameters included.
        mime_type: String,
        /// SHA-256 as the provider writes it (Meta: base64).
        sha256: String,
        /// The name of a document.
        filename: String,
        /// Whether audio was recorded as a voice message.
        voice: bool,
        /// Whether a sticker moves.
        animated: bool,
    }

    /// The choice of a button, list or flow.
    Reply {
        /// The provider's word: `button`, `button_reply`, `list_reply`, `nfm_reply`, …
        #[serde(rename = "type")]
        reply_type: String,
        /// The id or payload of the choice.
        id: String,
        /// The label of the choice.
        title: String,
        /// The second line of a list row.
        description: String,
        /// The answers of a flow.
        response: Value,
    }

    /// What a message answers or forwards.
    MessageContext {
        /// The provider's id of the message answered.
        id: String,
        /// Who wrote that message: a phone number in E.164, or else as the provider names them.
        from: String,
        /// Whether it was forwarded.
        forwarded: bool,
        /// Whether it was forwarded many times.
        frequently_forwarded: bool,
        /// The product asked about, as the provider gave it.
        referred_product: Value,
    }

    /// A place.
    Location {
        /// Degrees north.
        latitude: f64,
        /// Degrees east.
        longitude: f64,
        /// The name of the place.
        name: String,
        /// Its address.
        address: String,
        /// Its page.
        url: String,
    }

    /// What went wrong on the provider's side.
    ProviderError {
        /// The provider's number.
        code: i64,
        /// A short text.
        title: String,
        /// A longer text.
        details: String,
    }
}

/// A reaction to a message.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Reaction {
    /// The message reacted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The emoji; none when the reaction was taken back.
    pub emoji: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl fmt::Debug for Reaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reaction(••••)")
    }
}

/// What a message carries beside its text.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MessageContent {
    /// The provider's own word for a type that the gateway calls `unsupported`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_type: Option<String>,
    /// Image, video, document, audio or sticker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<Media>,
    /// The choice of a button, list or flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// The message this one answers or forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<MessageContext>,
    /// A place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// A reaction to a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reaction: Option<Reaction>,
    /// The ad or post that the contact came from, as the provider gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referral: Option<Value>,
    /// A list of contact cards, as the provider gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contacts: Option<Value>,
    /// An order, as the provider gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Value>,
    /// A system notice (number changed, …), as the provider gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<Value>,
    /// The message that an edit or a revoke is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_message_id: Option<String>,
    /// The group it was written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// What went wrong on the provider's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProviderError>,
    /// Of what the business sent: `app` for its phone app, `api` for the provider's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The whole item, for what the gateway does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Value>,
}

impl fmt::Debug for MessageContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageContent(••••)")
    }
}

/// Times as RFC 3339 text.
pub(super) mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom("must be a time as in RFC 3339"))
    }
}
