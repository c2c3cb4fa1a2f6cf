//! Table `agent_drains`, and what table `agents` says of the fleet as a whole: who was asked to drain, who was
//! heard when, how many there are.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{Store, StoreError, WriteTx};

/// The table: agents that were asked to drain.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS agent_drains (
    agent_id TEXT PRIMARY KEY NOT NULL,
    create_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Agents heard within so long of the one heard last make up the fleet; the others were destroyed some time
/// ago. Every agent that is connected is written down every five minutes.
const FLEET_MICROSECONDS: i64 = 3_600 * 1_000_000;

/// Asks an agent to drain from `now` on, or no more. Repeats change nothing.
///
/// # Errors
/// When the database cannot be written.
pub async fn set_drain(
    tx: &mut WriteTx,
    agent_id: &str,
    drains: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let statement = if drains {
        sqlx::query("INSERT OR IGNORE INTO agent_drains (agent_id, create_time) VALUES (?1, ?2)")
            .bind(agent_id)
            .bind(now.as_microsecond())
    } else {
        sqlx::query("DELETE FROM agent_drains WHERE agent_id = ?1").bind(agent_id)
    };
    statement.execute(tx.connection()).await?;
    Ok(())
}

/// Whether an agent is to drain.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_to_drain(store: &Store, agent_id: &str) -> Result<bool, StoreError> {
    let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM agent_drains WHERE agent_id = ?1")
        .bind(agent_id)
        .fetch_optional(store.pool())
        .await?;
    Ok(found.is_some())
}

/// Who is to drain, and since when.
///
/// # Errors
/// When the database cannot be read.
pub async fn drains(store: &Store) -> Result<HashMap<String, Timestamp>, StoreError> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT agent_id, create_time FROM agent_drains").fetch_all(store.pool()).await?;
    // A time beyond what can be shown is nobody's doing.
    let read = |(id, time): (String, i64)| Some((id, Timestamp::from_microsecond(time).ok()?));
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Writes down when agents were last heard, all in one transaction.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_seen(store: &Store, seen: &[(String, Timestamp)]) -> Result<(), StoreError> {
    if seen.is_empty() {
        return Ok(());
    }
    let mut tx = store.begin_write().await?;
    for (id, time) in seen {
        sqlx::query("UPDATE agents SET last_seen_time = max(last_seen_time, ?1) WHERE id = ?2")
            .bind(time.as_microsecond())
            .bind(id)
            .execute(tx.connection())
            .await?;
    }
    tx.commit().await
}

/// How many agents make up the fleet: those that were last heard within an hour of each other.
///
/// # Errors
/// When the database cannot be read.
pub async fn size(store: &Store) -> Result<usize, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM agents
         WHERE last_seen_time >= (SELECT max(last_seen_time) FROM agents) - ?1",
    )
    .bind(FLEET_MICROSECONDS)
    .fetch_one(store.pool())
    .await?;
    Ok(usize::try_from(count).unwrap_or(0))
}
