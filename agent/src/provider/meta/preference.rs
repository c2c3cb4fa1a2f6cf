//! `user_preferences[]`: the contact used WhatsApp's own control for marketing messages,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/reference/user_preferences>.

use gateway_core::opt_out::OptOutScope;
use serde_json::value::RawValue;

use super::contact::Contacts;
use crate::provider::{Item, PreferenceItem, json::Fields, preference::identity_of};

/// The decision; None for what is not one that we know, or is nobody's.
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
    if contact.key().is_empty() {
        return None;
    }
    let time = fields.time("timestamp");
    let identity = identity_of(&contact, &value, opts_out, time);
    Some(Item::Preference(Box::new(PreferenceItem {
        contact,
        scope: OptOutScope::Marketing,
        opts_out,
        from_error: false,
        external_message_id: None,
        identity,
        time,
    })))
}
