//! Tables `tenants` and `former_owners`.

use jiff::Timestamp;
use sqlx::SqliteConnection;
use tonic::async_trait;

use super::{Rows, StoreError, from_sql, plain, to_sql};
use crate::store::{
    damaged::PlainRow,
    tenants::{TenantReads, TenantWrites, first},
};

/// The tables. `change` is how often a tenant was written, `delete_time` is in microseconds since 1970.
/// `former_owners` names the tenant (empty: the platform) of a deleted resource's id.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS tenants (
    id TEXT PRIMARY KEY NOT NULL,
    change INTEGER NOT NULL,
    body BLOB NOT NULL,
    delete_time INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS former_owners (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    PRIMARY KEY (type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inbound_routes_tenant ON inbound_routes (tenant_id);
CREATE INDEX IF NOT EXISTS instances_tenant ON instances (tenant_id);
";

/// Makes the tenant that exists from the first start.
pub(super) async fn prepare(connection: &mut SqliteConnection, epoch: &str) -> Result<(), StoreError> {
    let (id, body) = first(epoch);
    sqlx::query("INSERT INTO tenants (id, change, body) VALUES (?1, 1, ?2) ON CONFLICT (id) DO NOTHING")
        .bind(id)
        .bind(body)
        .execute(connection)
        .await?;
    Ok(())
}

#[async_trait]
impl TenantReads for Rows {
    async fn tenant(&mut self, id: &str) -> Result<Option<PlainRow>, StoreError> {
        let row = sqlx::query_as(
            "SELECT id, id, '', change, body FROM tenants WHERE id = ?1 AND delete_time IS NULL",
        );
        Ok(row.bind(id).fetch_optional(self.connection()).await?.map(plain))
    }

    async fn tenant_changes(&mut self, id: &str) -> Result<Option<u64>, StoreError> {
        let changes: Option<i64> = sqlx::query_scalar("SELECT change FROM tenants WHERE id = ?1")
            .bind(id)
            .fetch_optional(self.connection())
            .await?;
        Ok(changes.map(from_sql))
    }

    async fn tenants(
        &mut self,
        only: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<PlainRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT id, id, '', change, body FROM tenants
             WHERE (?1 IS NULL OR id = ?1) AND id > ?2 AND delete_time IS NULL ORDER BY id LIMIT ?3",
        );
        let rows = rows.bind(only).bind(after).bind(limit).fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(plain).collect())
    }

    async fn instance_ids_of_tenant(
        &mut self,
        tenant_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        let ids = sqlx::query_scalar("SELECT id FROM instances WHERE tenant_id = ?1 ORDER BY id LIMIT ?2");
        Ok(ids.bind(tenant_id).bind(limit).fetch_all(self.connection()).await?)
    }

    async fn inbound_route_ids_of_tenant(
        &mut self,
        tenant_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        let ids =
            sqlx::query_scalar("SELECT id FROM inbound_routes WHERE tenant_id = ?1 ORDER BY id LIMIT ?2");
        Ok(ids.bind(tenant_id).bind(limit).fetch_all(self.connection()).await?)
    }

    async fn former_owner(
        &mut self,
        resource_type: &'static str,
        id: &str,
    ) -> Result<Option<String>, StoreError> {
        let owner = sqlx::query_scalar("SELECT tenant_id FROM former_owners WHERE type = ?1 AND id = ?2");
        Ok(owner.bind(resource_type).bind(id).fetch_optional(self.connection()).await?)
    }

    async fn owner(&mut self, resource_type: &'static str, id: &str) -> Result<Option<String>, StoreError> {
        let owner = sqlx::query_scalar(match resource_type {
            "instance" => {
                "SELECT tenant_id FROM instances WHERE id = ?2
                 UNION ALL SELECT tenant_id FROM former_owners WHERE type = ?1 AND id = ?2 LIMIT 1"
            }
            "inbound_route" => {
                "SELECT tenant_id FROM inbound_routes WHERE id = ?2
                 UNION ALL SELECT tenant_id FROM former_owners WHERE type = ?1 AND id = ?2 LIMIT 1"
            }
            _ => {
                "SELECT tenant_id FROM webhook_subscriptions WHERE id = ?2
                 UNION ALL SELECT tenant_id FROM former_owners WHERE type = ?1 AND id = ?2 LIMIT 1"
            }
        });
        Ok(owner.bind(resource_type).bind(id).fetch_optional(self.connection()).await?)
    }
}

#[async_trait]
impl TenantWrites for Rows {
    async fn put_tenant(&mut self, id: &str, changes: u64, body: &[u8]) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO tenants (id, change, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET change = excluded.change, body = excluded.body",
        )
        .bind(id)
        .bind(to_sql(changes))
        .bind(body)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn delete_tenant(&mut self, id: &str, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE tenants SET delete_time = ?2 WHERE id = ?1")
            .bind(id)
            .bind(now.as_microsecond())
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn remember_owner(&mut self, resource_type: &'static str, id: &str) -> Result<(), StoreError> {
        let remember = match resource_type {
            "instance" => {
                "INSERT OR REPLACE INTO former_owners SELECT ?1, id, tenant_id FROM instances WHERE id = ?2"
            }
            "inbound_route" => {
                "INSERT OR REPLACE INTO former_owners
                 SELECT ?1, id, tenant_id FROM inbound_routes WHERE id = ?2"
            }
            _ => {
                "INSERT OR REPLACE INTO former_owners
                 SELECT ?1, id, tenant_id FROM webhook_subscriptions WHERE id = ?2"
            }
        };
        sqlx::query(remember).bind(resource_type).bind(id).execute(self.connection()).await?;
        Ok(())
    }
}
