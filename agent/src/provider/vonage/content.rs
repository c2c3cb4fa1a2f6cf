//! The content object of a message, named like its type,
//! <https://developer.vonage.com/en/api/messages#inbound-message>. A content object that is missing, null or no
//! object makes the message unsupported, and then it is passed on raw.

use gateway_core::event::{Location, Media, Message, Reply};
use serde_json::value::RawValue;

use crate::provider::{
    json::{Fields, kept},
    message::{contacts, response, set_location, set_reaction},
};

/// Reads the content of a message of this type into `message` and gives our word for the type. None when the
/// type is not known or the content is not what the type says.
pub fn read(kind: &str, fields: &Fields<'_>, message: &mut Message) -> Option<&'static str> {
    if kind == "text" {
        message.text = Some(fields.text(kind)?.into());
        return Some("text");
    }
    let object = fields.object(kind)?;
    Some(match kind {
        "image" => media(&object, message, "image"),
        "video" => media(&object, message, "video"),
        "audio" => media(&object, message, "audio"),
        "file" => media(&object, message, "document"),
        "sticker" => media(&object, message, "sticker"),
        "vcard" => {
            message.contacts = fields.get(kind).map(contacts);
            "contacts"
        }
        "location" => {
            set_location(message, location(&object))?;
            "location"
        }
        "reply" => {
            message.text = object.name("title");
            message.reply = Some(Reply {
                reply_type: Some(kind.into()),
                id: object.name("id"),
                title: object.name("title"),
                description: object.name("description"),
                ..Reply::default()
            });
            "interactive"
        }
        "button" => button(&object, message),
        "order" => {
            message.text = object.name("text");
            message.order = fields.get(kind).map(kept);
            "order"
        }
        "reaction" => {
            // Taken back is said by `action` alone; the emoji may still be there.
            let is_taken_back = object.text("action").is_some_and(|action| action == "unreact");
            let emoji = object.name("emoji").filter(|_| !is_taken_back);
            let message_id = message.context.as_ref().and_then(|context| context.id.clone());
            set_reaction(message, message_id, emoji);
            "reaction"
        }
        _ => return None,
    })
}

fn media(object: &Fields<'_>, message: &mut Message, message_type: &'static str) -> &'static str {
    message.text = object.name("caption");
    message.media =
        Some(Media { url: object.name("url"), filename: object.name("name"), ..Media::default() });
    message_type
}

fn location(object: &Fields<'_>) -> Location {
    Location {
        latitude: object.number("lat"),
        longitude: object.number("long"),
        name: object.name("name"),
        address: object.name("address"),
        url: object.name("url"),
    }
}

/// The quick reply of a template, or what a flow was answered with: then `payload` is an object.
fn button(object: &Fields<'_>, message: &mut Message) -> &'static str {
    let subtype = object.name("subtype");
    let is_flow = subtype.as_deref() == Some("flow") || object.object("payload").is_some();
    let (id, response) = if is_flow { (None, answers(object)) } else { (object.name("payload"), None) };
    message.text = object.name("text");
    message.reply = Some(Reply {
        reply_type: Some(subtype.unwrap_or_else(|| "button".into())),
        id,
        title: object.name("text"),
        response,
        ..Reply::default()
    });
    if is_flow { "interactive" } else { "button" }
}

/// The answers of a flow, which are an object, or JSON in a text.
fn answers(object: &Fields<'_>) -> Option<Box<RawValue>> {
    match object.text("payload") {
        Some(text) => response(&text),
        None => object.get("payload").map(kept),
    }
}
