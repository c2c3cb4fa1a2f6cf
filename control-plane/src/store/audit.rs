//! The audit log: entries are added in the transaction of what they tell, and never changed or removed.
//!
//! SQLite itself refuses UPDATE and DELETE on the table, and an INSERT that would replace an entry. There is
//! no retention: an entry takes about 0.6 KB with its indexes (ADR 16).

use std::net::SocketAddr;

use gateway_core::time;
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{StoreError, decode};
use crate::audit::Audited;

/// The table. `time` is in microseconds since 1970; the body is an `AuditEntry` without what the columns
/// hold. Entries are listed by time, then sequence, in which each index ends by itself. Those by tenant and
/// actor also hold what such lists are filtered by, so that passing over a row does not read it.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS audit_entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    tenant_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS audit_entries_time ON audit_entries (time);
CREATE INDEX IF NOT EXISTS audit_entries_tenant ON audit_entries (tenant_id, time, seq, resource_type, actor);
CREATE INDEX IF NOT EXISTS audit_entries_actor ON audit_entries (actor, time, seq, resource_type);
CREATE INDEX IF NOT EXISTS audit_entries_type ON audit_entries (resource_type, time);
CREATE INDEX IF NOT EXISTS audit_entries_resource ON audit_entries (resource_id, time);
CREATE TRIGGER IF NOT EXISTS audit_entries_no_update BEFORE UPDATE ON audit_entries
BEGIN SELECT RAISE(ABORT, 'audit entries are never changed'); END;
CREATE TRIGGER IF NOT EXISTS audit_entries_no_delete BEFORE DELETE ON audit_entries
BEGIN SELECT RAISE(ABORT, 'audit entries are never removed'); END;
CREATE TRIGGER IF NOT EXISTS audit_entries_no_replace BEFORE INSERT ON audit_entries
WHEN EXISTS (SELECT 1 FROM audit_entries WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'audit entries are never replaced'); END;
";

/// Which entries a list gives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditFilter {
    /// Only of this tenant.
    pub tenant_id: Option<String>,
    /// Only of this type of resource.
    pub resource_type: Option<String>,
    /// Only of resources with this id.
    pub resource_id: Option<String>,
    /// Only by this actor.
    pub actor: Option<String>,
    /// Only from this time on.
    pub start_time: Option<Timestamp>,
    /// Only before this time.
    pub end_time: Option<Timestamp>,
}

/// The place of an entry in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditPlace {
    /// Its time, in microseconds since 1970.
    pub time: i64,
    /// Its sequence.
    pub seq: i64,
}

/// Adds an entry, inside the caller's transaction.
///
/// # Errors
/// When the database cannot be written.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    now: Timestamp,
    actor: &str,
    source_address: Option<SocketAddr>,
    audited: Audited,
) -> Result<(), StoreError> {
    let body = v1::AuditEntry {
        source_address: source_address.map(|address| address.to_string()).unwrap_or_default(),
        method: audited.method.to_owned(),
        changes: audited.changes,
        ..Default::default()
    };
    sqlx::query(
        "INSERT INTO audit_entries (time, tenant_id, actor, resource_type, resource_id, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )
    .bind(now.as_microsecond())
    .bind(audited.tenant_id)
    .bind(actor)
    .bind(audited.resource_type)
    .bind(audited.resource_id)
    .bind(body.encode_to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

/// Entries with their places, newest first, at most `limit`, older than `before`.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut SqliteConnection,
    filter: &AuditFilter,
    before: Option<AuditPlace>,
    limit: i64,
) -> Result<Vec<(AuditPlace, v1::AuditEntry)>, StoreError> {
    let rows: Vec<Row> = query(filter, before, limit).build_query_as().fetch_all(connection).await?;
    rows.into_iter().map(entry).collect()
}

fn query(filter: &AuditFilter, before: Option<AuditPlace>, limit: i64) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::<Sqlite>::new(
        "SELECT seq, time, tenant_id, actor, resource_type, resource_id, body FROM audit_entries INDEXED BY ",
    );
    sql.push(index(filter)).push(" WHERE TRUE");
    let equal = [
        (" AND tenant_id = ", &filter.tenant_id),
        (" AND actor = ", &filter.actor),
        (" AND resource_type = ", &filter.resource_type),
        (" AND resource_id = ", &filter.resource_id),
    ];
    for (condition, wanted) in equal {
        if let Some(wanted) = wanted {
            sql.push(condition).push_bind(wanted.clone());
        }
    }
    if let Some(start) = filter.start_time {
        sql.push(" AND time >= ").push_bind(start.as_microsecond());
    }
    if let Some(end) = filter.end_time {
        sql.push(" AND time < ").push_bind(end.as_microsecond());
    }
    if let Some(AuditPlace { time, seq }) = before {
        sql.push(" AND time <= ").push_bind(time);
        sql.push(" AND (time, seq) < (").push_bind(time).push(", ").push_bind(seq).push(")");
    }
    sql.push(" ORDER BY time DESC, seq DESC LIMIT ").push_bind(limit);
    sql
}

type Row = (i64, i64, String, String, String, String, Vec<u8>);

/// The index that leaves the fewest entries to look at. SQLite has no statistics to tell.
fn index(filter: &AuditFilter) -> &'static str {
    if filter.resource_id.is_some() {
        "audit_entries_resource"
    } else if filter.tenant_id.is_some() {
        "audit_entries_tenant"
    } else if filter.actor.is_some() {
        "audit_entries_actor"
    } else if filter.resource_type.is_some() {
        "audit_entries_type"
    } else {
        "audit_entries_time"
    }
}

fn entry(row: Row) -> Result<(AuditPlace, v1::AuditEntry), StoreError> {
    let (seq, micros, tenant_id, actor, resource_type, resource_id, body) = row;
    let body: v1::AuditEntry = decode(&body)?;
    let entry = v1::AuditEntry {
        id: format!("aud_{seq:016}"),
        time: Timestamp::from_microsecond(micros).ok().map(time::to_proto),
        tenant_id,
        actor,
        resource_type,
        resource_id,
        ..body
    };
    Ok((AuditPlace { time: micros, seq }, entry))
}

#[cfg(test)]
mod tests;
