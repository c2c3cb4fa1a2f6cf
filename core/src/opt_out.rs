//! Who asked us to stop: what counts as a wish to stop or to start again, how wishes merge, and which
//! sends they suppress. Pure: no I/O, no clock, no randomness, no logging.
//!
//! Reading order: [`mod@fold`] brings a text into the form in which keywords compare; [`keywords`] are the
//! words; [`intent`] looks through the texts of a message; [`policy`] says which words count and what an
//! opt-out suppresses; [`decision`] is one wish; [`record`] is what wishes merge into; [`convert`] is that
//! record on the wire; [`set`] is every record an agent knows.

pub mod fold;
pub mod keywords;
pub mod intent;
pub mod policy;
pub mod decision;
pub mod record;
pub mod convert;
pub mod set;

pub use decision::{
    ContactRef, Decision, OptOutDirection, OptOutId, OptOutReason, OptOutScope, OptOutState, Origin,
    is_identifier, opt_out_event_id,
};
pub use fold::{fold, fold_candidate};
pub use intent::find_keyword;
pub use keywords::{KeywordMatch, KeywordSet, Language};
pub use policy::{OptOutPolicy, Purpose, UnknownPurpose};
pub use record::{Mark, Merged, OptOutRecord, link, merge, merge_record};
pub use set::OptOutSet;
