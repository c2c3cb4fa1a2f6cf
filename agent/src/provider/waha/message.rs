//! `message`, `message.any`, `message.reaction`, `message.edited`, `message.revoked`. WAHA names no type: it
//! follows from what a payload has.

use gateway_core::event::{Location, Media, Message, MessageContext, ProviderError, Reaction, Reply};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{contact::Payload, envelope::Callback};
use crate::provider::{
    Item, MessageItem,
    jid::Jid,
    json::{self, Fields, elements, identity, kept},
    message::{self, set_location, set_reaction, set_unsupported},
};

/// A message of a contact, or one that the business sent.
pub fn message(callback: &Callback<'_>, payload: &Payload<'_>) -> Item {
    let mut message = head(payload);
    match reaction(callback, payload) {
        Some(Reaction { message_id, emoji }) => {
            message.message_type = "reaction".into();
            message.raw = message_id.is_none().then(|| kept(payload.raw));
            set_reaction(&mut message, message_id, emoji);
        }
        None => read(payload, &mut message),
    }
    item(callback, payload, message, payload.identity(), payload.fields.time("timestamp"))
}

/// The text of a message was changed.
pub fn edited(callback: &Callback<'_>, payload: &Payload<'_>) -> Item {
    let original = payload.fields.name("editedMessageId");
    let message = Message {
        message_type: "edit".into(),
        text: payload.fields.name("body"),
        original_message_id: original.clone(),
        ..head(payload)
    };
    change(callback, payload, message)
}

/// A message was taken back.
pub fn revoked(callback: &Callback<'_>, payload: &Payload<'_>) -> Item {
    let message = Message {
        message_type: "revoke".into(),
        original_message_id: payload
            .revoked_id
            .clone()
            .or_else(|| payload.whatsapp_id().map(|id| Box::from(&*id))),
        context: None,
        ..head(payload)
    };
    change(callback, payload, message)
}

/// What was done to another message. With the engine WEBJS it has the id and the time of that one; then the new
/// text tells a second edit from the first.
fn change(callback: &Callback<'_>, payload: &Payload<'_>, message: Message) -> Item {
    let is_reused = payload.whatsapp_id().as_deref() == message.original_message_id.as_deref();
    let text = message.text.as_deref().filter(|_| is_reused).unwrap_or_default();
    let identity = identity(&[&callback.event, &payload.identity(), text]);
    let own_time = payload.fields.time("timestamp").filter(|_| !is_reused);
    item(callback, payload, message, identity, own_time.or(callback.time))
}

fn item(
    callback: &Callback<'_>,
    payload: &Payload<'_>,
    message: Message,
    identity: Box<str>,
    time: Option<Timestamp>,
) -> Item {
    Item::Message(Box::new(MessageItem {
        contact: payload.contact(&callback.me),
        message,
        identity,
        is_echo: payload.is_own,
        business_phone: None,
        time: time.or(callback.time),
    }))
}

/// What every message has.
fn head(payload: &Payload<'_>) -> Message {
    Message {
        external_message_id: payload.id.as_deref().map(Box::from),
        whatsapp_message_id: payload.whatsapp_id().map(|id| Box::from(&*id)),
        group_id: payload.group().map(Jid::name),
        context: context(payload),
        source: match payload.fields.text("source").as_deref() {
            Some("app") if payload.is_own => Some("app"),
            Some("api") if payload.is_own => Some("api"),
            _ => None,
        },
        ..Message::default()
    }
}

/// What is reacted to and with what; None for what is no reaction. What comes as one is one whatever is in it: a
/// `body` beside it is not what the contact says.
fn reaction(callback: &Callback<'_>, payload: &Payload<'_>) -> Option<Reaction> {
    let of_field = payload
        .fields
        .object("reaction")
        .map(|reaction| Reaction { message_id: reaction.name("messageId"), emoji: reaction.name("text") });
    let of_event =
        || (callback.event == "message.reaction").then_some(Reaction { message_id: None, emoji: None });
    of_field.or_else(|| payload.data.reaction()).or_else(of_event)
}

fn read(payload: &Payload<'_>, message: &mut Message) {
    let fields = &payload.fields;
    let media = fields.object("media");
    if let Some(location) = fields.object("location") {
        // `body` is a picture of the map.
        match set_location(message, place(&location)) {
            Some(()) => message.message_type = "location".into(),
            None => set_unsupported(message, payload.data.word(), payload.raw),
        }
    } else if let Some(cards) = fields.get("vCards").filter(|cards| has_elements(cards)) {
        // `body` is the first card again.
        message.message_type = "contacts".into();
        message.contacts = Some(message::contacts(cards));
    } else if media.is_some() || fields.truth("hasMedia") == Some(true) {
        file(payload, media.as_ref(), message);
    } else if let Some(choice) = fields.object("interactiveResponse") {
        message.message_type = "interactive".into();
        message.text = choice.name("selectedText").or_else(|| fields.name("body"));
        message.reply = Some(Reply {
            reply_type: choice.name("type"),
            id: choice.name("selectedId"),
            title: choice.name("selectedText"),
            response: choice.get("params").map(kept),
            ..Reply::default()
        });
    } else if let Some(body) = fields.text("body").filter(|body| !body.is_empty() || payload.data.is_text()) {
        message.message_type = "text".into();
        // A text without a word may be something that WAHA does not tell.
        message.raw = body.is_empty().then(|| kept(payload.raw));
        message.text = Some(body.into());
    } else {
        set_unsupported(message, payload.data.word(), payload.raw);
    }
}

/// An image, video, document, audio or sticker. `media` is null when WAHA did not download it, and then only the
/// engine tells what it is.
fn file(payload: &Payload<'_>, media: Option<&Fields<'_>>, message: &mut Message) {
    let name = |name| media.and_then(|media| media.name(name));
    let mime_type = name("mimetype").or_else(|| payload.data.mime_type());
    let filename = name("filename");
    let told = payload.data.media_type().or_else(|| mime_type.as_deref().map(type_of_mime));
    // A file for sure, even if nobody says of which kind.
    let kind = told.or_else(|| payload.data.word().is_none().then(|| type_of_mime("")));
    // Some engines repeat the name of a document as its caption.
    message.text = payload.fields.name("body").filter(|body| filename.as_ref() != Some(body));
    match kind {
        Some(kind) => {
            message.message_type = kind.into();
            message.raw = told.is_none().then(|| kept(payload.raw));
        }
        None => set_unsupported(message, payload.data.word(), payload.raw),
    }
    let error = media.and_then(|media| media.get("error")).and_then(error_text);
    message.error = error.map(|title| ProviderError { title: Some(title), ..ProviderError::default() });
    let media = Media {
        url: name("url").or_else(|| payload.fields.name("mediaUrl")),
        mime_type,
        filename,
        voice: (kind == Some("voice")).then_some(true),
        ..Media::default()
    };
    let says_something = media.url.is_some() || media.mime_type.is_some() || media.filename.is_some();
    message.media = (says_something || kind.is_some()).then_some(media);
}

fn type_of_mime(mime_type: &str) -> &'static str {
    match mime_type.split('/').next() {
        Some("image") if mime_type.starts_with("image/webp") => "sticker",
        Some("image") => "image",
        Some("video") => "video",
        Some("audio") => "audio",
        _ => "document",
    }
}

fn error_text(raw: &RawValue) -> Option<Box<str>> {
    let of_object = Fields::of(raw).and_then(|error| error.name("message"));
    of_object.or_else(|| json::text(raw).filter(|text| !text.is_empty()).map(Box::from))
}

/// A place; the numbers are texts. `description` has the address below the name.
fn place(location: &Fields<'_>) -> Location {
    let description = location.text("description").unwrap_or_default();
    let (title, rest) = description.split_once('\n').unwrap_or((&description, ""));
    let or_line = |name, line: &str| {
        location.name(name).or_else(|| Some(line.trim()).filter(|line| !line.is_empty()).map(Box::from))
    };
    Location {
        latitude: location.number("latitude"),
        longitude: location.number("longitude"),
        name: or_line("name", title),
        address: or_line("address", rest),
        url: location.name("url"),
    }
}

fn has_elements(raw: &RawValue) -> bool {
    elements(raw).is_some_and(|elements| !elements.is_empty())
}

/// What the message answers or forwards.
fn context(payload: &Payload<'_>) -> Option<MessageContext> {
    let reply = payload.fields.get("replyTo");
    let of_reply = |name| reply.and_then(Fields::of).and_then(|reply| reply.name(name));
    let (forwarded, frequently_forwarded) = payload.data.forwarded();
    message::context(MessageContext {
        // It was a bare id once.
        id: of_reply("id").or_else(|| reply.and_then(json::text).map(Box::from)),
        from: of_reply("participant"),
        forwarded,
        frequently_forwarded,
        referred_product: None,
    })
}
