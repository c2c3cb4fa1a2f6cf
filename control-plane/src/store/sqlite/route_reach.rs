//! Table `route_reach`: in which version the instances of an inbound route changed last.

use tonic::async_trait;

use super::{Rows, StoreError, plain, to_sql};
use crate::store::{
    damaged::PlainRow,
    route_reach::{RouteReachReads, RouteReachWrites},
};

/// The table.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS route_reach (
    route_id TEXT PRIMARY KEY NOT NULL,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS route_reach_version ON route_reach (version);
";

#[async_trait]
impl RouteReachReads for Rows {
    async fn instances_on_route(&mut self, route_id: &str) -> Result<Vec<PlainRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT id, tenant_id, inbound_route_id, version, body FROM instances WHERE inbound_route_id = ?1",
        );
        let rows = rows.bind(route_id).fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(plain).collect())
    }
}

#[async_trait]
impl RouteReachWrites for Rows {
    async fn touch_routes(
        &mut self,
        instance_id: &str,
        route_after: Option<&str>,
        version: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT OR REPLACE INTO route_reach (route_id, version)
             SELECT inbound_route_id, ?3 FROM instances WHERE id = ?1
             UNION SELECT ?2, ?3 WHERE ?2 IS NOT NULL",
        )
        .bind(instance_id)
        .bind(route_after)
        .bind(to_sql(version))
        .execute(self.connection())
        .await?;
        Ok(())
    }
}
