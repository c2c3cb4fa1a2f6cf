//! Tables of the configuration database that belong to no resource, and making all of them.

use rand::RngExt as _;
use sqlx::{Connection as _, SqliteConnection, SqlitePool};
use tonic::async_trait;

use super::{
    Rows, StoreError, agents, api_keys, audit, fleet, from_sql, inbound_routes, instances, opt_out_policies,
    opt_outs, requests, route_reach, sealed, tenant_keys, tenants, to_sql, webhook_subscriptions, work,
};
use crate::{
    sealing::{RootKeys, Sealer},
    store::versions::{VersionReads, VersionWrites},
};

/// The version of the schema that this program writes.
///
/// Version 2 seals what holds secrets; in version 1 it was readable.
pub(crate) const SCHEMA_VERSION: i64 = 2;

/// Counters and names of the database, and what was removed from the configuration in which version.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (
    name TEXT PRIMARY KEY NOT NULL,
    number INTEGER,
    text TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tombstones (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tombstones_version ON tombstones (version);
-- Tombstones whose id is in use again. Apart, since earlier programs would tell agents to remove what is there.
CREATE TABLE IF NOT EXISTS reused_ids (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reused_ids_version ON reused_ids (version);
";

/// The schema of every table, in the order in which they refer to each other.
const SCHEMAS: [&str; 15] = [
    SCHEMA,
    inbound_routes::SCHEMA,
    instances::SCHEMA,
    route_reach::SCHEMA,
    tenants::SCHEMA,
    api_keys::SCHEMA,
    opt_out_policies::SCHEMA,
    webhook_subscriptions::SCHEMA,
    opt_outs::SCHEMA,
    requests::SCHEMA,
    agents::SCHEMA,
    work::SCHEMA,
    fleet::SCHEMA,
    audit::SCHEMA,
    tenant_keys::SCHEMA,
];

/// Makes the tables and the first rows of `meta` that are missing, opens the tenants' data keys, and seals what
/// an older program left readable. All of it happens or nothing.
pub(super) async fn prepare(pool: &SqlitePool, root_keys: &RootKeys) -> Result<Sealer, StoreError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
    let found: Option<i64> = sqlx::query_scalar("SELECT number FROM meta WHERE name = 'schema_version'")
        .fetch_optional(&mut *transaction)
        .await?;
    if let Some(found) = found.filter(|found| *found > SCHEMA_VERSION) {
        return Err(StoreError::NewerSchema { found, known: SCHEMA_VERSION });
    }
    for schema in SCHEMAS {
        sqlx::raw_sql(schema).execute(&mut *transaction).await?;
    }
    agents::add_columns(&mut transaction).await?;
    let epoch = new_epoch();
    sqlx::query(
        "INSERT INTO meta (name, number, text)
         VALUES ('schema_version', ?1, NULL), ('version', 0, NULL), ('store_epoch', NULL, ?2)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(SCHEMA_VERSION)
    .bind(epoch)
    .execute(&mut *transaction)
    .await?;
    let epoch = self::epoch(&mut transaction).await?;
    tenants::prepare(&mut transaction, &epoch).await?;
    api_keys::prepare(&mut transaction).await?;
    let wrapped = tenant_keys::all(&mut transaction).await?;
    let root_keys = root_keys.load(wrapped.first().map(|key| key.root_key_id.as_str()))?;
    let sealer = Sealer::open_keys(&root_keys, &wrapped)?;
    if found == Some(1) {
        sealed::seal_all(&mut transaction, &sealer).await?;
        sqlx::query("UPDATE meta SET number = ?1 WHERE name = 'schema_version'")
            .bind(SCHEMA_VERSION)
            .execute(&mut *transaction)
            .await?;
    }
    work::seal_readable(&mut transaction, &sealer).await?;
    transaction.commit().await?;
    sealed::wipe_if_due(pool).await?;
    Ok(sealer)
}

/// Names a store: 22 random letters and digits.
fn new_epoch() -> String {
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(22).map(char::from).collect()
}

/// Makes a restored database a store of its own: agents take everything anew and report what it has forgotten.
/// Join tokens go, since some may have been used after the backup.
///
/// # Errors
/// When the database cannot be written.
pub(crate) async fn renew_epoch(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await?;
    sqlx::query("UPDATE meta SET text = ?1 WHERE name = 'store_epoch'")
        .bind(new_epoch())
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM join_tokens").execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

pub(super) async fn epoch(connection: &mut SqliteConnection) -> Result<String, StoreError> {
    let epoch = sqlx::query_scalar("SELECT text FROM meta WHERE name = 'store_epoch'");
    Ok(epoch.fetch_one(connection).await?)
}

pub(super) async fn version(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let version: i64 =
        sqlx::query_scalar("SELECT number FROM meta WHERE name = 'version'").fetch_one(connection).await?;
    Ok(from_sql(version))
}

#[async_trait]
impl VersionReads for Rows {
    async fn version(&mut self) -> Result<u64, StoreError> {
        version(self.connection()).await
    }

    async fn removed_since(&mut self, version: u64) -> Result<Vec<(String, String)>, StoreError> {
        let removed = "SELECT type, id FROM tombstones WHERE version > ?1
                       UNION SELECT type, id FROM reused_ids WHERE version > ?1 ORDER BY type, id";
        Ok(sqlx::query_as(removed).bind(to_sql(version)).fetch_all(self.connection()).await?)
    }
}

#[async_trait]
impl VersionWrites for Rows {
    async fn bump_version(&mut self) -> Result<u64, StoreError> {
        let bump = "UPDATE meta SET number = number + 1 WHERE name = 'version' RETURNING number";
        let version: i64 = sqlx::query_scalar(bump).fetch_one(self.connection()).await?;
        Ok(from_sql(version))
    }

    async fn try_write(&mut self) -> Result<(), StoreError> {
        let change = "INSERT INTO meta (name, number) VALUES ('try_write', 0)
                      ON CONFLICT (name) DO UPDATE SET number = 1 - number";
        sqlx::query(change).execute(self.connection()).await?;
        Ok(())
    }

    async fn bury(&mut self, resource_type: &'static str, id: &str, version: u64) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO tombstones (type, id, version) VALUES (?1, ?2, ?3)")
            .bind(resource_type)
            .bind(id)
            .bind(to_sql(version))
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn reuse(&mut self, resource_type: &'static str, id: &str) -> Result<(), StoreError> {
        let note = "INSERT OR REPLACE INTO reused_ids (type, id, version)
                    SELECT type, id, version FROM tombstones WHERE type = ?1 AND id = ?2";
        sqlx::query(note).bind(resource_type).bind(id).execute(self.connection()).await?;
        self.exhume(resource_type, id).await
    }

    async fn exhume(&mut self, resource_type: &'static str, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM tombstones WHERE type = ?1 AND id = ?2")
            .bind(resource_type)
            .bind(id)
            .execute(self.connection())
            .await?;
        Ok(())
    }
}
