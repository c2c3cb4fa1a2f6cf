//! What a group of report batches changes: rows to write, worked out in memory before the transaction.

use std::hash::BuildHasherDefault;

use gateway_core::time;
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;

use super::{
    Record, ReportBatch,
    event_key::{EventKey, EventKeyMap, event_key},
};

mod merge;

use merge::{Attempted, Merged, merge};

/// One step of the watch stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) change_seq: i64,
    pub(super) log_seq: i64,
    /// The delivery that changed state; None when the log was recorded.
    pub(super) subscription_id: Option<String>,
}

/// A log row, new or changed.
#[derive(Debug)]
pub(super) struct StagedLog {
    pub(super) seq: i64,
    pub(super) key: EventKey,
    /// Whether this group records it.
    pub(super) is_new: bool,
    /// Whether anything about it changed.
    pub(super) is_changed: bool,
    /// The change that records it, when it is new.
    pub(super) change_seq: i64,
    /// Microseconds since 1970.
    pub(super) receive_time: i64,
    /// Attempts of it, new ones included.
    pub(super) attempt_count: i64,
    /// What agents other than the log's own add to its `duplicate_count`; that agent's part is the rest.
    pub(super) repeats: Vec<AgentRepeats>,
    pub(super) log: Box<v1::InboundLog>,
    /// The attempts that came in the group that records it, as [`FirstAttempts`].
    pub(super) first_attempts: Vec<u8>,
    /// Ids of the stored attempts, when reports of this group may repeat some.
    pub(super) stored_attempts: Vec<String>,
    /// The newest of its attempts in [`Stage::attempts`].
    last_attempt: Option<usize>,
}

impl StagedLog {
    /// Whether an attempt can be one that was reported before. Every attempt that is stored has raised its
    /// delivery's count to its number at least, so one with a higher number is new, and mostly nothing has to be
    /// looked up.
    fn may_be_known(&self, attempt: &v1::DeliveryAttempt) -> bool {
        let delivery =
            self.log.deliveries.iter().find(|delivery| delivery.subscription_id == attempt.subscription_id);
        self.attempt_count > 0
            && !attempt.attempt_id.is_empty()
            && delivery.is_none_or(|delivery| attempt.attempt_number <= delivery.attempt_count)
    }
}

/// Most bytes of the tag and the length before an attempt.
const FIELD_HEAD_BYTES: usize = 6;

/// Attempts that are kept with their log: mostly there is one, and it is the last.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FirstAttempts {
    #[prost(message, repeated, tag = "1")]
    pub(super) attempts: Vec<v1::DeliveryAttempt>,
}

/// How often the provider repeated an event to an agent other than the one that took it first. Its own first
/// sight of the event is one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AgentRepeats {
    pub(super) agent_id: String,
    pub(super) count: u32,
    /// Whether this group changed it.
    pub(super) is_changed: bool,
}

/// An attempt to append.
#[derive(Debug)]
pub(super) struct StagedAttempt {
    pub(super) log_seq: i64,
    pub(super) attempt_seq: i64,
    /// Whether it is written with its log.
    pub(super) is_first: bool,
    pub(super) attempt: v1::DeliveryAttempt,
    /// The one before it of the same log in [`Stage::attempts`].
    pub(super) previous: Option<usize>,
}

/// Everything that a group changes.
#[derive(Debug)]
pub(super) struct Stage {
    now: Timestamp,
    next_seq: i64,
    next_change_seq: i64,
    by_key: EventKeyMap<usize>,
    pub(super) logs: Vec<StagedLog>,
    pub(super) attempts: Vec<StagedAttempt>,
    pub(super) changes: Vec<Change>,
    pub(super) unrouted: Vec<v1::UnroutedCallback>,
    /// Reports about events that were never recorded.
    pub(super) unknown_events: u64,
}

impl Stage {
    /// `records` is how many are about to be applied.
    pub(super) fn new(now: Timestamp, next_seq: i64, next_change_seq: i64, records: usize) -> Self {
        Self {
            now,
            next_seq,
            next_change_seq,
            by_key: EventKeyMap::with_capacity_and_hasher(records, BuildHasherDefault::default()),
            logs: Vec::with_capacity(records),
            attempts: Vec::with_capacity(records),
            changes: Vec::with_capacity(2 * records),
            unrouted: Vec::new(),
            unknown_events: 0,
        }
    }

    pub(super) fn next_seq(&self) -> i64 {
        self.next_seq
    }

    pub(super) fn next_change_seq(&self) -> i64 {
        self.next_change_seq
    }

    /// Makes a stored row known, so that records can change it.
    pub(super) fn load(
        &mut self,
        key: EventKey,
        seq: i64,
        attempt_count: i64,
        repeats: Vec<AgentRepeats>,
        log: Box<v1::InboundLog>,
    ) {
        let receive_time = microseconds(log.receive_time.as_ref(), self.now);
        self.by_key.insert(key, self.logs.len());
        self.logs.push(StagedLog {
            seq,
            key,
            is_new: false,
            is_changed: false,
            change_seq: 0,
            receive_time,
            attempt_count,
            repeats,
            log,
            first_attempts: Vec::new(),
            stored_attempts: Vec::new(),
            last_attempt: None,
        });
    }

    /// Loaded logs of which the batches bring attempts that may be stored, with their sequence: their ids are
    /// to be put into [`StagedLog::stored_attempts`].
    pub(super) fn may_repeat(&self, batches: &[ReportBatch]) -> Vec<(i64, usize)> {
        let mut places: Vec<_> = batches
            .iter()
            .flat_map(|batch| &batch.records)
            .filter_map(|record| {
                let (event_id, attempts) = match &record.record {
                    Record::Event(log, attempts) => (&log.event_id, attempts),
                    Record::Attempts(report) => (&report.event_id, &report.attempts),
                    Record::Duplicate(_) | Record::Unrouted(_) => return None,
                };
                let place = *self.by_key.get(&event_key(event_id))?;
                let staged = &self.logs[place];
                attempts.iter().any(|attempt| staged.may_be_known(attempt)).then_some((staged.seq, place))
            })
            .collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Applies what `agent_id` recorded. An agent of `tenant_id` changes nothing of other tenants' events: to it
    /// they were never recorded.
    ///
    /// Whoever knows what an event's id is made of can report it first, as one of its own tenant. So the event of
    /// another tenant is never merged into it, and of agents that did not record an event only deliveries count
    /// that are known of it: nothing of the one tenant gets into the log of the other.
    pub(super) fn apply(&mut self, agent_id: &str, tenant_id: Option<&str>, record: Record) {
        let (event_id, event_tenant) = match &record {
            Record::Event(log, _) => (&*log.event_id, Some(&*log.tenant_id)),
            Record::Attempts(report) => (&*report.event_id, None),
            Record::Duplicate(report) => (&*report.event_id, None),
            Record::Unrouted(_) => ("", None),
        };
        let place = self.by_key.get(&event_key(event_id)).copied();
        let is_others = |place: usize| {
            let owner = Some(&*self.logs[place].log.tenant_id);
            [tenant_id, event_tenant].iter().any(|tenant| tenant.is_some() && *tenant != owner)
        };
        if place.is_some_and(is_others) {
            self.unknown_events += 1;
            return;
        }
        match (record, place) {
            (Record::Event(mut log, attempts), Some(place)) => {
                self.duplicates(place, agent_id, log.duplicate_count);
                self.report(place, std::mem::take(&mut log.deliveries), attempts);
            }
            (Record::Event(log, attempts), None) => self.event(log, attempts),
            (Record::Attempts(mut report), Some(place)) => {
                self.keep_known(place, agent_id, &mut report);
                self.report(place, report.deliveries, report.attempts);
            }
            (Record::Duplicate(report), Some(place)) => {
                self.duplicates(place, agent_id, report.duplicate_count);
            }
            (Record::Attempts(_) | Record::Duplicate(_), None) => self.unknown_events += 1,
            (Record::Unrouted(callback), _) => self.unrouted.push(callback),
        }
    }

    /// Takes out what an agent that did not record the event says of deliveries that are not known of it.
    fn keep_known(&mut self, place: usize, agent_id: &str, report: &mut v1::AttemptsReport) {
        let log = &self.logs[place].log;
        if log.agent_id == agent_id {
            return;
        }
        let is_known = |id: &str| log.deliveries.iter().any(|delivery| delivery.subscription_id == id);
        let before = report.deliveries.len() + report.attempts.len();
        report.deliveries.retain(|delivery| is_known(&delivery.subscription_id));
        report.attempts.retain(|attempt| is_known(&attempt.subscription_id));
        if report.deliveries.len() + report.attempts.len() < before {
            self.unknown_events += 1;
        }
    }

    fn event(&mut self, mut log: Box<v1::InboundLog>, attempts: Vec<v1::DeliveryAttempt>) {
        let key = event_key(&log.event_id);
        log.record_time = Some(time::to_proto(self.now));
        let place = self.logs.len();
        let seq = self.next_seq;
        self.next_seq += 1;
        let change_seq = self.change(seq, None);
        let deliveries = std::mem::take(&mut log.deliveries);
        let receive_time = microseconds(log.receive_time.as_ref(), self.now);
        self.by_key.insert(key, place);
        self.logs.push(StagedLog {
            seq,
            key,
            is_new: true,
            is_changed: true,
            change_seq,
            receive_time,
            attempt_count: 0,
            repeats: Vec::new(),
            log,
            first_attempts: Vec::new(),
            stored_attempts: Vec::new(),
            last_attempt: None,
        });
        self.report(place, deliveries, attempts);
    }

    fn change(&mut self, log_seq: i64, subscription_id: Option<String>) -> i64 {
        let change_seq = self.next_change_seq;
        self.next_change_seq += 1;
        self.changes.push(Change { change_seq, log_seq, subscription_id });
        change_seq
    }

    /// What an agent says of the deliveries of an event, and the attempts that it made.
    fn report(
        &mut self,
        place: usize,
        deliveries: Vec<v1::Delivery>,
        mut attempts: Vec<v1::DeliveryAttempt>,
    ) {
        let mut known: Vec<v1::DeliveryAttempt> = Vec::new();
        known.extend(attempts.extract_if(.., |attempt| self.is_known(place, attempt)));
        let has = |attempts: &[v1::DeliveryAttempt], delivery: &v1::Delivery| {
            attempts.iter().any(|attempt| attempt.subscription_id == delivery.subscription_id)
        };
        for delivery in deliveries {
            let attempted = match () {
                () if has(&attempts, &delivery) => Attempted::New,
                () if has(&known, &delivery) => Attempted::Again,
                () => Attempted::Not,
            };
            let staged = &mut self.logs[place];
            let seq = staged.seq;
            let subscription_id = delivery.subscription_id.clone();
            let merged = merge(&mut staged.log.deliveries, delivery, attempted);
            staged.is_changed |= merged != Merged::Same;
            if merged == Merged::Told {
                self.change(seq, Some(subscription_id));
            }
        }
        self.attempts(place, attempts);
    }

    /// Whether an attempt is stored or was staged before.
    fn is_known(&self, place: usize, attempt: &v1::DeliveryAttempt) -> bool {
        let staged = &self.logs[place];
        if !staged.may_be_known(attempt) {
            return false;
        }
        let mut before = std::iter::successors(staged.last_attempt, |last| self.attempts[*last].previous);
        staged.stored_attempts.contains(&attempt.attempt_id)
            || before.any(|place| self.attempts[place].attempt.attempt_id == attempt.attempt_id)
    }

    fn attempts(&mut self, place: usize, new: Vec<v1::DeliveryAttempt>) {
        let staged = &mut self.logs[place];
        if staged.is_new {
            let bytes = new.iter().map(|attempt| attempt.encoded_len() + FIELD_HEAD_BYTES);
            staged.first_attempts.reserve_exact(bytes.sum());
        }
        for attempt in new {
            staged.is_changed = true;
            if staged.is_new {
                prost::encoding::message::encode(1, &attempt, &mut staged.first_attempts);
            }
            let mut deliveries = staged.log.deliveries.iter_mut();
            if let Some(delivery) = deliveries.find(|one| one.subscription_id == attempt.subscription_id) {
                delivery.attempt_count = delivery.attempt_count.max(attempt.attempt_number);
            }
            let previous = staged.last_attempt.replace(self.attempts.len());
            self.attempts.push(StagedAttempt {
                log_seq: staged.seq,
                attempt_seq: staged.attempt_count,
                is_first: staged.is_new,
                attempt,
                previous,
            });
            staged.attempt_count += 1;
        }
    }

    /// An agent says how often it saw the event again, in all. The figures of all agents add up; one that
    /// did not take it first saw it once more than it counts.
    fn duplicates(&mut self, place: usize, agent_id: &str, count: u32) {
        let staged = &mut self.logs[place];
        let added = if staged.log.agent_id == agent_id {
            let elsewhere = staged.repeats.iter().fold(0_u32, |sum, one| sum.saturating_add(one.count));
            count.saturating_sub(staged.log.duplicate_count.saturating_sub(elsewhere))
        } else {
            repeated_at(&mut staged.repeats, agent_id, count.saturating_add(1))
        };
        if added > 0 {
            staged.log.duplicate_count = staged.log.duplicate_count.saturating_add(added);
            staged.is_changed = true;
        }
    }
}

/// Notes the figure of a further agent, which never goes down; returns how much is new of it.
fn repeated_at(repeats: &mut Vec<AgentRepeats>, agent_id: &str, count: u32) -> u32 {
    match repeats.iter_mut().find(|one| one.agent_id == agent_id) {
        Some(one) => {
            let added = count.saturating_sub(one.count);
            one.count += added;
            one.is_changed |= added > 0;
            added
        }
        None => {
            repeats.push(AgentRepeats { agent_id: agent_id.to_owned(), count, is_changed: true });
            count
        }
    }
}

/// Microseconds since 1970.
pub(super) fn microseconds(time: Option<&prost_types::Timestamp>, otherwise: Timestamp) -> i64 {
    time.and_then(time::from_proto).unwrap_or(otherwise).as_microsecond()
}
