//! Table `opt_out_policies`.

use tonic::async_trait;

use super::{Rows, StoreError, instances::versioned, to_sql};
use crate::store::{
    instances::VersionedBody,
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
    async fn opt_out_policy(&mut self, instance_id: &str) -> Result<Option<VersionedBody>, StoreError> {
        let row: Option<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT version, body FROM opt_out_policies WHERE instance_id = ?1")
                .bind(instance_id)
                .fetch_optional(self.connection())
                .await?;
        Ok(row.map(versioned))
    }

    async fn opt_out_policies_changed_since(
        &mut self,
        version: u64,
    ) -> Result<Vec<VersionedBody>, StoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT version, body FROM opt_out_policies WHERE version > ?1 ORDER BY version, instance_id",
        )
        .bind(to_sql(version))
        .fetch_all(self.connection())
        .await?;
        Ok(rows.into_iter().map(versioned).collect())
    }
}

#[async_trait]
impl OptOutPolicyWrites for Rows {
    async fn put_opt_out_policy(
        &mut self,
        instance_id: &str,
        tenant_id: &str,
        row: &VersionedBody,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO opt_out_policies (instance_id, tenant_id, version, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (instance_id) DO UPDATE SET version = excluded.version, body = excluded.body",
        )
        .bind(instance_id)
        .bind(tenant_id)
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
