//! What was accepted and is not yet delivered and reported: durable before anybody is told so.
//!
//! One thread owns all writes ([`engine`]): it takes what waits, plans one commit ([`round`]), appends it to the
//! [`journal`], which is the truth, and answers everybody (group commit). What is open is also in memory
//! ([`index`]), compact; bodies are on disk, the newest in a bounded cache. The [`keeper`], a second thread,
//! brings [`marks`] into the sled [`view`] and reads old segments, so that what is live in them can move on
//! ([`clean`]). At start [`recover`] reads the journal.
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

use bytes::BytesMut;
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

mod journal;
mod error;
mod record;
mod index;
mod lane;
mod marks;
mod filter;
mod mark_files;
mod view;
mod lock;
mod home;
mod shared;
mod round;
mod settle;
mod hand_over;
mod clean;
mod recover;
mod open;
mod engine;
mod keeper;
mod mend;
pub mod tool;
#[doc(hidden)]
pub mod bench;
#[cfg(test)]
pub(crate) mod tests;

pub use error::{AppendError, Ended, OpenError, ReadError};
pub use hand_over::{InvalidHandOver, TakenOver};
pub use record::Lane;

use index::Slot;
use journal::files::RealFiles;
use keeper::Note;
use lock::DirectoryLock;
use open::Opening;
use shared::{Health, Shared};

/// How long marks wait in memory until the index takes them together; each time costs it about 3 KB.
const MARKS_GATHER: Duration = Duration::from_secs(30);

/// Where the buffer is and how large it may grow.
#[derive(Debug, Clone)]
pub struct Config {
    /// The buffer's own directory; made when missing.
    pub directory: PathBuf,
    /// Most bytes of events and reports on disk that are still needed. Beyond it appends are refused.
    pub bytes_max: u64,
    /// The part of these bytes that one destination may be owed, in percent; 100 is no limit. Beyond it
    /// appends for the destination are refused.
    pub destination_share: u8,
    /// Most bytes of the files that remember what was seen in the last eight days. Beyond it the oldest
    /// marks are forgotten early.
    pub marks_bytes_max: u64,
    /// How long marks wait in memory until the index takes them together.
    pub marks_gather: Duration,
    /// Length at which a new segment of the journal begins.
    pub segment_bytes: u64,
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
            destination_share: config.buffer_destination_share,
            marks_bytes_max: config.buffer_marks_bytes_max,
            marks_gather: MARKS_GATHER,
            segment_bytes: config.buffer_segment_bytes,
            disk_free_bytes_min: config.disk_free_bytes_min,
        }
    }
}

impl Config {
    /// A small one in this directory, with small segments.
    #[cfg(test)]
    pub(crate) fn for_tests(directory: &std::path::Path) -> Self {
        Self {
            directory: directory.join("buffer"),
            bytes_max: 64 << 20,
            destination_share: 100,
            marks_bytes_max: 1 << 30,
            marks_gather: Duration::from_millis(5),
            segment_bytes: 64 << 10,
            disk_free_bytes_min: Some(0),
        }
    }

    /// Most bytes that one destination may be owed.
    fn share_bytes_max(&self) -> u64 {
        self.bytes_max / 100 * u64::from(self.destination_share)
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

impl NewEvent {
    fn contact(&self) -> u32 {
        contact(Some(self.event_type), &self.log)
    }
}

/// Hash of the contact, the same for its user id and its phone only where both are always known; 0 when there
/// is none.
fn contact(event_type: Option<EventType>, log: &v1::InboundLog) -> u32 {
    let phone = match event_type {
        Some(
            EventType::MessageSent
            | EventType::MessageDelivered
            | EventType::MessageRead
            | EventType::MessageFailed
            | EventType::MessageStatusUpdated,
        ) => &log.to_phone,
        _ => &log.from_phone,
    };
    let contact = if log.contact_user_id.is_empty() { phone } else { &log.contact_user_id };
    if contact.is_empty() { 0 } else { crc32c::crc32c(contact.as_bytes()).max(1) }
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
    /// Deliveries that another agent gave away.
    pub taken_over: Vec<TakenOver>,
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
    /// Events, unrouted parts and deliveries of others that are new and now on disk.
    pub stored: usize,
    /// Those, and marks, that came before; they are not delivered again.
    pub duplicates: usize,
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
    /// Attempts made so far.
    pub attempts: u16,
    /// Hash of the contact, for ordering; 0 when there is none.
    pub contact: u32,
}

impl OpenDelivery {
    /// The same, due so much earlier. The lowest bit of the time says something else, and stays.
    fn due_earlier(self, by_ms: i64) -> Self {
        Self { due_ms: self.due_ms - (by_ms & !1), ..self }
    }

    /// Those of an event.
    fn all_of(event: u64, slot: &Slot) -> impl Iterator<Item = Self> {
        let open = slot.deliveries.as_slice().iter().filter(|delivery| !delivery.state.is_settled());
        open.map(move |delivery| Self {
            event,
            subscription: delivery.subscription,
            due_ms: delivery.due_ms,
            held: delivery.state == DeliveryState::Held,
            attempts: delivery.attempts,
            contact: slot.contact,
        })
    }
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
    /// Where the delivery stands now, or that it is given away.
    pub state: DeliveryState,
    /// When the next attempt is due, in milliseconds since 1970; none to leave that as it was.
    pub due_ms: Option<i64>,
    /// The attempt, if there was one.
    pub attempt: Option<v1::DeliveryAttempt>,
    /// Set when the destination answered 410.
    pub gone: Option<v1::DestinationGone>,
}

/// Reports of one lane, in the order of their sequence.
#[derive(Debug, Default)]
pub struct ReportBatch {
    /// The field `reports` of a `ReportLogsRequest`, encoded.
    encoded: BytesMut,
    /// How many there are.
    pub count: usize,
    /// The sequence to go on after.
    pub last: u64,
}

/// The buffer. Cheap to clone; it closes when the last clone is dropped.
#[derive(Clone)]
pub struct Buffer {
    shared: Arc<Shared>,
    bytes_max: u64,
    _open: Arc<CloseOnDrop>,
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.inbox.close(None);
    }
}

impl Buffer {
    /// Opens the buffer, making it when there is none. What is damaged in it is passed over and set aside
    /// (`quarantine/` in its directory).
    ///
    /// # Errors
    /// When another agent uses the directory, a newer program wrote it, or the disk refuses.
    pub async fn open(config: Config, metrics: Metrics) -> Result<Self, OpenError> {
        let lock = DirectoryLock::take(&config.directory)?;
        Self::open_on(Opening { config, metrics, files: Box::new(RealFiles), lock }).await
    }

    async fn open_on(opening: Opening) -> Result<Self, OpenError> {
        let (opened, outcome) = oneshot::channel();
        let (directory, bytes_max) = (opening.config.directory.clone(), opening.config.bytes_max);
        std::thread::Builder::new()
            .name("buffer".to_owned())
            .spawn(move || opening.run(opened))
            .map_err(OpenError::Thread)?;
        let shared = match outcome.await {
            Ok(Ok(shared)) => shared,
            Ok(Err(source)) => return Err(OpenError::Journal { directory, source: Box::new(source) }),
            Err(_ended) => return Err(OpenError::Panicked { directory }),
        };
        Ok(Self { _open: Arc::new(CloseOnDrop(Arc::clone(&shared))), shared, bytes_max })
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
    /// when the page is not in memory.
    pub fn contains(&self, id: &EventId) -> bool {
        self.shared.marks.get(id).is_some()
    }

    /// Most bytes that it may hold.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// The subscriptions that are owed their whole share of the budget, as of the last second.
    pub fn over_share(&self) -> Vec<WebhookSubscriptionId> {
        let over_share = self.shared.over_share.lock().unwrap_or_else(PoisonError::into_inner);
        let subscriptions = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        over_share.iter().map(|subscription| subscriptions.id(*subscription)).collect()
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

    /// Deliveries that were not handed out yet, oldest first, or some of them when there are very many; at start
    /// those that the disk holds.
    pub(crate) fn take_new_deliveries(&self) -> Vec<OpenDelivery> {
        self.shared.take_fresh()
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
        let ahead = self.shared.attempts_ahead(event, subscription);
        let stored = {
            let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
            let slot = index.get(event);
            match slot.and_then(|slot| slot.deliveries.find(subscription)) {
                Some((_, delivery)) if !delivery.state.is_settled() => u32::from(delivery.attempts),
                _ => return Ok(None),
            }
        };
        match self.shared.log(event).await {
            Ok(log) => Ok(log.map(|log| Owed { log, attempts: stored.max(ahead) })),
            Err(ReadError::Damaged) => {
                error!(event, "failed to read an event from the buffer: it is damaged, and given up");
                self.shared.inbox.note(Note::EventUnreadable);
                let state = DeliveryState::Exhausted;
                let outcome = Outcome { event, subscription, state, due_ms: None, attempt: None, gone: None };
                self.settle(outcome).await;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Records what became of a delivery, on disk within about a millisecond. Waits only while too many wait for
    /// the disk: waiting for it each time would halve what a destination gets under load. What a crash forgets in
    /// between is attempted once more, with the same id.
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
