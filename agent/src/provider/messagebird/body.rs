//! A callback body that is one JSON value about one thing: one part, whatever it says.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::provider::{
    Item, NormalizeError, NoticeItem, Part, Target,
    json::{Fields, identity, kept},
};

/// The field name of what has none.
pub const UNKNOWN_FIELD: &str = "unknown";

/// One callback body.
pub struct Body<'a> {
    text: &'a str,
    /// Its fields; none when it is no object.
    pub fields: Option<Fields<'a>>,
}

impl<'a> Body<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is not JSON in UTF-8.
    pub fn of(content: &'a [u8]) -> Result<Self, NormalizeError> {
        // RFC 8259 section 8.1: JSON between systems is UTF-8.
        let text = std::str::from_utf8(content).map_err(|_| NormalizeError::Unreadable)?;
        let fields = serde_json::from_str::<Fields<'a>>(text).ok();
        if fields.is_none() {
            serde_json::from_str::<&RawValue>(text).map_err(|_| NormalizeError::Unreadable)?;
        }
        Ok(Self { text, fields })
    }

    /// The body as an event of its own, raw.
    pub fn notice(&self, field: &str, time: Option<Timestamp>) -> Item {
        let raw = serde_json::from_str(self.text).expect("the text was read as JSON before");
        Item::Notice(Box::new(NoticeItem {
            field: field.into(),
            raw: kept(raw),
            identity: identity(&[field, raw.get()]),
            time,
        }))
    }

    /// The body's only part.
    pub fn part(&self, target: Target, items: Vec<Item>) -> Vec<Part<'a>> {
        vec![Part { target, items, original: vec![Cow::Borrowed(self.text)] }]
    }
}
