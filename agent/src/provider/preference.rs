//! Decisions of contacts about messages, made with the provider's or WhatsApp's own means.

use gateway_core::{
    event::{Contact, EventType},
    opt_out::OptOutScope,
};
use jiff::Timestamp;

use super::{Item, PreferenceIdentity, PreferenceItem, StatusItem, json::identity};

/// Meta's code for a contact who stopped marketing messages in WhatsApp itself,
/// <https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes>. A send tells us so; other providers
/// pass the code on.
const USER_STOPPED_MARKETING: i64 = 131_050;

/// The opt-out from marketing messages that a failed status with these codes tells of.
pub fn stopped_marketing(item: &StatusItem, codes: &[i64]) -> Option<Item> {
    codes.contains(&USER_STOPPED_MARKETING).then(|| of_failure(item, OptOutScope::Marketing)).flatten()
}

/// The opt-out that a status tells of whose code says so; None when the message did not fail.
pub fn of_failure(item: &StatusItem, scope: OptOutScope) -> Option<Item> {
    (item.event_type == Some(EventType::MessageFailed)).then(|| {
        Item::Preference(Box::new(PreferenceItem {
            contact: item.contact.clone(),
            scope,
            opts_out: true,
            from_error: true,
            external_message_id: item.status.external_message_id.clone(),
            identity: PreferenceIdentity::ItemBefore,
            time: item.time,
        }))
    })
}

/// How the repeat of a decision is known that came alone: by the person, the provider's word and the time.
pub fn identity_of(
    contact: &Contact,
    word: &str,
    opts_out: bool,
    time: Option<Timestamp>,
) -> PreferenceIdentity {
    match time {
        Some(time) => PreferenceIdentity::Own(identity(&[contact.key(), word, &time.to_string()])),
        // It may be the contact's second wish of this kind: that counts if it is to stop, and does not if it
        // is to start again.
        None if opts_out => PreferenceIdentity::Unknown,
        None => PreferenceIdentity::Own(identity(&[contact.key(), word, ""])),
    }
}
