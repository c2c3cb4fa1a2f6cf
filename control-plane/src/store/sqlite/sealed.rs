//! The sealed columns, sealing what the first schema left readable, and wiping what free pages hold.

use sqlx::{SqliteConnection, SqlitePool};
use tonic::async_trait;
use zeroize::Zeroizing;

use super::{Rows, StoreError, tenant_keys};
use crate::{
    sealing::Sealer,
    store::sealed::{SealedColumn, SealedReads, SealedTable, SealedWrites, TABLES},
};

/// The statements of a table with a sealed column.
struct Statements {
    /// Tenant, name, what goes before the column when it is sealed first, the column.
    select_all: &'static str,
    /// Name and column of at most ?3 rows of tenant ?1 that are not sealed under key ?2.
    select_older: &'static str,
    update: &'static str,
}

const fn statements(table: SealedTable) -> Statements {
    match table {
        SealedTable::InboundRoutes => Statements {
            select_all: "SELECT tenant_id, id, '', x'', config FROM inbound_routes",
            select_older: "SELECT id, '', config FROM inbound_routes
                           WHERE tenant_id = ?1 AND substr(config, 2, 8) <> ?2 LIMIT ?3",
            update: "UPDATE inbound_routes SET config = ?1 WHERE tenant_id = ?2 AND id = ?3 AND ?4 = ''",
        },
        SealedTable::WebhookSubscriptions => Statements {
            select_all: "SELECT tenant_id, id, '', x'', config FROM webhook_subscriptions",
            select_older: "SELECT id, '', config FROM webhook_subscriptions
                           WHERE tenant_id = ?1 AND substr(config, 2, 8) <> ?2 LIMIT ?3",
            update: "UPDATE webhook_subscriptions SET config = ?1
                     WHERE tenant_id = ?2 AND id = ?3 AND ?4 = ''",
        },
        SealedTable::Requests => Statements {
            select_all: "SELECT tenant_id, method, request_id, request_hash, response FROM requests",
            select_older: "SELECT method, request_id, response FROM requests
                           WHERE tenant_id = ?1 AND substr(response, 2, 8) <> ?2 LIMIT ?3",
            update: "UPDATE requests SET response = ?1, request_hash = x''
                     WHERE tenant_id = ?2 AND method = ?3 AND request_id = ?4",
        },
        SealedTable::Work => Statements {
            // No program without sealing has written to it.
            select_all: "SELECT tenant_id, id, '', x'', body FROM queued_work WHERE FALSE",
            select_older: "SELECT id, '', body FROM queued_work
                           WHERE tenant_id = ?1 AND substr(body, 2, 8) <> ?2 LIMIT ?3",
            update: "UPDATE queued_work SET body = ?1 WHERE tenant_id = ?2 AND id = ?3 AND ?4 = ''",
        },
    }
}

/// A row of [`Statements::select_all`].
type PlainRow = (String, String, String, Vec<u8>, Vec<u8>);

async fn update(
    connection: &mut SqliteConnection,
    table: SealedTable,
    tenant_id: &str,
    name: (&str, &str),
    sealed: &[u8],
) -> Result<(), StoreError> {
    let update = sqlx::query(statements(table).update).bind(sealed).bind(tenant_id).bind(name.0).bind(name.1);
    update.execute(connection).await?;
    Ok(())
}

#[async_trait]
impl SealedReads for Rows {
    async fn sealed_under_others(
        &mut self,
        table: SealedTable,
        tenant_id: &str,
        key_id: &[u8],
        limit: u32,
    ) -> Result<Vec<SealedColumn>, StoreError> {
        let rows: Vec<(String, String, Vec<u8>)> = sqlx::query_as(statements(table).select_older)
            .bind(tenant_id)
            .bind(key_id)
            .bind(limit)
            .fetch_all(self.connection())
            .await?;
        let column = |(first, second, sealed)| SealedColumn { name: (first, second), sealed };
        Ok(rows.into_iter().map(column).collect())
    }
}

#[async_trait]
impl SealedWrites for Rows {
    async fn replace_sealed(
        &mut self,
        table: SealedTable,
        tenant_id: &str,
        column: &SealedColumn,
    ) -> Result<(), StoreError> {
        let SealedColumn { name: (first, second), sealed } = column;
        update(self.connection(), table, tenant_id, (first, second), sealed).await
    }

    async fn note_wipe(&mut self) -> Result<(), StoreError> {
        note_wipe(self.connection()).await
    }
}

/// Seals what the first schema left readable, inside the caller's transaction, and notes that the free pages of
/// the file are to be wiped.
pub(super) async fn seal_all(connection: &mut SqliteConnection, sealer: &Sealer) -> Result<(), StoreError> {
    for table in TABLES {
        let rows: Vec<PlainRow> =
            sqlx::query_as(statements(table).select_all).fetch_all(&mut *connection).await?;
        for (tenant_id, first, second, before, column) in rows {
            let name = (first.as_str(), second.as_str());
            let plain = Zeroizing::new([before, column].concat());
            let (sealed, unstored) = sealer.seal(&tenant_id, &table.resource(name), &plain);
            if let Some(key) = unstored {
                tenant_keys::insert(connection, &key).await?;
            }
            update(connection, table, &tenant_id, name, &sealed).await?;
        }
    }
    note_wipe(connection).await
}

pub(super) async fn note_wipe(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO meta (name, number) VALUES ('wipe_due', 1) ON CONFLICT (name) DO NOTHING")
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes the file anew without its free pages, and empties the write-ahead log, if that was noted. A crash in
/// between leaves the note.
pub(super) async fn wipe_if_due(pool: &SqlitePool) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?;
    let due: Option<i64> = sqlx::query_scalar("SELECT number FROM meta WHERE name = 'wipe_due'")
        .fetch_optional(&mut *connection)
        .await?;
    if due.is_some() {
        sqlx::query("VACUUM").execute(&mut *connection).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *connection).await?;
        sqlx::query("DELETE FROM meta WHERE name = 'wipe_due'").execute(&mut *connection).await?;
    }
    Ok(())
}
