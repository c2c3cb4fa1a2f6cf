//! The buffer's thread: gathers what waits, commits it, answers. The only writer of the journal.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use gateway_proto::v1;
use tracing::{error, info};

use crate::metrics::Metrics;

use super::{
    AppendError, Config, Entry, Outcome, Receipt,
    journal::{
        Counters, Journal, JournalError, Place,
        format::{FIRST_VERSION, HAND_OVERS, Kind},
    },
    keeper::{KeeperInbox, Note, Reading},
    lock::DirectoryLock,
    open::damage_report,
    record::{self, Lane},
    round::{Limits, Plan, Round, Young},
    shared::{Health, OUTCOMES_ENOUGH, OUTCOMES_WAITING_MAX, Queue, Reply, Shared},
};

mod apply;

pub(super) use apply::hold;

/// Most entries of one commit; the others wait for the next.
const COMMIT_ENTRIES_MAX: usize = 1_024;
/// Most bytes of events in one commit.
const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most reports of events whose patience is over in one commit; after damage there can be very many.
const COMMIT_EXPIRED_MAX: usize = 4_096;
/// How long outcomes wait for company, since a disk sync costs much; an append ends the wait.
const OUTCOMES_GATHER: Duration = Duration::from_millis(1);
/// How long appends wait for company when there was a crowd lately: each commit costs CPU and a disk sync, and with
/// many callers waiting, half as many commits are worth more than a quarter of a millisecond.
const APPENDS_GATHER: Duration = Duration::from_micros(250);
/// From so many appends in a commit on there is a crowd.
const CROWD_MIN: usize = 8;
/// How long acks wait for company: a crash makes reports repeat that the control plane recognizes.
const ACKS_GATHER: Duration = Duration::from_millis(100);
/// How long the report of an event waits for the outcome of its first attempts, so that a quick delivery
/// is one report.
pub(super) const REPORT_PATIENCE: Duration = Duration::from_millis(250);
/// How often the disk is looked after: free space, old segments, writing again after a failure.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How soon writing is tried again after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The thread's own state.
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    pub(super) counters: Counters,
    pub(super) young: Young,
    pub(super) opt_out_places: HashMap<String, Place>,
    pub(super) keeper: Arc<KeeperInbox>,
    pub(super) keeper_thread: Option<std::thread::JoinHandle<()>>,
    /// When events want their report, oldest first; many of them have it by then.
    pub(super) deadlines: VecDeque<(Instant, u64)>,
    /// Most appends of a commit lately.
    pub(super) crowd: usize,
    /// How the keeper reads the oldest segment, so that it can go.
    pub(super) cleaning: Option<Reading>,
    /// Readings so far.
    pub(super) readings: u64,
    /// Until then no segment is asked for: one could not go.
    pub(super) clean_after: Instant,
    /// Bytes on disk of what contacts decided.
    pub(super) opt_out_bytes: u64,
    /// What to tell the control plane in the next commit.
    pub(super) announcements: Vec<v1::report::Report>,
    pub(super) next_tick: Instant,
    pub(super) is_low_on_space: bool,
    /// The budget is used up.
    pub(super) is_full: bool,
    /// The last commit failed; the next is tried at the next tick.
    pub(super) is_failing: bool,
    /// Held until the thread ends.
    pub(super) _lock: DirectoryLock,
}

/// What one round deals with.
#[derive(Default)]
pub(super) struct Work {
    appends: Vec<(Entry, Reply)>,
    outcomes: Vec<Arc<Outcome>>,
    notes: Vec<Note>,
    acked: Option<[u64; 2]>,
    takes_back: bool,
    is_closing: bool,
}

impl Engine {
    /// Works until the inbox is closed.
    pub(super) fn work(mut self) {
        let end = End { shared: Arc::clone(&self.shared), keeper: Arc::clone(&self.keeper) };
        loop {
            if Instant::now() >= self.next_tick {
                self.tick();
            }
            let Some(work) = self.gather() else { break };
            let is_last = work.is_closing && work.appends.is_empty();
            self.crowd = work.appends.len().max(self.crowd - self.crowd.div_ceil(8));
            self.round(work);
            if is_last && self.has_nothing_left() {
                break;
            }
        }
        self.keeper.close();
        if let Some(keeper) = self.keeper_thread.take()
            && keeper.join().is_err()
        {
            error!("failed to end the keeper of the buffer: it panicked");
        }
        // The directory is free before anybody hears of the end.
        drop(self);
        drop(end);
    }

    /// Whether all that can still be written is written.
    fn has_nothing_left(&self) -> bool {
        let queue = self.shared.inbox.lock();
        self.is_failing || (queue.appends.is_empty() && queue.outcomes.is_empty())
    }

    /// Waits for something to do. None when the thread is to end at once.
    fn gather(&self) -> Option<Work> {
        let mut queue = self.shared.inbox.lock();
        let (mut outcomes_until, mut acks_until) = (None, None);
        while !queue.is_urgent() {
            let now = Instant::now();
            let mut wake = self.next_tick;
            if !self.is_failing {
                if let Some((deadline, _)) = self.deadlines.front() {
                    wake = wake.min(*deadline);
                }
                if queue.outcomes.len() >= OUTCOMES_ENOUGH || !queue.notes.is_empty() || queue.takes_back {
                    break;
                }
                if !queue.outcomes.is_empty() {
                    wake = wake.min(*outcomes_until.get_or_insert(now + OUTCOMES_GATHER));
                }
                if queue.has_acks {
                    wake = wake.min(*acks_until.get_or_insert(now + ACKS_GATHER));
                }
            }
            if wake <= now {
                break;
            }
            queue = self.shared.inbox.wait(queue, wake - now);
        }
        let company = self.crowd / 2;
        if self.crowd >= CROWD_MIN && !self.is_failing {
            let until = Instant::now() + APPENDS_GATHER;
            while (1..company).contains(&queue.appends.len()) && !queue.is_closing && !queue.is_killed {
                let Some(left) = until.checked_duration_since(Instant::now()) else { break };
                queue = self.shared.inbox.wait(queue, left);
            }
        }
        if queue.is_killed { None } else { Some(take(&mut queue)) }
    }

    pub(super) fn report_bytes(&self) -> u64 {
        Lane::ALL.iter().map(|lane| self.shared.lane(*lane).bytes()).sum()
    }

    /// What the records of this work need, and those of what may move.
    fn version(&self, work: &Work) -> u8 {
        if work.outcomes.iter().any(|outcome| outcome.state.is_handing_over()) {
            return HAND_OVERS;
        }
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner).version()
    }

    fn round(&mut self, mut work: Work) {
        work.notes = self.hear(work.notes);
        if self.is_failing {
            return self.refuse(work);
        }
        let place = match self.journal.prepare(&self.counters, self.version(&work)) {
            Ok(place) => place,
            Err(failure) => {
                self.fail(&failure);
                return self.refuse(work);
            }
        };
        let mut plan = Plan::at(place);
        let expired = self.expired(work.is_closing);
        let notes = work.notes.len();
        self.plan(work, &expired, &mut plan);
        let records = std::mem::take(&mut plan.records);
        let written = if records.is_empty() { Ok(()) } else { self.journal.append(&records) };
        match written {
            Ok(()) => self.apply(plan, place, records.len()),
            Err(failure) => {
                // Whoever hears of the failure must find the buffer refusing.
                self.fail(&failure);
                self.take_back(plan, &expired);
            }
        }
        (0..notes).for_each(|_| self.keeper.moved());
        self.clean();
    }

    /// Takes the notes that no commit has to succeed for, so that none of them is lost with one. Returns the others.
    fn hear(&mut self, notes: Vec<Note>) -> Vec<Note> {
        let mut left = Vec::with_capacity(notes.len());
        for note in notes {
            match note {
                Note::EventUnreadable => {
                    let causes = ["an event is damaged"];
                    self.announcements.push(damage_report(&causes, 0, 1, Vec::new()));
                }
                Note::MarksUnreadable { bytes } => {
                    let causes = ["mark files are damaged: some repeats will not be recognized"];
                    self.announcements.push(damage_report(&causes, bytes, 0, Vec::new()));
                }
                Note::IndexReplaced { cause, name } => {
                    self.announcements.push(damage_report(&[cause], 0, 0, name.into_iter().collect()));
                }
                Note::SegmentUnread { reading } if self.cleaning == Some(reading) => self.put_off_cleaning(),
                Note::SegmentUnread { .. } => {}
                note @ (Note::Records { .. } | Note::SegmentRead { .. }) => left.push(note),
            }
        }
        left
    }

    /// Events whose patience is over. At the end, those that have outcomes to report.
    fn expired(&mut self, is_closing: bool) -> Vec<u64> {
        let now = Instant::now();
        let mut expired = Vec::new();
        while expired.len() < COMMIT_EXPIRED_MAX
            && let Some((_, event)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now)
        {
            expired.push(event);
        }
        if is_closing {
            expired.extend(self.young.keys().copied());
        }
        expired
    }

    fn plan(&mut self, work: Work, expired: &[u64], plan: &mut Plan) {
        plan.outcomes.clone_from(&work.outcomes);
        let mut appends = work.appends;
        if self.is_low_on_space {
            refuse(&mut plan.replies, appends.drain(..), AppendError::DiskFull);
        }
        let (report_bytes, first_event_after) = (self.report_bytes(), self.first_event_after());
        let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut round = Round {
            shared: &self.shared,
            index: &index,
            counters: &mut self.counters,
            young: &mut self.young,
            opt_out_places: &self.opt_out_places,
            limits: Limits {
                bytes_max: self.config.bytes_max,
                share_bytes_max: self.config.share_bytes_max(),
            },
            report_bytes,
            first_event_after,
            now_ms: gateway_runtime::clock::now().as_millisecond(),
            plan,
        };
        if let Some(acked) = work.acked {
            Lane::ALL.into_iter().for_each(|lane| round.acked(lane, acked[lane as usize]));
        }
        if work.takes_back {
            round.take_back_given();
        }
        for announcement in &self.announcements {
            round.report(Lane::Urgent, announcement.clone());
        }
        work.outcomes.iter().for_each(|outcome| round.outcome(outcome));
        for note in work.notes {
            round.note(note, self.cleaning);
        }
        appends.into_iter().for_each(|(entry, reply)| round.append(entry, reply));
        expired.iter().for_each(|event| round.report_event(*event));
        if work.is_closing {
            // Outcomes that came with the last commands are not kept for later.
            let with_outcomes: Vec<u64> = round.plan.young.keys().copied().collect();
            with_outcomes.into_iter().for_each(|event| round.report_event(event));
        }
        round.finish();
    }

    /// The commit failed: nothing of it counts.
    fn take_back(&mut self, plan: Plan, expired: &[u64]) {
        let now = Instant::now();
        for (event, (mut outcomes, before)) in plan.young {
            outcomes.truncate(before);
            if !outcomes.is_empty() {
                self.young.insert(event, outcomes);
            }
        }
        for event in plan.touched.keys().chain(expired) {
            self.deadlines.push_front((now, *event));
        }
        let mut queue = self.shared.inbox.lock();
        for outcome in plan.outcomes.into_iter().rev() {
            queue.outcomes.push_front(outcome);
        }
        queue.has_acks = true;
        queue.takes_back |= plan.takes_back;
        drop(queue);
        // What was read of an old segment is read again.
        self.cleaning = None;
        let refusal = self.refusal();
        for (reply, answer) in plan.replies {
            let _ = reply.send(answer.and(Err(refusal)));
        }
    }

    /// The disk refuses; writing is tried again soon.
    pub(super) fn fail(&mut self, failure: &JournalError) {
        let health = match failure {
            JournalError::DiskFull(_) => Health::DiskFull,
            JournalError::Io(_) => Health::Broken,
        };
        let is_new = !self.is_failing && self.shared.health() != health;
        if is_new {
            error!(
                error = failure as &dyn std::error::Error,
                "failed to write the buffer; callbacks get 503 until it can be written again"
            );
        }
        self.shared.set_health(health);
        self.next_tick = Instant::now() + if is_new { FIRST_RETRY } else { TICK };
        self.is_failing = true;
    }

    /// How appends are refused while the disk refuses.
    fn refusal(&self) -> AppendError {
        match self.shared.health() {
            Health::DiskFull => AppendError::DiskFull,
            _ => AppendError::Broken,
        }
    }

    /// Without a disk appends are refused; all else waits.
    fn refuse(&mut self, work: Work) {
        let refusal = self.refusal();
        for (_, reply) in work.appends {
            let _ = reply.send(Err(refusal));
        }
        let mut queue = self.shared.inbox.lock();
        for outcome in work.outcomes.into_iter().rev() {
            queue.outcomes.push_front(outcome);
        }
        queue.has_acks |= work.acked.is_some();
        queue.takes_back |= work.takes_back;
        drop(queue);
        if !work.notes.is_empty() {
            self.cleaning = None;
            work.notes.iter().for_each(|_| self.keeper.moved());
        }
    }

    /// Tries to write again after a failure.
    pub(super) fn try_again(&mut self) {
        let health = self.shared.health();
        self.is_failing = false;
        let proof = self.journal.prepare(&self.counters, FIRST_VERSION).and_then(|_| {
            let mut plan = Plan::default();
            let acked = self.shared.lane(Lane::Logs).acked;
            plan.put(Kind::Acked, 0, |out| record::put_acked(out, Lane::Logs, acked));
            self.journal.append(&plan.records)
        });
        match proof {
            Ok(()) => {
                info!("the buffer can be written again");
                self.shared.set_health(Health::Good);
            }
            Err(failure) => {
                self.shared.set_health(health);
                self.fail(&failure);
            }
        }
    }
}

impl Round<'_> {
    /// Takes what the keeper read of an old segment.
    fn note(&mut self, note: Note, cleaning: Option<Reading>) {
        match note {
            Note::Records { reading, records } if cleaning == Some(reading) => {
                for (offset, kind, payload) in records {
                    self.move_record(reading.segment, offset, kind, &payload);
                }
            }
            Note::SegmentRead { reading } if cleaning == Some(reading) => {
                let (segment, next_event) = (reading.segment, self.first_event_after);
                self.plan.put(Kind::Left, 0, |out| record::put_left(out, segment, next_event));
                self.plan.segments_read.push(segment);
            }
            // Of a reading that was given up after a failure; or it was heard already.
            _ => {}
        }
    }
}

/// What happens when the thread ends, also by a panic: nobody waits for it any more.
struct End {
    shared: Arc<Shared>,
    keeper: Arc<KeeperInbox>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.keeper.close();
        self.shared.set_health(Health::Stopped);
        self.shared.marks.set_view(None);
        self.shared.inbox.end();
        self.shared.ended.cancel();
    }
}

fn refuse(
    replies: &mut Vec<(Reply, Result<Receipt, AppendError>)>,
    appends: impl Iterator<Item = (Entry, Reply)>,
    refusal: AppendError,
) {
    replies.extend(appends.map(|(_, reply)| (reply, Err(refusal))));
}

fn take(queue: &mut Queue) -> Work {
    let (mut count, mut bytes) = (0, 0);
    while count < queue.appends.len().min(COMMIT_ENTRIES_MAX) && bytes < COMMIT_BYTES_MAX {
        bytes += size_of(&queue.appends[count].0);
        count += 1;
    }
    let outcomes = queue.outcomes.len().min(OUTCOMES_WAITING_MAX);
    Work {
        appends: queue.appends.drain(..count).collect(),
        outcomes: queue.outcomes.drain(..outcomes).collect(),
        notes: queue.notes.drain(..).collect(),
        acked: std::mem::take(&mut queue.has_acks).then_some(queue.acked),
        takes_back: std::mem::take(&mut queue.takes_back),
        is_closing: queue.is_closing,
    }
}

/// About how much of the commit an entry takes.
fn size_of(entry: &Entry) -> usize {
    let logs = entry.events.iter().map(|event| &event.log);
    let logs = logs.chain(entry.taken_over.iter().map(|taken| &taken.log));
    let events: usize = logs.map(|log| log.payload_json.len()).sum();
    let unrouted: usize = entry.unrouted.iter().map(|unrouted| unrouted.callback.payload_json.len()).sum();
    events + unrouted
}
