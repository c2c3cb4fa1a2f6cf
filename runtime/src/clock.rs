//! The only reader of the wall clock.

use jiff::Timestamp;

/// The time now.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Whole seconds since 1970.
pub fn now_seconds() -> i64 {
    now().as_second()
}
