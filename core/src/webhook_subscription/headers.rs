//! Headers that customers add to webhooks.

use std::collections::HashMap;

use crate::{inbound_route::SecretValue, violation::FieldViolations};

/// Most custom headers of one subscription.
pub const HEADERS_MAX: usize = 32;
/// Longest value of a custom header, in bytes.
pub const HEADER_VALUE_BYTES_MAX: usize = 4_096;
/// Longest name of a custom header, in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 256;

/// Header names that HTTP or the gateway owns.
const HEADERS_DENIED: [&str; 15] = [
    "accept-encoding",
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "user-agent",
    "traceparent",
    "tracestate",
    "keep-alive",
    "forwarded",
];
/// Beginnings of header names that HTTP, proxies or the gateway own.
const HEADER_PREFIXES_DENIED: [&str; 4] = ["webhook-", "content-", "proxy-", "x-forwarded-"];

/// Custom headers: lower-case names, in their order.
pub(super) fn read_headers(
    violations: &mut FieldViolations,
    headers: &HashMap<String, String>,
) -> Box<[(Box<str>, SecretValue)]> {
    const FIELD: &str = "webhook_subscription.headers";
    if headers.len() > HEADERS_MAX {
        violations.add(FIELD, format!("must have at most {HEADERS_MAX} headers"));
        return Box::default();
    }
    let mut read: Vec<(Box<str>, SecretValue)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if let Err(problem) = check_header_name(&lower) {
            violations.add(format!("{FIELD}[{}]", shown(name)), problem);
        } else if let Err(problem) = check_header_value(value) {
            violations.add(format!("{FIELD}[{lower}]"), problem);
        } else if read.iter().any(|(known, _)| **known == lower) {
            violations.add(format!("{FIELD}[{lower}]"), "must be given once: header names ignore case");
        }
        read.push((lower.into(), SecretValue::new(value)));
    }
    read.sort_by(|(one, _), (other, _)| one.cmp(other));
    read.into()
}

/// A header name in an error: cut, and without characters that could break a log line.
fn shown(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(64).collect()
}

/// Whether a lower-case name may be that of a header that a customer sets.
pub(super) fn check_header_name(lower: &str) -> Result<(), &'static str> {
    // RFC 9110, 5.6.2: a field name is a token.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if lower.is_empty() || lower.len() > HEADER_NAME_BYTES_MAX || !lower.bytes().all(is_token) {
        return Err("must be a header name: letters, digits and `-`");
    }
    let is_denied = HEADERS_DENIED.contains(&lower)
        || HEADER_PREFIXES_DENIED.iter().any(|prefix| lower.starts_with(prefix));
    if is_denied { Err("must not be a header that HTTP or the gateway sets itself") } else { Ok(()) }
}

/// Whether a value cannot end the header early or be read differently by the next hop.
pub(super) fn check_header_value(value: &str) -> Result<(), &'static str> {
    if value.len() > HEADER_VALUE_BYTES_MAX {
        return Err("must have a value of at most 4096 bytes");
    }
    // RFC 9110, 5.5, without obs-text: anything else could end the header early or be read differently.
    if value.bytes().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e)) {
        Ok(())
    } else {
        Err("must have a value of visible ASCII characters, spaces and tabs")
    }
}
