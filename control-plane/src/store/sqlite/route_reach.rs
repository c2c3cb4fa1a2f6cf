//! Table `route_reach`: in which version the instances of an inbound route changed last.

use tonic::async_trait;

use super::{Rows, StoreError, to_sql};
use crate::store::route_reach::{RouteReachReads, RouteReachWrites};

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
    async fn instance_bodies_of_route(&mut self, route_id: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let bodies = sqlx::query_scalar("SELECT body FROM instances WHERE inbound_route_id = ?1");
        Ok(bodies.bind(route_id).fetch_all(self.connection()).await?)
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
