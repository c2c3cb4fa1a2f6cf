//! What statuses of all providers have in common.

use std::borrow::Cow;

use gateway_core::event::EventType;
use serde_json::value::RawValue;

use super::StatusItem;

/// The provider's word for a status, in lower case.
pub fn word(word: Option<Cow<'_, str>>) -> Box<str> {
    let word = word.filter(|word| !word.trim().is_empty());
    word.map_or_else(|| "unknown".into(), |word| word.to_lowercase().into_boxed_str())
}

/// The status with an error only where it failed, or where it has no event of its own, so that nobody can say whether
/// it did. An error beside a success is passed on in `raw` alone, with the whole item.
pub fn settled(mut item: StatusItem, raw: impl FnOnce() -> Box<RawValue>) -> StatusItem {
    let may_fail = item.event_type.is_none_or(|event_type| event_type == EventType::MessageFailed);
    if !may_fail && item.status.error.take().is_some() {
        item.status.raw.get_or_insert_with(raw);
    }
    item
}
