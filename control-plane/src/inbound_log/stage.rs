//! What a group of report batches changes: rows to write, worked out in memory before the transaction.

use std::hash::BuildHasherDefault;

use gateway_core::time;
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;

use super::{
    Record,
    changes::Change,
    event_index::{EventKey, EventKeyMap, event_key},
};

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
        });
    }

    /// Applies what `agent_id` recorded. An agent of `tenant_id` changes nothing of other tenants' events: to it
    /// they were never recorded.
    pub(super) fn apply(&mut self, agent_id: &str, tenant_id: Option<&str>, record: Record) {
        let event_id = match &record {
            Record::Event(log, _) => &log.event_id,
            Record::Attempts(report) => &report.event_id,
            Record::Duplicate(report) => &report.event_id,
            Record::Unrouted(_) => "",
        };
        let place = self.by_key.get(&event_key(event_id)).copied();
        let is_others = |place: usize| tenant_id.is_some_and(|own| self.logs[place].log.tenant_id != own);
        if place.is_some_and(is_others) {
            self.unknown_events += 1;
            return;
        }
        match (record, place) {
            (Record::Event(log, attempts), place) => {
                let place = self.event(agent_id, place, log, &attempts);
                self.attempt(place, attempts);
            }
            (Record::Attempts(report), Some(place)) => {
                self.deliveries(place, report.deliveries, &report.attempts);
                self.attempt(place, report.attempts);
            }
            (Record::Duplicate(report), Some(place)) => {
                self.duplicates(place, agent_id, report.duplicate_count);
            }
            (Record::Attempts(_) | Record::Duplicate(_), None) => self.unknown_events += 1,
            (Record::Unrouted(callback), _) => self.unrouted.push(callback),
        }
    }

    fn event(
        &mut self,
        agent_id: &str,
        known: Option<usize>,
        mut log: Box<v1::InboundLog>,
        attempts: &[v1::DeliveryAttempt],
    ) -> usize {
        let key = event_key(&log.event_id);
        if let Some(place) = known {
            self.duplicates(place, agent_id, log.duplicate_count);
            self.deliveries(place, log.deliveries, attempts);
            return place;
        }
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
        });
        self.deliveries(place, deliveries, attempts);
        place
    }

    fn change(&mut self, log_seq: i64, subscription_id: Option<String>) -> i64 {
        let change_seq = self.next_change_seq;
        self.next_change_seq += 1;
        self.changes.push(Change { change_seq, log_seq, subscription_id });
        change_seq
    }

    fn deliveries(&mut self, place: usize, reported: Vec<v1::Delivery>, attempts: &[v1::DeliveryAttempt]) {
        for delivery in reported {
            let staged = &mut self.logs[place];
            staged.is_changed = true;
            let seq = staged.seq;
            let subscription_id = delivery.subscription_id.clone();
            let has_attempt = attempts.iter().any(|attempt| attempt.subscription_id == subscription_id);
            if merge_delivery(&mut staged.log.deliveries, delivery, has_attempt) {
                self.change(seq, Some(subscription_id));
            }
        }
    }

    fn attempt(&mut self, place: usize, reported: Vec<v1::DeliveryAttempt>) {
        let staged = &mut self.logs[place];
        if staged.is_new {
            let bytes = reported.iter().map(|attempt| attempt.encoded_len() + FIELD_HEAD_BYTES);
            staged.first_attempts.reserve_exact(bytes.sum());
        }
        for attempt in reported {
            staged.is_changed = true;
            if staged.is_new {
                prost::encoding::message::encode(1, &attempt, &mut staged.first_attempts);
            }
            self.attempts.push(StagedAttempt {
                log_seq: staged.seq,
                attempt_seq: staged.attempt_count,
                is_first: staged.is_new,
                attempt,
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

/// Merges what an agent says of a delivery into what is known; without an attempt the outcome of the last
/// one stays. True when the delivery now is in another
/// state, and that state is worth telling: anything but pending.
fn merge_delivery(known: &mut Vec<v1::Delivery>, mut reported: v1::Delivery, has_attempt: bool) -> bool {
    let is_told = |state: i32| {
        state != v1::DeliveryState::Unspecified as i32 && state != v1::DeliveryState::Pending as i32
    };
    let delivered = v1::DeliveryState::Delivered as i32;
    match known.iter_mut().find(|delivery| delivery.subscription_id == reported.subscription_id) {
        None => {
            let told = is_told(reported.state);
            known.push(reported);
            told
        }
        // Of two agents that took the same event, one delivered it: what the other still owes is moot.
        Some(delivery) if delivery.state == delivered && reported.state != delivered => {
            delivery.attempt_count = delivery.attempt_count.max(reported.attempt_count);
            false
        }
        Some(delivery) => {
            let told = delivery.state != reported.state && is_told(reported.state);
            reported.attempt_count = reported.attempt_count.max(delivery.attempt_count);
            if !has_attempt {
                reported.last_status_code = delivery.last_status_code;
                reported.last_error = std::mem::take(&mut delivery.last_error);
            }
            *delivery = reported;
            told
        }
    }
}

fn microseconds(time: Option<&prost_types::Timestamp>, otherwise: Timestamp) -> i64 {
    time.and_then(time::from_proto).unwrap_or(otherwise).as_microsecond()
}
