//! `messages.update`: what became of a message of the business. It says no time. Updates of messages that contacts
//! wrote (the business read them, …), and votes in polls, are passed on raw.

use gateway_core::event::{EventType, Status};
use serde_json::value::RawValue;

use super::{
    cut::cut,
    envelope::{Callback, Read},
    key::Key,
};
use crate::provider::{
    Item, StatusItem,
    json::{Fields, elements, identity, kept},
};

/// A status.
pub fn updated(callback: &Callback<'_>, raw: &RawValue, fields: &Fields<'_>) -> Read {
    let inner = fields.object("key");
    let key = Key::of(inner.as_ref().unwrap_or(fields));
    if key.is_public() {
        return Read::Nothing;
    }
    let votes = fields.get("pollUpdates").and_then(elements).unwrap_or_default();
    if !key.is_own || !votes.is_empty() {
        return Read::Unknown;
    }
    let word = fields.text("status").filter(|word| !word.trim().is_empty());
    let (word, event_type) = our_word(word.as_deref().unwrap_or("unknown"));
    // `keyId` is the message that the status is about, whatever update told it.
    let id = fields.name("keyId").or(key.id.clone());
    Read::Item(Item::Status(Box::new(StatusItem {
        contact: key.person(callback.phone.as_ref()),
        status: Status {
            external_message_id: id.clone(),
            recipient: key.recipient(),
            group_id: key.group_id(),
            raw: if event_type.is_some() { None } else { serde_json::from_str(&cut(raw)).ok().map(kept) },
            status: word.into(),
            ..Status::default()
        },
        identity: id.unwrap_or_else(|| identity(&[&cut(raw)])),
        event_type,
        time: None,
    })))
}

/// WhatsApp's own words and numbers (WhiskeySockets/Baileys `WAProto/WAProto.proto`, `WebMessageInfo.Status`), or,
/// of numbers of the Cloud API, Meta's in capitals.
fn our_word(word: &str) -> (String, Option<EventType>) {
    let (ours, event_type) = match word.to_uppercase().as_str() {
        "ERROR" | "FAILED" | "0" => ("failed", Some(EventType::MessageFailed)),
        "PENDING" | "1" => ("pending", None),
        "SERVER_ACK" | "SENT" | "2" => ("sent", Some(EventType::MessageSent)),
        "DELIVERY_ACK" | "DELIVERED" | "3" => ("delivered", Some(EventType::MessageDelivered)),
        "READ" | "4" => ("read", Some(EventType::MessageRead)),
        "PLAYED" | "5" => ("played", Some(EventType::MessageRead)),
        _ => return (word.to_lowercase(), None),
    };
    (ours.to_owned(), event_type)
}
