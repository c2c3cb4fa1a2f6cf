//! Which columns are sealed, and doing it to all of them: after an older program, and when data keys change.

use sqlx::{SqliteConnection, SqlitePool};
use zeroize::Zeroizing;

use super::{StoreError, inbound_routes, requests, tenant_keys, webhook_subscriptions, work};
use crate::sealing::Sealer;

/// Every table with a sealed column. One that is missing here loses its contents when data keys are renewed.
pub const TABLES: [SealedTable; 4] = [
    SealedTable {
        name: "inbound_routes",
        select_all: "SELECT tenant_id, id, '', x'', config FROM inbound_routes",
        select_older: "SELECT id, '', config FROM inbound_routes
                       WHERE tenant_id = ?1 AND substr(config, 2, 8) <> ?2 LIMIT ?3",
        update: "UPDATE inbound_routes SET config = ?1 WHERE tenant_id = ?2 AND id = ?3 AND ?4 = ''",
        resource: |id, _| inbound_routes::sealed_resource(id),
    },
    SealedTable {
        name: "webhook_subscriptions",
        select_all: "SELECT tenant_id, id, '', x'', config FROM webhook_subscriptions",
        select_older: "SELECT id, '', config FROM webhook_subscriptions
                       WHERE tenant_id = ?1 AND substr(config, 2, 8) <> ?2 LIMIT ?3",
        update: "UPDATE webhook_subscriptions SET config = ?1 WHERE tenant_id = ?2 AND id = ?3 AND ?4 = ''",
        resource: |id, _| webhook_subscriptions::sealed_resource(id),
    },
    SealedTable {
        name: "requests",
        select_all: "SELECT tenant_id, method, request_id, request_hash, response FROM requests",
        select_older: "SELECT method, request_id, response FROM requests
                       WHERE tenant_id = ?1 AND substr(response, 2, 8) <> ?2 LIMIT ?3",
        update: "UPDATE requests SET response = ?1, request_hash = x''
                 WHERE tenant_id = ?2 AND method = ?3 AND request_id = ?4",
        resource: requests::sealed_resource,
    },
    SealedTable {
        name: "queued_work",
        // No program without sealing has written to it.
        select_all: "SELECT tenant_id, id, '', x'', body FROM queued_work WHERE FALSE",
        select_older: "SELECT id, '', body FROM queued_work
                       WHERE tenant_id = ?1 AND substr(body, 2, 8) <> ?2 LIMIT ?3",
        update: "UPDATE queued_work SET body = ?1 WHERE tenant_id = ?2 AND id = ?3 AND ?4 = ''",
        resource: |id, _| work::sealed_resource(id),
    },
];

/// A table with a sealed column. Its rows have a tenant and a name of one or two parts.
pub struct SealedTable {
    /// The table's name.
    pub name: &'static str,
    /// Tenant, name, what goes before the column when it is sealed first, the column.
    select_all: &'static str,
    /// Name and column of at most ?3 rows of tenant ?1 that are not sealed under key ?2.
    select_older: &'static str,
    update: &'static str,
    /// What a row is bound to, by its name.
    resource: fn(&str, &str) -> String,
}

/// A row of [`SealedTable::select_all`].
type PlainRow = (String, String, String, Vec<u8>, Vec<u8>);

impl SealedTable {
    async fn update(
        &self,
        connection: &mut SqliteConnection,
        tenant_id: &str,
        name: (&str, &str),
        sealed: &[u8],
    ) -> Result<(), StoreError> {
        let update = sqlx::query(self.update).bind(sealed).bind(tenant_id).bind(name.0).bind(name.1);
        update.execute(connection).await?;
        Ok(())
    }

    /// Seals at most `limit` rows of a tenant anew that are sealed under another key than its newest. Returns
    /// how many there were.
    ///
    /// # Errors
    /// When a row cannot be opened, or the database not be written.
    pub async fn seal_older(
        &self,
        connection: &mut SqliteConnection,
        sealer: &Sealer,
        tenant_id: &str,
        limit: u32,
    ) -> Result<usize, StoreError> {
        let Some(newest) = sealer.newest_key(tenant_id) else { return Ok(0) };
        let rows: Vec<(String, String, Vec<u8>)> = sqlx::query_as(self.select_older)
            .bind(tenant_id)
            .bind(newest.as_bytes().as_slice())
            .bind(limit)
            .fetch_all(&mut *connection)
            .await?;
        for (first, second, sealed) in &rows {
            let resource = (self.resource)(first, second);
            let plain = sealer.open(tenant_id, &resource, sealed)?;
            let (sealed, _) = sealer.seal(tenant_id, &resource, &plain);
            self.update(connection, tenant_id, (first, second), &sealed).await?;
        }
        Ok(rows.len())
    }
}

/// Seals what the first schema left readable, inside the caller's transaction, and notes that the free pages of
/// the file are to be wiped.
pub(super) async fn seal_all(connection: &mut SqliteConnection, sealer: &Sealer) -> Result<(), StoreError> {
    for table in &TABLES {
        let rows: Vec<PlainRow> = sqlx::query_as(table.select_all).fetch_all(&mut *connection).await?;
        for (tenant_id, first, second, before, column) in rows {
            let plain = Zeroizing::new([before, column].concat());
            let (sealed, unstored) = sealer.seal(&tenant_id, &(table.resource)(&first, &second), &plain);
            if let Some(key) = unstored {
                tenant_keys::insert(connection, &key).await?;
            }
            table.update(connection, &tenant_id, (&first, &second), &sealed).await?;
        }
    }
    note_wipe(connection).await
}

/// Notes that free pages of the file hold what nobody is to read, for [`wipe_if_due`].
///
/// # Errors
/// When the database cannot be written.
pub async fn note_wipe(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO meta (name, number) VALUES ('wipe_due', 1) ON CONFLICT (name) DO NOTHING")
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes the file anew without its free pages, and empties the write-ahead log, if that was noted. A crash in
/// between leaves the note.
///
/// # Errors
/// When the disk cannot take a second copy of the database for the time being.
pub async fn wipe_if_due(pool: &SqlitePool) -> Result<(), StoreError> {
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
