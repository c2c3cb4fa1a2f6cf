//! API keys. Secrets are kept as SHA-256 only; they are random, so a slow hash would add nothing.

use gateway_core::{tenant::TenantScope, time};
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{Store, StoreError, WriteTx, decode};

/// The table. `tenant_id` is empty for platform admins'; `last_use_time` is in microseconds since 1970, and
/// stands beside the body so that noting a use rewrites no resource.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS api_keys (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    secret_hash BLOB NOT NULL UNIQUE,
    last_use_time INTEGER,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS api_keys_tenant ON api_keys (tenant_id, id);
";

type Row = (Vec<u8>, Option<i64>);

fn read((body, last_use_time): Row) -> Result<v1::ApiKey, StoreError> {
    let mut key: v1::ApiKey = decode(&body)?;
    key.last_use_time =
        last_use_time.and_then(|time| Timestamp::from_microsecond(time).ok()).map(time::to_proto);
    Ok(key)
}

/// The key that has a secret, working or not.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_by_secret_hash(
    store: &Store,
    secret_hash: &[u8; 32],
) -> Result<Option<v1::ApiKey>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT body, last_use_time FROM api_keys WHERE secret_hash = ?1")
        .bind(secret_hash.as_slice())
        .fetch_optional(store.pool())
        .await?;
    row.map(read).transpose()
}

/// A key within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::ApiKey>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT body, last_use_time FROM api_keys WHERE id = ?1")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(read).transpose()?.filter(|key| scope.contains(&key.tenant_id)))
}

/// Those of `ids` that are there, in no order.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_all(store: &Store, ids: &[String]) -> Result<Vec<v1::ApiKey>, StoreError> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT body, last_use_time FROM api_keys WHERE id IN (");
    let mut separated = sql.separated(", ");
    for id in ids {
        separated.push_bind(id);
    }
    sql.push(")");
    let rows: Vec<Row> = sql.build_query_as().fetch_all(store.pool()).await?;
    rows.into_iter().map(read).collect()
}

/// Keys in the order of their ids, after `after`, perhaps of one tenant only.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut SqliteConnection,
    tenant_id: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::ApiKey>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT body, last_use_time FROM api_keys
         WHERE (?1 IS NULL OR tenant_id = ?1) AND id > ?2 ORDER BY id LIMIT ?3",
    )
    .bind(tenant_id)
    .bind(after.unwrap_or_default())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(read).collect()
}

/// Writes a new key.
///
/// # Errors
/// When the database cannot be written, or the id is taken.
pub async fn create(
    transaction: &mut WriteTx,
    key: &v1::ApiKey,
    secret_hash: &[u8; 32],
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO api_keys (id, tenant_id, secret_hash, body) VALUES (?1, ?2, ?3, ?4)")
        .bind(&key.id)
        .bind(&key.tenant_id)
        .bind(secret_hash.as_slice())
        .bind(key.encode_to_vec())
        .execute(transaction.connection())
        .await?;
    Ok(())
}

/// Writes a changed key.
///
/// # Errors
/// When the database cannot be written.
pub async fn update(transaction: &mut WriteTx, key: &v1::ApiKey) -> Result<(), StoreError> {
    sqlx::query("UPDATE api_keys SET body = ?2 WHERE id = ?1")
        .bind(&key.id)
        .bind(key.encode_to_vec())
        .execute(transaction.connection())
        .await?;
    Ok(())
}

/// Notes when keys were last used.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_uses(store: &Store, uses: &[(String, Timestamp)]) -> Result<(), StoreError> {
    let mut transaction = store.begin_write().await?;
    for (id, time) in uses {
        sqlx::query("UPDATE api_keys SET last_use_time = ?2 WHERE id = ?1")
            .bind(id)
            .bind(time.as_microsecond())
            .execute(transaction.connection())
            .await?;
    }
    transaction.commit().await
}

/// Removes a tenant's keys.
pub(super) async fn delete_of_tenant(transaction: &mut WriteTx, tenant_id: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM api_keys WHERE tenant_id = ?1")
        .bind(tenant_id)
        .execute(transaction.connection())
        .await?;
    Ok(())
}
