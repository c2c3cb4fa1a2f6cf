//! Meta's envelope, or its `value` alone as the on-premises API wrote it.

use std::{borrow::Cow, sync::LazyLock};

use serde_json::value::RawValue;

use crate::provider::{
    ITEMS_MAX, NormalizeError, Part, body,
    json::{Fields, text},
    meta::{
        envelope::{Change, documented, odd_shape, of_entries, of_odd_entries},
        relay::Relay,
        value::{change_part, has_list},
    },
};

/// The field that the on-premises API has no word for.
static MESSAGES: LazyLock<Box<RawValue>> =
    LazyLock::new(|| RawValue::from_string(r#""messages""#.to_owned()).expect("a text in quotes is JSON"));

/// What a body says, by change.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let text = body::text(body)?;
    if let Some(entries) = documented(text) {
        return of_entries(entries, Relay::Unchanged);
    }
    let root = body::json(text)?;
    let Some(fields) = Fields::of(root).filter(|fields| fields.get("object").is_none()) else {
        return odd_shape(root);
    };
    if let Some(entries) = fields.array("entry") {
        return of_odd_entries(entries, Relay::Unchanged);
    }
    if has_list(&fields) || fields.get("errors").is_some() {
        return on_premises(root);
    }
    if fields.get("event").and_then(text_of).is_some() {
        // What happened to a client of a 360dialog partner (`client_created`, `channel_running`, …;
        // docs.360dialog.com/partner/waba-creation/webhooks). It goes to another address, set for the partner;
        // one that comes here is about no number of ours.
        return Ok(Vec::new());
    }
    odd_shape(root)
}

fn text_of(event: &RawValue) -> Option<Cow<'_, str>> {
    text(event).filter(|event| !event.is_empty())
}

/// `contacts[]`, `messages[]`, `statuses[]` and `errors[]` of the only number that calls this address.
fn on_premises(root: &RawValue) -> Result<Vec<Part<'_>>, NormalizeError> {
    let change = Change {
        account: None,
        entry_time: None,
        field: Some(&**MESSAGES),
        value: Some(root),
        whole: None,
        relay: Relay::Unchanged,
    };
    let (target, items) = change_part(&change, ITEMS_MAX)?;
    let part = Part { target, items, original: vec![root.get().into()] };
    Ok(if part.items.is_empty() { Vec::new() } else { vec![part] })
}
