//! The content object of a message, named like its type. Absent parts stay absent; a content object that is
//! missing, null or no object makes the message unsupported, and then it is passed on raw.

use gateway_core::event::{Media, Message, MessageContext, Reply};
use serde_json::value::RawValue;

use super::relay::Relay;
use crate::provider::{
    json::{self, Fields, kept},
    message::{self, contacts, location, response, set_location, set_reaction},
};

/// Reads the content of a message of this type into `message`. None when the type is not known or the
/// content is not what the type says.
pub fn read(kind: &str, fields: &Fields<'_>, relay: Relay<'_>, message: &mut Message) -> Option<()> {
    match kind {
        "location" => {
            set_location(message, location(&fields.object(kind)?))?;
        }
        "contacts" => message.contacts = Some(contacts(fields.get(kind)?)),
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
            set_reaction(message, reaction.name("message_id"), reaction.name("emoji"));
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

fn interactive(object: &Fields<'_>, message: &mut Message) -> Option<()> {
    let kind = object.name("type")?;
    let of_kind = object.object(&kind);
    let name = |field| of_kind.as_ref().and_then(|reply| reply.name(field));
    let mut reply = Reply { id: name("id"), title: name("title"), ..Reply::default() };
    match &*kind {
        "nfm_reply" => {
            reply.title = name("name");
            reply.response = of_kind.as_ref().and_then(|reply| reply.get("response_json")).and_then(answers);
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

/// The answers of a flow, which are JSON in a text; JSON without a text around it is taken as it is.
fn answers(raw: &RawValue) -> Option<Box<RawValue>> {
    json::text(raw).map_or_else(|| Some(kept(raw)), |text| response(&text))
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
    message::context(MessageContext {
        id: own_id.or_else(|| object.name("id")),
        from: object.name("from"),
        forwarded: object.truth("forwarded"),
        frequently_forwarded: object.truth("frequently_forwarded"),
        referred_product: object.get("referred_product").map(kept),
    })
}
