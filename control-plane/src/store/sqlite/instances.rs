//! Table `instances`.

use sqlx::{QueryBuilder, Sqlite};
use tonic::async_trait;

use super::{Rows, StoreError, plain, to_sql};
use crate::store::{
    damaged::PlainRow,
    instances::{InstanceReads, InstanceRow, InstanceWrites},
};

/// The table. `number_key` is `provider_number_id` in the form in which it is unique within the route.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS instances (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    inbound_route_id TEXT NOT NULL REFERENCES inbound_routes (id),
    number_key TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (inbound_route_id, number_key)
) STRICT;
CREATE INDEX IF NOT EXISTS instances_version ON instances (version);
";

#[async_trait]
impl InstanceReads for Rows {
    async fn instance(&mut self, id: &str) -> Result<Option<PlainRow>, StoreError> {
        let row = sqlx::query_as(
            "SELECT id, tenant_id, inbound_route_id, version, body FROM instances WHERE id = ?1",
        );
        Ok(row.bind(id).fetch_optional(self.connection()).await?.map(plain))
    }

    async fn instance_of_number(
        &mut self,
        inbound_route_id: &str,
        number_key: &str,
    ) -> Result<Option<String>, StoreError> {
        let holder =
            sqlx::query_scalar("SELECT id FROM instances WHERE inbound_route_id = ?1 AND number_key = ?2")
                .bind(inbound_route_id)
                .bind(number_key);
        Ok(holder.fetch_optional(self.connection()).await?)
    }

    async fn instance_ids_of_route(
        &mut self,
        inbound_route_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        let ids =
            sqlx::query_scalar("SELECT id FROM instances WHERE inbound_route_id = ?1 ORDER BY id LIMIT ?2")
                .bind(inbound_route_id)
                .bind(limit);
        Ok(ids.fetch_all(self.connection()).await?)
    }

    async fn instance_routes_of_tenant(
        &mut self,
        tenant_id: &str,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let rows = sqlx::query_as("SELECT id, inbound_route_id FROM instances WHERE tenant_id = ?1");
        Ok(rows.bind(tenant_id).fetch_all(self.connection()).await?)
    }

    async fn instances(
        &mut self,
        tenant_id: Option<&str>,
        inbound_route_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<PlainRow>, StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT id, tenant_id, inbound_route_id, version, body FROM instances WHERE id > ",
        );
        sql.push_bind(after);
        if let Some(tenant_id) = tenant_id {
            sql.push(" AND tenant_id = ").push_bind(tenant_id);
        }
        if let Some(inbound_route_id) = inbound_route_id {
            sql.push(" AND inbound_route_id = ").push_bind(inbound_route_id);
        }
        sql.push(" ORDER BY id LIMIT ").push_bind(limit);
        let rows = sql.build_query_as().fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(plain).collect())
    }

    async fn instances_changed_since(&mut self, version: u64) -> Result<Vec<PlainRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT id, tenant_id, inbound_route_id, version, body FROM instances
             WHERE version > ?1 ORDER BY version, id",
        );
        let rows = rows.bind(to_sql(version)).fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(plain).collect())
    }
}

#[async_trait]
impl InstanceWrites for Rows {
    async fn put_instance(&mut self, row: InstanceRow<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO instances (id, tenant_id, version, inbound_route_id, number_key, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET version = excluded.version,
                 inbound_route_id = excluded.inbound_route_id, number_key = excluded.number_key,
                 body = excluded.body",
        )
        .bind(row.id)
        .bind(row.tenant_id)
        .bind(to_sql(row.version))
        .bind(row.inbound_route_id)
        .bind(row.number_key)
        .bind(row.body)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn delete_instance(&mut self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM instances WHERE id = ?1").bind(id).execute(self.connection()).await?;
        Ok(())
    }
}
