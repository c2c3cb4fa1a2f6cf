//! `user-event` of version 2, <https://docs.gupshup.io/docs/user-event>: Gupshup's own list of who opted in and
//! out, for all messages of the app.

use gateway_core::opt_out::OptOutScope;
use jiff::Timestamp;

use crate::provider::{Item, PreferenceItem, contact::of_field, json::Fields, preference::identity_of};

/// The decision; None for what is none (`sandbox-start`, sent when an address is saved) or nobody's.
pub fn preference(fields: &Fields<'_>, time: Option<Timestamp>) -> Option<Item> {
    let word = fields.text("type")?;
    let opts_out = match word.as_ref() {
        "opted-out" => true,
        "opted-in" => false,
        _ => return None,
    };
    let contact = of_field(Some(fields.identifier("phone")?));
    let identity = identity_of(&contact, &word, opts_out, time);
    Some(Item::Preference(Box::new(PreferenceItem {
        contact,
        scope: OptOutScope::NonEssential,
        opts_out,
        from_error: false,
        external_message_id: None,
        identity,
        time,
    })))
}
