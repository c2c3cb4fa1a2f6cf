//! Objects by themselves, about a contact's settings: `{"from":…,"content":{…},"createdAt":…}`. What is not a
//! decision about marketing messages that we can read is passed on raw.

use gateway_core::opt_out::OptOutScope;

use crate::provider::{PreferenceItem, contact::of_field, json::Fields, preference::identity_of};

/// The field of a decision about marketing messages.
const PREFERENCE: &str = "notificationMessagesStatus";
/// Words that stop. Infobip documents none of the values.
const STOPPING: [&str; 8] =
    ["STOP", "STOPPED", "OPTOUT", "OPTEDOUT", "DISABLE", "DISABLED", "UNSUBSCRIBE", "UNSUBSCRIBED"];
/// Words that resume.
const RESUMING: [&str; 10] =
    ["RESUME", "RESUMED", "START", "STARTED", "OPTIN", "OPTEDIN", "ENABLE", "ENABLED", "SIGNUP", "SIGNEDUP"];
/// First halves of them, where they are written as two.
const HALVES: [&str; 4] = ["OPT", "OPTED", "SIGN", "SIGNED"];
/// Words that say nothing of their own.
const NEUTRAL: [&str; 8] =
    ["MARKETING", "PROMOTIONAL", "MESSAGE", "MESSAGES", "NOTIFICATION", "NOTIFICATIONS", "BY", "USER"];

/// A contact's decision about marketing messages; None when it is none, or cannot be told.
pub fn preference(fields: &Fields<'_>, content: &Fields<'_>) -> Option<PreferenceItem> {
    let value = content.text(PREFERENCE)?;
    let opts_out = opts_out(&value)?;
    let contact = of_field(Some(content.identifier("from")?));
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

/// Whether a value says stop. None when it does not say, says both, or has any word that we do not know: that
/// may turn another into its opposite (`NOT_STOPPED`, `OPT_IN_REVOKED`).
fn opts_out(value: &str) -> Option<bool> {
    let value = value.to_ascii_uppercase();
    let mut words: Vec<String> = Vec::new();
    for word in value.split(|character: char| !character.is_alphabetic()).filter(|word| !word.is_empty()) {
        match words.last_mut() {
            Some(half) if HALVES.contains(&half.as_str()) => half.push_str(word),
            _ => words.push(word.to_owned()),
        }
    }
    let is_one = |word: &String, wanted: &[&str]| wanted.contains(&word.as_str());
    let has = |wanted: &[&str]| words.iter().any(|word| is_one(word, wanted));
    let are_known =
        words.iter().all(|word| is_one(word, &STOPPING) || is_one(word, &RESUMING) || is_one(word, &NEUTRAL));
    match (are_known, has(&STOPPING), has(&RESUMING)) {
        (true, true, false) => Some(true),
        (true, false, true) => Some(false),
        _ => None,
    }
}

/// Infobip's word for what a notification is about.
pub fn word(content: &Fields<'_>) -> Option<Box<str>> {
    let of_preference = || content.get(PREFERENCE).map(|_| PREFERENCE.into());
    content.name("type").or_else(of_preference)
}
