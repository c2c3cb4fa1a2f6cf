//! Which keyword a message carries. The caller gathers the texts of one message, in the order in which a
//! reader sees them:
//!
//! - looked at: the text body; a button's text and payload; an interactive reply's title and id; a media
//!   caption;
//! - not looked at: echoes of the business, history, statuses, reactions, edits, group messages and
//!   forwarded messages. None of them is a contact's own, present wish.

use super::{
    decision::{OptOutDirection, OptOutScope},
    keywords::{KeywordMatch, KeywordSet},
};

/// The keyword among the texts of one message; none when no text is one. When several are, an opt-out
/// comes before an opt-in and a wider opt-out before a narrower one; then the first text counts.
pub fn find_keyword(keywords: &KeywordSet, texts: &[&str]) -> Option<KeywordMatch> {
    texts.iter().filter_map(|text| keywords.lookup(text)).min_by_key(|found| {
        (found.direction == OptOutDirection::OptIn, found.scope == OptOutScope::Marketing)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opt_out::OptOutPolicy;

    /// The strongest wish among the texts counts, wherever it stands.
    #[test]
    fn the_widest_opt_out_wins() {
        let set = KeywordSet::of(&OptOutPolicy::default());
        let found = |texts: &[&str]| find_keyword(&set, texts).map(|found| found.keyword);
        assert_eq!(found(&[]), None);
        assert_eq!(found(&["hello", "world"]), None);
        assert_eq!(found(&["Leave the list", "STOP"]).as_deref(), Some("stop"));
        assert_eq!(found(&["start", "stop"]).as_deref(), Some("stop"));
        assert_eq!(found(&["Unsubscribe from Promos", "STOP"]).as_deref(), Some("stop"));
        assert_eq!(found(&["Unsubscribe", "stop"]).as_deref(), Some("unsubscribe"));
        assert_eq!(found(&["Start", "START_PAYLOAD"]).as_deref(), Some("start"));
    }
}
