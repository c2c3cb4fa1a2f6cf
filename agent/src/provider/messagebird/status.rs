//! A status of a message of the business: the message as it is now
//! (messagebird/go-rest-api, `conversation/message.go`).

use gateway_core::{
    event::{Contact, EventType, ProviderError, Status},
    opt_out::OptOutScope,
};
use serde_json::value::RawValue;

use crate::provider::{
    Item, PreferenceIdentity, PreferenceItem, StatusItem,
    json::{self, Fields, identity, kept},
};

/// Meta's code for a contact who stopped marketing messages in WhatsApp itself,
/// <https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes>.
pub const USER_STOPPED_MARKETING: i64 = 131_050;

/// The status, and the opt-out that it may tell of.
pub fn sent(raw: &RawValue, fields: &Fields<'_>, contact: Contact) -> Vec<Item> {
    let word = fields.text("status").filter(|word| !word.trim().is_empty());
    let word = word.map_or_else(|| "unknown".into(), |word| word.to_lowercase().into_boxed_str());
    let event = event(&word);
    let external_message_id = fields.name("id");
    let error = fields.object("error").and_then(|fields| error(&fields));
    let recipient = fields.name("to").unwrap_or_else(|| contact.key().into());
    let item = StatusItem {
        identity: external_message_id.clone().unwrap_or_else(|| identity(&[raw.get()])),
        status: Status {
            external_message_id,
            // A word that is not ours stands in the raw message.
            raw: event.is_none_or(|(_, ours)| *ours != *word).then(|| kept(raw)),
            status: event.map_or(word, |(_, ours)| ours.into()),
            recipient,
            error,
            correlation: correlation(fields),
            ..Status::default()
        },
        contact,
        event_type: event.map(|(event_type, _)| event_type),
        time: fields.time("updatedDatetime").or_else(|| fields.time("createdDatetime")),
    };
    let code = item.status.error.as_ref().and_then(|error| error.code);
    let opt_out = marketing_opt_out(&item, code);
    std::iter::once(Item::Status(Box::new(item))).chain(opt_out).collect()
}

/// What a failed status with Meta's code says about the contact's wish.
pub fn marketing_opt_out(item: &StatusItem, code: Option<i64>) -> Option<Item> {
    let stopped = item.event_type == Some(EventType::MessageFailed) && code == Some(USER_STOPPED_MARKETING);
    stopped.then(|| {
        Item::Preference(Box::new(PreferenceItem {
            contact: item.contact.clone(),
            opts_out: true,
            scope: OptOutScope::Marketing,
            from_error: true,
            external_message_id: item.status.external_message_id.clone(),
            identity: PreferenceIdentity::ItemBefore,
            time: item.time,
        }))
    })
}

/// The event of a status, and our word for it.
fn event(word: &str) -> Option<(EventType, &'static str)> {
    match word {
        "sent" | "transmitted" => Some((EventType::MessageSent, "sent")),
        "delivered" => Some((EventType::MessageDelivered, "delivered")),
        "read" => Some((EventType::MessageRead, "read")),
        "failed" | "rejected" | "delivery_failed" | "expired" => Some((EventType::MessageFailed, "failed")),
        _ => None,
    }
}

fn error(fields: &Fields<'_>) -> Option<ProviderError> {
    let (code, title) = (fields.integer("code"), fields.name("description"));
    (code.is_some() || title.is_some()).then_some(ProviderError { code, title, details: None })
}

/// What the sender gave along: `trackId`, or else `source`, which is an object.
fn correlation(fields: &Fields<'_>) -> Option<Box<str>> {
    let source = || {
        let source = fields.get("source")?;
        let text = json::text(source).unwrap_or_else(|| source.get().into());
        (!matches!(&*text, "" | "{}" | "[]")).then(|| text.into())
    };
    fields.name("trackId").or_else(source)
}
