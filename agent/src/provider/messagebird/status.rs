//! A status of a message of the business: the message as it is now
//! (messagebird/go-rest-api, `conversation/message.go`).

use gateway_core::event::{Contact, EventType, ProviderError, Status};
use serde_json::value::RawValue;

use crate::provider::{
    Item, StatusItem,
    json::{Fields, kept},
    message::{correlation, identity},
    preference::stopped_marketing,
    status::{settled, word},
};

/// The status, and the opt-out that it may tell of.
pub fn sent(raw: &RawValue, fields: &Fields<'_>, contact: Contact) -> Vec<Item> {
    let word = word(fields.text("status"));
    let event_type = event_type(&word);
    let external_message_id = fields.name("id");
    let error = fields.object("error").and_then(|fields| error(&fields));
    let recipient = fields.name("to").unwrap_or_else(|| contact.key().into());
    let item = StatusItem {
        identity: identity(external_message_id.as_deref(), raw),
        status: Status {
            external_message_id,
            raw: event_type.is_none().then(|| kept(raw)),
            status: word,
            recipient,
            error,
            // What the sender gave along; `source` is an object.
            correlation: correlation(fields, "trackId").or_else(|| correlation(fields, "source")),
            ..Status::default()
        },
        contact,
        event_type,
        time: fields.time("updatedDatetime").or_else(|| fields.time("createdDatetime")),
    };
    let item = settled(item, || kept(raw));
    let code = item.status.error.as_ref().and_then(|error| error.code);
    let opt_out = stopped_marketing(&item, code.as_slice());
    std::iter::once(Item::Status(Box::new(item))).chain(opt_out).collect()
}

fn event_type(word: &str) -> Option<EventType> {
    match word {
        "sent" | "transmitted" => Some(EventType::MessageSent),
        "delivered" => Some(EventType::MessageDelivered),
        "read" => Some(EventType::MessageRead),
        "failed" | "rejected" | "delivery_failed" | "expired" => Some(EventType::MessageFailed),
        _ => None,
    }
}

fn error(fields: &Fields<'_>) -> Option<ProviderError> {
    let (code, title) = (fields.integer("code"), fields.name("description"));
    (code.is_some() || title.is_some()).then_some(ProviderError { code, title, details: None })
}
