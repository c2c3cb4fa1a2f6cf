//! What the payloads of the journal's records say. Numbers are big endian.
//!
//! | kind | payload |
//! |---|---|
//! | event | [`EventHeader`], then its `InboundLog` |
//! | report | [`ReportHeader`], then the `Report`, without the log of the event it refers to ([`LogIn`]) |
//! | outcome | event number, one [`StateChange`], then its `DeliveryAttempt` |
//! | mark | event id, [`Mark`] |
//! | opt-out | `OptOut` |
//! | acked | lane, sequence |
//! | state | event number, how far its report is, [`StateChange`] of each delivery |
//! | left | number of the segment that leaves, number of the first event behind it |

use bytes::Bytes;
use gateway_core::{delivery::DeliveryState, id::EventId};
use gateway_proto::v1;
use prost::Message as _;

use super::{
    index::{Delivery, Reported},
    journal::{Place, format::Reader},
};

/// How long an event is remembered after it was seen: Meta repeats for up to 7 days.
pub(super) const MARK_DAYS: u32 = 8;

/// Which reports go first. Each lane has sequences and a buffer id of its own, so that a backlog of logs
/// never holds up an opt-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Opt-outs, destinations that are gone, damage.
    Urgent = 0,
    /// Everything else.
    Logs = 1,
}

impl Lane {
    /// Both, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Logs];

    const fn of(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Urgent),
            1 => Some(Self::Logs),
            _ => None,
        }
    }
}

/// What the buffer itself needs to know of an event, before its `InboundLog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventHeader<'a> {
    /// Its number; numbers grow with the order of acceptance.
    pub(super) number: u64,
    pub(super) id: EventId,
    pub(super) receive_ms: i64,
    /// Hash of the contact, for ordering; 0 when there is none.
    pub(super) contact: u32,
    pub(super) subscriptions: Vec<&'a str>,
}

pub(super) fn put_event(out: &mut Vec<u8>, header: &EventHeader<'_>, log: &v1::InboundLog) {
    out.extend_from_slice(&header.number.to_be_bytes());
    out.extend_from_slice(header.id.as_bytes());
    out.extend_from_slice(&header.receive_ms.to_be_bytes());
    out.extend_from_slice(&header.contact.to_be_bytes());
    let count = u16::try_from(header.subscriptions.len()).expect("an event has few subscriptions");
    out.extend_from_slice(&count.to_be_bytes());
    for id in &header.subscriptions {
        out.push(u8::try_from(id.len()).expect("an id has at most 63 characters"));
        out.extend_from_slice(id.as_bytes());
    }
    log.encode_raw(out);
}

/// The header of an event, and its log. None when the bytes end too early.
pub(super) fn read_event(payload: &[u8]) -> Option<(EventHeader<'_>, &[u8])> {
    let mut rest = Reader(payload);
    let number = u64::from_be_bytes(rest.array()?);
    let id = EventId::from_bytes(rest.array()?);
    let receive_ms = i64::from_be_bytes(rest.array()?);
    let contact = u32::from_be_bytes(rest.array()?);
    let count = u16::from_be_bytes(rest.array()?);
    let mut subscriptions = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let [length] = rest.array()?;
        subscriptions.push(std::str::from_utf8(rest.take(usize::from(length))?).ok()?);
    }
    Some((EventHeader { number, id, receive_ms, contact, subscriptions }, rest.0))
}

/// The number of the event that a record of this kind begins with.
pub(super) fn leading_number(payload: &[u8]) -> Option<u64> {
    Reader(payload).array().map(u64::from_be_bytes)
}

/// A delivery as it is now. Which one is told by its place among the subscriptions of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateChange {
    pub(super) delivery: u16,
    pub(super) attempts: u16,
    pub(super) state: DeliveryState,
    pub(super) due_ms: i64,
}

impl StateChange {
    /// Of the delivery at this place.
    pub(super) fn of(place: usize, delivery: &Delivery) -> Self {
        Self {
            delivery: u16::try_from(place).expect("an event has few subscriptions"),
            attempts: delivery.attempts,
            state: delivery.state,
            due_ms: delivery.due_ms,
        }
    }

    /// Brings the delivery up to it.
    pub(super) fn apply(&self, deliveries: &mut [Delivery]) {
        if let Some(delivery) = deliveries.get_mut(usize::from(self.delivery)) {
            delivery.attempts = self.attempts;
            delivery.state = self.state;
            delivery.due_ms = self.due_ms;
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.delivery.to_be_bytes());
        out.extend_from_slice(&self.attempts.to_be_bytes());
        out.push(code(self.state));
        out.extend_from_slice(&self.due_ms.to_be_bytes());
    }

    fn read(rest: &mut Reader<'_>) -> Option<Self> {
        let delivery = u16::from_be_bytes(rest.array()?);
        let attempts = u16::from_be_bytes(rest.array()?);
        let [state] = rest.array()?;
        let due_ms = i64::from_be_bytes(rest.array()?);
        Some(Self { delivery, attempts, state: state_of(state), due_ms })
    }
}

/// States that are the agent's own. They come in journals of version
/// [`HAND_OVERS`](super::journal::format::HAND_OVERS) only.
const HANDING_OVER: u8 = 64;
const HANDING_OVER_HELD: u8 = 65;
const HANDED_OVER: u8 = 66;

/// A state in one byte: its number in protobuf, if it has one.
const fn code(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::HandingOver { was_held: false } => HANDING_OVER,
        DeliveryState::HandingOver { was_held: true } => HANDING_OVER_HELD,
        DeliveryState::HandedOver => HANDED_OVER,
        state => state.to_proto() as u8,
    }
}

fn state_of(code: u8) -> DeliveryState {
    match code {
        HANDING_OVER => DeliveryState::HandingOver { was_held: false },
        HANDING_OVER_HELD => DeliveryState::HandingOver { was_held: true },
        HANDED_OVER => DeliveryState::HandedOver,
        code => {
            let state = v1::DeliveryState::try_from(i32::from(code));
            DeliveryState::from_proto(state.unwrap_or(v1::DeliveryState::Pending))
        }
    }
}

fn put_changes(out: &mut Vec<u8>, changes: &[StateChange]) {
    let count = u16::try_from(changes.len()).expect("an event has few subscriptions");
    out.extend_from_slice(&count.to_be_bytes());
    changes.iter().for_each(|change| change.put(out));
}

fn read_changes(rest: &mut Reader<'_>) -> Option<Vec<StateChange>> {
    let count = u16::from_be_bytes(rest.array()?);
    (0..count).map(|_| StateChange::read(rest)).collect()
}

/// Whether the log of its event goes into a report, and into which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogIn {
    /// It does not.
    Nothing,
    /// Into an `EventReport`: the event's own.
    Event,
    /// Into a `DeliveryHandOver`, of the delivery at this place among those of the event. It comes in journals of
    /// version [`HAND_OVERS`](super::journal::format::HAND_OVERS) only.
    HandOver(u16),
}

impl LogIn {
    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Nothing => out.push(0),
            Self::Event => out.push(1),
            Self::HandOver(delivery) => {
                out.push(2);
                out.extend_from_slice(&delivery.to_be_bytes());
            }
        }
    }

    fn read(rest: &mut Reader<'_>) -> Option<Self> {
        let [part] = rest.array()?;
        match part {
            0 => Some(Self::Nothing),
            1 => Some(Self::Event),
            2 => Some(Self::HandOver(u16::from_be_bytes(rest.array()?))),
            _ => None,
        }
    }
}

/// What the buffer itself needs to know of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReportHeader {
    pub(super) lane: Lane,
    pub(super) sequence: u64,
    pub(super) time_ms: i64,
    /// The event it is about; 0 for none.
    pub(super) event: u64,
    /// Where the event's log goes into the report.
    pub(super) log: LogIn,
    /// The event's deliveries as they are now, those that changed.
    pub(super) changes: Vec<StateChange>,
}

pub(super) fn put_report(out: &mut Vec<u8>, header: &ReportHeader, report: &[u8]) {
    // The event comes first, as in the other records about one.
    out.extend_from_slice(&header.event.to_be_bytes());
    out.push(header.lane as u8);
    out.extend_from_slice(&header.sequence.to_be_bytes());
    out.extend_from_slice(&header.time_ms.to_be_bytes());
    header.log.put(out);
    put_changes(out, &header.changes);
    out.extend_from_slice(report);
}

/// The header of a report, and the report.
pub(super) fn read_report(payload: &[u8]) -> Option<(ReportHeader, &[u8])> {
    let mut rest = Reader(payload);
    let event = u64::from_be_bytes(rest.array()?);
    let [lane] = rest.array()?;
    let lane = Lane::of(lane)?;
    let sequence = u64::from_be_bytes(rest.array()?);
    let time_ms = i64::from_be_bytes(rest.array()?);
    let log = LogIn::read(&mut rest)?;
    let changes = read_changes(&mut rest)?;
    Some((ReportHeader { lane, sequence, time_ms, event, log, changes }, rest.0))
}

/// A report that is not acked yet, in memory. An event's log is not repeated in it: it refers to the event.
#[derive(Debug, Clone)]
pub(super) struct ReportRecord {
    pub(super) sequence: u64,
    /// The event it is about; 0 for none.
    pub(super) event: u64,
    /// Where that event's log goes into the report.
    pub(super) log: LogIn,
    /// The `Report`.
    pub(super) report: Bytes,
}

pub(super) fn put_outcome(
    out: &mut Vec<u8>,
    event: u64,
    change: StateChange,
    attempt: Option<&v1::DeliveryAttempt>,
) {
    out.extend_from_slice(&event.to_be_bytes());
    change.put(out);
    if let Some(attempt) = attempt {
        attempt.encode_raw(out);
    }
}

/// The event of an outcome, what changed, and the attempt that was made.
pub(super) fn read_outcome(payload: &[u8]) -> Option<(u64, StateChange, Option<v1::DeliveryAttempt>)> {
    let mut rest = Reader(payload);
    let event = u64::from_be_bytes(rest.array()?);
    let change = StateChange::read(&mut rest)?;
    let attempt = if rest.0.is_empty() { None } else { Some(v1::DeliveryAttempt::decode(rest.0).ok()?) };
    Some((event, change, attempt))
}

pub(super) fn put_state(out: &mut Vec<u8>, event: u64, reported: Reported, deliveries: &[Delivery]) {
    out.extend_from_slice(&event.to_be_bytes());
    out.push(reported as u8);
    let changes: Vec<StateChange> =
        deliveries.iter().enumerate().map(|(place, delivery)| StateChange::of(place, delivery)).collect();
    put_changes(out, &changes);
}

/// The event of a state, how far its report is, and its deliveries.
pub(super) fn read_state(payload: &[u8]) -> Option<(u64, Reported, Vec<StateChange>)> {
    let mut rest = Reader(payload);
    let event = u64::from_be_bytes(rest.array()?);
    let [reported] = rest.array()?;
    let reported = match reported {
        0 => Reported::No,
        1 => Reported::Queued,
        2 => Reported::Acked,
        _ => return None,
    };
    Some((event, reported, read_changes(&mut rest)?))
}

pub(super) fn put_acked(out: &mut Vec<u8>, lane: Lane, sequence: u64) {
    out.push(lane as u8);
    out.extend_from_slice(&sequence.to_be_bytes());
}

pub(super) fn read_acked(payload: &[u8]) -> Option<(Lane, u64)> {
    let mut rest = Reader(payload);
    let [lane] = rest.array()?;
    Some((Lane::of(lane)?, u64::from_be_bytes(rest.array()?)))
}

/// That a segment leaves, and the number that the first event behind it got.
pub(super) fn put_left(out: &mut Vec<u8>, segment: u32, next_event: u64) {
    out.extend_from_slice(&segment.to_be_bytes());
    out.extend_from_slice(&next_event.to_be_bytes());
}

pub(super) fn read_left(payload: &[u8]) -> Option<(u32, u64)> {
    let mut rest = Reader(payload);
    Some((u32::from_be_bytes(rest.array()?), u64::from_be_bytes(rest.array()?)))
}

/// That an event was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The day since 1970 on which it may be forgotten.
    pub(super) expire_day: u32,
    /// How many times it came again.
    pub(super) duplicates: u32,
    /// The event's number; 0 for what is no event: an unrouted callback, a contact's wish that came alone.
    pub(super) event: u64,
    /// It was first seen in a hand-over, and not in a callback.
    pub(super) is_taken_over: bool,
}

/// Length of an encoded mark.
pub(super) const MARK_BYTES: usize = 16;

/// In the event's number of an encoded mark: [`Mark::is_taken_over`]. A program of before sees the number of an event
/// that it does not have, as in every mark that is older than its journal.
const TAKEN_OVER: u64 = 1 << 63;

impl Mark {
    /// Of what was seen first at this time.
    pub(super) fn new(seen_ms: i64, event: u64) -> Self {
        Self { expire_day: day_of(seen_ms) + MARK_DAYS, duplicates: 0, event, is_taken_over: false }
    }

    /// How many times the event came again after a callback with it. The control plane adds the first callback itself,
    /// for every agent but the one that reported the event.
    pub(super) fn repeats(self) -> u32 {
        self.duplicates.saturating_sub(u32::from(self.is_taken_over))
    }

    pub(super) fn encode(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..4].copy_from_slice(&self.expire_day.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.duplicates.to_be_bytes());
        let flag = if self.is_taken_over { TAKEN_OVER } else { 0 };
        bytes[8..].copy_from_slice(&(self.event | flag).to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let expire_day = u32::from_be_bytes(rest.array()?);
        let duplicates = u32::from_be_bytes(rest.array()?);
        let event = u64::from_be_bytes(rest.array()?);
        let is_taken_over = event & TAKEN_OVER != 0;
        Some(Self { expire_day, duplicates, event: event & !TAKEN_OVER, is_taken_over })
    }
}

pub(super) fn put_mark(out: &mut Vec<u8>, id: &EventId, mark: Mark) {
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(&mark.encode());
}

pub(super) fn read_mark(payload: &[u8]) -> Option<(EventId, Mark)> {
    let mut rest = Reader(payload);
    let id = EventId::from_bytes(rest.array()?);
    Some((id, Mark::decode(rest.0)?))
}

/// The day since 1970 of a time in milliseconds.
pub(super) fn day_of(ms: i64) -> u32 {
    u32::try_from(ms / 86_400_000).unwrap_or(0)
}

/// A report that is not acked yet, by where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReportPlace {
    pub(super) sequence: u64,
    /// The event it is about; 0 for none.
    pub(super) event: u64,
    pub(super) place: Place,
    /// When it was written, in seconds since 1970.
    pub(super) time_s: u32,
    pub(super) log: LogIn,
}

/// Whether the time of a report fits; it does until 2106.
pub(super) fn seconds(time_ms: i64) -> u32 {
    u32::try_from(time_ms / 1_000).unwrap_or(u32::MAX)
}
