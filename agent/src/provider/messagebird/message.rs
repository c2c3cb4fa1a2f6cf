//! A message of a contact.

use gateway_core::{
    event::{Contact, Message},
    phone::Phone,
};
use serde_json::value::RawValue;

use super::content;
use crate::provider::{
    Item, MessageItem,
    json::Fields,
    message::{identity, set_unsupported},
};

/// The message.
pub fn received(
    raw: &RawValue,
    fields: &Fields<'_>,
    contact: Contact,
    business_phone: Option<Phone>,
) -> Item {
    let mut message = Message { external_message_id: fields.name("id"), ..Message::default() };
    let literal = fields.name("type");
    let content = fields.object("content");
    let known = literal.as_deref().zip(content.as_ref());
    match known.and_then(|(kind, content)| content::read(kind, content, &mut message)) {
        Some(message_type) => message.message_type = message_type.into(),
        None => {
            set_unsupported(&mut message, literal, raw);
            message.text = message.text.take().or_else(|| content.as_ref()?.name("text"));
        }
    }
    Item::Message(Box::new(MessageItem {
        identity: identity(message.external_message_id.as_deref(), raw),
        contact,
        message,
        is_echo: false,
        business_phone,
        time: fields.time("createdDatetime").or_else(|| fields.time("updatedDatetime")),
    }))
}
