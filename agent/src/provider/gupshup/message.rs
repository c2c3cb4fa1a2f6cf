//! `message` of version 2, <https://docs.gupshup.io/docs/inbound-messages>.

use gateway_core::event::{Media, Message, Reply};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::envelope::identity_without_id;
use crate::provider::{
    Item, MessageItem,
    contact::of_field,
    json::{Fields, kept},
    message::{contacts, location, set_location, set_reaction, set_unsupported},
    meta::{content::context, relay::message_ids},
};

/// A message of a contact. It has no time of its own: `time` is that of its callback.
pub fn received(raw: &RawValue, fields: &Fields<'_>, time: Option<Timestamp>) -> Item {
    let message = read(raw, fields);
    let sender = fields.object("sender");
    let phone = sender.as_ref().and_then(|sender| sender.identifier("phone"));
    let mut contact = of_field(phone.or_else(|| fields.identifier("source")));
    contact.name = sender.and_then(|sender| sender.name("name"));
    Item::Message(Box::new(MessageItem {
        identity: message.external_message_id.clone().unwrap_or_else(|| identity_without_id(raw, time)),
        contact,
        message,
        is_echo: false,
        business_phone: None,
        time,
    }))
}

fn read(raw: &RawValue, fields: &Fields<'_>) -> Message {
    let (external_message_id, whatsapp_message_id) = message_ids(fields.name("gsId"), fields.name("id"));
    let mut message = Message {
        external_message_id,
        whatsapp_message_id,
        context: fields.object("context").and_then(|object| context(&object, object.name("gsId"))),
        referral: fields.get("referral").map(kept),
        ..Message::default()
    };
    let literal = fields.name("type");
    let content = fields.get("payload").and_then(|raw| Fields::of(raw).map(|content| (raw, content)));
    let known = match (&literal, &content) {
        (Some(kind), Some((raw, content))) => read_content(kind, raw, content, &mut message),
        _ => None,
    };
    match known {
        Some(message_type) => message.message_type = message_type.into(),
        None => {
            set_unsupported(&mut message, literal, raw);
            message.text = message.text.take().or_else(|| content.as_ref()?.1.name("text"));
        }
    }
    message
}

/// Reads the content of a message of this type into `message`, and says the type in our words. None when the
/// type is not known or the content is not what the type says.
fn read_content(
    kind: &str,
    raw: &RawValue,
    content: &Fields<'_>,
    message: &mut Message,
) -> Option<&'static str> {
    match kind {
        "text" => {
            message.text = Some(content.text("text")?.into());
            Some("text")
        }
        // The quick reply of a template.
        "quick_reply" => choice(kind, content, message).map(|()| "button"),
        "button_reply" | "list_reply" => choice(kind, content, message).map(|()| "interactive"),
        "image" | "video" | "audio" | "voice" | "file" | "document" | "sticker" => {
            message.media = Some(Media {
                url: Some(content.name("url")?),
                mime_type: content.name("contentType"),
                filename: content.name("name"),
                voice: (kind == "voice").then_some(true),
                ..Media::default()
            });
            message.text = content.name("caption");
            Some(media_type(kind))
        }
        "location" => {
            set_location(message, location(content))?;
            Some("location")
        }
        "contact" | "contacts" => {
            message.contacts = Some(contacts(content.get("contacts")?));
            Some("contacts")
        }
        "order" => {
            message.text = content.name("text");
            message.order = Some(kept(raw));
            Some("order")
        }
        "reaction" => {
            let message_id =
                ["gsId", "msgId", "message_id", "id"].into_iter().find_map(|id| content.name(id))?;
            set_reaction(message, Some(message_id), content.name("emoji"));
            Some("reaction")
        }
        _ => None,
    }
}

fn media_type(kind: &str) -> &'static str {
    match kind {
        "image" => "image",
        "video" => "video",
        "audio" | "voice" => "audio",
        "sticker" => "sticker",
        _ => "document",
    }
}

/// What the contact tapped. `title`, of a template's quick reply `text`, is what the contact saw, `reply` the
/// same with a number behind it; `postbackText` and `id` are what the developer attached.
fn choice(kind: &str, content: &Fields<'_>, message: &mut Message) -> Option<()> {
    let title = content.name("title").or_else(|| content.name("text"));
    let id = content.name("postbackText").or_else(|| content.name("id"));
    if title.is_none() && id.is_none() {
        return None;
    }
    message.text.clone_from(&title);
    message.reply = Some(Reply {
        reply_type: Some(kind.into()),
        id,
        title,
        description: content.name("description"),
        response: None,
    });
    Some(())
}
