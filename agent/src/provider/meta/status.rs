//! `statuses[]`: what became of a message of the business,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/reference/messages/status>. No order is
//! promised, and none is made: each status is passed on as it comes.

use gateway_core::event::{Contact, EventType, Status};
use serde_json::value::RawValue;

use super::{contact::Contacts, error::Errors};
use crate::provider::{
    Item, PreferenceIdentity, PreferenceItem, StatusItem,
    json::{Fields, identity, kept},
};

/// The contact stopped marketing messages in WhatsApp itself; a send tells us so. It counts like the
/// contact's own `user_preferences` callback, which has to be subscribed separately.
const USER_STOPPED_MARKETING: i64 = 131_050;

/// A status of a message, and the opt-out that it may tell of.
pub fn of_message(raw: &RawValue, contacts: &Contacts, alone: bool) -> Vec<Item> {
    let (item, errors) = read(raw, contacts, alone);
    let stopped =
        item.event_type == Some(EventType::MessageFailed) && errors.codes.contains(&USER_STOPPED_MARKETING);
    let opt_out = stopped.then(|| {
        Item::Preference(Box::new(PreferenceItem {
            contact: item.contact.clone(),
            opts_out: true,
            from_error: true,
            external_message_id: item.status.external_message_id.clone(),
            identity: PreferenceIdentity::ItemBefore,
            time: item.time,
        }))
    });
    std::iter::once(Item::Status(Box::new(item))).chain(opt_out).collect()
}

/// A status of a call (`RINGING`, `ACCEPTED`, …): never one of a message.
pub fn of_call(raw: &RawValue, contacts: &Contacts, alone: bool) -> Item {
    let (mut item, _) = read(raw, contacts, alone);
    item.event_type = None;
    item.status.raw.get_or_insert_with(|| kept(raw));
    Item::Status(Box::new(item))
}

fn read(raw: &RawValue, contacts: &Contacts, alone: bool) -> (StatusItem, Errors) {
    let Some(fields) = Fields::of(raw) else {
        let status = Status { status: "unknown".into(), raw: Some(kept(raw)), ..Status::default() };
        let identity = identity(&[raw.get()]);
        let contact = Contact::default();
        return (StatusItem { contact, status, identity, event_type: None, time: None }, Errors::default());
    };
    let word = fields.text("status").filter(|word| !word.trim().is_empty());
    let word = word.map_or_else(|| "unknown".into(), |word| word.to_lowercase().into_boxed_str());
    let of_message = fields.text("type").is_none_or(|kind| kind == "message");
    let event_type = event_type(&word).filter(|_| of_message);
    let (contact, recipient, group_id) = recipient(&fields, contacts, alone);
    let external_message_id = fields.name("id");
    let errors = Errors::of(fields.get("errors"));
    let item = StatusItem {
        identity: external_message_id.clone().unwrap_or_else(|| identity(&[raw.get()])),
        status: Status {
            external_message_id,
            status: word,
            recipient,
            error: errors.first.clone(),
            pricing: fields.get("pricing").map(kept),
            conversation: fields.get("conversation").map(kept),
            correlation: fields.name("biz_opaque_callback_data"),
            group_id,
            raw: (event_type.is_none() || errors.say_more).then(|| kept(raw)),
        },
        contact,
        event_type,
        time: fields.time("timestamp"),
    };
    (item, errors)
}

fn event_type(word: &str) -> Option<EventType> {
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
