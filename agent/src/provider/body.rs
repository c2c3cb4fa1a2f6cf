//! A body that is JSON, and what of it is passed on raw.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{
    Item, NormalizeError, NoticeItem, Part, Target,
    json::{identity, kept},
};

/// The field of what does not say what it is.
pub const UNKNOWN: &str = "unknown";

/// A body as text. JSON between systems is UTF-8: <https://www.rfc-editor.org/rfc/rfc8259#section-8.1>.
pub fn text(body: &[u8]) -> Result<&str, NormalizeError> {
    std::str::from_utf8(body).map_err(|_| NormalizeError::Unreadable)
}

/// A body's text as JSON of any shape.
pub fn json(text: &str) -> Result<&RawValue, NormalizeError> {
    serde_json::from_str(text).map_err(|_| NormalizeError::Unreadable)
}

/// What a body says that is JSON of a shape in which its provider says nothing.
pub fn odd(root: &RawValue) -> Vec<Part<'_>> {
    let items = vec![notice(UNKNOWN, root, &[UNKNOWN, root.get()], None)];
    vec![Part { target: Target::default(), items, original: vec![root.get().into()] }]
}

/// What is passed on raw under the provider's word for it. The parts of its `identity` tell it from all others of
/// the provider.
pub fn notice(field: &str, raw: &RawValue, parts: &[&str], time: Option<Timestamp>) -> Item {
    let notice = NoticeItem { field: field.into(), raw: kept(raw), identity: identity(parts), time };
    Item::Notice(Box::new(notice))
}
