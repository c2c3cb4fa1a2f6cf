//! What statuses of all providers have in common.

use std::borrow::Cow;

/// The provider's word for a status, in lower case.
pub fn word(word: Option<Cow<'_, str>>) -> Box<str> {
    let word = word.filter(|word| !word.trim().is_empty());
    word.map_or_else(|| "unknown".into(), |word| word.to_lowercase().into_boxed_str())
}
