//! The fleet as a whole: who was asked to drain, who was heard when, how many there are.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use tonic::async_trait;

use super::{Connection as _, Store, StoreError, WriteTx};

/// Agents heard within so long of the one heard last make up the fleet; the others were destroyed some time
/// ago. Every agent that is connected is written down every five minutes.
const FLEET_SPAN: SignedDuration = SignedDuration::from_hours(1);

/// Reads what is known of the fleet.
#[async_trait]
pub trait FleetReads: Send {
    /// Whether an agent was asked to drain.
    async fn is_to_drain(&mut self, agent_id: &str) -> Result<bool, StoreError>;

    /// Who was asked to drain, and when, in no order.
    async fn drains(&mut self) -> Result<Vec<(String, Timestamp)>, StoreError>;

    /// How many agents were heard within `span` of the one heard last.
    async fn fleet_size(&mut self, span: SignedDuration) -> Result<usize, StoreError>;
}

/// Changes what is known of the fleet.
#[async_trait]
pub trait FleetWrites: Send {
    /// Notes that an agent was asked to drain at `now`. One that is to drain already stays so since then.
    async fn insert_drain(&mut self, agent_id: &str, now: Timestamp) -> Result<(), StoreError>;

    /// Notes that an agent is not to drain.
    async fn delete_drain(&mut self, agent_id: &str) -> Result<(), StoreError>;

    /// Notes that an agent was heard at `time`, unless it was heard later. Nothing when it is not there.
    async fn see_agent(&mut self, agent_id: &str, time: Timestamp) -> Result<(), StoreError>;
}

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
    if drains {
        tx.writes().insert_drain(agent_id, now).await
    } else {
        tx.writes().delete_drain(agent_id).await
    }
}

/// Whether an agent is to drain.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_to_drain(store: &Store, agent_id: &str) -> Result<bool, StoreError> {
    store.reader().await?.rows().is_to_drain(agent_id).await
}

/// Who is to drain, and since when.
///
/// # Errors
/// When the database cannot be read.
pub async fn drains(store: &Store) -> Result<HashMap<String, Timestamp>, StoreError> {
    Ok(store.reader().await?.rows().drains().await?.into_iter().collect())
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
        tx.writes().see_agent(id, *time).await?;
    }
    tx.commit().await
}

/// How many agents make up the fleet: those that were last heard within an hour of each other.
///
/// # Errors
/// When the database cannot be read.
pub async fn size(store: &Store) -> Result<usize, StoreError> {
    store.reader().await?.rows().fleet_size(FLEET_SPAN).await
}
