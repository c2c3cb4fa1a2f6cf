//! Bytes in JSON: Base64, or whatever JavaScript makes of a buffer that nobody encoded.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;

use crate::provider::json::{Fields, elements, integer, text};

/// Most bytes: hashes have 32.
const BYTES_MAX: usize = 64;

/// As Base64: a text as it is; `[1,2]`, `{"type":"Buffer","data":[1,2]}` and `{"0":1,"1":2}` encoded. None for
/// anything else.
pub fn base64(raw: &RawValue) -> Option<Box<str>> {
    let numbers = match raw.get().as_bytes().first()? {
        b'"' => return text(raw).filter(|text| !text.is_empty()).map(Box::from),
        b'[' => elements(raw)?,
        _ => {
            let fields = Fields::of(raw)?;
            match fields.array("data") {
                Some(data) => data,
                None => fields.iter().map(|(_, value)| value).collect(),
            }
        }
    };
    if numbers.is_empty() || numbers.len() > BYTES_MAX {
        return None;
    }
    let bytes: Option<Vec<u8>> = numbers.into_iter().map(|number| integer(number)?.try_into().ok()).collect();
    Some(STANDARD.encode(bytes?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(json: &str) -> Option<String> {
        base64(&RawValue::from_string(json.to_owned()).unwrap()).map(String::from)
    }

    /// Every form of the same bytes gives the same Base64; what is no bytes gives nothing.
    #[test]
    fn bytes_of_any_form_are_read() {
        for json in
            [r#""AQL/""#, "[1,2,255]", r#"{"type":"Buffer","data":[1,2,255]}"#, r#"{"0":1,"1":2,"2":255}"#]
        {
            assert_eq!(encoded(json).as_deref(), Some("AQL/"), "{json}");
        }
        let long = format!("[{}0]", "0,".repeat(64));
        for json in ["[]", "{}", r#""""#, "null", "true", "[256]", "[-1]", r#"["x"]"#, &long] {
            assert_eq!(encoded(json), None, "{json}");
        }
    }
}
