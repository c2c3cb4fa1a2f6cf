//! Edits and revokes: `messages.edited`, which comes for every protocol message (WhiskeySockets/Baileys
//! `WAProto/WAProto.proto`, `ProtocolMessage`; keys and settings of the linked phone among them), and
//! `messages.delete`, a key or something with one. Both name the message that was changed, and no id of their own.

use gateway_core::event::{Contact, Message};
use jiff::Timestamp;

use super::{
    content,
    cut::cut,
    envelope::{Callback, Read},
    key::Key,
    message::time,
};
use crate::provider::{
    Item, MessageItem,
    json::{self, Fields, identity},
};

/// A message that carries a change of another one.
pub struct Carrier<'a> {
    /// Its key, which says who wrote it.
    pub key: Key<'a>,
    /// When it was written.
    pub time: Option<Timestamp>,
}

/// A protocol message, and what carried it.
pub fn edited(callback: &Callback<'_>, protocol: &Fields<'_>, carrier: Option<Carrier<'_>>) -> Read {
    let edited = protocol.object("editedMessage");
    let kind = protocol.text("type");
    let Some(key) = protocol.object("key").map(|key| Key::of(&key)) else {
        let is_of_another_kind = edited.is_none() && kind.is_some();
        return if is_of_another_kind { Read::Nothing } else { Read::Unknown };
    };
    if edited.is_none() && !matches!(kind.as_deref(), Some("REVOKE" | "0")) {
        return Read::Nothing;
    }
    let original = key.id.clone();
    // Without a carrier, the key may be as the other side sees it: the chat is then our own number, and who
    // wrote is not said.
    let is_mirrored = carrier.is_none() && key.is_mirrored(callback.phone.as_ref());
    let Carrier { key: author, time: written } = carrier.unwrap_or(Carrier { key, time: None });
    if author.is_public() {
        return Read::Nothing;
    }
    let own_time = protocol.get("timestampMs");
    let when = own_time.and_then(time).or(written);
    let Some(edited) = edited else {
        return item(callback, &author, is_mirrored, revoke(original), "", when);
    };
    let text = content::find(&edited, None).and_then(|(kind, value)| match &*kind {
        "conversation" => json::text(value).map(Box::from),
        _ => Fields::of(value).and_then(|value| value.name("text").or_else(|| value.name("caption"))),
    });
    let message = Message { message_type: "edit".into(), text, ..change_of(original) };
    // Each edit of a message is one of its own, and known again by what is kept of it.
    let own_time = own_time.map(cut);
    let own = own_time.as_deref().or(message.text.as_deref()).unwrap_or_default().to_owned();
    item(callback, &author, is_mirrored, message, &own, when)
}

/// A message was deleted for everybody.
pub fn deleted(callback: &Callback<'_>, fields: &Fields<'_>) -> Read {
    let key = fields.object("key").map_or_else(|| Key::of(fields), |key| Key::of(&key));
    if key.is_public() {
        return Read::Nothing;
    }
    if key.id.is_none() {
        return Read::Unknown;
    }
    let message = revoke(key.id.clone());
    item(callback, &key, false, message, "", None)
}

fn revoke(original: Option<Box<str>>) -> Message {
    Message { message_type: "revoke".into(), ..change_of(original) }
}

fn change_of(original: Option<Box<str>>) -> Message {
    Message { external_message_id: original.clone(), original_message_id: original, ..Message::default() }
}

/// The change. A revoke is told twice, and is known again by the message and the contact.
fn item(
    callback: &Callback<'_>,
    author: &Key<'_>,
    is_mirrored: bool,
    message: Message,
    own: &str,
    time: Option<Timestamp>,
) -> Read {
    let contact = if is_mirrored { Contact::default() } else { author.contact(callback.phone.as_ref()) };
    let original = message.original_message_id.as_deref().unwrap_or_default();
    let identity = identity(&[&message.message_type, original, contact.key(), own]);
    let group_id = author.group_id();
    Read::Item(Item::Message(Box::new(MessageItem {
        contact,
        message: Message { group_id, ..message },
        identity,
        is_echo: author.is_own && !is_mirrored,
        business_phone: None,
        time,
    })))
}
