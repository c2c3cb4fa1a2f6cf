//! `message.ack` and `message.ack.group`: what became of a message of the business. They say no time of their
//! own: `timestamp` in the payload, if any, is the message's.

use gateway_core::event::{EventType, Status};

use super::{contact::Payload, envelope::Callback};
use crate::provider::{Item, StatusItem, jid::Jid, json::kept};

/// The status that an `ack` tells; None when it is not about a message of the business.
pub fn acknowledged(callback: &Callback<'_>, payload: &Payload<'_>) -> Option<Item> {
    let name = payload.fields.text("ackName").filter(|name| !name.is_empty());
    let name = name.map(|name| name.to_lowercase());
    let (word, event_type) = match (payload.fields.integer("ack"), name.as_deref()) {
        (Some(-1), _) | (None, Some("error")) => ("failed", Some(EventType::MessageFailed)),
        (Some(0), _) | (None, Some("pending")) => ("pending", None),
        (Some(1), _) | (None, Some("server")) => ("sent", Some(EventType::MessageSent)),
        (Some(2), _) | (None, Some("device")) => ("delivered", Some(EventType::MessageDelivered)),
        (Some(3), _) | (None, Some("read")) => ("read", Some(EventType::MessageRead)),
        (Some(4), _) | (None, Some("played")) => ("played", Some(EventType::MessageRead)),
        (_, name) => (name.unwrap_or("unknown"), None),
    };
    item(callback, payload, word, event_type)
}

/// A message that WhatsApp still waits to decrypt; None when a contact wrote it, because it is not told what.
pub fn waiting(callback: &Callback<'_>, payload: &Payload<'_>) -> Option<Item> {
    item(callback, payload, "waiting", None)
}

fn item(
    callback: &Callback<'_>,
    payload: &Payload<'_>,
    word: &str,
    event_type: Option<EventType>,
) -> Option<Item> {
    payload.is_own.then(|| {
        Item::Status(Box::new(StatusItem {
            contact: payload.reader(&callback.me),
            status: Status {
                external_message_id: payload.id.as_deref().map(Box::from),
                whatsapp_message_id: payload.whatsapp_id().map(|id| Box::from(&*id)),
                status: word.into(),
                recipient: payload.recipient(),
                group_id: payload.group().map(Jid::name),
                raw: event_type.is_none().then(|| kept(payload.raw)),
                ..Status::default()
            },
            identity: payload.identity(),
            event_type,
            time: callback.time,
        }))
    })
}
