//! The content object of a message, named like its type. Absent parts stay absent; a content object that is
//! missing, null or no object makes the message unsupported, and then it is passed on raw.

use gateway_core::event::{Location, Media, Message, MessageContext, Reaction, Reply};
use serde_json::value::RawValue;

use super::relay::Relay;
use crate::provider::json::{self, Fields, kept};

/// Reads the content of a message of this type into `message`. None when the type is not known or the
/// content is not what the type says.
pub fn read(kind: &str, fields: &Fields<'_>, relay: Relay<'_>, message: &mut Message) -> Option<()> {
    match kind {
        "location" => {
            let location = location(&fields.object(kind)?);
            message.text = location.name.clone().or_else(|| location.address.clone());
            message.location = Some(location);
        }
        "contacts" => message.contacts = Some(kept(fields.get(kind)?)),
        "button" => {
            let button = fields.object(kind)?;
            message.text = button.name("text");
            message.reply = Some(Reply {
                reply_type: Some(kind.into()),
                id: button.name("payload"),
                title: button.name("text"),
                ..Reply::default()
            });
        }
        "interactive" => interactive(&fields.object(kind)?, message)?,
        "order" => {
            message.text = fields.object(kind)?.name("text");
            message.order = fields.get(kind).map(kept);
        }
        "reaction" => {
            let reaction = fields.object(kind)?;
            let emoji = reaction.name("emoji");
            message.text.clone_from(&emoji);
            message.reaction = Some(Reaction { message_id: reaction.name("message_id"), emoji });
        }
        "system" => {
            message.text = fields.object(kind)?.name("body");
            message.system = fields.get(kind).map(kept);
        }
        "edit" => edit(&fields.object(kind)?, relay, message)?,
        "revoke" => message.original_message_id = fields.object(kind)?.name("original_message_id"),
        // The contact opened the chat for the first time; there is no content.
        "request_welcome" => {}
        _ => plain(kind, fields, message)?,
    }
    Some(())
}

/// Text and media: also what an edit can carry. None for everything else.
fn plain(kind: &str, fields: &Fields<'_>, message: &mut Message) -> Option<()> {
    let object = fields.object(kind)?;
    if kind == "text" {
        message.text = Some(object.text("body")?.into());
        return Some(());
    }
    if !matches!(kind, "image" | "video" | "document" | "audio" | "voice" | "sticker") {
        return None;
    }
    message.text = object.name("caption");
    message.media = Some(Media {
        id: object.name("id"),
        url: object.name("url"),
        mime_type: object.name("mime_type"),
        sha256: object.name("sha256"),
        filename: object.name("filename"),
        // Before the Cloud API recorded messages had a type of their own.
        voice: object.truth("voice").or((kind == "voice").then_some(true)),
        animated: object.truth("animated"),
    });
    Some(())
}

/// A place.
pub fn location(object: &Fields<'_>) -> Location {
    Location {
        latitude: object.number("latitude"),
        longitude: object.number("longitude"),
        name: object.name("name"),
        address: object.name("address"),
        url: object.name("url"),
    }
}

fn interactive(object: &Fields<'_>, message: &mut Message) -> Option<()> {
    let kind = object.name("type")?;
    let of_kind = object.object(&kind);
    let name = |field| of_kind.as_ref().and_then(|reply| reply.name(field));
    let mut reply = Reply { id: name("id"), title: name("title"), ..Reply::default() };
    match &*kind {
        "nfm_reply" => {
            reply.title = name("name");
            reply.response = of_kind.as_ref().and_then(|reply| reply.get("response_json")).and_then(response);
            message.text = name("body");
        }
        "call_permission_reply" => {
            reply.id = name("response");
            reply.response = object.get(&kind).map(kept);
        }
        _ => {
            reply.description = name("description");
            message.text.clone_from(&reply.title);
        }
    }
    // A kind of reply that we do not know has other fields than these.
    if reply.id.is_none() && reply.title.is_none() && reply.response.is_none() && message.text.is_none() {
        return None;
    }
    reply.reply_type = Some(kind);
    message.reply = Some(reply);
    Some(())
}

/// The answers of a flow: JSON in a text, not always an object; a text that is no JSON stays a text, and JSON
/// without a text around it is taken as it is.
fn response(raw: &RawValue) -> Option<Box<RawValue>> {
    let Some(json) = json::text(raw) else { return Some(kept(raw)) };
    match serde_json::from_str::<&RawValue>(&json) {
        Ok(response) => Some(kept(response)),
        Err(_) => serde_json::value::to_raw_value(&json).ok(),
    }
}

fn edit(object: &Fields<'_>, relay: Relay<'_>, message: &mut Message) -> Option<()> {
    let inner = object.object("message")?;
    message.original_message_id = object.name("original_message_id");
    let answered = inner.object("context");
    if let Some(context) = answered.and_then(|answered| context(&answered, relay.message_id(&answered))) {
        message.context = Some(context);
    }
    plain(&inner.name("type")?, &inner, message)
}

/// What a message answers or forwards; None when nothing is said. `own_id` is a relay's own id of the message
/// answered: the one that its sender knows.
pub fn context(object: &Fields<'_>, own_id: Option<Box<str>>) -> Option<MessageContext> {
    let context = MessageContext {
        id: own_id.or_else(|| object.name("id")),
        from: object.name("from"),
        forwarded: object.truth("forwarded"),
        frequently_forwarded: object.truth("frequently_forwarded"),
        referred_product: object.get("referred_product").map(kept),
    };
    let says_nothing = context.id.is_none()
        && context.from.is_none()
        && context.forwarded.is_none()
        && context.frequently_forwarded.is_none()
        && context.referred_product.is_none();
    (!says_nothing).then_some(context)
}
