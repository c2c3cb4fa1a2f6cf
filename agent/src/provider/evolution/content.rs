//! The content of a message: an object named like its type (WhiskeySockets/Baileys `WAProto/WAProto.proto`, message
//! `Message`), perhaps inside of others that say how it is shown. Numbers of the Cloud API give Meta's content
//! under the same names (EvolutionAPI/evolution-api
//! `src/api/integrations/channel/meta/whatsapp.business.service.ts`).

use gateway_core::event::{Location, Media, Message, MessageContext};
use serde_json::value::RawValue;

use super::{
    bytes::base64,
    choice,
    cut::{cut, is_left_out},
};
use crate::provider::{
    json::{self, Fields, kept},
    message::{self, contacts, set_location, set_reaction},
};

/// What holds another message.
const WRAPPERS: [&str; 8] = [
    "ephemeralMessage",
    "viewOnceMessage",
    "viewOnceMessageV2",
    "viewOnceMessageV2Extension",
    "documentWithCaptionMessage",
    "editedMessage",
    "deviceSentMessage",
    "groupMentionedMessage",
];
/// Most of them in each other; deeper ones are passed on raw.
const WRAPPERS_MAX: usize = 4;
/// What stands beside the content.
const BESIDE: [&[u8]; 7] = [
    b"messageContextInfo",
    b"senderKeyDistributionMessage",
    b"contextInfo",
    b"base64",
    b"mediaUrl",
    b"speechToText",
    b"quoted",
];
/// How often a message was forwarded when WhatsApp calls it forwarded many times.
const FORWARDED_MANY_TIMES: i64 = 5;

/// The content of a message.
pub struct Content<'a> {
    /// Its name.
    pub kind: Box<str>,
    value: &'a RawValue,
    /// `contextInfo`: in the content, in the message, or beside it.
    contexts: Vec<Fields<'a>>,
    /// Where the instance stored the file.
    media_url: Option<Box<str>>,
}

/// The content of a message of type `literal`; None when there is none.
pub fn find<'a>(message: &Fields<'a>, literal: Option<&str>) -> Option<(Box<str>, &'a RawValue)> {
    let mut found = named(message, literal)?;
    for _ in 0..WRAPPERS_MAX {
        let wrapper = WRAPPERS.contains(&&*found.0).then(|| Fields::of(found.1)).flatten();
        let Some(inner) = wrapper.and_then(|wrapper| wrapper.object("message")) else { break };
        found = named(&inner, literal)?;
    }
    Some(found)
}

fn named<'a>(message: &Fields<'a>, literal: Option<&str>) -> Option<(Box<str>, &'a RawValue)> {
    // What is left out is no content: the message would be another one without it.
    if let Some(literal) = literal.filter(|literal| !is_left_out(literal.as_bytes()))
        && let Some(value) = message.get(literal)
    {
        return Some((literal.into(), value));
    }
    let is_content = |(name, value): &(&[u8], &RawValue)| {
        !BESIDE.contains(name) && !is_left_out(name) && value.get() != "null"
    };
    let mut contents = message.iter().filter(is_content);
    contents.next().map(|(name, value)| (String::from_utf8_lossy(name).into(), value))
}

impl<'a> Content<'a> {
    /// The content in `data`, which may have a `contextInfo` too; None when there is none.
    pub fn of(data: &Fields<'a>) -> Option<Self> {
        let message = data.object("message")?;
        let (kind, value) = find(&message, data.text("messageType").as_deref())?;
        let context = |fields: &Fields<'a>| fields.object("contextInfo");
        let of_value = Fields::of(value).as_ref().and_then(context);
        Some(Self {
            contexts: of_value.into_iter().chain(context(data)).chain(context(&message)).collect(),
            media_url: message.name("mediaUrl"),
            kind,
            value,
        })
    }

    /// What was done to another message, if that is the content.
    pub fn change(&self) -> Option<Fields<'a>> {
        (&*self.kind == "protocolMessage").then(|| Fields::of(self.value)).flatten()
    }

    /// Reads the content into `message`. None when it is of a type that we do not know, or not what its type
    /// says. `literal` is the message's own word for its type.
    pub fn read(&self, literal: Option<&str>, message: &mut Message) -> Option<()> {
        message.context = self.context();
        message.referral = self.referral();
        let kind = match &*self.kind {
            "conversation" => {
                message.text = json::text(self.value).map(Box::from);
                message.text.as_ref()?;
                choice::told_by_text(literal, message)
            }
            kind => self.read_object(kind, &Fields::of(self.value)?, message)?,
        };
        message.message_type = kind.into();
        Some(())
    }

    fn read_object(&self, kind: &str, content: &Fields<'a>, message: &mut Message) -> Option<&'static str> {
        Some(match kind {
            "extendedTextMessage" => {
                message.text = Some(content.text("text")?.into());
                "text"
            }
            "imageMessage" => self.file("image", content, message),
            "videoMessage" | "ptvMessage" => self.file("video", content, message),
            "documentMessage" => self.file("document", content, message),
            "stickerMessage" => self.file("sticker", content, message),
            "audioMessage" if content.truth("ptt") == Some(true) => self.file("voice", content, message),
            "audioMessage" => self.file("audio", content, message),
            "locationMessage" | "liveLocationMessage" => {
                set_location(message, place(content))?;
                message.text = message.text.take().or_else(|| content.name("caption"));
                "location"
            }
            "contactMessage" => {
                message.contacts = Some(cards_without_secrets(self.value));
                "contacts"
            }
            "contactsArrayMessage" => {
                message.contacts = Some(cards_without_secrets(content.get("contacts")?));
                "contacts"
            }
            "reactionMessage" => {
                let message_id = content.object("key").and_then(|key| key.name("id"));
                set_reaction(message, message_id, content.name("text"));
                "reaction"
            }
            "orderMessage" => {
                message.text = content.name("message").or_else(|| content.name("orderTitle"));
                message.order = Some(kept_without_secrets(self.value));
                "order"
            }
            _ => choice::read(kind, content, message)?,
        })
    }

    /// A file. The names are Baileys' or, of numbers of the Cloud API, Meta's. `url` leads to the file in
    /// encrypted form, if the instance does not store files.
    fn file(&self, kind: &'static str, content: &Fields<'a>, message: &mut Message) -> &'static str {
        message.text = content.name("caption");
        let either = |one, other| content.name(one).or_else(|| content.name(other));
        message.media = Some(Media {
            id: content.name("id"),
            url: self.media_url.clone().or_else(|| content.name("url")),
            mime_type: either("mimetype", "mime_type"),
            sha256: content.get("fileSha256").or_else(|| content.get("sha256")).and_then(base64),
            filename: either("fileName", "filename").or_else(|| content.name("title")),
            voice: content.truth("ptt"),
            animated: content.truth("isAnimated").or_else(|| content.truth("animated")),
        });
        kind
    }

    /// What the message answers or forwards.
    fn context(&self) -> Option<MessageContext> {
        let name = |name| self.contexts.iter().find_map(|context| context.name(name));
        let forwarded = |context: &Fields<'_>| context.truth("isForwarded").filter(|said| *said);
        let score = |context: &Fields<'_>| context.integer("forwardingScore");
        let many_times = self.contexts.iter().find_map(score).filter(|score| *score >= FORWARDED_MANY_TIMES);
        message::context(MessageContext {
            id: name("stanzaId"),
            from: name("participant"),
            forwarded: self.contexts.iter().find_map(forwarded),
            frequently_forwarded: many_times.map(|_| true),
            referred_product: None,
        })
    }

    /// The ad that the contact came from, without its picture.
    fn referral(&self) -> Option<Box<RawValue>> {
        let ads = self.contexts.iter().filter_map(|context| context.get("externalAdReply"));
        ads.into_iter().find(|ad| ad.get().starts_with('{')).map(kept_without_secrets)
    }
}

fn kept_without_secrets(raw: &RawValue) -> Box<RawValue> {
    kept(serde_json::from_str(&cut(raw)).unwrap_or(RawValue::NULL))
}

fn cards_without_secrets(raw: &RawValue) -> Box<RawValue> {
    contacts(serde_json::from_str(&cut(raw)).unwrap_or(RawValue::NULL))
}

fn place(content: &Fields<'_>) -> Location {
    Location {
        latitude: content.number("degreesLatitude"),
        longitude: content.number("degreesLongitude"),
        name: content.name("name"),
        address: content.name("address"),
        url: content.name("url"),
    }
}
