//! The companies whose callbacks we take.

use gateway_proto::v1;

/// The company whose callbacks we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Meta WhatsApp Cloud API.
    Meta,
    /// 360dialog: Meta's callbacks, relayed.
    Dialog360,
    /// Twilio Programmable Messaging.
    Twilio,
    /// Vonage Messages API.
    Vonage,
    /// Infobip WhatsApp.
    Infobip,
    /// Gupshup.
    Gupshup,
    /// MessageBird Conversations, the generation before Bird.
    MessageBird,
    /// Bird Channels.
    Bird,
    /// WAHA (WhatsApp HTTP API), self-hosted.
    Waha,
    /// Evolution API, self-hosted.
    Evolution,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Self; 10] = [
        Self::Meta,
        Self::Dialog360,
        Self::Twilio,
        Self::Vonage,
        Self::Infobip,
        Self::Gupshup,
        Self::MessageBird,
        Self::Bird,
        Self::Waha,
        Self::Evolution,
    ];

    /// The provider's name in callback paths, event ids and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Dialog360 => "dialog360",
            Self::Twilio => "twilio",
            Self::Vonage => "vonage",
            Self::Infobip => "infobip",
            Self::Gupshup => "gupshup",
            Self::MessageBird => "messagebird",
            Self::Bird => "bird",
            Self::Waha => "waha",
            Self::Evolution => "evolution",
        }
    }

    /// The provider of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.name() == name)
    }

    /// The provider of a protobuf value. None when unspecified or unknown to this build.
    pub fn from_proto(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| i32::from(provider.to_proto()) == number)
    }

    /// The protobuf value.
    pub const fn to_proto(self) -> v1::Provider {
        match self {
            Self::Meta => v1::Provider::Meta,
            Self::Dialog360 => v1::Provider::Dialog360,
            Self::Twilio => v1::Provider::Twilio,
            Self::Vonage => v1::Provider::Vonage,
            Self::Infobip => v1::Provider::Infobip,
            Self::Gupshup => v1::Provider::Gupshup,
            Self::MessageBird => v1::Provider::Messagebird,
            Self::Bird => v1::Provider::Bird,
            Self::Waha => v1::Provider::Waha,
            Self::Evolution => v1::Provider::Evolution,
        }
    }
}
