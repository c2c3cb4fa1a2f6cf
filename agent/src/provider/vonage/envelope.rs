//! What a callback is about, and the number it is for.

use serde_json::value::RawValue;

use super::{message, status};
use crate::provider::{
    Item, NormalizeError, Part, Target,
    body::{self, UNKNOWN},
    json::Fields,
};

const WHATSAPP: &str = "whatsapp";

/// One callback.
pub struct Callback<'a> {
    /// The whole object.
    pub raw: &'a RawValue,
    /// Its fields.
    pub fields: Fields<'a>,
    /// Its field `whatsapp`, when that is an object.
    pub whatsapp: Option<Fields<'a>>,
}

impl<'a> Callback<'a> {
    /// A field of `whatsapp`; None when it is missing or null.
    pub fn of_whatsapp(&self, name: &str) -> Option<&'a RawValue> {
        self.whatsapp.as_ref().and_then(|whatsapp| whatsapp.get(name))
    }
}

/// What a body says: one part with one item.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let raw = body::json(body::text(body)?)?;
    let Some(fields) = Fields::of(raw) else { return Ok(body::odd(raw)) };
    let whatsapp = fields.object(WHATSAPP);
    let (target, item) = target_and_item(&Callback { raw, fields, whatsapp });
    Ok(vec![Part { target, items: vec![item], original: vec![raw.get().into()] }])
}

fn target_and_item(callback: &Callback<'_>) -> (Target, Item) {
    let fields = &callback.fields;
    let (from, to) = (fields.name("from"), fields.name("to"));
    let (status, message_type) = (fields.name("status"), fields.name("message_type"));
    // A contact writes to the business number, and statuses are of what the business number wrote.
    let target = match (&status, &message_type) {
        (Some(_), _) => target(from),
        (None, Some(_)) => target(to),
        (None, None) => Target { other_number: from, ..target(to) },
    };
    // Statuses of before the other channels came have no `channel`.
    let channel = fields.name("channel").filter(|channel| !channel.eq_ignore_ascii_case(WHATSAPP));
    let raw = callback.raw;
    let told = |field: &str| body::notice(field, raw, &[field, raw.get()], fields.time("timestamp"));
    let item = match (channel, status, message_type) {
        (Some(channel), ..) => told(&channel),
        (None, Some(word), _) => Item::Status(Box::new(status::read(callback, &word))),
        (None, None, Some(kind)) => Item::Message(Box::new(message::read(callback, &kind))),
        (None, None, None) => told(UNKNOWN),
    };
    (target, item)
}

fn target(number: Option<Box<str>>) -> Target {
    Target { display_phone: number.clone(), number, ..Target::default() }
}
