//! Table `inbound_routes`. `body` is the route as operators see it, `config` the route as agents get it, sealed.

use tonic::async_trait;

use super::{Rows, StoreError, from_sql, to_sql};
use crate::store::inbound_routes::{InboundRouteReads, InboundRouteRow, InboundRouteWrites, SealedRow};

/// The table.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS inbound_routes (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    provider INTEGER NOT NULL,
    callback_token TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,
    config BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS inbound_routes_version ON inbound_routes (version);
";

/// Version, id, tenant and sealed column.
pub(super) type Row = (i64, String, String, Vec<u8>);

pub(super) fn sealed_row((version, id, tenant_id, sealed): Row) -> SealedRow {
    SealedRow { version: from_sql(version), id, tenant_id, sealed }
}

/// Version, id, tenant, sealed column, provider and body.
type WholeRow = (i64, String, String, Vec<u8>, i32, Vec<u8>);

fn whole_row((version, id, tenant_id, sealed, provider, body): WholeRow) -> InboundRouteRow {
    InboundRouteRow { row: sealed_row((version, id, tenant_id, sealed)), provider, body }
}

#[async_trait]
impl InboundRouteReads for Rows {
    async fn inbound_route(
        &mut self,
        tenant_id: Option<&str>,
        id: &str,
    ) -> Result<Option<InboundRouteRow>, StoreError> {
        let row: Option<WholeRow> = sqlx::query_as(
            "SELECT version, id, tenant_id, config, provider, body FROM inbound_routes
             WHERE id = ?1 AND (?2 IS NULL OR tenant_id = ?2)",
        )
        .bind(id)
        .bind(tenant_id)
        .fetch_optional(self.connection())
        .await?;
        Ok(row.map(whole_row))
    }

    async fn inbound_routes(
        &mut self,
        tenant_id: Option<&str>,
        provider: Option<i32>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<InboundRouteRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT version, id, tenant_id, config, provider, body FROM inbound_routes
             WHERE (?1 IS NULL OR tenant_id = ?1) AND (?2 IS NULL OR provider = ?2) AND id > ?3
             ORDER BY id LIMIT ?4",
        );
        let rows = rows.bind(tenant_id).bind(provider).bind(after).bind(limit);
        let rows: Vec<WholeRow> = rows.fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(whole_row).collect())
    }

    async fn inbound_route_ids(&mut self, tenant_id: Option<&str>) -> Result<Vec<String>, StoreError> {
        let ids = sqlx::query_scalar("SELECT id FROM inbound_routes WHERE ?1 IS NULL OR tenant_id = ?1");
        Ok(ids.bind(tenant_id).fetch_all(self.connection()).await?)
    }

    async fn inbound_routes_changed_since(&mut self, version: u64) -> Result<Vec<SealedRow>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT version, id, tenant_id, config FROM inbound_routes
             WHERE version > ?1 OR id IN (SELECT route_id FROM route_reach WHERE version > ?1)
             ORDER BY version, id",
        )
        .bind(to_sql(version))
        .fetch_all(self.connection())
        .await?;
        Ok(rows.into_iter().map(sealed_row).collect())
    }
}

#[async_trait]
impl InboundRouteWrites for Rows {
    async fn put_inbound_route(
        &mut self,
        route: &InboundRouteRow,
        callback_token: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO inbound_routes (id, tenant_id, version, provider, callback_token, body, config)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET version = excluded.version, body = excluded.body,
                 config = excluded.config",
        )
        .bind(&route.row.id)
        .bind(&route.row.tenant_id)
        .bind(to_sql(route.row.version))
        .bind(route.provider)
        .bind(callback_token)
        .bind(&route.body)
        .bind(&route.row.sealed)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn delete_inbound_route(&mut self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM inbound_routes WHERE id = ?1").bind(id).execute(self.connection()).await?;
        Ok(())
    }
}
