//! Table `audit_entries`.
//!
//! SQLite itself refuses UPDATE and DELETE on the table, and an INSERT that would replace an entry.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tonic::async_trait;

use super::{Rows, StoreError};
use crate::store::audit::{AuditFilter, AuditPlace, AuditReads, AuditRow, AuditWrites};

/// The table. `time` is in microseconds since 1970; the body is an `AuditEntry` without what the columns
/// hold. Entries are listed by time, then sequence, in which each index ends by itself. Those by tenant and
/// actor also hold what such lists are filtered by, so that passing over a row does not read it.
pub(super) const SCHEMA: &str = "
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

type Row = (i64, i64, String, String, String, String, Vec<u8>);

#[async_trait]
impl AuditReads for Rows {
    async fn audit_rows(
        &mut self,
        filter: &AuditFilter,
        before: Option<AuditPlace>,
        limit: i64,
    ) -> Result<Vec<(i64, AuditRow)>, StoreError> {
        let rows: Vec<Row> =
            query(filter, before, limit).build_query_as().fetch_all(self.connection()).await?;
        let row = |(seq, time, tenant_id, actor, resource_type, resource_id, body)| {
            (seq, AuditRow { time, tenant_id, actor, resource_type, resource_id, body })
        };
        Ok(rows.into_iter().map(row).collect())
    }
}

#[async_trait]
impl AuditWrites for Rows {
    async fn insert_audit_row(&mut self, row: &AuditRow) -> Result<(), StoreError> {
        insert(self.connection(), row).await
    }
}

/// Adds a row.
pub(super) async fn insert(connection: &mut SqliteConnection, row: &AuditRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_entries (time, tenant_id, actor, resource_type, resource_id, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )
    .bind(row.time)
    .bind(&row.tenant_id)
    .bind(&row.actor)
    .bind(&row.resource_type)
    .bind(&row.resource_id)
    .bind(&row.body)
    .execute(connection)
    .await?;
    Ok(())
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

#[cfg(test)]
mod tests;
