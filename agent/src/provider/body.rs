//! A body that is JSON, and what of it is passed on raw.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{
    ITEMS_MAX, Item, NormalizeError, NoticeItem, Part, Target,
    json::{Fields, elements, identity, kept},
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

/// What a body says that is one callback, or a list of them: no provider sends one, but what is never passed on must
/// not be in it either.
pub fn each<'a>(
    text: &'a str,
    mut read: impl FnMut(Fields<'a>) -> Result<Option<Part<'a>>, NormalizeError>,
) -> Result<Vec<Part<'a>>, NormalizeError> {
    if let Some(fields) = Fields::of_body(text) {
        return Ok(read(fields)?.into_iter().collect());
    }
    let root = json(text)?;
    let Some(elements) = elements(root).filter(|elements| !elements.is_empty()) else {
        return odd_whole(root);
    };
    let (mut parts, mut items) = (Vec::new(), 0);
    for element in elements {
        let found = match Fields::of(element) {
            Some(fields) => read(fields)?,
            None => Some(odd_element(element)?),
        };
        items += found.as_ref().map_or(0, |part| part.items.len());
        if items > ITEMS_MAX {
            return Err(NormalizeError::TooManyItems);
        }
        parts.extend(found);
    }
    Ok(parts)
}

fn odd_whole(root: &RawValue) -> Result<Vec<Part<'_>>, NormalizeError> {
    // Of an object with very many fields nobody can say whether it may be passed on.
    if root.get().starts_with('{') { Err(NormalizeError::TooManyItems) } else { Ok(odd(root)) }
}

fn odd_element(element: &RawValue) -> Result<Part<'_>, NormalizeError> {
    let mut part = odd_whole(element)?.remove(0);
    if element.get().starts_with('[') {
        // Alone it would be read as a list of callbacks.
        part.original = ["[", element.get(), "]"].map(Cow::Borrowed).into();
    }
    Ok(part)
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
