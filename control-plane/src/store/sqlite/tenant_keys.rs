//! Table `tenant_keys`: the data keys that seal secrets, each sealed under a root key that is not in the
//! database. See [`crate::sealing`].

use gateway_runtime::clock;
use sqlx::SqliteConnection;

use super::StoreError;
use crate::sealing::WrappedKey;

/// The table. The newest key of a tenant is the one with the highest `seq`; `create_time` is in seconds since
/// 1970.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS tenant_keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id TEXT NOT NULL,
    key_id TEXT NOT NULL UNIQUE,
    root_key_id TEXT NOT NULL,
    wrapped BLOB NOT NULL,
    create_time INTEGER NOT NULL
) STRICT;
";

/// All keys, in the order in which they were made.
///
/// # Errors
/// When the database cannot be read.
pub async fn all(connection: &mut SqliteConnection) -> Result<Vec<WrappedKey>, StoreError> {
    let rows: Vec<(String, String, String, Vec<u8>)> =
        sqlx::query_as("SELECT tenant_id, key_id, root_key_id, wrapped FROM tenant_keys ORDER BY seq")
            .fetch_all(connection)
            .await?;
    let key =
        |(tenant_id, key_id, root_key_id, wrapped)| WrappedKey { tenant_id, key_id, root_key_id, wrapped };
    Ok(rows.into_iter().map(key).collect())
}

/// Adds a key. One that is there already stays as it is.
///
/// # Errors
/// When the database cannot be written.
pub async fn insert(connection: &mut SqliteConnection, key: &WrappedKey) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tenant_keys (tenant_id, key_id, root_key_id, wrapped, create_time)
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key_id) DO NOTHING",
    )
    .bind(&key.tenant_id)
    .bind(&key.key_id)
    .bind(&key.root_key_id)
    .bind(&key.wrapped)
    .bind(clock::now_seconds())
    .execute(connection)
    .await?;
    Ok(())
}

/// Puts a key that is sealed under another root key into the place of the same key.
///
/// # Errors
/// When the database cannot be written.
pub async fn replace(connection: &mut SqliteConnection, key: &WrappedKey) -> Result<(), StoreError> {
    sqlx::query("UPDATE tenant_keys SET root_key_id = ?1, wrapped = ?2 WHERE key_id = ?3")
        .bind(&key.root_key_id)
        .bind(&key.wrapped)
        .bind(&key.key_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes the keys of a tenant but its newest. Nothing may be sealed under them any more.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete_older(connection: &mut SqliteConnection, tenant_id: &str) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM tenant_keys WHERE tenant_id = ?1
         AND seq < (SELECT max(seq) FROM tenant_keys WHERE tenant_id = ?1)",
    )
    .bind(tenant_id)
    .execute(connection)
    .await?;
    Ok(())
}
