//! Table `tenant_keys`.

use gateway_runtime::clock;
use sqlx::SqliteConnection;
use tonic::async_trait;

use super::{Rows, StoreError, from_sql};
use crate::{
    sealing::WrappedKey,
    store::tenant_keys::{TenantKeyReads, TenantKeyWrites},
};

/// The table. The newest key of a tenant is the one with the highest `seq`; `create_time` is in seconds since
/// 1970.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS tenant_keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id TEXT NOT NULL,
    key_id TEXT NOT NULL UNIQUE,
    root_key_id TEXT NOT NULL,
    wrapped BLOB NOT NULL,
    create_time INTEGER NOT NULL
) STRICT;
";

/// The row of `meta` that says up to which `seq` of `tenant_keys` keys are to be renewed, while that goes on.
const RENEWAL: &str = "data_key_renewal";

/// All keys, in the order in which they were made.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<WrappedKey>, StoreError> {
    let rows: Vec<(String, String, String, Vec<u8>)> =
        sqlx::query_as("SELECT tenant_id, key_id, root_key_id, wrapped FROM tenant_keys ORDER BY seq")
            .fetch_all(connection)
            .await?;
    let key =
        |(tenant_id, key_id, root_key_id, wrapped)| WrappedKey { tenant_id, key_id, root_key_id, wrapped };
    Ok(rows.into_iter().map(key).collect())
}

/// Adds a key made now. One that is there already stays as it is.
pub(super) async fn insert(connection: &mut SqliteConnection, key: &WrappedKey) -> Result<(), StoreError> {
    insert_at(connection, key, clock::now_seconds()).await
}

async fn insert_at(
    connection: &mut SqliteConnection,
    key: &WrappedKey,
    now_seconds: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tenant_keys (tenant_id, key_id, root_key_id, wrapped, create_time)
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key_id) DO NOTHING",
    )
    .bind(&key.tenant_id)
    .bind(&key.key_id)
    .bind(&key.root_key_id)
    .bind(&key.wrapped)
    .bind(now_seconds)
    .execute(connection)
    .await?;
    Ok(())
}

#[async_trait]
impl TenantKeyReads for Rows {
    async fn tenant_keys(&mut self) -> Result<Vec<WrappedKey>, StoreError> {
        all(self.connection()).await
    }

    async fn newest_tenant_keys(&mut self) -> Result<Vec<(String, u64)>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT tenant_id, max(seq) FROM tenant_keys GROUP BY tenant_id ORDER BY tenant_id",
        )
        .fetch_all(self.connection())
        .await?;
        Ok(rows.into_iter().map(|(tenant_id, seq)| (tenant_id, from_sql(seq))).collect())
    }
}

#[async_trait]
impl TenantKeyWrites for Rows {
    async fn insert_tenant_key(&mut self, key: &WrappedKey, now_seconds: i64) -> Result<(), StoreError> {
        insert_at(self.connection(), key, now_seconds).await
    }

    async fn replace_tenant_key(&mut self, key: &WrappedKey) -> Result<(), StoreError> {
        sqlx::query("UPDATE tenant_keys SET root_key_id = ?1, wrapped = ?2 WHERE key_id = ?3")
            .bind(&key.root_key_id)
            .bind(&key.wrapped)
            .bind(&key.key_id)
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn delete_older_tenant_keys(&mut self, tenant_id: &str) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM tenant_keys WHERE tenant_id = ?1
             AND seq < (SELECT max(seq) FROM tenant_keys WHERE tenant_id = ?1)",
        )
        .bind(tenant_id)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn begin_renewal(&mut self) -> Result<u64, StoreError> {
        sqlx::query(
            "INSERT INTO meta (name, number) SELECT ?1, coalesce(max(seq), 0) FROM tenant_keys WHERE TRUE
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(RENEWAL)
        .execute(self.connection())
        .await?;
        let until: i64 = sqlx::query_scalar("SELECT number FROM meta WHERE name = ?1")
            .bind(RENEWAL)
            .fetch_one(self.connection())
            .await?;
        Ok(from_sql(until))
    }

    async fn end_renewal(&mut self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM meta WHERE name = ?1").bind(RENEWAL).execute(self.connection()).await?;
        Ok(())
    }
}
