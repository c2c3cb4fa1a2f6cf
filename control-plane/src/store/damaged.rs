//! Rows whose resource cannot be read: sealed bytes that do not open, or bytes that are no message. They do not keep
//! the rows beside them from anybody, and they can be deleted.

use tracing::error;

use super::{Connection, StoreError, from_sql, schema};

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

/// What was found, or what `select` (id, tenant, version of the row with an id) says of it when it cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub(super) async fn or_head<T>(
    connection: &mut Connection,
    found: Result<Option<T>, StoreError>,
    select: &'static str,
    id: &str,
) -> Result<Option<Found<T>>, StoreError> {
    match found {
        Err(failure) if failure.is_damage() => {
            let row: Option<(String, String, i64)> =
                sqlx::query_as(select).bind(id).fetch_optional(&mut **connection).await?;
            let epoch = schema::epoch(connection).await?;
            Ok(row.map(|(id, tenant_id, version)| {
                Found::Damaged(Head { id, tenant_id, etag: schema::etag(from_sql(version), &epoch) })
            }))
        }
        found => Ok(found?.map(Found::Whole)),
    }
}

/// Says that a list has a resource that cannot be read.
pub(super) fn log(resource_type: &'static str, id: &str, failure: StoreError) {
    let error = format!("{:#}", anyhow::Error::from(failure));
    error!(resource_type, id, error, "failed to read a row: restore a backup, or delete the resource");
}
