//! The buffer's thread: gathers what waits, commits it, answers. The only writer.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{error, info};

use crate::metrics::Metrics;

use super::{
    AppendError, Config, Entry, Outcome,
    index::Reported,
    lock::DirectoryLock,
    mend::open_and_recover,
    record::Lane,
    recover::Recovered,
    round::{Counters, Plan, Round, Young},
    shared::{Health, OUTCOMES_WAITING_MAX, Queue, Reply, Shared},
    store::{Disk, Op, Store, StoreError},
    sweep::Sweep,
};

/// Most entries of one commit; the others wait for the next.
const COMMIT_ENTRIES_MAX: usize = 1_024;
/// Most bytes of events in one commit.
const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long outcomes wait for company. Nobody waits for them, and a disk sync costs much; an append ends
/// the wait.
const OUTCOMES_GATHER: Duration = Duration::from_millis(10);
/// Outcomes that are enough company.
const OUTCOMES_ENOUGH: usize = 1_024;
/// How long the report of an event waits for the outcome of its first attempts, so that a quick delivery
/// is one report.
const REPORT_PATIENCE: Duration = Duration::from_millis(250);
/// How often the disk is looked after: free space, forgotten marks, opening again after a failure.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The thread's own state.
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) disk: Box<dyn Disk>,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Counters,
    pub(super) young: Young,
    /// When events want their report, oldest first; many of them have it by then.
    pub(super) deadlines: VecDeque<(Instant, u64)>,
    pub(super) sweep: Sweep,
    pub(super) next_tick: Instant,
    pub(super) is_low_on_space: bool,
    /// What takes failed commits back, once the store is open again.
    pub(super) undo: Vec<Op>,
}

/// What one round deals with.
struct Work {
    appends: Vec<(Entry, Reply)>,
    outcomes: Vec<Arc<Outcome>>,
    acked: Option<[u64; 2]>,
    is_closing: bool,
}

impl Engine {
    /// Opens the store, tells `opened`, and works until the inbox is closed.
    pub(super) fn run(
        config: Config,
        metrics: Metrics,
        disk: Box<dyn Disk>,
        lock: DirectoryLock,
        opened: oneshot::Sender<Result<Arc<Shared>, StoreError>>,
    ) {
        let engine = match Self::open(config, metrics, disk) {
            Ok(engine) => engine,
            Err(failure) => {
                // Nobody waits for the answer only when start-up was given up.
                drop(opened.send(Err(failure)));
                return;
            }
        };
        let shared = Arc::clone(&engine.shared);
        let end = End { shared: Arc::clone(&shared), lock: Some(lock) };
        if opened.send(Ok(shared)).is_ok() {
            engine.work();
        }
        drop(end);
    }

    fn open(config: Config, metrics: Metrics, disk: Box<dyn Disk>) -> Result<Self, StoreError> {
        let (store, recovered) = open_and_recover(&*disk, &metrics)?;
        let Recovered { index, subscriptions, lanes, counters, opt_outs, open, unreported } = recovered;
        let shared = Arc::new(Shared::new(store, index, lanes));
        *shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner) = subscriptions;
        *shared.opt_outs.lock().unwrap_or_else(PoisonError::into_inner) = opt_outs;
        if !open.is_empty() {
            info!(deliveries = open.len(), "going on with the deliveries in the buffer");
        }
        *shared.fresh.lock().unwrap_or_else(PoisonError::into_inner) = open;
        shared.fresh_added.notify_one();
        shared.reports_added.notify_one();
        shared.reports_planned.store(unreported.len(), Ordering::Release);
        let now = Instant::now();
        Ok(Self {
            config,
            metrics,
            disk,
            shared,
            counters,
            young: Young::new(),
            deadlines: unreported.into_iter().map(|event| (now + REPORT_PATIENCE, event)).collect(),
            sweep: Sweep::default(),
            next_tick: now,
            is_low_on_space: false,
            undo: Vec::new(),
        })
    }

    fn work(mut self) {
        loop {
            if Instant::now() >= self.next_tick {
                self.tick();
            }
            let Some(work) = self.gather() else { return };
            let is_last = work.is_closing && work.appends.is_empty();
            self.round(work);
            if is_last && self.has_nothing_left() {
                return;
            }
        }
    }

    /// Whether all that can still be written is written. A store that is closed takes nothing.
    fn has_nothing_left(&self) -> bool {
        let queue = self.shared.inbox.lock();
        self.shared.store().is_err() || (queue.appends.is_empty() && queue.outcomes.is_empty())
    }

    /// Waits for something to do. None when the thread is to end at once.
    fn gather(&self) -> Option<Work> {
        let mut queue = self.shared.inbox.lock();
        let mut gather_until = None;
        while !queue.is_urgent() {
            let now = Instant::now();
            let mut wake = self.next_tick;
            if self.shared.store().is_ok() {
                if let Some((deadline, _)) = self.deadlines.front() {
                    wake = wake.min(*deadline);
                }
                if queue.outcomes.len() >= OUTCOMES_ENOUGH {
                    break;
                }
                if queue.has_work() {
                    wake = wake.min(*gather_until.get_or_insert(now + OUTCOMES_GATHER));
                }
            }
            if wake <= now {
                break;
            }
            queue = self.shared.inbox.wait(queue, wake - now);
        }
        if queue.is_killed { None } else { Some(take(&mut queue)) }
    }

    fn round(&mut self, work: Work) {
        let store = match self.shared.store() {
            Ok(store) => store,
            Err(_closed) => return self.refuse(work),
        };
        let mut plan = Plan::default();
        let expired = self.expired(work.is_closing);
        let planned = self.plan(&*store, work, &expired, &mut plan);
        let ops = std::mem::take(&mut plan.ops);
        let committed = planned.and_then(|()| if ops.is_empty() { Ok(()) } else { store.commit(ops) });
        drop(store);
        match committed {
            Ok(()) => self.apply(plan),
            Err(failure) => self.fail(plan, &expired, &failure),
        }
    }

    /// Events whose patience is over. At the end, those that have outcomes to report.
    fn expired(&mut self, is_closing: bool) -> Vec<u64> {
        let now = Instant::now();
        let mut expired = Vec::new();
        while let Some((_, event)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now) {
            expired.push(event);
        }
        if is_closing {
            expired.extend(self.young.keys().copied());
        }
        expired
    }

    fn plan(
        &mut self,
        store: &dyn Store,
        work: Work,
        expired: &[u64],
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        plan.outcomes.clone_from(&work.outcomes);
        let mut appends = work.appends;
        if self.is_low_on_space {
            refuse(&mut plan.replies, appends.drain(..), AppendError::DiskFull);
        }
        let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut round = Round {
            shared: &self.shared,
            store,
            index: &index,
            counters: &mut self.counters,
            young: &mut self.young,
            bytes_max: self.config.bytes_max,
            now_ms: gateway_runtime::clock::now().as_millisecond(),
            plan,
        };
        if let Some(acked) = work.acked {
            for lane in Lane::ALL {
                round.acked(lane, acked[lane as usize])?;
            }
        }
        for outcome in &work.outcomes {
            round.outcome(outcome)?;
        }
        let mut appends = appends.into_iter();
        while let Some((entry, reply)) = appends.next() {
            if let Err(failure) = round.append(entry, reply) {
                refuse(&mut round.plan.replies, appends, AppendError::Broken);
                return Err(failure);
            }
        }
        for event in expired {
            round.report_event(*event)?;
        }
        if work.is_closing {
            // Outcomes that came with the last commands are not kept for later.
            let with_outcomes: Vec<u64> = round.plan.young.keys().copied().collect();
            for event in with_outcomes {
                round.report_event(event)?;
            }
        }
        round.finish()
    }

    /// The commit is on disk: memory follows, then everybody is answered.
    fn apply(&mut self, plan: Plan) {
        let shared = Arc::clone(&self.shared);
        let fresh = plan.new_deliveries();
        let deadline = Instant::now() + REPORT_PATIENCE;
        let (mut planned, mut written) = (0, 0);
        {
            let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
            for (event, slot) in plan.touched {
                let was_planned = index.get(event).is_some_and(|before| before.reported == Reported::No);
                let is_new = index.get(event).is_none();
                let is_planned = slot.reported == Reported::No;
                planned += usize::from(is_new && is_planned);
                written += usize::from(was_planned && !is_planned);
                if is_new && is_planned {
                    self.deadlines.push_back((deadline, event));
                }
                if is_planned && let Some((outcomes, _)) = plan.young.get(&event) {
                    self.young.insert(event, outcomes.clone());
                }
                index.insert(event, slot);
            }
            for event in &plan.freed {
                index.remove(*event);
            }
            index.bytes = (index.bytes + plan.bytes_added).saturating_sub(plan.bytes_removed);
        }
        self.publish_logs(&plan.freed, plan.new_events);
        let has_reports = plan.reports.iter().any(|reports| !reports.is_empty());
        for ((lane, reports), acked) in Lane::ALL.into_iter().zip(plan.reports).zip(plan.acked) {
            let mut state = shared.lane(lane);
            if let Some((acked, oldest_ms)) = acked {
                state.free(acked, oldest_ms);
            }
            reports.into_iter().for_each(|report| state.push(report));
        }
        shared.reports_planned.fetch_add(planned, Ordering::AcqRel);
        shared.reports_planned.fetch_sub(written, Ordering::AcqRel);
        if !plan.opt_outs.is_empty() {
            shared.opt_outs.lock().unwrap_or_else(PoisonError::into_inner).extend(plan.opt_outs);
        }
        for (reply, answer) in plan.replies {
            // A caller that went away has its entry stored all the same.
            let _ = reply.send(answer);
        }
        if !fresh.is_empty() {
            shared.fresh.lock().unwrap_or_else(PoisonError::into_inner).extend(fresh);
            shared.fresh_added.notify_one();
        }
        if has_reports {
            shared.reports_added.notify_one();
        }
        shared.end_outcomes(&plan.outcomes);
    }

    fn publish_logs(&self, freed: &[u64], new_events: Vec<(u64, Arc<gateway_proto::v1::InboundLog>)>) {
        let mut logs = self.shared.logs.lock().unwrap_or_else(PoisonError::into_inner);
        freed.iter().for_each(|event| logs.remove(*event));
        new_events.into_iter().for_each(|(event, log)| logs.insert(event, log));
    }

    /// The commit failed: nothing of it counts. The store is closed, because after a failed sync it cannot
    /// be believed, and is opened again when the disk lets us.
    pub(super) fn fail(&mut self, plan: Plan, expired: &[u64], failure: &StoreError) {
        let (health, refusal) = match failure {
            StoreError::DiskFull(_) => (Health::DiskFull, AppendError::DiskFull),
            _ => (Health::Broken, AppendError::Broken),
        };
        error!(
            error = failure as &dyn std::error::Error,
            "failed to write the buffer; callbacks get 503 until it can be opened again"
        );
        self.shared.set_health(health);
        self.shared.set_store(None);
        {
            let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
            let opt_outs = self.shared.opt_outs.lock().unwrap_or_else(PoisonError::into_inner);
            self.undo.extend(plan.undo(&index, &opt_outs));
        }
        self.counters.forget_reservations();
        for (event, (mut outcomes, before)) in plan.young {
            outcomes.truncate(before);
            if !outcomes.is_empty() {
                self.young.insert(event, outcomes);
            }
        }
        let now = Instant::now();
        for event in plan.touched.keys().chain(expired) {
            self.deadlines.push_front((now, *event));
        }
        let mut queue = self.shared.inbox.lock();
        for outcome in plan.outcomes.into_iter().rev() {
            queue.outcomes.push_front(outcome);
        }
        queue.has_acks = true;
        drop(queue);
        for (reply, _) in plan.replies {
            let _ = reply.send(Err(refusal));
        }
        self.next_tick = now + TICK;
    }

    /// Without a store appends are refused; outcomes and acks wait.
    fn refuse(&self, work: Work) {
        let refusal = match self.shared.health() {
            Health::DiskFull => AppendError::DiskFull,
            _ => AppendError::Broken,
        };
        for (_, reply) in work.appends {
            let _ = reply.send(Err(refusal));
        }
        let mut queue = self.shared.inbox.lock();
        for outcome in work.outcomes.into_iter().rev() {
            queue.outcomes.push_front(outcome);
        }
        queue.has_acks |= work.acked.is_some();
    }
}

/// What happens when the thread ends, also by a panic: nobody waits for it any more.
struct End {
    shared: Arc<Shared>,
    lock: Option<DirectoryLock>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.set_health(Health::Stopped);
        self.shared.set_store(None);
        self.lock = None;
        self.shared.inbox.end();
        self.shared.ended.cancel();
    }
}

fn refuse(
    replies: &mut Vec<(Reply, Result<super::Receipt, AppendError>)>,
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
        acked: std::mem::take(&mut queue.has_acks).then_some(queue.acked),
        is_closing: queue.is_closing,
    }
}

/// About how much of the commit an entry takes.
fn size_of(entry: &Entry) -> usize {
    let events: usize = entry.events.iter().map(|event| event.log.payload_json.len()).sum();
    let unrouted: usize = entry.unrouted.iter().map(|unrouted| unrouted.callback.payload_json.len()).sum();
    events + unrouted
}
