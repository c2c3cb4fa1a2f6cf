//! A message of a contact. Its `status` is `delivered`: to Bird, not by us.

use gateway_core::{
    event::{Message, MessageContext},
    phone::Phone,
};
use serde_json::value::RawValue;

use super::{contact::contact, content};
use crate::provider::{
    Item, MessageItem,
    json::Fields,
    message::{correlation, identity, set_unsupported},
};

/// The message of a payload.
pub fn received(raw: &RawValue, payload: &Fields<'_>, business_phone: Option<Phone>) -> Item {
    let extra = payload.object("meta").and_then(|meta| meta.object("extraInformation"));
    let sender = payload.object("sender").and_then(|sender| sender.object("contact"));
    let reply_to = payload.object("replyTo").and_then(|reply_to| reply_to.name("id"));
    let mut message = Message {
        external_message_id: payload.name("id"),
        whatsapp_message_id: whatsapp_message_id(payload),
        context: reply_to.map(|id| MessageContext { id: Some(id), ..MessageContext::default() }),
        correlation: correlation(payload, "reference"),
        ..Message::default()
    };
    let body = payload.object("body");
    let literal = body.as_ref().and_then(|body| body.name("type"));
    let known = literal.as_deref().zip(body.as_ref());
    match known.and_then(|(kind, body)| content::read(kind, body, raw, &mut message)) {
        Some(message_type) => message.message_type = message_type.into(),
        None => {
            message.text = message.text.take().or_else(|| content::text(literal.as_deref()?, body.as_ref()?));
            set_unsupported(&mut message, literal, raw);
        }
    }
    // WhatsApp's own time, or else Bird's.
    let time = extra.as_ref().and_then(|extra| extra.time("timestamp")).or_else(|| payload.time("createdAt"));
    Item::Message(Box::new(MessageItem {
        identity: identity(message.external_message_id.as_deref(), raw),
        contact: contact(sender.as_ref(), extra.as_ref()),
        message,
        is_echo: false,
        business_phone,
        time,
    }))
}

/// WhatsApp's own id of the message, or of its first part when Bird made several of it.
pub fn whatsapp_message_id(payload: &Fields<'_>) -> Option<Box<str>> {
    Fields::of(payload.array("parts")?.first()?)?.name("platformReference")
}
