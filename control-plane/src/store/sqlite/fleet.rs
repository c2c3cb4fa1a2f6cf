//! Table `agent_drains`, and what table `agents` says of the fleet as a whole.

use jiff::{SignedDuration, Timestamp};
use tonic::async_trait;

use super::{Rows, StoreError};
use crate::store::fleet::{FleetReads, FleetWrites};

/// The table: agents that were asked to drain.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS agent_drains (
    agent_id TEXT PRIMARY KEY NOT NULL,
    create_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

#[async_trait]
impl FleetReads for Rows {
    async fn is_to_drain(&mut self, agent_id: &str) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM agent_drains WHERE agent_id = ?1")
            .bind(agent_id)
            .fetch_optional(self.connection())
            .await?;
        Ok(found.is_some())
    }

    async fn drains(&mut self) -> Result<Vec<(String, Timestamp)>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT agent_id, create_time FROM agent_drains")
            .fetch_all(self.connection())
            .await?;
        // A time beyond what can be shown is nobody's doing.
        let read = |(id, time): (String, i64)| Some((id, Timestamp::from_microsecond(time).ok()?));
        Ok(rows.into_iter().filter_map(read).collect())
    }

    async fn fleet_size(&mut self, span: SignedDuration) -> Result<usize, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM agents
             WHERE last_seen_time >= (SELECT max(last_seen_time) FROM agents) - ?1",
        )
        .bind(i64::try_from(span.as_micros()).unwrap_or(i64::MAX))
        .fetch_one(self.connection())
        .await?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

#[async_trait]
impl FleetWrites for Rows {
    async fn insert_drain(&mut self, agent_id: &str, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("INSERT OR IGNORE INTO agent_drains (agent_id, create_time) VALUES (?1, ?2)")
            .bind(agent_id)
            .bind(now.as_microsecond())
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn delete_drain(&mut self, agent_id: &str) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM agent_drains WHERE agent_id = ?1").bind(agent_id);
        delete.execute(self.connection()).await?;
        Ok(())
    }

    async fn see_agent(&mut self, agent_id: &str, time: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE agents SET last_seen_time = max(last_seen_time, ?1) WHERE id = ?2")
            .bind(time.as_microsecond())
            .bind(agent_id)
            .execute(self.connection())
            .await?;
        Ok(())
    }
}
