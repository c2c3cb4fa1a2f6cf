//! The content of a message: fields beside its `type`,
//! <https://www.infobip.com/docs/api/channels/whatsapp/receive-whatsapp-messages>.

use gateway_core::event::{Media, Message, Reply};
use serde_json::value::RawValue;

use crate::provider::{
    json::{Fields, kept},
    message::{contacts, location, set_location, set_reaction},
};

/// Reads the content of a message of this type into `message` and gives our word for the type. None when the
/// type is not known or the content is not what the type says. `keyword` is the word that Infobip routed by.
pub fn read(
    kind: &str,
    raw: &RawValue,
    object: &Fields<'_>,
    keyword: Option<Box<str>>,
    message: &mut Message,
) -> Option<&'static str> {
    message.text = object.name("text");
    Some(match kind {
        "TEXT" => {
            // Infobip may cut off the word that it routes by. When nothing is left, that word was the message.
            let text = || object.text("text").map(Box::from);
            message.text = Some(message.text.take().or(keyword).or_else(text)?);
            "text"
        }
        "IMAGE" => media(object, message, "image"),
        "VIDEO" => media(object, message, "video"),
        "DOCUMENT" => media(object, message, "document"),
        "AUDIO" => media(object, message, "audio"),
        "VOICE" => media(object, message, "voice"),
        "STICKER" => media(object, message, "sticker"),
        "LOCATION" => {
            set_location(message, location(object))?;
            "location"
        }
        "CONTACT" => {
            message.contacts = Some(contacts(object.get("contacts")?));
            "contacts"
        }
        "ORDER" => {
            message.order = Some(kept(raw));
            "order"
        }
        "REACTION" => {
            let is_taken_back = object.text("action").is_some_and(|action| action == "REMOVED");
            let emoji = object.name("emoji").filter(|_| !is_taken_back);
            let message_id = message.context.as_ref().and_then(|context| context.id.clone());
            set_reaction(message, message_id, emoji);
            "reaction"
        }
        "BUTTON" => {
            message.reply = Some(Reply {
                reply_type: Some("button".into()),
                id: object.name("payload"),
                title: message.text.clone(),
                ..Reply::default()
            });
            "button"
        }
        _ => {
            let reply = reply(kind, raw, object)?;
            message.text = message.text.take().or_else(|| reply.title.clone());
            message.reply = Some(reply);
            "interactive"
        }
    })
}

fn media(object: &Fields<'_>, message: &mut Message, message_type: &'static str) -> &'static str {
    message.text = object.name("caption");
    message.media = Some(Media {
        url: object.name("url"),
        voice: (message_type == "voice").then_some(true),
        ..Media::default()
    });
    message_type
}

/// The choice of a button, list or flow; None when the type is not one of these.
fn reply(kind: &str, raw: &RawValue, object: &Fields<'_>) -> Option<Reply> {
    let mut reply = Reply {
        id: object.name("id"),
        title: object.name("title"),
        description: object.name("description"),
        ..Reply::default()
    };
    let word = match kind {
        "INTERACTIVE_BUTTON_REPLY" => "button_reply",
        "INTERACTIVE_LIST_REPLY" => "list_reply",
        "INTERACTIVE_FLOW_REPLY" => {
            reply.response = object.get("response").map(kept);
            "flow_reply"
        }
        "INTERACTIVE_CALL_PERMISSION_REPLY" => {
            let permission = object.get("callPermissionReply").unwrap_or(raw);
            reply.id = Fields::of(permission).and_then(|permission| permission.name("response"));
            reply.response = Some(kept(permission));
            "call_permission_reply"
        }
        "INTERACTIVE_PAYMENT_CONFIRMATION" => {
            reply.id = object.name("referenceId");
            reply.response = Some(kept(raw));
            "payment_confirmation"
        }
        _ => return None,
    };
    reply.reply_type = Some(word.into());
    Some(reply)
}
