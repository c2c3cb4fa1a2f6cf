//! Table `work`: the queue of what agents are asked to do.

use jiff::Timestamp;
use tonic::async_trait;

use super::{Rows, StoreError};
use crate::store::work::{Subject, WorkReads, WorkWrites};

/// `regions` is empty for any region, otherwise the regions between spaces: ` eu us `. The sequence is
/// never used twice.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS work (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    regions TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    body BLOB NOT NULL
);
";

const OF_ROUTE: &str =
    "SELECT EXISTS (SELECT 1 FROM inbound_routes WHERE id = ?1 AND tenant_id = ?2 AND ?2 <> '')";
const OF_INSTANCE: &str = "SELECT EXISTS (SELECT 1 FROM instances i
     JOIN inbound_routes r ON r.id = i.inbound_route_id
     WHERE i.id = ?1 AND i.tenant_id = ?2 AND r.tenant_id = ?2 AND ?2 <> '')";
const OF_SUBSCRIPTION: &str = "SELECT EXISTS (SELECT 1 FROM webhook_subscriptions s
     JOIN instances i ON i.id = s.instance_id
     JOIN inbound_routes r ON r.id = i.inbound_route_id
     WHERE s.id = ?1 AND i.tenant_id = ?2 AND r.tenant_id = ?2 AND ?2 <> '')";

#[async_trait]
impl WorkReads for Rows {
    async fn work(
        &mut self,
        region: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT seq, body FROM work
             WHERE seq > ?1 AND (regions = '' OR instr(regions, ?2) > 0) ORDER BY seq LIMIT ?3",
        );
        let rows = rows.bind(after).bind(format!(" {region} ")).bind(limit);
        Ok(rows.fetch_all(self.connection()).await?)
    }

    async fn is_work_of_tenant(&mut self, subject: Subject<'_>, tenant_id: &str) -> Result<bool, StoreError> {
        let (query, id) = match subject {
            Subject::InboundRoute(id) => (OF_ROUTE, id),
            Subject::Instance(id) => (OF_INSTANCE, id),
            Subject::WebhookSubscription(id) => (OF_SUBSCRIPTION, id),
        };
        Ok(sqlx::query_scalar(query).bind(id).bind(tenant_id).fetch_one(self.connection()).await?)
    }
}

#[async_trait]
impl WorkWrites for Rows {
    async fn insert_work(
        &mut self,
        id: &str,
        regions: &[String],
        create_time: Timestamp,
        body: &[u8],
    ) -> Result<(), StoreError> {
        let regions = if regions.is_empty() { String::new() } else { format!(" {} ", regions.join(" ")) };
        sqlx::query(
            "INSERT INTO work (id, regions, create_time, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(id)
        .bind(regions)
        .bind(create_time.as_microsecond())
        .bind(body)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn delete_work(&mut self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM work WHERE id = ?1").bind(id).execute(self.connection()).await?;
        Ok(())
    }
}
