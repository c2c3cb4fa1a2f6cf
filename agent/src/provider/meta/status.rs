//! `statuses[]`: what became of a message of the business,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/reference/messages/status>. No order is
//! promised, and none is made: each status is passed on as it comes.

use gateway_core::event::{Contact, EventType, Status};
use serde_json::value::RawValue;

use super::{
    contact::Contacts,
    error::Errors,
    relay::{Relay, message_ids},
};
use crate::provider::{
    Item, StatusItem,
    json::{Fields, kept},
    message::{correlation, identity},
    preference::stopped_marketing,
    status::{settled, word},
};

/// A status of a message, and the opt-out that it may tell of.
pub fn of_message(raw: &RawValue, contacts: &Contacts, alone: bool, relay: Relay<'_>) -> Vec<Item> {
    let (item, errors) = read(raw, contacts, alone, relay);
    let item = settled(item, || kept(raw));
    // It counts like the contact's own `user_preferences` callback, which has to be subscribed separately.
    let opt_out = stopped_marketing(&item, &errors.codes);
    std::iter::once(Item::Status(Box::new(item))).chain(opt_out).collect()
}

/// A status of a call (`RINGING`, `ACCEPTED`, …): never one of a message.
pub fn of_call(raw: &RawValue, contacts: &Contacts, alone: bool, relay: Relay<'_>) -> Item {
    let (mut item, _) = read(raw, contacts, alone, relay);
    item.event_type = None;
    item.status.raw.get_or_insert_with(|| kept(raw));
    Item::Status(Box::new(item))
}

fn read(raw: &RawValue, contacts: &Contacts, alone: bool, relay: Relay<'_>) -> (StatusItem, Errors) {
    let Some(fields) = Fields::of(raw) else {
        let status = Status { status: "unknown".into(), raw: Some(kept(raw)), ..Status::default() };
        let identity = identity(None, raw);
        let contact = Contact::default();
        return (StatusItem { contact, status, identity, event_type: None, time: None }, Errors::default());
    };
    let word = word(fields.text("status"));
    let of_message = fields.text("type").is_none_or(|kind| kind == "message");
    let event_type = event_type(&word).filter(|_| of_message);
    let (contact, recipient, group_id) = recipient(&fields, contacts, alone);
    let (external_message_id, whatsapp_message_id) =
        message_ids(relay.message_id(&fields), fields.name("id"));
    let errors = relay.errors(&fields);
    let item = StatusItem {
        identity: identity(external_message_id.as_deref(), raw),
        status: Status {
            external_message_id,
            status: word,
            recipient,
            error: errors.first.clone(),
            pricing: fields.get("pricing").map(kept),
            conversation: fields.get("conversation").map(kept),
            correlation: correlation(&fields, "biz_opaque_callback_data"),
            group_id,
            whatsapp_message_id,
            raw: (event_type.is_none() || errors.say_more).then(|| kept(raw)),
        },
        contact,
        event_type,
        time: fields.time("timestamp"),
    };
    (item, errors)
}

/// The event of a status; none when it has no event of its own.
pub fn event_type(word: &str) -> Option<EventType> {
    match word {
        "sent" => Some(EventType::MessageSent),
        "delivered" => Some(EventType::MessageDelivered),
        "read" | "played" => Some(EventType::MessageRead),
        "failed" => Some(EventType::MessageFailed),
        _ => None,
    }
}

/// The person; what Meta calls the recipient, for the event's id; the group. In a group the recipient is the
/// group and the person is the participant.
fn recipient(fields: &Fields<'_>, contacts: &Contacts, alone: bool) -> (Contact, Box<str>, Option<Box<str>>) {
    let recipient = fields.name("recipient_id");
    let in_group = fields.text("recipient_type").is_some_and(|kind| kind == "group");
    let (phone, user_id, group_id) = if in_group {
        (fields.name("recipient_participant_id"), fields.name("recipient_participant_user_id"), recipient)
    } else {
        (recipient, fields.name("recipient_user_id"), None)
    };
    let named = phone.clone().or_else(|| user_id.clone()).or_else(|| group_id.clone()).unwrap_or_default();
    (contacts.join(phone, user_id, alone && !in_group), named, group_id)
}
