//! `message-event` of version 2, <https://partner-docs.gupshup.io/docs/v3-message-events>: what became of a
//! message of the business.

use gateway_core::event::Status;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::envelope::identity_without_id;
use crate::provider::{
    Item, StatusItem,
    contact::of_field,
    json::{Fields, kept},
    meta::{error::Errors, relay::message_ids, status::event_type},
    preference::stopped_marketing,
    status::{settled, word},
};

/// A status of a message, and the opt-out that it may tell of. None for what is about no message (`mismatch`,
/// `referral`). `time` is that of the callback.
pub fn of_event(raw: &RawValue, fields: &Fields<'_>, time: Option<Timestamp>) -> Option<Vec<Item>> {
    let status = word(fields.text("type"));
    let event_type = event_type(&status);
    let detail = fields.object("payload");
    let of_detail = |name| detail.as_ref().and_then(|detail| detail.get(name));
    let name_of_detail = |name| detail.as_ref().and_then(|detail| detail.name(name));
    // Of what is enqueued or failed at once, `id` is Gupshup's own and there is no `gsId`; later on `id` is
    // WhatsApp's.
    let (external_message_id, mut whatsapp_message_id) = message_ids(fields.name("gsId"), fields.name("id"));
    if event_type.is_none() && external_message_id.is_none() {
        return None;
    }
    let told = name_of_detail("whatsappMessageId").filter(|id| Some(id) != external_message_id.as_ref());
    whatsapp_message_id = whatsapp_message_id.or(told);
    let errors = detail.as_ref().map(Errors::flat).unwrap_or_default();
    // As it is written, since it is part of the event's id.
    let recipient = fields.name("destination");
    let own_time = fields.time("ts").or_else(|| detail.as_ref().and_then(|detail| detail.time("ts")));
    let item = StatusItem {
        identity: external_message_id.clone().unwrap_or_else(|| identity_without_id(raw, time)),
        contact: of_field(fields.identifier("destination").or_else(|| recipient.clone())),
        status: Status {
            external_message_id,
            whatsapp_message_id,
            status,
            recipient: recipient.unwrap_or_default(),
            error: errors.first.clone(),
            pricing: of_detail("pricing").map(kept),
            conversation: of_detail("conversation").map(kept),
            raw: (event_type.is_none() || errors.say_more).then(|| kept(raw)),
            ..Status::default()
        },
        event_type,
        time: own_time.or(time),
    };
    let item = settled(item, || kept(raw));
    let opt_out = stopped_marketing(&item, &errors.codes);
    Some(std::iter::once(Item::Status(Box::new(item))).chain(opt_out).collect())
}
