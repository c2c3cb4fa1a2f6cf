//! What is left out of `data` wherever it is passed on or kept: files in Base64 (tens of megabytes when the
//! webhook asks for them), and keys of WhatsApp's encryption.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::provider::json::{Fields, elements};

/// Beside the content of a message.
const LEFT_OUT: [&str; 3] = ["base64", "senderKeyDistributionMessage", "messageContextInfo"];

/// `data` without it.
pub fn cut(data: &RawValue) -> Cow<'_, str> {
    if !may_have(data) {
        return Cow::Borrowed(data.get());
    }
    match elements(data) {
        Some(elements) => {
            let elements: Vec<_> = elements.into_iter().map(cut_element).collect();
            Cow::Owned(format!("[{}]", elements.join(",")))
        }
        None => cut_element(data),
    }
}

/// Whether it is worth looking closer.
fn may_have(raw: &RawValue) -> bool {
    LEFT_OUT.iter().any(|name| raw.get().contains(name))
}

fn cut_element(raw: &RawValue) -> Cow<'_, str> {
    let Some(fields) = Some(raw).filter(|raw| may_have(raw)).and_then(Fields::of) else {
        return Cow::Borrowed(raw.get());
    };
    let message = fields.object("message").map(|message| without(&message, &LEFT_OUT, None));
    Cow::Owned(without(&fields, &LEFT_OUT[..1], message.as_deref()))
}

/// An object without these fields, and with another value of `message`, if one is given.
pub fn without(fields: &Fields<'_>, names: &[&str], message: Option<&str>) -> String {
    let mut json = String::from("{");
    for (name, value) in fields.iter() {
        if names.iter().any(|left_out| name == left_out.as_bytes()) {
            continue;
        }
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&serde_json::Value::from(&*String::from_utf8_lossy(name)).to_string());
        json.push(':');
        json.push_str(message.filter(|_| name == b"message").unwrap_or(value.get()));
    }
    json.push('}');
    json
}
