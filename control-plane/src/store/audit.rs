//! The audit log: entries are added in the transaction of what they tell, and never changed or removed. There is no
//! retention: an entry takes about 0.6 KB in SQLite with its indexes (ADR 16).

use std::net::SocketAddr;

use gateway_core::time;
use gateway_proto::v1;
use jiff::Timestamp;
use tonic::async_trait;

use super::{Connection, StoreError, WriteTx, body, damaged};
use crate::audit::Audited;

/// The type of entries, which do not know their ids when they are written.
pub(super) const TYPE: &str = "audit_entry";

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

/// A row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// When, in microseconds since 1970.
    pub time: i64,
    /// Whose resource; empty for what belongs to no tenant.
    pub tenant_id: String,
    /// Who did it.
    pub actor: String,
    /// The type of the resource.
    pub resource_type: String,
    /// Its id.
    pub resource_id: String,
    /// An `AuditEntry` without what the columns hold.
    pub body: Vec<u8>,
}

/// Reads the audit log.
#[async_trait]
pub trait AuditReads: Send {
    /// Sequences and rows, the latest time and then the greatest sequence first, before `before`, at most `limit`. A
    /// page reads an index in its order: it takes no longer in a long log, but for rows that the filter passes over.
    async fn audit_rows(
        &mut self,
        filter: &AuditFilter,
        before: Option<AuditPlace>,
        limit: i64,
    ) -> Result<Vec<(i64, AuditRow)>, StoreError>;
}

/// Adds to the audit log. No engine has a way to change or remove a row, and one that can refuse both to everybody does.
#[async_trait]
pub trait AuditWrites: Send {
    /// Adds a row with a sequence greater than that of every row that was ever committed.
    async fn insert_audit_row(&mut self, row: &AuditRow) -> Result<(), StoreError>;
}

/// Adds an entry, inside the caller's transaction.
///
/// # Errors
/// When the database cannot be written.
pub(super) async fn insert(
    transaction: &mut WriteTx,
    now: Timestamp,
    actor: &str,
    source_address: Option<SocketAddr>,
    audited: Audited,
) -> Result<(), StoreError> {
    transaction.writes().insert_audit_row(&row(now, actor, source_address, audited)).await
}

/// The row of an entry.
pub(super) fn row(
    now: Timestamp,
    actor: &str,
    source_address: Option<SocketAddr>,
    audited: Audited,
) -> AuditRow {
    let body = v1::AuditEntry {
        source_address: source_address.map(|address| address.to_string()).unwrap_or_default(),
        method: audited.method.to_owned(),
        changes: audited.changes,
        ..Default::default()
    };
    AuditRow {
        time: now.as_microsecond(),
        tenant_id: audited.tenant_id,
        actor: actor.to_owned(),
        resource_type: audited.resource_type.to_owned(),
        resource_id: audited.resource_id,
        body: body::encode(TYPE, "", &body),
    }
}

/// Entries with their places, newest first, at most `limit`, older than `before`. One that cannot be read says so, and
/// shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    filter: &AuditFilter,
    before: Option<AuditPlace>,
    limit: i64,
) -> Result<Vec<(AuditPlace, v1::AuditEntry)>, StoreError> {
    let rows = connection.rows().audit_rows(filter, before, limit).await?;
    rows.into_iter().map(|row| entry(connection, row)).collect()
}

/// What a row says beside its columns, or the damage.
pub(super) fn read(seq: i64, row: &AuditRow) -> Result<v1::AuditEntry, StoreError> {
    body::decode(TYPE, "", &row.body).map_err(|failure| match failure {
        StoreError::Damaged { resource_type, source, .. } => {
            StoreError::Damaged { resource_type, id: id(seq), source }
        }
        other => other,
    })
}

/// The id of an entry.
pub(super) fn id(seq: i64) -> String {
    format!("aud_{seq:016}")
}

fn entry(
    connection: &dyn Connection,
    (seq, row): (i64, AuditRow),
) -> Result<(AuditPlace, v1::AuditEntry), StoreError> {
    let id = id(seq);
    let whole = damaged::or_note(connection.damages(), (TYPE, &id), read(seq, &row))?;
    let body = whole.unwrap_or_else(|| v1::AuditEntry { is_damaged: true, ..Default::default() });
    let entry = v1::AuditEntry {
        id,
        time: Timestamp::from_microsecond(row.time).ok().map(time::to_proto),
        tenant_id: row.tenant_id,
        actor: row.actor,
        resource_type: row.resource_type,
        resource_id: row.resource_id,
        ..body
    };
    Ok((AuditPlace { time: row.time, seq }, entry))
}
