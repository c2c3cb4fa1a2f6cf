//! What links a phone to WAHA or Evolution API: QR codes, pairing codes, passkeys, keys. Whoever has it has the
//! account, so it is not passed on, and not kept either.

use super::json::Fields;

/// Whether an event of this name carries such things.
pub fn is_login(event: &str) -> bool {
    const WORDS: [&str; 6] = ["qr", "qrcode", "pairing", "passkey", "creds", "auth"];
    event
        .split(|character: char| !character.is_ascii_alphanumeric())
        .any(|word| WORDS.iter().any(|secret| word.eq_ignore_ascii_case(secret)))
}

/// An object with these fields of another and no others.
pub fn only(fields: &Fields<'_>, names: &[&str]) -> String {
    let wanted = names.iter().filter_map(|name| Some((*name, fields.get(name)?.get())));
    object(wanted)
}

/// An object of these fields; the names need no escapes.
pub fn object<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut json = String::from("{");
    for (name, value) in fields {
        if json.len() > 1 {
            json.push(',');
        }
        for piece in ["\"", name, "\":", value] {
            json.push_str(piece);
        }
    }
    json.push('}');
    json
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    /// Login events are known in any spelling; a word inside of another one is none.
    #[test]
    fn login_events_are_known() {
        for event in ["qrcode.updated", "QRCODE_UPDATED", "qrcode-updated", "creds.update", "session.qr"] {
            assert!(is_login(event), "{event}");
        }
        for event in ["message", "messages.upsert", "author.update", "session.status", ""] {
            assert!(!is_login(event), "{event}");
        }
    }

    /// What is not asked for is not there, and what is missing or null is left out.
    #[test]
    fn only_some_fields_are_kept() {
        let raw = RawValue::from_string(r#"{"a":1,"qr":"2@x","b":{"c":[]},"d":null}"#.to_owned()).unwrap();
        let fields = Fields::of(&raw).unwrap();
        assert_eq!(only(&fields, &["b", "missing", "a", "d"]), r#"{"b":{"c":[]},"a":1}"#);
        assert_eq!(only(&fields, &[]), "{}");
    }
}
