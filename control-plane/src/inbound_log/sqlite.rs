//! Inbound logs in SQLite.
//!
//! One file (`logs.db`) with one writer task: it takes report batches of all agents, commits many
//! of them in one transaction and then answers all of them (group commit). Rows are keyed by commit
//! sequence. No index lies on random keys, because such an index costs nine tenths of the write speed
//! at a million rows: repeats are recognized by (agent, buffer, sequence) and by a window of recent event
//! ids in memory ([`event_index`]), and older ids are looked up in sealed, sorted segments.
//!
//! Reading order: [`schema`] (tables), [`writer`] (group commit), [`insert`] (many rows per statement),
//! [`positions`], [`event_index`], [`instance_index`], [`unrouted_keys`], [`changes`] (the order of all of it), [`failing`], then the
//! readers [`query`], [`attempts`], [`live`] and [`unrouted`].

use std::{
    path::Path,
    sync::{Arc, RwLock},
};

use gateway_core::id::TenantId;
use gateway_proto::v1;
use gateway_runtime::supervise::{OnEnd, Supervisor};
use jiff::Timestamp;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AttemptPage, FailingSubscription, LogFilter, LogPage, LogStore, LogStoreError, LogWatch, ReportBatch,
    Submitted, Unrouted, UnroutedNumber, UnroutedPage, WatchFrom,
};

mod schema;
mod writer;
mod insert;
mod event_index;
mod instance_index;
mod unrouted_keys;
mod positions;
mod changes;
mod failing;
mod query;
mod attempts;
mod live;
mod unrouted;
#[cfg(test)]
mod tests;

pub(crate) use schema::{SCHEMA_VERSION, forget_epoch};

/// Name of the database file in the data directory.
pub const FILE_NAME: &str = "logs.db";

use event_index::EventIndex;
use writer::{Append, Channels, Forget, Job, Writer};

/// Report batches waiting for the writer. When full, report streams wait, and agents keep their records.
const BATCHES_WAITING_MAX: usize = 64;
/// Changes of subscriptions whose failures are to be forgotten, waiting for the writer. When full, callers
/// wait for the transaction that runs.
const FORGETS_WAITING_MAX: usize = 64;

/// The inbound log in `logs.db`. Cheap to clone.
#[derive(Clone)]
pub struct SqliteLogStore {
    inner: Arc<Inner>,
}

struct Inner {
    readers: SqlitePool,
    jobs: mpsc::Sender<Job>,
    forgets: mpsc::Sender<Forget>,
    index: Arc<RwLock<EventIndex>>,
    /// Names the database in cursors.
    epoch: String,
    /// The newest committed change.
    head: watch::Receiver<i64>,
    /// The newest committed unrouted callback.
    unrouted_head: watch::Receiver<i64>,
    /// Cancelled when the writer stops, so that watches end.
    closing: CancellationToken,
}

impl SqliteLogStore {
    /// Opens or creates `logs.db` in `data_dir`, and starts its writer. Subscriptions that are to be paused
    /// go to `failing`; what finds no room there comes again with a later failure.
    ///
    /// # Errors
    /// [`LogStoreError::Open`] when the file cannot be opened or its tables not be made,
    /// [`LogStoreError::OtherSchema`] when another version of this program wrote it.
    pub async fn open(
        data_dir: &Path,
        supervisor: &Supervisor,
        failing: mpsc::Sender<FailingSubscription>,
    ) -> Result<Self, LogStoreError> {
        Self::open_with(data_dir, supervisor, failing, event_index::SEGMENT_ROWS).await
    }

    async fn open_with(
        data_dir: &Path,
        supervisor: &Supervisor,
        failing: mpsc::Sender<FailingSubscription>,
        segment_rows: usize,
    ) -> Result<Self, LogStoreError> {
        let path = data_dir.join(FILE_NAME);
        let open = |source: sqlx::Error| LogStoreError::Open {
            database: path.display().to_string(),
            source: Arc::new(source),
        };
        let mut connection = schema::open_writer(&path).await?;
        let epoch = schema::epoch(&mut connection).await.map_err(open)?;
        let readers = schema::open_readers(&path).await.map_err(open)?;
        let index = EventIndex::load(&mut connection, segment_rows).await.map_err(open)?;
        let index = Arc::new(RwLock::new(index));
        let (jobs, job_receiver) = mpsc::channel(BATCHES_WAITING_MAX);
        let (forgets, forget_receiver) = mpsc::channel(FORGETS_WAITING_MAX);
        let channels = Channels { jobs: job_receiver, forgets: forget_receiver, failing };
        let closing = CancellationToken::new();
        let (writer, head, unrouted_head) =
            Writer::new(connection, path.clone(), channels, Arc::clone(&index), closing.clone())
                .await
                .map_err(open)?;
        supervisor.spawn("inbound-log-writer", OnEnd::Shutdown, |stop| writer.run(stop));
        let inner = Inner { readers, jobs, forgets, index, epoch, head, unrouted_head, closing };
        Ok(Self { inner: Arc::new(inner) })
    }
}

#[tonic::async_trait]
impl LogStore for SqliteLogStore {
    async fn submit(&self, batch: ReportBatch) -> Result<Submitted, LogStoreError> {
        let (answer, receiver) = oneshot::channel();
        let job = Job::Append(Append { batch, answer });
        self.inner.jobs.send(job).await.map_err(|_| LogStoreError::Closed)?;
        Ok(Submitted(receiver))
    }

    async fn forget_failures(&self, subscription_id: &str, time: Timestamp) -> Result<(), LogStoreError> {
        let forget = Forget { subscription_id: subscription_id.into(), time };
        self.inner.forgets.send(forget).await.map_err(|_| LogStoreError::Closed)
    }

    fn closing(&self) -> &CancellationToken {
        &self.inner.closing
    }

    async fn list(
        &self,
        filter: &LogFilter,
        before: Option<i64>,
        limit: usize,
    ) -> Result<LogPage, LogStoreError> {
        self.inner.list(filter, before, limit).await
    }

    async fn get(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
    ) -> Result<Option<v1::InboundLog>, LogStoreError> {
        self.inner.get(tenant_id, event_id).await
    }

    async fn list_attempts(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
        subscription_id: Option<&str>,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Option<AttemptPage>, LogStoreError> {
        self.inner.list_attempts(tenant_id, event_id, subscription_id, after, limit).await
    }

    async fn last_event_time(&self, instance_id: &str) -> Result<Option<Timestamp>, LogStoreError> {
        self.inner.last_event_time(instance_id).await
    }

    async fn watch(&self, filter: LogFilter, from: WatchFrom<'_>) -> Result<LogWatch, LogStoreError> {
        self.inner.watch(filter, from).await
    }

    async fn list_unrouted(
        &self,
        route_ids: Option<&[String]>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<UnroutedPage, LogStoreError> {
        self.inner.list_unrouted(route_ids, before, limit).await
    }

    async fn unrouted_of(
        &self,
        number: &UnroutedNumber,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Unrouted>, LogStoreError> {
        self.inner.unrouted_of(number, after, limit).await
    }

    async fn unrouted_numbers(&self, after: i64) -> Result<Vec<UnroutedNumber>, LogStoreError> {
        self.inner.unrouted_numbers(after).await
    }

    async fn delete_unrouted(&self, seqs: Vec<i64>) -> Result<(), LogStoreError> {
        self.inner.delete_unrouted(seqs).await
    }

    fn watch_unrouted(&self) -> watch::Receiver<i64> {
        self.inner.unrouted_head.clone()
    }
}
