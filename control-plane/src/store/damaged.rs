//! Rows whose resource cannot be read: sealed bytes that do not open, or bytes that are no message. They do not keep
//! the rows beside them from anybody, and they can be deleted.

use std::fmt;

use tracing::error;

use super::StoreError;

/// A stored resource, readable or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// All of it.
    Whole(T),
    /// It cannot be read.
    Damaged(Head),
}

/// What is known of a resource that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its id.
    pub id: String,
    /// Its tenant; empty for what belongs to none.
    pub tenant_id: String,
    /// Its etag, as lists show it.
    pub etag: String,
}

/// A resource that is not among others because it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its type: the oneof field of `ConfigResource`.
    pub resource_type: &'static str,
    /// Its id.
    pub id: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.resource_type.replace('_', " "), self.id)
    }
}

/// What was read, or what is known of it when it cannot be.
pub(super) fn or_head<T>(
    read: Result<T, StoreError>,
    head: impl FnOnce() -> Head,
) -> Result<Found<T>, StoreError> {
    match read {
        Err(failure) if failure.is_damage() => Ok(Found::Damaged(head())),
        read => read.map(Found::Whole),
    }
}

/// Says that a list has a resource that cannot be read.
pub(super) fn log(resource_type: &'static str, id: &str, failure: StoreError) {
    let error = format!("{:#}", anyhow::Error::from(failure));
    error!(resource_type, id, error, "failed to read a row: restore a backup, or delete the resource");
}
