//! Inbound logs: what came in, what became of it, and callbacks that found no instance.
//!
//! [`LogStore`] is the seam: everything else knows only it, and `conformance` says what every implementation
//! must do. [`sqlite`] is the one that there is. What does not depend on the engine lies beside it.
//!
//! Reading order: [`page`] (what is asked for and given), [`fit`] (how much of it), [`stage`] (what a group of batches changes), [`failing`]
//! (subscriptions that only fail), [`live`] (watches), then [`sqlite`].

use std::{error::Error, sync::Arc};

use gateway_core::id::TenantId;
use gateway_proto::v1;
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

mod page;
mod fit;
mod event_key;
mod stage;
mod failing;
mod live;
pub mod sqlite;
#[cfg(test)]
mod conformance;

pub use failing::{FAILING_ATTEMPTS_MIN, FAILING_MAX, FailingSubscription};
pub use fit::{LISTED_PAYLOAD_BYTES_MAX, alone, bound_opt_out};
pub use live::{LogChange, LogWatch, WatchFrom};
pub use page::{
    AttemptPage, LogFilter, LogPage, PAGE_BYTES_MAX, UNROUTED_PER_ROUTE_MAX, Unrouted, UnroutedNumber,
    UnroutedPage,
};
pub use sqlite::{FILE_NAME, SqliteLogStore};
pub(crate) use sqlite::{SCHEMA_VERSION, forget_epoch};

/// What an engine says about its failure.
pub type EngineError = Arc<dyn Error + Send + Sync>;

/// The inbound log could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogStoreError {
    /// The database could not be opened or prepared.
    #[error("open inbound log database `{database}`")]
    Open {
        /// The database: of SQLite, the path of the file.
        database: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// The database was written by another version of this program; it is left as it is.
    #[error(
        "open inbound log database `{database}` with schema version {found}: this program writes version {known}; \
         start the program that wrote it, or move the file away to begin a new log"
    )]
    OtherSchema {
        /// The database.
        database: String,
        /// The version of the database.
        found: i64,
        /// The version of this program.
        known: i64,
    },
    /// A query failed.
    #[error("read the inbound log database")]
    Read(#[source] EngineError),
    /// A transaction failed; nothing of it is stored. Trying again can help.
    #[error("write the inbound log database")]
    Write(#[source] EngineError),
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
    fn read(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Read(Arc::new(source))
    }

    fn write(source: impl Error + Send + Sync + 'static) -> Self {
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

/// The inbound log: reports go in, in groups that are stored whole or not at all, and pages, single logs and
/// watches come out.
///
/// - A record is taken once: by (agent, buffer, sequence), of the buffers used lately, and, reported under another buffer or by another
///   agent, an event by its id, an attempt by its id within its event, an unrouted callback by its id within
///   its inbound route while that is listed.
/// - A settled delivery stays settled, and its count of attempts never goes down, in whatever order agents report.
/// - What is recorded while pages are read neither repeats nor hides what was there at the first of them.
#[tonic::async_trait]
pub trait LogStore: Send + Sync {
    /// Hands a batch to the writer and returns the receiver of its answer, the acknowledged sequence.
    /// Batches are committed in the order in which they were submitted. Waits while the queue is full.
    ///
    /// # Errors
    /// [`LogStoreError::Closed`] when the writer has ended.
    async fn submit(&self, batch: ReportBatch) -> Result<Submitted, LogStoreError>;

    /// Commits a batch: everything in it, or nothing. Returns the sequence up to which the agent's buffer
    /// is now committed; records at or below the one before are skipped.
    ///
    /// # Errors
    /// When the transaction failed or the writer has ended.
    async fn append(&self, batch: ReportBatch) -> Result<u64, LogStoreError> {
        self.submit(batch).await?.committed().await
    }

    /// Attempts of a subscription that failed until `time` count no more for [`FAILING_MAX`]: it was resumed, or
    /// its destination changed. Takes effect before any batch submitted later; does not wait for the disk.
    ///
    /// # Errors
    /// [`LogStoreError::Closed`] when the writer has ended.
    async fn forget_failures(&self, subscription_id: &str, time: Timestamp) -> Result<(), LogStoreError>;

    /// Cancelled when the writer stops: streams that read the log should end.
    fn closing(&self) -> &CancellationToken;

    /// A page of at most `limit` logs recorded before the place `before` (None: the newest), newest first.
    /// What is recorded meanwhile does not move later pages. A page can have fewer than `limit` and still not be
    /// the last. It has at most [`PAGE_BYTES_MAX`], and logs without a body of more than [`LISTED_PAYLOAD_BYTES_MAX`].
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn list(
        &self,
        filter: &LogFilter,
        before: Option<i64>,
        limit: usize,
    ) -> Result<LogPage, LogStoreError>;

    /// One log, whole: [`alone`] makes it fit into an answer. None when it was not recorded or belongs to another
    /// tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn get(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
    ) -> Result<Option<v1::InboundLog>, LogStoreError>;

    /// A page of at most `limit` attempts of an event after the place `after`, oldest first. None when the
    /// event was not recorded or belongs to another tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn list_attempts(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
        subscription_id: Option<&str>,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Option<AttemptPage>, LogStoreError>;

    /// The receive time of the newest log of an instance.
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn last_event_time(&self, instance_id: &str) -> Result<Option<Timestamp>, LogStoreError>;

    /// Watches logs that match `filter`: every one that is recorded, and every delivery of one that comes into
    /// another state than pending, in the order in which they were committed.
    ///
    /// # Errors
    /// [`LogStoreError::UnknownCursor`] when the cursor is not of this database.
    async fn watch(&self, filter: LogFilter, from: WatchFrom<'_>) -> Result<LogWatch, LogStoreError>;

    /// A page of at most `limit` unrouted callbacks, of all routes or some, before the place `before`, newest first.
    /// Of each route the newest [`UNROUTED_PER_ROUTE_MAX`] are kept.
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn list_unrouted(
        &self,
        route_ids: Option<&[String]>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<UnroutedPage, LogStoreError>;

    /// At most `limit` callbacks for a number after the place `after`, oldest first and whole; fewer when they are large,
    /// and none only when there are none.
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn unrouted_of(
        &self,
        number: &UnroutedNumber,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Unrouted>, LogStoreError>;

    /// Numbers that came in after the place `after`.
    ///
    /// # Errors
    /// When the database cannot be read.
    async fn unrouted_numbers(&self, after: i64) -> Result<Vec<UnroutedNumber>, LogStoreError>;

    /// Takes callbacks out of the list.
    ///
    /// # Errors
    /// When the transaction failed or the writer has ended.
    async fn delete_unrouted(&self, seqs: Vec<i64>) -> Result<(), LogStoreError>;

    /// The place of the newest unrouted callback, as it moves.
    fn watch_unrouted(&self) -> watch::Receiver<i64>;
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
