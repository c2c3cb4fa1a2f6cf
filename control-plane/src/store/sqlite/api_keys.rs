//! Table `api_keys`.

use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tonic::async_trait;

use super::{Rows, StoreError};
use crate::store::{
    api_keys::{ApiKeyReads, ApiKeyRow, ApiKeyWrites, summed},
    damaged::PlainRow,
};

/// The table. `tenant_id` is empty for platform admins'; `last_use_time` is in microseconds since 1970.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS api_keys (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    secret_hash BLOB NOT NULL UNIQUE,
    last_use_time INTEGER,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS api_keys_tenant ON api_keys (tenant_id, id);
-- An earlier program, which makes no checksums, has written: the next start makes them. Damage fires no trigger. A body with
-- a checksum ends in the tag of its field (see `body`) and 8 bytes.
CREATE TRIGGER IF NOT EXISTS api_keys_without_checksum_made AFTER INSERT ON api_keys
WHEN substr(NEW.body, -10, 2) <> x'f97c'
BEGIN DELETE FROM meta WHERE name = 'api_keys_summed'; END;
CREATE TRIGGER IF NOT EXISTS api_keys_without_checksum_changed AFTER UPDATE OF body ON api_keys
WHEN substr(NEW.body, -10, 2) <> x'f97c'
BEGIN DELETE FROM meta WHERE name = 'api_keys_summed'; END;
";

type Row = (String, String, Vec<u8>, Option<i64>);

fn key((id, tenant_id, body, last_use_time): Row) -> ApiKeyRow {
    let row = PlainRow { id, tenant_id, parent_id: String::new(), version: 0, body };
    ApiKeyRow { row, last_use_time: last_use_time.and_then(|time| Timestamp::from_microsecond(time).ok()) }
}

/// Gives the keys of programs that made no checksums theirs, once for each database: from then on a key without one is
/// damaged.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    if are_summed(connection).await? {
        return Ok(());
    }
    for key in all(connection).await? {
        let Some(body) = summed(&key.row) else { continue };
        sqlx::query("UPDATE api_keys SET body = ?2 WHERE id = ?1")
            .bind(&key.row.id)
            .bind(body)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("INSERT INTO meta (name, number) VALUES ('api_keys_summed', 1)").execute(connection).await?;
    Ok(())
}

/// Whether every key of a database must have a checksum.
pub(super) async fn are_summed(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let noted = "SELECT number FROM meta WHERE name = 'api_keys_summed'";
    let noted: Option<i64> = sqlx::query_scalar(noted).fetch_optional(connection).await?;
    Ok(noted.is_some())
}

/// All keys, by id.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<ApiKeyRow>, sqlx::Error> {
    let rows: Vec<Row> =
        sqlx::query_as("SELECT id, tenant_id, body, last_use_time FROM api_keys ORDER BY id")
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(key).collect())
}

#[async_trait]
impl ApiKeyReads for Rows {
    async fn api_key_of_secret(&mut self, secret_hash: &[u8; 32]) -> Result<Option<ApiKeyRow>, StoreError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT id, tenant_id, body, last_use_time FROM api_keys WHERE secret_hash = ?1")
                .bind(secret_hash.as_slice())
                .fetch_optional(self.connection())
                .await?;
        Ok(row.map(key))
    }

    async fn api_key(&mut self, id: &str) -> Result<Option<ApiKeyRow>, StoreError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT id, tenant_id, body, last_use_time FROM api_keys WHERE id = ?1")
                .bind(id)
                .fetch_optional(self.connection())
                .await?;
        Ok(row.map(key))
    }

    async fn api_keys_of_ids(&mut self, ids: &[String]) -> Result<Vec<ApiKeyRow>, StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT id, tenant_id, body, last_use_time FROM api_keys WHERE id IN (",
        );
        let mut separated = sql.separated(", ");
        for id in ids {
            separated.push_bind(id);
        }
        sql.push(")");
        let rows: Vec<Row> = sql.build_query_as().fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(key).collect())
    }

    async fn api_keys(
        &mut self,
        tenant_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ApiKeyRow>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, tenant_id, body, last_use_time FROM api_keys
             WHERE (?1 IS NULL OR tenant_id = ?1) AND id > ?2 ORDER BY id LIMIT ?3",
        )
        .bind(tenant_id)
        .bind(after)
        .bind(limit)
        .fetch_all(self.connection())
        .await?;
        Ok(rows.into_iter().map(key).collect())
    }
}

#[async_trait]
impl ApiKeyWrites for Rows {
    async fn insert_api_key(
        &mut self,
        id: &str,
        tenant_id: &str,
        secret_hash: &[u8; 32],
        body: &[u8],
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO api_keys (id, tenant_id, secret_hash, body) VALUES (?1, ?2, ?3, ?4)")
            .bind(id)
            .bind(tenant_id)
            .bind(secret_hash.as_slice())
            .bind(body)
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn update_api_key(&mut self, id: &str, body: &[u8]) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE api_keys SET body = ?2 WHERE id = ?1").bind(id).bind(body);
        update.execute(self.connection()).await?;
        Ok(())
    }

    async fn use_api_key(&mut self, id: &str, time: Timestamp) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE api_keys SET last_use_time = ?2 WHERE id = ?1");
        update.bind(id).bind(time.as_microsecond()).execute(self.connection()).await?;
        Ok(())
    }

    async fn delete_api_keys_of_tenant(&mut self, tenant_id: &str) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM api_keys WHERE tenant_id = ?1").bind(tenant_id);
        delete.execute(self.connection()).await?;
        Ok(())
    }
}
