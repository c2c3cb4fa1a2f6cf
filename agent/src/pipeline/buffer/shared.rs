//! What the buffer's thread and its handles share, and how commands reach the thread.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use gateway_proto::v1;
use prost::Message as _;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    AppendError, BufferStats, Entry, OpenDelivery, Outcome, ReadError, Receipt,
    index::{Index, LogCache, Subscriptions},
    journal::{format::Kind, read::JournalReader},
    keeper::Note,
    lane::LaneState,
    marks::Marks,
    record::{self, Lane},
};

/// Entries waiting for the disk. When there are more, appends are refused at once: the provider repeats.
const APPENDS_WAITING_MAX: usize = 2_048;
/// Outcomes waiting for the disk. When there are more, attempts wait before they end.
pub(super) const OUTCOMES_WAITING_MAX: usize = 4_096;
/// Outcomes that are enough company for each other.
pub(super) const OUTCOMES_ENOUGH: usize = 64;

pub(super) type Reply = oneshot::Sender<Result<Receipt, AppendError>>;

/// Whether appends can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    Good = 0,
    DiskFull = 1,
    Broken = 2,
    Stopped = 3,
}

/// What becomes of hand-overs that are not acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum HandOvers {
    /// They are reported.
    Reported = 0,
    /// They wait: it is not known whether the control plane takes them.
    Waiting = 1,
    /// It does not: nothing is given away, and what was comes back.
    Kept = 2,
}

/// Deliveries to be handed out.
#[derive(Default)]
pub(super) struct Fresh {
    /// The events of those found at start.
    found: Range<u64>,
    /// How much earlier those are due than was recorded, because the clock was set back.
    earlier_ms: i64,
    /// Those that came since.
    added: Vec<OpenDelivery>,
}

/// Deliveries handed out at once of those found at start.
const FOUND_AT_ONCE: usize = 16_384;

pub(super) struct Shared {
    pub(super) inbox: Inbox,
    pub(super) index: RwLock<Index>,
    pub(super) subscriptions: Mutex<Subscriptions>,
    pub(super) logs: Mutex<LogCache>,
    pub(super) lanes: [Mutex<LaneState>; 2],
    pub(super) opt_outs: Mutex<HashMap<String, v1::OptOut>>,
    /// Deliveries not handed out yet. Its limit is the buffer's budget.
    pub(super) fresh: Mutex<Fresh>,
    pub(super) fresh_added: Notify,
    pub(super) reports_added: Notify,
    /// For whoever waits for room to hand over.
    pub(super) reports_freed: Notify,
    /// Events whose report is not written yet.
    pub(super) reports_planned: AtomicUsize,
    /// Attempts whose outcome waits for the disk, by event and subscription. Bounded as outcomes are.
    attempts_ahead: Mutex<HashMap<(u64, u32), u32>>,
    /// Cancelled when the thread has ended.
    pub(super) ended: CancellationToken,
    pub(super) journal: Arc<JournalReader>,
    pub(super) marks: Marks,
    /// Subscriptions that are owed more than their share of the budget, as of the last look.
    pub(super) over_share: Mutex<Vec<u32>>,
    health: AtomicU8,
    hand_overs: AtomicU8,
    /// How often the disk was looked after.
    #[cfg(test)]
    pub(super) ticks: AtomicUsize,
}

impl Shared {
    pub(super) fn new(
        journal: Arc<JournalReader>,
        marks: Marks,
        index: Index,
        subscriptions: Subscriptions,
        lanes: [LaneState; 2],
        opt_outs: HashMap<String, v1::OptOut>,
    ) -> Self {
        Self {
            inbox: Inbox::new(),
            index: RwLock::new(index),
            subscriptions: Mutex::new(subscriptions),
            logs: Mutex::default(),
            lanes: lanes.map(Mutex::new),
            opt_outs: Mutex::new(opt_outs),
            fresh: Mutex::default(),
            fresh_added: Notify::new(),
            reports_added: Notify::new(),
            reports_freed: Notify::new(),
            reports_planned: AtomicUsize::new(0),
            attempts_ahead: Mutex::default(),
            ended: CancellationToken::new(),
            journal,
            marks,
            over_share: Mutex::default(),
            health: AtomicU8::new(Health::Good as u8),
            hand_overs: AtomicU8::new(HandOvers::Reported as u8),
            #[cfg(test)]
            ticks: AtomicUsize::new(0),
        }
    }

    pub(super) fn lane(&self, lane: Lane) -> MutexGuard<'_, LaneState> {
        self.lanes[lane as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands deliveries out, but for those that come with what was found at start.
    pub(super) fn hand_out(&self, mut deliveries: Vec<OpenDelivery>) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        deliveries.retain(|delivery| !fresh.found.contains(&delivery.event));
        fresh.added.extend(deliveries);
        drop(fresh);
        self.fresh_added.notify_one();
    }

    /// Hands out, in portions, what is open before this event, due so much earlier.
    pub(super) fn hand_out_before(&self, event: u64, earlier_ms: i64) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        (fresh.found, fresh.earlier_ms) = (0..event, earlier_ms);
        drop(fresh);
        self.fresh_added.notify_one();
    }

    /// Deliveries that were not handed out yet: a portion of those found at start, and then those that came
    /// since. A list of millions would be as large as what else is known of them.
    pub(super) fn take_fresh(&self) -> Vec<OpenDelivery> {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.found.is_empty() {
            return std::mem::take(&mut fresh.added);
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut portion = Vec::new();
        for (event, slot) in index.range(fresh.found.clone()) {
            if portion.len() >= FOUND_AT_ONCE {
                fresh.found.start = event;
                self.fresh_added.notify_one();
                return portion;
            }
            let open = OpenDelivery::all_of(event, slot);
            portion.extend(open.map(|open| open.due_earlier(fresh.earlier_ms)));
        }
        fresh.found = 0..0;
        portion.append(&mut fresh.added);
        portion
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::DiskFull,
            2 => Health::Broken,
            _ => Health::Stopped,
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Release);
    }

    pub(super) fn hand_overs(&self) -> HandOvers {
        match self.hand_overs.load(Ordering::Acquire) {
            0 => HandOvers::Reported,
            1 => HandOvers::Waiting,
            _ => HandOvers::Kept,
        }
    }

    pub(super) fn set_hand_overs(&self, hand_overs: HandOvers) {
        let before = self.hand_overs.swap(hand_overs as u8, Ordering::AcqRel);
        match hand_overs {
            HandOvers::Reported if before != hand_overs as u8 => self.reports_added.notify_one(),
            HandOvers::Reported | HandOvers::Waiting => {}
            // Each time: something may have been on its way.
            HandOvers::Kept => self.inbox.take_back(),
        }
    }

    /// Attempts of a delivery, if the outcome of the newest waits for the disk; otherwise 0. To be asked before the
    /// index, so that an outcome that arrives there in between is seen in one of them.
    pub(super) fn attempts_ahead(&self, event: u64, subscription: u32) -> u32 {
        let ahead = self.attempts_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.get(&(event, subscription)).copied().unwrap_or(0)
    }

    /// An outcome begins to wait for the disk.
    pub(super) fn begin_outcome(&self, outcome: &Outcome) {
        if let Some(attempt) = &outcome.attempt {
            let mut ahead = self.attempts_ahead.lock().unwrap_or_else(PoisonError::into_inner);
            ahead.insert((outcome.event, outcome.subscription), attempt.attempt_number);
        }
    }

    /// Outcomes are on disk, or in memory together with the rest of their event.
    pub(super) fn end_outcomes(&self, outcomes: &[Arc<Outcome>]) {
        let mut ahead = self.attempts_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        for outcome in outcomes {
            let key = (outcome.event, outcome.subscription);
            let made = outcome.attempt.as_ref().map_or(0, |attempt| attempt.attempt_number);
            if ahead.get(&key).is_some_and(|ahead| *ahead <= made) {
                ahead.remove(&key);
            }
        }
        drop(ahead);
        self.inbox.free_outcomes(outcomes.len());
    }

    pub(super) fn stats(&self) -> BufferStats {
        let now = gateway_runtime::clock::now().as_millisecond();
        let age = |ms: i64| Duration::from_millis(u64::try_from(now - ms).unwrap_or(0));
        let report_lag = Lane::ALL.iter().filter_map(|lane| self.lane(*lane).oldest_ms()).min().map(age);
        let reports: u64 = Lane::ALL.iter().map(|lane| self.lane(*lane).bytes()).sum();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        BufferStats {
            events: index.len(),
            oldest_age: index.iter().next().map(|(_, slot)| age(slot.receive_ms)),
            report_lag,
            bytes: index.bytes() + reports,
        }
    }

    pub(super) fn cached_log(&self, event: u64) -> Option<Arc<v1::InboundLog>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).get(event)
    }

    /// The log of an event: from memory, or else from disk, away from the async threads.
    pub(super) async fn log(self: &Arc<Self>, event: u64) -> Result<Option<Arc<v1::InboundLog>>, ReadError> {
        if let Some(log) = self.cached_log(event) {
            return Ok(Some(log));
        }
        let shared = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || shared.read_log_bytes(event)).await;
        let Some(bytes) = read.map_err(|_panic| ReadError::Panicked)?? else { return Ok(None) };
        let log = v1::InboundLog::decode(&*bytes).map_err(|_| ReadError::Damaged)?;
        Ok(Some(Arc::new(log)))
    }

    /// The encoded log of an event from disk; none when the event is not open any more. Blocks.
    pub(super) fn read_log_bytes(&self, event: u64) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            let place_now = || {
                let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
                index.get(event).map(|slot| slot.place)
            };
            let Some(place) = place_now() else { return Ok(None) };
            match self.journal.read(place, Kind::Event) {
                Ok(mut payload) => {
                    let log = record::read_event(&payload).map(|(_, log)| log.len());
                    let log = log.ok_or(ReadError::Damaged)?;
                    payload.drain(..payload.len() - log);
                    return Ok(Some(payload));
                }
                // It was moved meanwhile.
                Err(_) if place_now() != Some(place) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

/// Commands to the buffer's thread.
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    arrived: Condvar,
    outcomes_free: Semaphore,
}

/// What waits for the thread.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) appends: VecDeque<(Entry, Reply)>,
    pub(super) outcomes: VecDeque<Arc<Outcome>>,
    /// What the keeper did and found.
    pub(super) notes: VecDeque<Note>,
    /// Highest acked sequence of each lane.
    pub(super) acked: [u64; 2],
    pub(super) has_acks: bool,
    /// What was given away is to come back.
    pub(super) takes_back: bool,
    pub(super) is_closing: bool,
    pub(super) closed_replies: Vec<oneshot::Sender<()>>,
    /// End at once, as a kill would.
    pub(super) is_killed: bool,
}

impl Queue {
    pub(super) fn is_urgent(&self) -> bool {
        !self.appends.is_empty() || self.is_closing || self.is_killed
    }
}

impl Inbox {
    fn new() -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            outcomes_free: Semaphore::new(OUTCOMES_WAITING_MAX),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a command, or for this long.
    pub(super) fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, timeout: Duration) -> MutexGuard<'a, Queue> {
        self.arrived.wait_timeout(queue, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn append(&self, entry: Entry, reply: Reply) -> Result<(), AppendError> {
        let mut queue = self.lock();
        if queue.is_closing {
            return Err(AppendError::Stopped);
        }
        if queue.appends.len() >= APPENDS_WAITING_MAX {
            return Err(AppendError::Busy);
        }
        queue.appends.push_back((entry, reply));
        self.arrived.notify_one();
        Ok(())
    }

    pub(super) async fn outcome(&self, outcome: Outcome) {
        match self.outcomes_free.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_closed) => return,
        }
        let mut queue = self.lock();
        if queue.is_closing {
            return;
        }
        queue.outcomes.push_back(Arc::new(outcome));
        // One that comes while others wait for company waits with them.
        if queue.outcomes.len() == 1 || queue.outcomes.len() == OUTCOMES_ENOUGH {
            self.arrived.notify_one();
        }
    }

    /// Room for this many more outcomes.
    fn free_outcomes(&self, count: usize) {
        self.outcomes_free.add_permits(count);
    }

    pub(super) fn acked(&self, lane: Lane, sequence: u64) {
        let mut queue = self.lock();
        let acked = &mut queue.acked[lane as usize];
        if sequence > *acked {
            *acked = sequence;
            queue.has_acks = true;
            self.arrived.notify_one();
        }
    }

    fn take_back(&self) {
        self.lock().takes_back = true;
        self.arrived.notify_one();
    }

    pub(super) fn note(&self, note: Note) {
        self.lock().notes.push_back(note);
        self.arrived.notify_one();
    }

    pub(super) fn close(&self, reply: Option<oneshot::Sender<()>>) {
        let mut queue = self.lock();
        // Looked at under the lock: who comes after the end would wait for ever.
        if self.outcomes_free.is_closed() {
            return;
        }
        queue.is_closing = true;
        queue.closed_replies.extend(reply);
        self.arrived.notify_one();
    }

    /// Ends the thread as a kill would: nothing more is written.
    #[cfg(test)]
    pub(super) fn kill(&self, reply: oneshot::Sender<()>) {
        let mut queue = self.lock();
        queue.is_killed = true;
        queue.is_closing = true;
        queue.closed_replies.push(reply);
        self.arrived.notify_one();
    }

    /// Nobody reads commands any more: whoever waits is let go.
    pub(super) fn end(&self) {
        self.outcomes_free.close();
        let queue = std::mem::replace(&mut *self.lock(), Queue { is_closing: true, ..Queue::default() });
        for reply in queue.closed_replies {
            // Whoever closed the buffer need not wait for it.
            let _ = reply.send(());
        }
    }
}
