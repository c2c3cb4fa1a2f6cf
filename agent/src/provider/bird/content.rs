//! `payload.body`, an object with one key for what its type says, <https://docs.bird.com/api/channels-api/message-types>.

use gateway_core::event::{Location, Media, Message, Reply};
use serde_json::value::RawValue;

use crate::provider::{
    json::{Fields, kept},
    message::{contacts, set_location},
};

/// The lists that hold the files of a body.
const FILES: [&str; 4] = ["images", "files", "videos", "audios"];

/// Reads the body into `message` and gives our word for its type. None when the type is not known or the content is
/// not what the type says. `raw` is the whole message, kept where `message` cannot hold all.
pub fn read(kind: &str, body: &Fields<'_>, raw: &RawValue, message: &mut Message) -> Option<&'static str> {
    if kind == "contacts" {
        message.contacts = Some(contacts(body.get(kind)?));
        return Some("contacts");
    }
    let object = body.object(kind)?;
    let message_type = match kind {
        "text" | "list" | "interactive" | "button" => {
            let reply = choice(&object);
            // Without a choice only a text is something that a person wrote.
            if reply.is_none() && kind != "text" {
                return None;
            }
            message.text = match &reply {
                Some(reply) => object.name("text").or_else(|| reply.title.clone()),
                None => Some(object.text("text")?.into()),
            };
            message.reply = reply;
            if message.reply.is_some() { "button" } else { "text" }
        }
        "image" | "file" | "video" | "audio" | "document" | "sticker" => file(kind, &object, raw, message)?,
        "location" => {
            set_location(message, location(&object))?;
            "location"
        }
        _ => return None,
    };
    Some(message_type)
}

/// The text of a body of which we cannot tell more: in what its type names, or where a text has it.
pub fn text(kind: &str, body: &Fields<'_>) -> Option<Box<str>> {
    let within = |name| body.object(name).and_then(|object| object.name("text"));
    within(kind).or_else(|| within("text")).or_else(|| body.name("text"))
}

/// The button or list row that the person chose.
fn choice(object: &Fields<'_>) -> Option<Reply> {
    let action = object
        .array("actions")?
        .into_iter()
        .filter_map(Fields::of)
        .find_map(|action| action.object("postback"))?;
    let (id, title) = (action.name("payload"), action.name("text"));
    id.as_ref().or(title.as_ref())?;
    Some(Reply { reply_type: Some("postback".into()), id, title, ..Reply::default() })
}

/// The first file; of several the others are kept raw.
fn file(kind: &str, object: &Fields<'_>, raw: &RawValue, message: &mut Message) -> Option<&'static str> {
    let files = FILES.into_iter().find_map(|name| object.array(name)).unwrap_or_default();
    let first = files.first().copied().and_then(Fields::of);
    let first = first.as_ref().unwrap_or(object);
    let mime_type = first.name("contentType");
    message.media = Some(Media {
        url: Some(first.name("mediaUrl").or_else(|| first.name("url"))?),
        filename: first.name("filename"),
        mime_type,
        ..Media::default()
    });
    message.text = object.name("text");
    message.raw = (files.len() > 1).then(|| kept(raw));
    let mime_type = message.media.as_ref().and_then(|media| media.mime_type.as_deref()).unwrap_or_default();
    // Recordings and films come as files too.
    Some(match kind {
        "image" => "image",
        "video" => "video",
        "audio" => "audio",
        "sticker" => "sticker",
        _ if mime_type.starts_with("image/") => "image",
        _ if mime_type.starts_with("video/") => "video",
        _ if mime_type.starts_with("audio/") => "audio",
        _ => "document",
    })
}

fn location(object: &Fields<'_>) -> Location {
    let (coordinates, place) = (object.object("coordinates"), object.object("location"));
    let coordinates = coordinates.as_ref().unwrap_or(object);
    let of_place = |name| place.as_ref().unwrap_or(object).name(name);
    Location {
        latitude: coordinates.number("latitude"),
        longitude: coordinates.number("longitude"),
        name: of_place("label"),
        address: of_place("address"),
        url: None,
    }
}
