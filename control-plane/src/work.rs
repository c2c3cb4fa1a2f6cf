//! What agents are asked to do: durable, at least once, by region.
//!
//! Work is a row until an agent acknowledges it. A piece of work is leased to one open work stream at a
//! time; the lease ends with the stream or after [`LEASE_TIME`], and then any agent of the region gets the
//! work. Leases are in memory, since they mean nothing after a restart.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gateway_core::snapshot::canonical_number;
use gateway_proto::v1::{self, work::Work as Task};
use gateway_runtime::{
    clock,
    supervise::{OnEnd, Supervisor},
};
use tokio::{sync::watch, time::Instant};
use tracing::warn;
use uuid::Uuid;

use crate::{
    app::State,
    inbound_log::{LogStore, LogStoreError, Unrouted, UnroutedNumber},
    store::{self, Store, StoreError, WriteTx, webhook_subscriptions, work::QueuedWork},
};

mod accounts;

use accounts::Accounts;

/// How long an agent has to make work durable and acknowledge it.
pub const LEASE_TIME: Duration = Duration::from_secs(30);
/// Work that one stream holds unacknowledged; more waits in the queue.
const LEASED_PER_STREAM_MAX: usize = 256;
/// How often a stream looks again for work that its agent's configuration was too old for.
const CONFIG_LOOK: Duration = Duration::from_millis(200);
/// Rows looked at by one query.
const ROWS_CHUNK: i64 = 256;
/// Unrouted callbacks moved by one transaction.
const CLAIM_CHUNK: usize = 100;
/// Before the first place in the list of unrouted callbacks.
const BEFORE_ALL: i64 = -1;
/// Pause after a failure to claim.
const CLAIM_RETRY: Duration = Duration::from_secs(5);
/// Pause after callbacks were claimed: an agent that cannot use the instance reports them again at once.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);

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
    logs: LogStore,
    leases: Mutex<Leases>,
    /// The configuration that an agent must use to be given a claimed callback: with an older one it would
    /// not know the webhook subscription, and record the events without deliveries. At least 1, so that an
    /// agent without configuration is given none.
    claim_version: AtomicU64,
    /// Counts events that can make work available.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Leases {
    by_work: HashMap<String, Lease>,
    streams: u64,
}

struct Lease {
    stream: u64,
    end: Instant,
}

impl WorkQueue {
    /// The queue in `store`; unrouted callbacks come out of `logs`.
    pub fn new(store: Store, logs: LogStore) -> Self {
        let inner = Inner {
            store,
            logs,
            leases: Mutex::default(),
            claim_version: AtomicU64::new(1),
            changed: watch::Sender::new(0),
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
        for task in work {
            Self::enqueue_in(&mut tx, regions, task).await?;
        }
        tx.commit().await?;
        self.changed();
        Ok(())
    }

    /// Queues work inside the caller's transaction; after its commit the caller calls [`Self::wake`].
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn enqueue_in(tx: &mut WriteTx, regions: &[String], work: Task) -> Result<(), StoreError> {
        let work = v1::Work { id: format!("work_{}", Uuid::now_v7().simple()), work: Some(work) };
        store::work::insert(tx, regions, &work, clock::now()).await
    }

    /// Lets open work streams look for what was queued with [`Self::enqueue_in`].
    pub fn wake(&self) {
        self.changed();
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
        self.inner.claim_version.fetch_max(self.inner.store.version().await?, Ordering::Relaxed);
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
        self.inner.claim_version.fetch_max(self.inner.store.version().await?, Ordering::Relaxed);
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
    pub fn open(&self, region: &str, tenant_id: Option<&str>) -> WorkStream {
        let mut leases = self.lock();
        leases.streams += 1;
        let stream = leases.streams;
        WorkStream {
            queue: self.clone(),
            region: region.to_owned(),
            tenant_id: tenant_id.map(str::to_owned),
            stream,
            holds_back: false,
            changed: self.inner.changed.subscribe(),
        }
    }

    fn changed(&self) {
        self.inner.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open work stream. What it holds is free again when it is dropped.
pub struct WorkStream {
    queue: WorkQueue,
    region: String,
    /// The tenant of the agent; None for an agent of the platform.
    tenant_id: Option<String>,
    stream: u64,
    /// Whether there is work that the agent's configuration is too old for.
    holds_back: bool,
    changed: watch::Receiver<u64>,
}

impl WorkStream {
    /// Leases what is free, oldest first, perhaps nothing, to an agent that uses the configuration
    /// `applied_version`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn lease(&mut self, applied_version: u64) -> Result<Vec<v1::Work>, StoreError> {
        // What comes from here on wakes `available`.
        self.changed.mark_unchanged();
        self.holds_back = false;
        let is_current = applied_version >= self.queue.inner.claim_version.load(Ordering::Relaxed);
        let mut leased = Vec::new();
        let mut after = 0;
        loop {
            let store = &self.queue.inner.store;
            let mut rows = store::work::list(store, &self.region, after, ROWS_CHUNK).await?;
            let Some(last) = rows.last() else { break };
            after = last.seq;
            if let Some(tenant_id) = &self.tenant_id {
                rows = store::work::of_tenant(store, tenant_id, rows).await?;
            }
            if !self.take(rows, is_current, &mut leased) {
                break;
            }
        }
        if !leased.is_empty() {
            // Others wait for the end of a lease: now there is one more.
            self.queue.changed();
        }
        Ok(leased)
    }

    /// Leases the free ones of `rows`, without claimed callbacks when the agent's configuration is not
    /// current; false when the stream holds enough.
    fn take(&mut self, rows: Vec<QueuedWork>, is_current: bool, leased: &mut Vec<v1::Work>) -> bool {
        let now = Instant::now();
        let mut leases = self.queue.lock();
        leases.by_work.retain(|_, lease| lease.end > now);
        let mut held = leases.by_work.values().filter(|lease| lease.stream == self.stream).count();
        for QueuedWork { work, .. } in rows {
            if !is_current && matches!(work.work, Some(Task::UnroutedCallback(_))) {
                self.holds_back = true;
                continue;
            }
            if held >= LEASED_PER_STREAM_MAX {
                return false;
            }
            if !leases.by_work.contains_key(&work.id) {
                leases.by_work.insert(work.id.clone(), Lease { stream: self.stream, end: now + LEASE_TIME });
                leased.push(work);
                held += 1;
            }
        }
        true
    }

    /// Resolves when there may be work to lease: some was queued or given back, a lease ended, or the agent
    /// may have newer configuration by now. Cancel safe.
    pub async fn available(&mut self) {
        let lease_end = self.queue.lock().by_work.values().map(|lease| lease.end).min();
        let lease_ended = async {
            match lease_end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        let look_again = async {
            if self.holds_back {
                tokio::time::sleep(CONFIG_LOOK).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            // The sender lives as long as the queue, which this stream holds.
            _ = self.changed.changed() => {}
            () = lease_ended => {}
            () = look_again => {}
        }
    }

    /// Removes work that is durable on the agent. An agent of a tenant removes what it holds and nothing else; one
    /// of the platform may also have had it over an earlier stream.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn acknowledge(&self, ids: &[String]) -> Result<(), StoreError> {
        let ids: Vec<String> = match &self.tenant_id {
            None => ids.to_vec(),
            Some(_) => ids.iter().filter(|id| self.holds(id)).cloned().collect(),
        };
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.queue.inner.store.begin_write().await?;
        store::work::delete(&mut tx, &ids).await?;
        tx.commit().await?;
        let mut leases = self.queue.lock();
        for id in &ids {
            leases.by_work.remove(id);
        }
        drop(leases);
        self.queue.changed();
        Ok(())
    }
}

impl WorkStream {
    fn holds(&self, id: &str) -> bool {
        self.queue.lock().by_work.get(id).is_some_and(|lease| lease.stream == self.stream)
    }
}

impl Drop for WorkStream {
    fn drop(&mut self) {
        self.queue.lock().by_work.retain(|_, lease| lease.stream != self.stream);
        self.queue.changed();
    }
}

/// Starts the task that finds instances for unrouted callbacks. Creating an instance's first webhook
/// subscription claims its callbacks at once, and so does a change of its number; this one takes care of
/// those that an agent reports after that, because it did not know the instance yet, and of those that a
/// crash left behind.
pub fn spawn(state: &State, supervisor: &Supervisor) {
    let state = state.clone();
    supervisor.spawn("claim-unrouted", OnEnd::Shutdown, |stop| async move {
        let mut newest = state.logs.watch_unrouted();
        let mut looked_at = 0;
        loop {
            let head = *newest.borrow_and_update();
            let pause = match claim(&state, looked_at).await {
                Ok(moved) => {
                    looked_at = head;
                    if moved > 0 { CLAIM_PAUSE } else { Duration::ZERO }
                }
                Err(error) => {
                    warn!(%error, "failed to claim unrouted callbacks");
                    newest.mark_changed();
                    CLAIM_RETRY
                }
            };
            let again = async {
                tokio::time::sleep(pause).await;
                // The sender lives in the inbound log's writer, which ends at shutdown only.
                if newest.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = again => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

async fn claim(state: &State, after: i64) -> Result<usize, ClaimError> {
    let mut moved = 0;
    for number in state.logs.unrouted_numbers(after).await? {
        if number.number_key.is_empty() {
            moved += state.work.claim_accounts(&number.route_id).await?;
        } else if let Some(instance) = claimant(&state.store, &number).await? {
            moved += state.work.claim_unrouted(&instance).await?;
        }
    }
    Ok(moved)
}

/// The instance that claims a number.
async fn claimant(store: &Store, number: &UnroutedNumber) -> Result<Option<v1::Instance>, StoreError> {
    store.instance_of_number(&number.route_id, &number.number_key).await
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn task(number: u32) -> Task {
        Task::TestEvent(v1::TestEventWork { event_id: format!("evt_{number}"), ..Default::default() })
    }

    fn ids(work: &[v1::Work]) -> Vec<String> {
        work.iter().map(|work| work.id.clone()).collect()
    }

    /// Work goes to one stream of its region at a time, oldest first; it is free again when the stream
    /// ends, and gone for good when it is acknowledged, also after a restart.
    #[tokio::test]
    async fn work_is_leased_until_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let store = Store::open(dir.path()).await.unwrap();
        let logs = LogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
        let queue = WorkQueue::new(store.clone(), logs.clone());
        let [mut one, mut two, mut far] = ["eu", "eu", "eu-2"].map(|region| queue.open(region, None));
        queue.enqueue(&["eu".into(), "us".into()], task(1)).await.unwrap();
        queue.enqueue(&[], task(2)).await.unwrap();
        let leased = one.lease(0).await.unwrap();
        assert_eq!(
            leased.iter().map(|work| work.work.clone().unwrap()).collect::<Vec<_>>(),
            [task(1), task(2)]
        );
        assert!(two.lease(0).await.unwrap().is_empty() && far.lease(0).await.unwrap().is_empty());
        one.acknowledge(&ids(&leased[..1])).await.unwrap();
        drop(one);
        tokio::time::timeout(DEADLINE, two.available()).await.unwrap();
        assert_eq!(ids(&two.lease(0).await.unwrap()), ids(&leased[1..]));
        let restarted = WorkQueue::new(store, logs);
        assert_eq!(ids(&restarted.open("us", None).lease(0).await.unwrap()), ids(&leased[1..]));
        supervisor.stop().cancel();
        supervisor.wait(DEADLINE).await.unwrap();
    }

    /// An agent of a tenant cannot acknowledge away what was not given to it.
    #[tokio::test]
    async fn tenants_agents_remove_only_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let store = Store::open(dir.path()).await.unwrap();
        let logs = LogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
        let queue = WorkQueue::new(store, logs);
        queue.enqueue(&[], task(1)).await.unwrap();
        let mut platform = queue.open("eu", None);
        let leased = ids(&platform.lease(0).await.unwrap());
        let mut bound = queue.open("eu", Some("acme"));
        assert!(bound.lease(0).await.unwrap().is_empty());
        bound.acknowledge(&leased).await.unwrap();
        drop(platform);
        assert_eq!(ids(&queue.open("eu", None).lease(0).await.unwrap()), leased);
        supervisor.stop().cancel();
        supervisor.wait(DEADLINE).await.unwrap();
    }

    /// A stream holds a bounded amount of unacknowledged work; the rest waits for its acknowledgements.
    #[tokio::test]
    async fn leases_of_a_stream_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let store = Store::open(dir.path()).await.unwrap();
        let logs = LogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
        let queue = WorkQueue::new(store, logs);
        let total = u32::try_from(LEASED_PER_STREAM_MAX).unwrap() + 10;
        queue.enqueue_all(&[], (0..total).map(task).collect()).await.unwrap();
        let mut stream = queue.open("eu", None);
        let first = stream.lease(0).await.unwrap();
        assert_eq!(first.len(), LEASED_PER_STREAM_MAX);
        assert!(stream.lease(0).await.unwrap().is_empty());
        stream.acknowledge(&ids(&first)).await.unwrap();
        assert_eq!(stream.lease(0).await.unwrap().len(), 10);
        supervisor.stop().cancel();
        supervisor.wait(DEADLINE).await.unwrap();
    }
}
