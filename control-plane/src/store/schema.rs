//! Tables of the configuration database that belong to no resource, and making all of them.

use gateway_proto::v1;
use rand::RngExt as _;
use sqlx::{SqliteConnection, SqlitePool};

use super::{
    StoreError, agents, from_sql, inbound_routes, instances, opt_out_policies, opt_outs, requests,
    webhook_subscriptions, work,
};

/// The version of the schema that this program writes.
const SCHEMA_VERSION: i64 = 1;

/// Counters and names of the database, and what was removed from the configuration in which version.
pub const SCHEMA: &str = "
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
";

/// The schema of every table, in the order in which they refer to each other.
const SCHEMAS: [&str; 9] = [
    SCHEMA,
    inbound_routes::SCHEMA,
    instances::SCHEMA,
    opt_out_policies::SCHEMA,
    webhook_subscriptions::SCHEMA,
    opt_outs::SCHEMA,
    requests::SCHEMA,
    agents::SCHEMA,
    work::SCHEMA,
];

/// Order of removals: what refers to others goes before what is referred to.
const REMOVAL_ORDER: [&str; 4] = ["webhook_subscription", "opt_out_policy", "instance", "inbound_route"];

/// Makes the tables and the first rows of `meta` that are missing.
pub(super) async fn prepare(pool: &SqlitePool) -> Result<(), StoreError> {
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
    let epoch: String = rand::rng().sample_iter(rand::distr::Alphanumeric).take(22).map(char::from).collect();
    sqlx::query(
        "INSERT INTO meta (name, number, text)
         VALUES ('schema_version', ?1, NULL), ('version', 0, NULL), ('store_epoch', NULL, ?2)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(SCHEMA_VERSION)
    .bind(epoch)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
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

pub(super) async fn bump_version(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let bump = "UPDATE meta SET number = number + 1 WHERE name = 'version' RETURNING number";
    let version: i64 = sqlx::query_scalar(bump).fetch_one(connection).await?;
    Ok(from_sql(version))
}

/// Notes that a resource is gone. `resource_type` is the oneof field of `ConfigResource`.
pub(super) async fn bury(
    connection: &mut SqliteConnection,
    resource_type: &'static str,
    id: &str,
    version: i64,
) -> Result<(), StoreError> {
    sqlx::query("INSERT OR REPLACE INTO tombstones (type, id, version) VALUES (?1, ?2, ?3)")
        .bind(resource_type)
        .bind(id)
        .bind(version)
        .execute(connection)
        .await?;
    Ok(())
}

/// Forgets that a resource was gone, since its id is in use again.
pub(super) async fn exhume(
    connection: &mut SqliteConnection,
    resource_type: &'static str,
    id: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tombstones WHERE type = ?1 AND id = ?2")
        .bind(resource_type)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn removed_since(
    connection: &mut SqliteConnection,
    version: i64,
) -> Result<Vec<v1::ConfigRemoval>, StoreError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT type, id FROM tombstones WHERE version > ?1 ORDER BY version, type, id")
            .bind(version)
            .fetch_all(connection)
            .await?;
    let mut removals: Vec<_> =
        rows.into_iter().map(|(r#type, id)| v1::ConfigRemoval { r#type, id, deleted: true }).collect();
    removals.sort_by_key(|removal| REMOVAL_ORDER.iter().position(|known| *known == removal.r#type));
    Ok(removals)
}
