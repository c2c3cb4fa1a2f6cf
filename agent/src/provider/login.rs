//! What links a phone to WAHA or Evolution API: QR codes, pairing codes, passkeys, keys. Whoever has it has the
//! account, so it is not passed on, and not kept either.

use std::{borrow::Cow, ops::Range};

use super::json::{Fields, text};

/// What is to be cut wherever it stands: see [`cut`].
pub const LOGIN: [&str; 3] = ["qr", "qrcode", "pairingcode"];

/// Whether an event of this name carries such things: `qrcode.updated`, `QRCODE_UPDATED`, `qrcodeUpdated`.
pub fn is_login(event: &str) -> bool {
    const WORDS: [&str; 6] = ["qr", "qrcode", "pairing", "passkey", "creds", "auth"];
    let names = event.as_bytes().split(|byte| !byte.is_ascii_alphanumeric());
    let mut words = names
        .flat_map(|name| name.chunk_by(|one, next| !one.is_ascii_lowercase() || !next.is_ascii_uppercase()));
    words.any(|word| WORDS.iter().any(|secret| word.eq_ignore_ascii_case(secret.as_bytes())))
}

/// JSON with null in the place of every value whose name is one of these (in lower case, without `_` and `-`), at
/// any depth and in any spelling; and of a text `code` beside one, or with an `@`, as QR codes have it. What is cut
/// already stays as it is. Nothing recurses.
pub fn cut<'a>(json: &'a str, names: &[&str]) -> Cow<'a, str> {
    let secrets = secrets(json, names);
    if secrets.is_empty() {
        return Cow::Borrowed(json);
    }
    let (mut cut, mut end) = (String::with_capacity(json.len()), 0);
    for secret in secrets {
        cut.push_str(&json[end..secret.start]);
        cut.push_str("null");
        end = secret.end;
    }
    cut.push_str(&json[end..]);
    Cow::Owned(cut)
}

/// Where they are, in their order.
fn secrets(json: &str, names: &[&str]) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    // For each object around, whether it has a secret; and the codes that are one if it has, with its depth.
    let (mut objects, mut codes): (Vec<bool>, Vec<(usize, Range<usize>)>) = (Vec::new(), Vec::new());
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'{' => objects.push(false),
            b'}' => {
                let depth = objects.len();
                let is_login = objects.pop() == Some(true);
                while let Some((_, code)) = codes.pop_if(|(of, _)| *of == depth) {
                    found.extend(is_login.then_some(code));
                }
            }
            b'"' => {
                let name = at..text_end(json, at);
                at = name.end;
                let Some(start) = value_of_name(json, name.end) else { continue };
                let value = |end| start..end;
                if is_one_of(&json[name.clone()], names) {
                    if let Some(is_login) = objects.last_mut() {
                        *is_login = true;
                    }
                    at = value_end(json, start);
                    found.extend((json[value(at)] != *"null").then(|| value(at)));
                } else if is_one_of(&json[name], &["code"]) && json[start..].starts_with('"') {
                    let code = value(text_end(json, start));
                    let is_of_login = json[code.clone()].contains('@');
                    if is_of_login { found.push(code) } else { codes.push((objects.len(), code)) }
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found.sort_unstable_by_key(|secret| secret.start);
    found
}

/// Whether a name, between its quotes or without them, is one of these (in lower case, without `_` and `-`).
pub fn is_one_of(quoted: &str, names: &[&str]) -> bool {
    let name = Some(quoted).filter(|quoted| quoted.contains('\\'));
    let name = name.and_then(|quoted| text(serde_json::from_str(quoted).ok()?).map(Cow::into_owned));
    let name = name.as_deref().unwrap_or(quoted);
    let plain = || name.bytes().filter(|byte| !matches!(byte, b'"' | b'_' | b'-'));
    names.iter().any(|one| plain().map(|byte| byte.to_ascii_lowercase()).eq(one.bytes()))
}

/// The end of the text that begins at `at`.
fn text_end(json: &str, at: usize) -> usize {
    let bytes = json.as_bytes();
    let mut end = at + 1;
    while let Some(length) = json[end..].find('"') {
        end += length + 1;
        let backslashes = bytes[at + 1..end - 1].iter().rev().take_while(|byte| **byte == b'\\').count();
        if backslashes % 2 == 0 {
            return end;
        }
    }
    json.len()
}

/// Where the value begins of a text that is a name: a colon follows it.
fn value_of_name(json: &str, end: usize) -> Option<usize> {
    let value = json[end..].trim_ascii_start().strip_prefix(':')?.trim_ascii_start();
    Some(json.len() - value.len())
}

fn value_end(json: &str, start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'"' => at = text_end(json, at) - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' if depth == 0 => return at,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    json.len()
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
        for event in [
            "qrcode.updated",
            "QRCODE_UPDATED",
            "qrcode-updated",
            "qrcodeUpdated",
            "QRCode",
            "creds.update",
            "session.qr",
        ] {
            assert!(is_login(event), "{event}");
        }
        for event in ["message", "messages.upsert", "author.update", "session.status", ""] {
            assert!(!is_login(event), "{event}");
        }
    }

    /// What is cut is null, wherever it stands and however its name is written; a code is cut where it is one for
    /// logging in; everything else stays as it was written, and so does what was cut before.
    #[test]
    fn secrets_are_cut() {
        for (json, expected) in [
            (r#"{"qr":1}"#, r#"{"qr":null}"#),
            (
                r#"[{"a":[{"QR_Code" : {"x":"}\"","y":[1,{}]} , "b":"qr"}]}]"#,
                r#"[{"a":[{"QR_Code" : null, "b":"qr"}]}]"#,
            ),
            (r#"{"q\u0072":"x","n":"\\","qr":"\\\""}"#, r#"{"q\u0072":null,"n":"\\","qr":null}"#),
            (r#"{"code":"1","pairing-code":"2"}"#, r#"{"code":null,"pairing-code":null}"#),
            (r#"{"qr":2,"in":{"code":"1"},"code":"3"}"#, r#"{"qr":null,"in":{"code":"1"},"code":null}"#),
            (
                r#"[{"code":"2@x"},{"code":"x"},{"code":5,"qr":true}]"#,
                r#"[{"code":null},{"code":"x"},{"code":5,"qr":null}]"#,
            ),
        ] {
            assert_eq!(cut(json, &LOGIN), expected);
            assert_eq!(cut(expected, &LOGIN), expected);
        }
        for json in
            ["\"qr\"", r#"{"a":"\"qr\":1"}"#, r#"["qr",{"sqr":1,"qr":null}]"#, "null", "1", "[]", "{}"]
        {
            assert!(matches!(cut(json, &LOGIN), Cow::Borrowed(same) if same == json), "{json}");
        }
    }

    /// Cutting takes time by the length alone, however deep the value is.
    #[test]
    fn deep_values_are_cut() {
        let json = format!("{}0{}", r#"{"code":"x","a":"#.repeat(200_000), r#","qr":1}"#.repeat(200_000));
        let cut = cut(&json, &LOGIN);
        assert!(!cut.contains("\"x\"") && serde_json::from_str::<&RawValue>(&cut).is_ok());
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
