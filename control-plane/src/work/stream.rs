//! One agent's work stream.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use gateway_proto::v1;
use tokio::{sync::Notify, time::Instant};
use tracing::error;

use super::{
    WorkQueue,
    lease::{LEASE_TIME, Took},
};
use crate::store::{self, StoreError, work::WorkKind};

/// How often a stream looks again for work that its agent's configuration was too old for.
const CONFIG_LOOK: Duration = Duration::from_millis(200);
/// Rows looked at by one query.
const ROWS_CHUNK: i64 = 256;

/// An open work stream. What it holds is free again when it is dropped.
pub struct WorkStream {
    queue: WorkQueue,
    region: String,
    /// The tenant of the agent; None for an agent of the platform.
    tenant_id: Option<String>,
    stream: u64,
    takes_hand_overs: bool,
    /// Whether there is work that the agent's configuration is too old for.
    holds_back: bool,
    woken: Arc<Notify>,
}

impl WorkStream {
    pub(super) fn new(queue: WorkQueue, agent_id: &str, region: &str, tenant_id: Option<&str>) -> Self {
        let (stream, woken) = queue.lock().open(agent_id, region, tenant_id);
        let (region, tenant_id) = (region.to_owned(), tenant_id.map(str::to_owned));
        Self { queue, region, tenant_id, stream, takes_hand_overs: false, holds_back: false, woken }
    }

    /// The agent says that it knows how to take over deliveries: from now on it is given some.
    pub fn takes_hand_overs(&mut self) {
        self.takes_hand_overs = true;
        self.queue.lock().stream(self.stream).takes_hand_overs = true;
    }

    /// Leases what is free to an agent that uses the configuration `applied_version`, the most urgent kind first and
    /// oldest first within a kind; perhaps nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn lease(&mut self, applied_version: u64) -> Result<Vec<v1::Work>, StoreError> {
        self.holds_back = false;
        self.queue.lock().expire();
        let mut taken = Vec::new();
        let outcome = self.look(applied_version, &mut taken).await;
        let read = match outcome {
            Ok(()) if taken.is_empty() => return Ok(Vec::new()),
            Ok(()) => store::work::read(&self.queue.inner.store, &taken).await,
            Err(error) => Err(error),
        };
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // Nobody was given it.
                self.queue.lock().free_places(self.stream, &taken);
                return Err(error);
            }
        };
        let mut missing: HashSet<i64> = taken.into_iter().collect();
        let (mut leased, mut unreadable) = (Vec::with_capacity(read.len()), Vec::new());
        for (seq, work) in read {
            match work {
                Ok(work) => {
                    missing.remove(&seq);
                    leased.push((seq, work));
                }
                Err(failure) => {
                    let error = format!("{:#}", anyhow::Error::from(failure));
                    error!(seq, error, "failed to open queued work: no agent gets it; restore a backup");
                    unreadable.push(seq);
                }
            }
        }
        if !missing.is_empty() {
            self.queue.lock().forget(self.stream, &missing, &unreadable);
        }
        Ok(leased.into_iter().map(|(_, work)| work).collect())
    }

    async fn look(&mut self, applied_version: u64, taken: &mut Vec<i64>) -> Result<(), StoreError> {
        for kind in WorkKind::ALL {
            if kind == WorkKind::DeliveryHandOver && !self.takes_hand_overs {
                continue;
            }
            loop {
                let Some(after) = self.queue.lock().look_from(self.stream, kind) else { break };
                let store = &self.queue.inner.store;
                let whose = (self.region.as_str(), self.tenant_id.as_deref());
                let rows = store::work::waiting(store, kind, whose, after, ROWS_CHUNK).await?;
                let is_last = rows.len() < usize::try_from(ROWS_CHUNK).unwrap_or(usize::MAX);
                let took = self.queue.lock().take(self.stream, kind, rows, applied_version, taken);
                self.holds_back |= took == Took::HoldsBack;
                if is_last || took != Took::All {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Resolves when there may be work to lease: some was queued or given back, a lease ended, or the agent
    /// may have newer configuration by now. Cancel safe.
    pub async fn available(&mut self) {
        let longest = Instant::now() + LEASE_TIME;
        let lease_end = self.queue.lock().next_end().map_or(longest, |end| end.min(longest));
        let look_again = async {
            if self.holds_back {
                tokio::time::sleep(CONFIG_LOOK).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.woken.notified() => {}
            // Also when nobody leases, as all of them may drain: an end that is past must not come again and again.
            () = tokio::time::sleep_until(lease_end) => self.queue.lock().expire(),
            () = look_again => {}
        }
    }

    /// Removes work that is durable on the agent. An agent of a tenant removes what it holds and nothing else; one
    /// of the platform may also have had it over an earlier stream.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn acknowledge(&self, ids: Vec<String>) -> Result<(), StoreError> {
        let ids = if self.tenant_id.is_some() { self.queue.lock().held_of(self.stream, &ids) } else { ids };
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.queue.inner.store.begin_write().await?;
        store::work::delete(&mut tx, &ids).await?;
        tx.commit().await?;
        self.queue.lock().done(self.stream, &ids);
        Ok(())
    }

    /// Takes out of `leased` what the stream holds no more, because it was not sent in the time of a lease.
    pub fn keep_held(&self, leased: &mut VecDeque<v1::Work>) {
        let leases = self.queue.lock();
        leased.retain(|work| leases.is_held_by(self.stream, &work.id));
    }

    /// Gives back what was leased and not sent.
    pub fn give_back(&self, ids: &[String]) {
        self.queue.lock().free(self.stream, ids);
    }
}

#[cfg(test)]
impl WorkStream {
    /// Up to which place it has looked at the work of a kind.
    pub(super) fn looked(&self, kind: WorkKind) -> Option<i64> {
        self.queue.lock().look_from(self.stream, kind)
    }
}

impl Drop for WorkStream {
    fn drop(&mut self) {
        self.queue.lock().close(self.stream);
    }
}
