//! A message of a contact.

use gateway_core::{
    event::{Contact, Message},
    phone::Phone,
};
use serde_json::value::RawValue;

use super::content;
use crate::provider::{
    Item, MessageItem,
    json::{Fields, identity, kept},
};

/// What we call a message that we cannot tell more about; it is passed on raw.
const UNSUPPORTED: &str = "unsupported";

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
    if let Some(message_type) = known.and_then(|(kind, content)| content::read(kind, content, &mut message)) {
        message.message_type = message_type.into();
    } else {
        message.message_type = UNSUPPORTED.into();
        message.raw_type = literal;
        message.raw = Some(kept(raw));
    }
    Item::Message(Box::new(MessageItem {
        identity: message.external_message_id.clone().unwrap_or_else(|| identity(&[raw.get()])),
        contact,
        message,
        is_echo: false,
        business_phone,
        time: fields.time("createdDatetime").or_else(|| fields.time("updatedDatetime")),
    }))
}
