//! Table `opt_out_policies`.

use tonic::async_trait;

use super::{Rows, StoreError, plain, to_sql};
use crate::store::{
    damaged::PlainRow,
    opt_out_policies::{OptOutPolicyReads, OptOutPolicyWrites},
};

/// The table.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS opt_out_policies (
    instance_id TEXT PRIMARY KEY NOT NULL REFERENCES instances (id),
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS opt_out_policies_version ON opt_out_policies (version);
";

#[async_trait]
impl OptOutPolicyReads for Rows {
    async fn opt_out_policy(&mut self, instance_id: &str) -> Result<Option<PlainRow>, StoreError> {
        let row = sqlx::query_as(
            "SELECT instance_id, tenant_id, '', version, body FROM opt_out_policies WHERE instance_id = ?1",
        );
        Ok(row.bind(instance_id).fetch_optional(self.connection()).await?.map(plain))
    }

    async fn opt_out_policies_changed_since(&mut self, version: u64) -> Result<Vec<PlainRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT instance_id, tenant_id, '', version, body FROM opt_out_policies
             WHERE version > ?1 ORDER BY version, instance_id",
        );
        let rows = rows.bind(to_sql(version)).fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(plain).collect())
    }
}

#[async_trait]
impl OptOutPolicyWrites for Rows {
    async fn put_opt_out_policy(&mut self, row: &PlainRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO opt_out_policies (instance_id, tenant_id, version, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (instance_id) DO UPDATE SET version = excluded.version, body = excluded.body",
        )
        .bind(&row.id)
        .bind(&row.tenant_id)
        .bind(to_sql(row.version))
        .bind(&row.body)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn delete_opt_out_policy(&mut self, instance_id: &str) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM opt_out_policies WHERE instance_id = ?1").bind(instance_id);
        delete.execute(self.connection()).await?;
        Ok(())
    }
}
