//! Inbound logs: what came in, what became of it, and callbacks that found no instance.
//!
//! One SQLite file (`logs.db`) with one writer task: it takes report batches of all agents, commits many
//! of them in one transaction and then answers all of them (group commit). Rows are keyed by commit
//! sequence. No index lies on random keys, because such an index costs nine tenths of the write speed
//! at a million rows: repeats are recognized by (agent, buffer, sequence) and by a window of recent event
//! ids in memory ([`event_index`]), and older ids are looked up in sealed, sorted segments.
//!
//! Reading order: [`schema`] (tables), [`writer`] (group commit), [`stage`] (what a batch changes),
//! [`insert`] (many rows per statement), [`event_index`], [`instance_index`], [`changes`] (the order of all of it), [`failing`]
//! (subscriptions that only fail), then the readers [`query`], [`live`] and [`unrouted`].

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use gateway_proto::v1;
use gateway_runtime::supervise::{OnEnd, Supervisor};
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

mod schema;
mod writer;
mod stage;
mod insert;
mod event_index;
mod instance_index;
mod changes;
mod failing;
mod query;
mod live;
mod unrouted;
#[cfg(test)]
mod tests;

pub use failing::{FAILING_ATTEMPTS_MIN, FAILING_MAX, FailingSubscription};
pub use live::{LogChange, LogWatch, WatchFrom};
pub use query::{AttemptPage, LogFilter, LogPage};
pub(crate) use schema::{SCHEMA_VERSION, forget_epoch};
pub use unrouted::{UNROUTED_PER_ROUTE_MAX, Unrouted, UnroutedNumber};

/// Name of the database file in the data directory.
pub const FILE_NAME: &str = "logs.db";

use event_index::EventIndex;
use writer::{Append, Channels, Forget, Job, Writer};

/// Report batches waiting for the writer. When full, report streams wait, and agents keep their records.
const BATCHES_WAITING_MAX: usize = 64;
/// Changes of subscriptions whose failures are to be forgotten, waiting for the writer. When full, callers
/// wait for the transaction that runs.
const FORGETS_WAITING_MAX: usize = 64;

/// The inbound log could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogStoreError {
    /// The database could not be opened or prepared.
    #[error("open inbound log database `{}`", .path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The database was written by another version of this program; it is left as it is.
    #[error(
        "open inbound log database `{}` with schema version {found}: this program writes version {known}; start \
         the program that wrote it, or move the file away to begin a new log",
        .path.display()
    )]
    OtherSchema {
        /// The database file.
        path: PathBuf,
        /// The version of the file.
        found: i64,
        /// The version of this program.
        known: i64,
    },
    /// A query failed.
    #[error("read the inbound log database")]
    Read(#[source] Arc<sqlx::Error>),
    /// A transaction failed; nothing of it is stored. Trying again can help.
    #[error("write the inbound log database")]
    Write(#[source] Arc<sqlx::Error>),
    /// A stored record is not what this program writes.
    #[error("decode a stored record of `{table}`")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// The writer has ended: the process is shutting down.
    #[error("write to the closed inbound log")]
    Closed,
    /// The cursor was not made by this database.
    #[error("resume from a cursor of another inbound log")]
    UnknownCursor,
}

impl LogStoreError {
    fn read(source: sqlx::Error) -> Self {
        Self::Read(Arc::new(source))
    }

    fn write(source: sqlx::Error) -> Self {
        Self::Write(Arc::new(source))
    }
}

/// What an agent reported in one message, opt-outs and pauses taken out.
#[derive(Debug, Clone, Default)]
pub struct ReportBatch {
    /// The agent.
    pub agent_id: String,
    /// The tenant whose agent it is, which changes logs of that tenant only; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// The agent's buffer, to which sequences are scoped.
    pub buffer_id: String,
    /// Records in the order of their sequence.
    pub records: Vec<SequencedRecord>,
    /// The highest sequence of the message, of records taken out as well.
    pub last_sequence: u64,
}

/// A record and its place in the agent's buffer.
#[derive(Debug, Clone)]
pub struct SequencedRecord {
    /// Its sequence; at or below the committed one it is skipped.
    pub sequence: u64,
    /// The record.
    pub record: Record,
}

/// One thing that an agent recorded.
#[derive(Debug, Clone)]
pub enum Record {
    /// An event, with its first attempts.
    Event(Box<v1::InboundLog>, Vec<v1::DeliveryAttempt>),
    /// Attempts of an event reported before.
    Attempts(v1::AttemptsReport),
    /// The provider repeated an item.
    Duplicate(v1::DuplicateReport),
    /// A callback for a number that no instance claims.
    Unrouted(v1::UnroutedCallback),
}

/// The inbound log database. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
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

impl LogStore {
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
        let open = |source| LogStoreError::Open { path: path.clone(), source: Arc::new(source) };
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

    /// Hands a batch to the writer and returns the receiver of its answer, the acknowledged sequence.
    /// Batches are committed in the order in which they were submitted. Waits while the queue is full.
    ///
    /// # Errors
    /// [`LogStoreError::Closed`] when the writer has ended.
    pub async fn submit(&self, batch: ReportBatch) -> Result<Submitted, LogStoreError> {
        let (answer, receiver) = oneshot::channel();
        self.inner
            .jobs
            .send(Job::Append(Append { batch, answer }))
            .await
            .map_err(|_| LogStoreError::Closed)?;
        Ok(Submitted(receiver))
    }

    /// Commits a batch: everything in it, or nothing. Returns the sequence up to which the agent's buffer
    /// is now committed; records at or below the one before are skipped.
    ///
    /// # Errors
    /// When the transaction failed or the writer has ended.
    pub async fn append(&self, batch: ReportBatch) -> Result<u64, LogStoreError> {
        self.submit(batch).await?.committed().await
    }

    /// Attempts of a subscription that failed until `time` count no more for [`FAILING_MAX`]: it was resumed, or
    /// its destination changed. Takes effect before any batch submitted later; does not wait for the disk.
    ///
    /// # Errors
    /// [`LogStoreError::Closed`] when the writer has ended.
    pub async fn forget_failures(
        &self,
        subscription_id: &str,
        time: jiff::Timestamp,
    ) -> Result<(), LogStoreError> {
        let forget = Forget { subscription_id: subscription_id.into(), time };
        self.inner.forgets.send(forget).await.map_err(|_| LogStoreError::Closed)
    }

    /// Cancelled when the writer stops: streams that read the log should end.
    pub fn closing(&self) -> &CancellationToken {
        &self.inner.closing
    }
}

/// A batch on its way to disk.
pub struct Submitted(oneshot::Receiver<Result<u64, LogStoreError>>);

impl Submitted {
    /// The acknowledged sequence, once the batch is committed.
    ///
    /// # Errors
    /// When the transaction failed or the writer ended before it.
    pub async fn committed(self) -> Result<u64, LogStoreError> {
        self.0.await.map_err(|_| LogStoreError::Closed)?
    }
}
