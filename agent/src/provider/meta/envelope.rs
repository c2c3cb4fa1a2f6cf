//! `object` × `entry[]` × `changes[]`. The documented shape is read in one pass; whatever else is JSON is
//! taken apart piece by piece, so that one odd piece does not hide the good ones beside it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{relay::Relay, value::change_part};
use crate::provider::{
    ITEMS_MAX, NormalizeError, Part, Target,
    body::{self, UNKNOWN, notice},
    json::{self, Fields, Object, elements},
};

const OBJECT: &str = "whatsapp_business_account";
/// Longest id or time of an entry, in bytes: each of its changes repeats it. Ids are 15 to 20 digits.
const ENTRY_TEXT_BYTES_MAX: usize = 1024;
const HEAD: &str = r#"{"object":"whatsapp_business_account","entry":["#;

/// One `changes[]` element, with what its `entry[]` element says.
pub struct Change<'a> {
    /// `entry[].id`, the WhatsApp business account.
    pub account: Option<&'a RawValue>,
    /// `entry[].time`; on account fields only.
    pub entry_time: Option<&'a RawValue>,
    /// `field`.
    pub field: Option<&'a RawValue>,
    /// `value`.
    pub value: Option<&'a RawValue>,
    /// The element itself, when it has no `value` or says more than `field` and `value`.
    pub whole: Option<&'a RawValue>,
    /// Who relayed it.
    pub relay: Relay<'a>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    object: &'a RawValue,
    #[serde(borrow)]
    entry: Vec<Object<Entry<'a>>>,
}

/// One `entry[]` element of the documented shape.
#[derive(Deserialize)]
pub struct Entry<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    changes: Vec<Object<ChangeFields<'a>>>,
}

/// The documented shape and no other, so that nothing in another one is passed over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeFields<'a> {
    #[serde(borrow)]
    field: Option<&'a RawValue>,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// What a body says, by change.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let text = body::text(body)?;
    match documented(text) {
        Some(entries) => of_entries(entries, Relay::Unchanged),
        None => odd_shape(body::json(text)?),
    }
}

/// The entries of a body of the documented shape; None for every other.
pub fn documented(text: &str) -> Option<Vec<Object<Entry<'_>>>> {
    let Object(envelope) = serde_json::from_str::<Object<Envelope<'_>>>(text).ok()?;
    (is_whatsapp(envelope.object) == Some(true)).then_some(envelope.entry)
}

/// What entries of the documented shape say.
pub fn of_entries<'a>(
    entries: Vec<Object<Entry<'a>>>,
    relay: Relay<'a>,
) -> Result<Vec<Part<'a>>, NormalizeError> {
    let mut parts = Parts::of(relay);
    for Object(entry) in entries {
        let (account, entry_time) = (entry.id.and_then(short), entry.time.and_then(short));
        for Object(ChangeFields { field, value }) in entry.changes {
            let value = Some(value);
            parts.change(Change { account, entry_time, field, value, whole: None, relay })?;
        }
    }
    Ok(parts.found)
}

/// Whether `object` is ours; None when it is not a text.
pub fn is_whatsapp(object: &RawValue) -> Option<bool> {
    object.get().starts_with('"').then(|| json::text(object))?.map(|object| object == OBJECT)
}

/// What JSON of another shape than the documented one says.
pub fn odd_shape(root: &RawValue) -> Result<Vec<Part<'_>>, NormalizeError> {
    let fields = Fields::of(root);
    let object = fields.as_ref().and_then(|fields| fields.get("object")).and_then(is_whatsapp);
    if object == Some(false) {
        // Another product of Meta: not for us, and not to be repeated for seven days.
        return Ok(Vec::new());
    }
    let entries = fields.as_ref().filter(|_| object == Some(true)).and_then(|fields| fields.array("entry"));
    let Some(entries) = entries else {
        let mut parts = Parts::of(Relay::Unchanged);
        parts.odd(Target::default(), root, vec![root.get().into()])?;
        return Ok(parts.found);
    };
    of_odd_entries(entries, Relay::Unchanged)
}

/// What the elements of an `entry[]` say, whatever their shapes.
pub fn of_odd_entries<'a>(
    entries: Vec<&'a RawValue>,
    relay: Relay<'a>,
) -> Result<Vec<Part<'a>>, NormalizeError> {
    let mut parts = Parts::of(relay);
    for entry in entries {
        odd_entry(entry, &mut parts)?;
    }
    Ok(parts.found)
}

fn odd_entry<'a>(entry: &'a RawValue, parts: &mut Parts<'a>) -> Result<(), NormalizeError> {
    let fields = Fields::of(entry);
    let account = fields.as_ref().and_then(|fields| fields.get("id")).and_then(short);
    let relay = parts.relay;
    let (account_id, other_number) = (account.and_then(name), relay.app_id());
    let target = Target { account_id, other_number, ..Target::default() };
    let Some((fields, changes)) =
        fields.and_then(|fields| fields.get("changes").and_then(elements).map(|changes| (fields, changes)))
    else {
        let mut original = vec![HEAD.into(), entry.get().into()];
        relay.close(&mut original);
        return parts.odd(target, entry, original);
    };
    let entry_time = fields.get("time").and_then(short);
    for change in changes {
        if let Some(fields) = Fields::of(change) {
            let (field, value) = (fields.get("field"), fields.get("value"));
            let says_more = fields.iter().any(|(name, _)| !matches!(name, b"field" | b"value"));
            let has_value = fields.iter().any(|(name, _)| name == b"value");
            let whole = (says_more || !has_value).then_some(change);
            parts.change(Change { account, entry_time, field, value, whole, relay })?;
        } else {
            let mut original = head(account, entry_time);
            original.extend([r#""changes":["#, change.get(), "]}"].map(Cow::Borrowed));
            relay.close(&mut original);
            parts.odd(target.clone(), change, original)?;
        }
    }
    Ok(())
}

/// What stands once and is repeated with each change; None when it is so long that it can mean nothing.
pub fn short(raw: &RawValue) -> Option<&RawValue> {
    (raw.get().len() <= ENTRY_TEXT_BYTES_MAX).then_some(raw)
}

fn name(raw: &RawValue) -> Option<Box<str>> {
    json::text(raw).filter(|text| !text.is_empty()).map(Box::from)
}

fn head<'a>(account: Option<&'a RawValue>, entry_time: Option<&'a RawValue>) -> Vec<Cow<'a, str>> {
    let mut pieces = Vec::with_capacity(16);
    pieces.extend([HEAD, "{"].map(Cow::Borrowed));
    if let Some(account) = account {
        pieces.extend([r#""id":"#, account.get(), ","].map(Cow::Borrowed));
    }
    if let Some(time) = entry_time {
        pieces.extend([r#""time":"#, time.get(), ","].map(Cow::Borrowed));
    }
    pieces
}

impl<'a> Change<'a> {
    /// The account as text.
    pub fn account_id(&self) -> Option<Box<str>> {
        self.account.and_then(name)
    }

    /// The pieces of a body with just this change.
    fn original(&self) -> Vec<Cow<'a, str>> {
        let or_null = |raw: Option<&'a RawValue>| raw.map_or("null", RawValue::get);
        let mut pieces = head(self.account, self.entry_time);
        if let Some(whole) = self.whole {
            pieces.extend([r#""changes":["#, whole.get(), "]}"].map(Cow::Borrowed));
        } else {
            let (value, field) = (or_null(self.value), or_null(self.field));
            pieces
                .extend([r#""changes":[{"value":"#, value, r#","field":"#, field, "}]}"].map(Cow::Borrowed));
        }
        self.relay.close(&mut pieces);
        pieces
    }
}

struct Parts<'a> {
    relay: Relay<'a>,
    found: Vec<Part<'a>>,
    items: usize,
}

impl<'a> Parts<'a> {
    fn of(relay: Relay<'a>) -> Self {
        Self { relay, found: Vec::new(), items: 0 }
    }

    fn change(&mut self, change: Change<'a>) -> Result<(), NormalizeError> {
        let (target, items) = change_part(&change, ITEMS_MAX - self.items)?;
        if items.is_empty() { Ok(()) } else { self.add(Part { target, items, original: change.original() }) }
    }

    fn odd(
        &mut self,
        target: Target,
        raw: &'a RawValue,
        original: Vec<Cow<'a, str>>,
    ) -> Result<(), NormalizeError> {
        let account = target.account_id.as_deref().unwrap_or_default();
        let notice = notice(UNKNOWN, raw, &[account, UNKNOWN, "", raw.get()], None);
        self.add(Part { target, items: vec![notice], original })
    }

    fn add(&mut self, part: Part<'a>) -> Result<(), NormalizeError> {
        self.items += part.items.len();
        if self.items > ITEMS_MAX {
            return Err(NormalizeError::TooManyItems);
        }
        self.found.push(part);
        Ok(())
    }
}
