//! What was accepted and is not yet delivered and reported: durable before anybody is told so.
//!
//! One thread owns all writes ([`engine`]): it takes what waits, plans one atomic commit ([`round`]), makes
//! it durable ([`store`]) and answers everybody (group commit). What is open is also in memory ([`index`]),
//! compact; bodies are on disk, the newest in a bounded cache. At start [`recover`] reads the disk.
//!
//! ```text
//! append ──▶ event + mark ──▶ new_deliveries ──▶ (deliver) ──▶ settle ──▶ report ──▶ (report.rs) ──▶ acked
//! ```
//!
//! An event leaves the disk when its deliveries are settled and its report is acked. Its mark stays for
//! eight days, so that the provider's repeats are recognized.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use gateway_core::{
    delivery::DeliveryState,
    event::EventType,
    id::{EventId, WebhookSubscriptionId},
};
use gateway_proto::v1;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::metrics::Metrics;

mod store;
mod record;
mod index;
mod lane;
mod lock;
mod shared;
mod round;
mod settle;
mod recover;
mod engine;
mod mend;
mod sweep;
#[cfg(test)]
pub(super) mod tests;

pub use record::Lane;

use engine::Engine;
use lock::DirectoryLock;
use shared::{Health, Shared};
use store::{Disk, SledDisk, StoreError};

/// What providers and callers are asked to wait when the buffer is over its budget.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(10);
/// The same for what passes quickly.
const RETRY_AFTER_SHORT: Duration = Duration::from_secs(1);

/// Where the buffer is and how large it may grow.
#[derive(Debug, Clone)]
pub struct Config {
    /// The buffer's own directory; made when missing.
    pub directory: PathBuf,
    /// Most bytes of events and reports on disk that are still needed. Beyond it appends are refused.
    pub bytes_max: u64,
    /// Least free space on the disk, though never more than a twentieth of it. Below it appends are
    /// refused; what is in the buffer goes on.
    pub disk_free_bytes_min: Option<u64>,
}

impl Config {
    /// As the agent is set up.
    pub fn of(config: &crate::config::Config) -> Self {
        Self {
            directory: config.data_dir.join("buffer"),
            bytes_max: config.buffer_bytes_max,
            disk_free_bytes_min: config.disk_free_bytes_min,
        }
    }
}

/// One event to buffer: everything the rest of the pipeline needs; its body is frozen.
#[derive(Clone)]
pub struct NewEvent {
    /// The event's id, which makes it unique.
    pub id: EventId,
    /// What kind of fact it is.
    pub event_type: EventType,
    /// All fields of the log, `payload_json` (the webhook body) included; without deliveries.
    pub log: v1::InboundLog,
    /// Who gets it, paused subscriptions included; may be empty.
    pub subscriptions: Vec<WebhookSubscriptionId>,
}

/// A part of a callback whose number no instance claims.
#[derive(Clone)]
pub struct NewUnrouted {
    /// What makes it unique.
    pub mark: EventId,
    /// The part.
    pub callback: v1::UnroutedCallback,
}

/// What one callback, or one piece of work, becomes: stored whole or not at all.
#[derive(Clone, Default)]
pub struct Entry {
    /// Events.
    pub events: Vec<NewEvent>,
    /// Parts that nobody claims.
    pub unrouted: Vec<NewUnrouted>,
    /// Marks of what has no event of its own: a contact's wish that came alone.
    pub marks: Vec<EventId>,
    /// Decisions of contacts; the newest record of an id is kept.
    pub opt_outs: Vec<v1::OptOut>,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Events and unrouted parts that are new and now on disk.
    pub stored: usize,
    /// Those, and marks, that came before; they are counted and not delivered again.
    pub duplicates: usize,
}

/// Nothing of the entry is accepted. Trying again can help, see [`AppendError::retry_after`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The budget is used up.
    #[error("append to the buffer: it holds {bytes} bytes and may hold {bytes_max}")]
    Full {
        /// Bytes held.
        bytes: u64,
        /// Bytes it may hold.
        bytes_max: u64,
    },
    /// More callbacks wait for the disk than are worth waiting for.
    #[error("append to the buffer: too many callbacks wait for the disk")]
    Busy,
    /// The disk has too little space.
    #[error("append to the buffer: the disk is full")]
    DiskFull,
    /// The disk failed; the buffer opens again when it can. Details are in the log.
    #[error("append to the buffer: its disk failed")]
    Broken,
    /// The agent is shutting down.
    #[error("append to the buffer: it is closed")]
    Stopped,
}

impl AppendError {
    /// What to tell the caller to wait.
    pub const fn retry_after(&self) -> Duration {
        match self {
            Self::Full { .. } | Self::DiskFull => RETRY_AFTER_FULL,
            Self::Busy | Self::Broken | Self::Stopped => RETRY_AFTER_SHORT,
        }
    }
}

/// The buffer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent uses the directory.
    #[error("open buffer `{}`: it is in use by {}; every agent needs a --data-dir of its own", .directory.display(), .owner)]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// `process 123`, or words when its number is not known.
        owner: String,
    },
    /// The directory cannot be made or locked.
    #[error("prepare buffer directory `{}`", .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened or read.
    #[error("open buffer `{}`", .directory.display())]
    Store {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The buffer's thread cannot be started.
    #[error("start the buffer's thread")]
    Thread(#[source] std::io::Error),
}

/// The buffer's thread ended, which only a bug can make it do.
#[derive(Debug, thiserror::Error)]
#[error("keep the buffer's thread running: it ended")]
pub struct Ended;

/// The event cannot be read now; later it can.
#[derive(Debug, thiserror::Error)]
#[error("read from the buffer")]
pub struct ReadError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self(Box::new(error))
    }
}

/// How full the buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufferStats {
    /// Events that are not delivered and reported yet.
    pub events: u64,
    /// Age of the oldest of them.
    pub oldest_age: Option<Duration>,
    /// Age of the oldest report that is not acked.
    pub report_lag: Option<Duration>,
    /// Bytes of events and reports that are still needed.
    pub bytes: u64,
}

/// A delivery that somebody has to take care of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenDelivery {
    /// Names the event in [`Buffer::load`] and [`Outcome`].
    pub event: u64,
    /// Names the subscription, see [`Buffer::subscription_id`].
    pub subscription: u32,
    /// When the next attempt is due, in milliseconds since 1970.
    pub due_ms: i64,
    /// Whether it is recorded as held.
    pub held: bool,
}

/// What an attempt needs.
#[derive(Debug, Clone)]
pub struct Owed {
    /// The log of the event, with the webhook's body.
    pub log: Arc<v1::InboundLog>,
    /// Attempts made so far.
    pub attempts: u32,
}

/// What became of a delivery: after an attempt, or because its subscription was paused or deleted.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The event.
    pub event: u64,
    /// The subscription.
    pub subscription: u32,
    /// Where the delivery stands now.
    pub state: DeliveryState,
    /// When the next attempt is due, in milliseconds since 1970, if the delivery is pending.
    pub due_ms: Option<i64>,
    /// The attempt, if there was one.
    pub attempt: Option<v1::DeliveryAttempt>,
    /// Set when the destination answered 410.
    pub gone: Option<v1::DestinationGone>,
}

/// Reports of one lane, in the order of their sequence.
#[derive(Debug, Default)]
pub struct ReportBatch {
    /// The reports.
    pub reports: Vec<v1::Report>,
    /// The sequence to go on after.
    pub last: u64,
}

/// The buffer. Cheap to clone; it closes when the last clone is dropped.
#[derive(Clone)]
pub struct Buffer {
    shared: Arc<Shared>,
    _open: Arc<CloseOnDrop>,
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.inbox.close(None);
    }
}

impl Buffer {
    /// Opens the buffer, making it when there is none. A damaged one is set aside (`quarantine/` in its
    /// directory) and a fresh one made.
    ///
    /// # Errors
    /// When another agent uses the directory, or the disk refuses.
    pub async fn open(config: Config, metrics: Metrics) -> Result<Self, OpenError> {
        let lock = DirectoryLock::take(&config.directory)?;
        let disk = SledDisk::new(&config.directory);
        Self::open_on(config, metrics, Box::new(disk), lock).await
    }

    async fn open_on(
        config: Config,
        metrics: Metrics,
        disk: Box<dyn Disk>,
        lock: DirectoryLock,
    ) -> Result<Self, OpenError> {
        let (opened, outcome) = oneshot::channel();
        let directory = config.directory.clone();
        std::thread::Builder::new()
            .name("buffer".to_owned())
            .spawn(move || Engine::run(config, metrics, disk, lock, opened))
            .map_err(OpenError::Thread)?;
        let shared = match outcome.await {
            Ok(Ok(shared)) => shared,
            Ok(Err(source)) => return Err(OpenError::Store { directory, source: Box::new(source) }),
            Err(_ended) => {
                return Err(OpenError::Store { directory, source: Box::new(StoreError::Panicked) });
            }
        };
        Ok(Self { _open: Arc::new(CloseOnDrop(Arc::clone(&shared))), shared })
    }

    /// Stores an entry. Returns once it is on disk (`fdatasync`). Dropping the future does not undo it.
    ///
    /// # Errors
    /// Why it was refused; then nothing of it counts as accepted.
    pub async fn append(&self, entry: Entry) -> Result<Receipt, AppendError> {
        match self.shared.health() {
            Health::Good => {}
            Health::DiskFull => return Err(AppendError::DiskFull),
            Health::Broken => return Err(AppendError::Broken),
            Health::Stopped => return Err(AppendError::Stopped),
        }
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.append(entry, reply)?;
        answer.await.unwrap_or(Err(AppendError::Stopped))
    }

    /// Whether the event, or what else has this mark, was accepted in the last eight days. Reads the disk
    /// when the page is not in memory. False while the disk is broken.
    pub fn contains(&self, id: &EventId) -> bool {
        let found = self.shared.store().and_then(|store| store.get(&record::mark_key(id)));
        matches!(found, Ok(Some(_)))
    }

    /// The decisions of contacts that this agent recorded, newest record of each.
    pub fn local_opt_outs(&self) -> Vec<v1::OptOut> {
        self.shared.opt_outs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How full the buffer is.
    pub fn stats(&self) -> BufferStats {
        self.shared.stats()
    }

    /// Watches over the buffer's thread until `stop`.
    ///
    /// # Errors
    /// When the thread ended before; the agent cannot do its work without it.
    pub async fn watch(self, stop: CancellationToken) -> Result<(), Ended> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = self.shared.ended.cancelled() => Err(Ended),
        }
    }

    /// Closes the buffer: what waits is written, then the thread ends and the directory is free.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        self.shared.inbox.close(Some(reply));
        // An error means that the thread has ended already.
        drop(closed.await);
    }

    /// Deliveries that were not handed out yet, oldest first; at start those that the disk holds.
    pub(crate) fn take_new_deliveries(&self) -> Vec<OpenDelivery> {
        std::mem::take(&mut *self.shared.fresh.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until [`Self::take_new_deliveries`] has something. Cancel safe.
    pub(crate) async fn new_deliveries(&self) {
        self.shared.fresh_added.notified().await;
    }

    /// The subscription of a number.
    pub(crate) fn subscription_id(&self, number: u32) -> WebhookSubscriptionId {
        self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).id(number)
    }

    /// What an attempt needs; none when the delivery is settled.
    pub(crate) async fn load(&self, event: u64, subscription: u32) -> Result<Option<Owed>, ReadError> {
        let stored = {
            let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
            let delivery = index.get(event).and_then(|slot| slot.deliveries.find(subscription).copied());
            match delivery {
                Some(delivery) if !delivery.state.is_settled() => u32::from(delivery.attempts),
                _ => return Ok(None),
            }
        };
        let attempts = self.shared.attempts(event, subscription, stored);
        let log = self.shared.log(event).await?;
        if log.is_none() {
            error!(event, "failed to deliver an event: it is missing on disk");
        }
        Ok(log.map(|log| Owed { log, attempts }))
    }

    /// Records what became of a delivery. Waits while too many outcomes wait for the disk; returns before
    /// the outcome is durable: lost in a crash, it costs one more webhook with the same id.
    pub(crate) async fn settle(&self, outcome: Outcome) {
        self.shared.begin_outcome(&outcome);
        self.shared.inbox.outcome(outcome).await;
    }

    /// The id to which the sequences of a lane are scoped.
    pub(crate) fn buffer_id(&self, lane: Lane) -> String {
        self.shared.lane(lane).buffer_id.clone()
    }

    /// The sequence up to which a lane is acked.
    pub(crate) fn acked_sequence(&self, lane: Lane) -> u64 {
        self.shared.lane(lane).acked
    }

    /// Durable reports of a lane after a sequence, up to a size and a count; empty when there are none.
    pub(crate) async fn next_reports(
        &self,
        lane: Lane,
        after: u64,
        limits: ReportLimits,
    ) -> Result<ReportBatch, ReadError> {
        lane::next_reports(&self.shared, lane, after, limits).await
    }

    /// Waits until there are more reports. Cancel safe.
    pub(crate) async fn new_reports(&self) {
        self.shared.reports_added.notified().await;
    }

    /// Frees the reports of a lane up to a sequence.
    pub(crate) fn acked(&self, lane: Lane, sequence: u64) {
        self.shared.inbox.acked(lane, sequence);
    }

    /// Whether every accepted event is settled and every report acked.
    #[cfg(test)]
    pub(crate) fn is_drained(&self) -> bool {
        let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
        index.len() == 0 && Lane::ALL.iter().all(|lane| self.shared.lane(*lane).is_empty())
    }

    /// Whether reports wait that are durable and not acked.
    pub(crate) fn has_reports(&self) -> bool {
        self.shared.reports_planned.load(Ordering::Acquire) > 0
            || Lane::ALL.iter().any(|lane| !self.shared.lane(*lane).is_empty())
    }
}

/// How much one call of [`Buffer::next_reports`] returns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReportLimits {
    /// Most bytes; one report that is larger comes alone.
    pub(crate) bytes: usize,
    /// Most reports.
    pub(crate) count: usize,
}
