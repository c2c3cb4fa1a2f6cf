//! What agents are asked to do: durable, at least once, by region.
//!
//! Work is a row until an agent acknowledges it. A piece of work is leased to one open work stream at a
//! time; the lease ends with the stream or after [`LEASE_TIME`] without an acknowledgement, and then any agent of the
//! region gets the work.
//!
//! [`stream`] gives work out, [`lease`] knows who holds what; [`claim`] finds instances for unrouted callbacks,
//! [`deliveries`] takes what agents give away, [`watch`] tells operators.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gateway_core::snapshot::canonical_number;
use gateway_proto::v1::{self, work::Work as Task};
use gateway_runtime::supervise::Supervisor;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    app::State,
    inbound_log::{LogStore, LogStoreError, Unrouted, UnroutedNumber},
    store::{self, Store, StoreError, WriteTx, webhook_subscriptions, work::NewWork},
};

mod lease;
mod stream;
mod accounts;
mod claim;
mod deliveries;
mod watch;
#[cfg(test)]
mod tests;

use accounts::Accounts;
use lease::Leases;
use watch::WorkMetrics;

pub use claim::DueClaim;
pub use deliveries::{GivenAway, settled};
pub use lease::LEASE_TIME;
pub use stream::WorkStream;
pub use watch::HandOverOutcome;

/// Unrouted callbacks moved by one transaction.
const CLAIM_CHUNK: usize = 100;
/// Before the first place in the list of unrouted callbacks.
const BEFORE_ALL: i64 = -1;

/// Unrouted callbacks could not be moved into the queue.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The queue could not be written or read.
    #[error("queue unrouted callbacks")]
    Store(#[from] StoreError),
    /// The list of unrouted callbacks could not be read or written.
    #[error("take unrouted callbacks out of their list")]
    Logs(#[from] LogStoreError),
}

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct WorkQueue {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    logs: Arc<dyn LogStore>,
    leases: Mutex<Leases>,
    metrics: WorkMetrics,
    /// Told when callbacks wait that nobody claims although they could be.
    unclaimed: Notify,
}

impl WorkQueue {
    /// The queue in `store`; unrouted callbacks come out of `logs`.
    pub fn new(store: Store, logs: Arc<dyn LogStore>) -> Self {
        let inner = Inner {
            store,
            logs,
            leases: Mutex::default(),
            metrics: WorkMetrics::default(),
            unclaimed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Queues work for one agent of `regions` (empty: of any region). It is durable when this returns.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn enqueue(&self, regions: &[String], work: Task) -> Result<(), StoreError> {
        self.enqueue_all(regions, vec![work]).await
    }

    /// Queues several pieces of work in one transaction.
    ///
    /// # Errors
    /// When the store cannot be written; then nothing is queued.
    pub async fn enqueue_all(&self, regions: &[String], work: Vec<Task>) -> Result<(), StoreError> {
        let mut tx = self.inner.store.begin_write().await?;
        let work: Vec<NewWork> = work.into_iter().map(|task| new_work(regions, task)).collect();
        store::work::insert(&mut tx, &work).await?;
        let (queue, regions) = (self.clone(), regions.to_vec());
        tx.after_commit(move || queue.lock().wake(|open| open.serves(&regions)));
        tx.commit().await
    }

    /// Queues work inside the caller's transaction; after its commit the caller calls [`Self::wake`].
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn enqueue_in(tx: &mut WriteTx, regions: &[String], work: Task) -> Result<(), StoreError> {
        store::work::insert(tx, &[new_work(regions, work)]).await
    }

    /// Lets open work streams look for what was queued with [`Self::enqueue_in`].
    pub fn wake(&self) {
        self.lock().wake(|_| true);
    }

    /// Moves the unrouted callbacks that `instance` claims into the queue: those of its number, and those
    /// of its inbound route that carry no number and are about it. Returns how many: none while the instance has no webhook
    /// subscription, since nobody would get them. Each is queued before it leaves the list, so a crash in
    /// between repeats it; agents recognize its events by their ids.
    ///
    /// # Errors
    /// When a database fails; what was moved so far stays moved, and a repeat goes on.
    pub async fn claim_unrouted(&self, instance: &v1::Instance) -> Result<usize, ClaimError> {
        let mut connection = self.inner.store.reader().await?;
        let has_subscription = webhook_subscriptions::has_any(&mut connection, &instance.id).await?;
        drop(connection);
        if !has_subscription {
            return Ok(0);
        }
        let number_key = canonical_number(&instance.provider_number_id);
        let number = UnroutedNumber { route_id: instance.inbound_route_id.clone(), number_key };
        let mut moved = 0;
        loop {
            let callbacks = self.inner.logs.unrouted_of(&number, BEFORE_ALL, CLAIM_CHUNK).await?;
            if callbacks.is_empty() {
                break;
            }
            moved += self.move_to_queue(&instance.regions, callbacks).await?;
        }
        Ok(moved + self.claim_accounts(&instance.inbound_route_id).await?)
    }

    /// Moves those unrouted callbacks of a route that carry no number into the queue which are about instances
    /// with a webhook subscription.
    async fn claim_accounts(&self, route_id: &str) -> Result<usize, ClaimError> {
        let number = UnroutedNumber { route_id: route_id.to_owned(), number_key: String::new() };
        let mut callbacks = self.inner.logs.unrouted_of(&number, BEFORE_ALL, CLAIM_CHUNK).await?;
        if callbacks.is_empty() {
            return Ok(0);
        }
        let accounts = Accounts::of(&self.inner.store, route_id).await?;
        let mut moved = 0;
        while let Some(last) = callbacks.last() {
            let after = last.seq;
            let mut claimed: BTreeMap<&[String], Vec<Unrouted>> = BTreeMap::new();
            for unrouted in callbacks {
                if let Some(instance) = accounts.claimant(&unrouted.callback) {
                    claimed.entry(&instance.regions).or_default().push(unrouted);
                }
            }
            for (regions, callbacks) in claimed {
                moved += self.move_to_queue(regions, callbacks).await?;
            }
            callbacks = self.inner.logs.unrouted_of(&number, after, CLAIM_CHUNK).await?;
        }
        Ok(moved)
    }

    async fn move_to_queue(&self, regions: &[String], callbacks: Vec<Unrouted>) -> Result<usize, ClaimError> {
        let seqs: Vec<i64> = callbacks.iter().map(|unrouted| unrouted.seq).collect();
        let moved = seqs.len();
        let work = callbacks.into_iter().map(|unrouted| Task::UnroutedCallback(unrouted.callback));
        self.enqueue_all(regions, work.collect()).await?;
        self.inner.logs.delete_unrouted(seqs).await?;
        Ok(moved)
    }

    /// An agent of `region` opened its work stream. One of a tenant is given work of that tenant only.
    pub fn open(&self, agent_id: &str, region: &str, tenant_id: Option<&str>) -> WorkStream {
        WorkStream::new(self.clone(), agent_id, region, tenant_id)
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_work(regions: &[String], task: Task) -> NewWork {
    let work = v1::Work { id: format!("work_{}", Uuid::now_v7().simple()), work: Some(task) };
    NewWork { work, regions: regions.to_vec() }
}

/// Starts the task that finds instances for unrouted callbacks, and the one that watches the queue. Creating an
/// instance's first webhook subscription claims its callbacks at once, and so does a change of its number; the task
/// takes care of those that an agent reports after that, because it did not know the instance yet, and of those
/// that a crash left behind.
pub fn spawn(state: &State, supervisor: &Supervisor) {
    claim::spawn(state, supervisor);
    watch::spawn(state, supervisor);
}
