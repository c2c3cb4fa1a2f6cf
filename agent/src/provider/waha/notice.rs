//! Events about the session itself can carry what links a phone: `session.status` the challenge or the code of a
//! passkey (`data`), `state.change` a QR code (with the engine NOWEB its payload is the `connection.update` of
//! WhiskeySockets/Baileys). Of these only what is known to be harmless is passed on and kept.

use serde_json::value::RawValue;

use crate::provider::{
    json::{Fields, text},
    login::{object, only},
};

/// Most earlier states that are passed on; WAHA gives three.
const STATES_MAX: usize = 16;
/// Longest name of a state.
const STATE_BYTES_MAX: usize = 32;

/// The harmless part of a payload; None when the event's payload is harmless as a whole.
pub fn without_login(event: &str, payload: Option<&RawValue>) -> Option<Box<RawValue>> {
    let json = match event {
        "session.status" => payload.and_then(Fields::of).map(|payload| session_status(&payload)),
        "state.change" => payload.and_then(state_change),
        _ => return None,
    };
    RawValue::from_string(json.unwrap_or_else(|| "null".to_owned())).ok()
}

fn session_status(payload: &Fields<'_>) -> String {
    let status = payload.get("status").filter(|status| is_word(status)).map(RawValue::get);
    let history = payload.array("statuses").map(|statuses| {
        let statuses = statuses.into_iter().take(STATES_MAX).filter_map(Fields::of);
        let statuses: Vec<_> = statuses.map(|status| only(&status, &["status", "timestamp"])).collect();
        format!("[{}]", statuses.join(","))
    });
    // Limits that WhatsApp puts on the account; everything else in `data` is for logging in.
    let limits = payload.object("data").map(|data| only(&data, &["reachoutTimelock", "messageCapping"]));
    let limits = limits.filter(|limits| limits != "{}");
    let fields = [("status", status), ("statuses", history.as_deref()), ("data", limits.as_deref())];
    object(fields.into_iter().filter_map(|(name, value)| Some((name, value?))))
}

fn state_change(payload: &RawValue) -> Option<String> {
    match Fields::of(payload) {
        Some(state) => Some(only(&state, &["state", "status", "connection", "isOnline", "isNewLogin"])),
        None => is_word(payload).then(|| payload.get().to_owned()),
    }
}

/// Whether it is the name of a state, such as `SCAN_QR_CODE`.
fn is_word(raw: &RawValue) -> bool {
    let is_letter = |character: char| character.is_ascii_alphabetic() || character == '_';
    text(raw).is_some_and(|word| word.len() <= STATE_BYTES_MAX && word.chars().all(is_letter))
}
