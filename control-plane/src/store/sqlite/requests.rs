//! Table `requests`.

use tonic::async_trait;

use super::{Rows, StoreError};
use crate::store::requests::{AnswerKey, RequestReads, RequestWrites};

/// The table. `response` is sealed: the hash of the request, then the answer. `request_hash` is empty; it had the
/// hash in the first schema. `create_time` is in seconds since 1970.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS requests (
    tenant_id TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id TEXT NOT NULL,
    request_hash BLOB NOT NULL,
    response BLOB NOT NULL,
    create_time INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, method, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_create_time ON requests (create_time);
";

#[async_trait]
impl RequestReads for Rows {
    async fn answer(&mut self, key: AnswerKey<'_>, after: i64) -> Result<Option<Vec<u8>>, StoreError> {
        let sealed = sqlx::query_scalar(
            "SELECT response FROM requests
             WHERE tenant_id = ?1 AND method = ?2 AND request_id = ?3 AND create_time > ?4",
        )
        .bind(key.tenant_id)
        .bind(key.method)
        .bind(key.request_id)
        .bind(after);
        Ok(sealed.fetch_optional(self.connection()).await?)
    }
}

#[async_trait]
impl RequestWrites for Rows {
    async fn forget_answers(&mut self, until: i64) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM requests WHERE create_time <= ?1").bind(until);
        delete.execute(self.connection()).await?;
        Ok(())
    }

    async fn insert_answer(
        &mut self,
        key: AnswerKey<'_>,
        sealed: &[u8],
        time: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO requests (tenant_id, method, request_id, request_hash, response, create_time)
             VALUES (?1, ?2, ?3, x'', ?4, ?5)",
        )
        .bind(key.tenant_id)
        .bind(key.method)
        .bind(key.request_id)
        .bind(sealed)
        .bind(time)
        .execute(self.connection())
        .await?;
        Ok(())
    }
}
