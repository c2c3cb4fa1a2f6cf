//! `messages.upsert` and `send.message`: `key`, `pushName`, `message`, `messageType`, `messageTimestamp`, `source`.
//! Both tell of a message that the business sends through the API; the id tells that it is one.

use gateway_core::{
    event::{Contact, Message},
    time::from_provider_number,
};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{
    change::{self, Carrier},
    content::Content,
    cut::cut,
    envelope::{Callback, Read},
    key::Key,
};
use crate::provider::{
    Item, MessageItem,
    json::{self, Fields, identity},
    message::set_unsupported,
};

/// A message of a contact, or of the business.
pub fn upserted(callback: &Callback<'_>, raw: &RawValue, fields: &Fields<'_>) -> Read {
    // Only these two say for sure that it was typed on a phone: others are used by programs as well.
    let of_phone = matches!(fields.text("source").as_deref(), Some("android" | "ios"));
    read(callback, raw, fields, false, of_phone.then_some("app"))
}

/// A message that the business sent through the API.
pub fn sent(callback: &Callback<'_>, raw: &RawValue, fields: &Fields<'_>) -> Read {
    read(callback, raw, fields, true, Some("api"))
}

/// A message that the business changed through the API.
pub fn sent_again(callback: &Callback<'_>, fields: &Fields<'_>) -> Read {
    let change = Content::of(fields).and_then(|content| content.change());
    let carrier = fields.object("key").map(|key| carrier(Key::of_own(&key), fields));
    change.map_or(Read::Unknown, |change| change::edited(callback, &change, carrier))
}

fn read(
    callback: &Callback<'_>,
    raw: &RawValue,
    fields: &Fields<'_>,
    is_echo: bool,
    source: Option<&'static str>,
) -> Read {
    let Some(key) = fields.object("key") else { return Read::Unknown };
    let key = if is_echo { Key::of_own(&key) } else { Key::of(&key) };
    if key.is_public() {
        return Read::Nothing;
    }
    let content = Content::of(fields);
    if let Some(change) = content.as_ref().and_then(Content::change) {
        return change::edited(callback, &change, Some(carrier(key, fields)));
    }
    let mut message = Message {
        external_message_id: key.id.clone(),
        group_id: key.group_id(),
        source: source.filter(|_| key.is_own),
        ..Message::default()
    };
    let literal = fields.text("messageType");
    let read = content.as_ref().and_then(|content| content.read(literal.as_deref(), &mut message));
    if read.is_none() {
        let literal = literal.map(Box::from).or_else(|| content.map(|content| content.kind));
        set_unsupported(&mut message, literal, serde_json::from_str(&cut(raw)).unwrap_or(RawValue::NULL));
        message.text = message.text.take().or_else(|| fields.object("message")?.name("conversation"));
    }
    Read::Item(Item::Message(Box::new(MessageItem {
        contact: Contact { name: name(&key, fields), ..key.contact(callback.phone.as_ref()) },
        message,
        identity: key.id.clone().unwrap_or_else(|| identity(&[&cut(raw)])),
        is_echo: key.is_own,
        business_phone: None,
        time: fields.get("messageTimestamp").and_then(time),
    })))
}

fn carrier<'a>(key: Key<'a>, fields: &Fields<'_>) -> Carrier<'a> {
    Carrier { key, time: fields.get("messageTimestamp").and_then(time) }
}

/// The profile name. Of the business's own messages it is a word for "you", and of people without a name their
/// address.
fn name(key: &Key<'_>, fields: &Fields<'_>) -> Option<Box<str>> {
    fields.name("pushName").filter(|name| !key.is_own && !key.is_address(name))
}

/// A time, also in the two halves in which protobuf.js writes a 64-bit number.
pub fn time(raw: &RawValue) -> Option<Timestamp> {
    let Some(halves) = Fields::of(raw) else { return json::time(raw) };
    let (low, high) = (halves.integer("low")?, halves.integer("high").unwrap_or(0));
    from_provider_number((high & 0x7fff_ffff) << 32 | low & 0xffff_ffff)
}
