//! `user_preferences[]`: the contact used WhatsApp's own control for marketing messages,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/reference/user_preferences>.

use serde_json::value::RawValue;

use super::contact::Contacts;
use crate::provider::{
    Item, PreferenceIdentity, PreferenceItem,
    json::{Fields, identity},
};

/// The decision; None for what is not one that we know.
pub fn preference(raw: &RawValue, contacts: &Contacts, alone: bool) -> Option<Item> {
    let fields = Fields::of(raw)?;
    let value = fields.text("value")?;
    let opts_out = match value.as_ref() {
        "stop" => true,
        "resume" | "signup" => false,
        _ => return None,
    };
    if fields.text("category").is_some_and(|category| category != "marketing_messages") {
        return None;
    }
    let contact = contacts.join(fields.name("wa_id"), fields.name("user_id"), alone);
    let time = fields.time("timestamp");
    let identity = match time {
        Some(time) => PreferenceIdentity::Own(identity(&[contact.key(), &value, &time.to_string()])),
        // It may be the contact's second wish of this kind: that counts if it is to stop, and does not if it
        // is to start again.
        None if opts_out => PreferenceIdentity::Unknown,
        None => PreferenceIdentity::Own(identity(&[contact.key(), &value, ""])),
    };
    Some(Item::Preference(Box::new(PreferenceItem {
        contact,
        opts_out,
        from_error: false,
        external_message_id: None,
        identity,
        time,
    })))
}
