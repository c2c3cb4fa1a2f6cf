//! Objects by themselves, about a contact's settings: `{"from":…,"content":{…},"createdAt":…}`. What is not a
//! decision about marketing messages that we can read is passed on raw.

use gateway_core::opt_out::OptOutScope;

use crate::provider::{PreferenceItem, contact::of_field, json::Fields, preference::identity_of};

/// The field of a decision about marketing messages.
const PREFERENCE: &str = "notificationMessagesStatus";
/// Parts of words that stop, without case and punctuation. Infobip documents none of the values.
const STOPPING: [&str; 5] = ["STOP", "OPTOUT", "OPTEDOUT", "DISABLE", "UNSUBSCRIBE"];
/// Parts of words that resume.
const RESUMING: [&str; 6] = ["RESUME", "START", "OPTIN", "OPTEDIN", "ENABLE", "SIGNUP"];
/// Parts of words that may turn another into its opposite.
const DOUBTFUL: [&str; 3] = ["REVOK", "CANCEL", "WITHDR"];

/// A contact's decision about marketing messages; None when it is none, or cannot be told.
pub fn preference(fields: &Fields<'_>, content: &Fields<'_>) -> Option<PreferenceItem> {
    let value = content.text(PREFERENCE)?;
    let opts_out = opts_out(&value)?;
    let contact = of_field(Some(content.name("from")?));
    let time = fields.time("createdAt");
    let identity = identity_of(&contact, &value, opts_out, time);
    Some(PreferenceItem {
        contact,
        opts_out,
        scope: OptOutScope::Marketing,
        from_error: false,
        external_message_id: None,
        identity,
        time,
    })
}

fn opts_out(value: &str) -> Option<bool> {
    let letters: String =
        value.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_uppercase()).collect();
    let has = |words: &[&str]| words.iter().any(|word| letters.contains(word));
    match (has(&STOPPING), has(&RESUMING), has(&DOUBTFUL)) {
        (true, false, false) => Some(true),
        (false, true, false) => Some(false),
        _ => None,
    }
}

/// Infobip's word for what a notification is about.
pub fn word(content: &Fields<'_>) -> Option<Box<str>> {
    let of_preference = || content.get(PREFERENCE).map(|_| PREFERENCE.into());
    content.name("type").or_else(of_preference)
}
