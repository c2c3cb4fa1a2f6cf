//! Keys and values on disk. Numbers are big endian, so that keys sort as numbers do.
//!
//! | key | value |
//! |---|---|
//! | `e` sequence chunk | an event: [`EventHeader`], then `InboundLog` |
//! | `s` sequence | its deliveries; there only while a reported event is unsettled |
//! | `m` event id | that it was seen: [`Mark`] |
//! | `r` lane sequence chunk | a report not acked yet: [`ReportRecord`] |
//! | `o` opt-out id | a decision of a contact, as `OptOut` |
//! | `x` name | buffer ids and counters |
//!
//! Values longer than [`CHUNK_BYTES`] are split: sled packs up to 16 values into a page, and a page over
//! 128 KiB goes to a file that it never syncs.

use std::sync::Arc;

use gateway_core::{delivery::DeliveryState, id::EventId};
use gateway_proto::v1;
use prost::Message as _;

use super::{
    index::{Deliveries, Delivery},
    store::{Op, Store, StoreError},
};

/// Longest value on disk.
pub(super) const CHUNK_BYTES: usize = 4 * 1024;
/// How long an event is remembered after it was seen: Meta repeats for up to 7 days.
pub(super) const MARK_DAYS: u32 = 8;

const EVENT: u8 = b'e';
const STATE: u8 = b's';
const MARK: u8 = b'm';
const REPORT: u8 = b'r';
const OPT_OUT: u8 = b'o';

/// Which reports go first. Each lane has sequences and a buffer id of its own, so that a backlog of logs
/// never holds up an opt-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Opt-outs and destinations that are gone.
    Urgent = 0,
    /// Everything else.
    Logs = 1,
}

impl Lane {
    /// Both, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Logs];
}

/// A value on disk cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("decode a stored {0}")]
pub(super) struct BadRecord(pub(super) &'static str);

impl From<BadRecord> for StoreError {
    fn from(bad: BadRecord) -> Self {
        Self::Damaged(Box::new(bad))
    }
}

fn key(prefix: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(prefix);
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// Everything under a prefix, for [`Store::scan`].
pub(super) fn all_of(prefix: u8) -> ([u8; 1], [u8; 1]) {
    ([prefix], [prefix + 1])
}

pub(super) fn all_events() -> ([u8; 1], [u8; 1]) {
    all_of(EVENT)
}

pub(super) fn all_states() -> ([u8; 1], [u8; 1]) {
    all_of(STATE)
}

pub(super) fn all_marks() -> ([u8; 1], [u8; 1]) {
    all_of(MARK)
}

pub(super) fn all_opt_outs() -> ([u8; 1], [u8; 1]) {
    all_of(OPT_OUT)
}

pub(super) fn event_key(sequence: u64, chunk: u16) -> Vec<u8> {
    key(EVENT, &[&sequence.to_be_bytes(), &chunk.to_be_bytes()])
}

pub(super) fn state_key(sequence: u64) -> Vec<u8> {
    key(STATE, &[&sequence.to_be_bytes()])
}

pub(super) fn mark_key(id: &EventId) -> Vec<u8> {
    key(MARK, &[id.as_bytes()])
}

pub(super) fn report_key(lane: Lane, sequence: u64, chunk: u16) -> Vec<u8> {
    key(REPORT, &[&[lane as u8], &sequence.to_be_bytes(), &chunk.to_be_bytes()])
}

pub(super) fn opt_out_key(id: &str) -> Vec<u8> {
    key(OPT_OUT, &[id.as_bytes()])
}

pub(super) fn meta_key(name: &str) -> Vec<u8> {
    key(b'x', &[name.as_bytes()])
}

/// The sequence in the key of an event or a state, and the chunk of an event's.
pub(super) fn sequence_of(key: &[u8]) -> Option<(u64, u16)> {
    let sequence = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    let chunk = key.get(9..11).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some((sequence, chunk))
}

/// The sequence and the chunk in the key of a report.
pub(super) fn report_sequence_of(key: &[u8]) -> Option<(u64, u16)> {
    let sequence = u64::from_be_bytes(key.get(2..10)?.try_into().ok()?);
    let chunk = u16::from_be_bytes(key.get(10..12)?.try_into().ok()?);
    Some((sequence, chunk))
}

fn chunk_count(bytes: usize) -> u16 {
    u16::try_from((bytes + 4).div_ceil(CHUNK_BYTES)).expect("a record is far below 256 MiB")
}

/// Writes `blob` in chunks, its length first.
pub(super) fn put_blob(ops: &mut Vec<Op>, key: impl Fn(u16) -> Vec<u8>, blob: &[u8]) {
    let length = u32::try_from(blob.len()).expect("a record is far below 4 GiB");
    let first = blob.len().min(CHUNK_BYTES - 4);
    let mut head = Vec::with_capacity(4 + first);
    head.extend_from_slice(&length.to_be_bytes());
    head.extend_from_slice(&blob[..first]);
    ops.push(Op::Put(key(0), head));
    for (index, chunk) in blob[first..].chunks(CHUNK_BYTES).enumerate() {
        let number = u16::try_from(index + 1).expect("a record is far below 256 MiB");
        ops.push(Op::Put(key(number), chunk.to_vec()));
    }
}

/// Removes what [`put_blob`] wrote for a blob of this length.
pub(super) fn delete_blob(ops: &mut Vec<Op>, key: impl Fn(u16) -> Vec<u8>, bytes: usize) {
    ops.extend((0..chunk_count(bytes)).map(|chunk| Op::Delete(key(chunk))));
}

/// The length of the blob whose first chunk this is, and what the chunk holds of it.
pub(super) fn split_head(head: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = head.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*length) as usize, rest))
}

/// Reads what [`put_blob`] wrote. None when it is not there.
pub(super) fn read_blob(
    store: &dyn Store,
    key: impl Fn(u16) -> Vec<u8>,
) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(head) = store.get(&key(0))? else { return Ok(None) };
    let (length, first) = split_head(&head).ok_or(BadRecord("length"))?;
    let mut blob = Vec::with_capacity(length);
    blob.extend_from_slice(first);
    for chunk in 1..chunk_count(length) {
        let bytes = store.get(&key(chunk))?.ok_or(BadRecord("chunk"))?;
        blob.extend_from_slice(&bytes);
    }
    if blob.len() == length { Ok(Some(blob)) } else { Err(BadRecord("blob").into()) }
}

/// What the buffer itself needs to know of an event, before its `InboundLog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventHeader {
    pub(super) id: EventId,
    pub(super) receive_ms: i64,
    pub(super) subscriptions: Vec<Box<str>>,
}

const FORMAT: u8 = 1;

pub(super) fn encode_event(header: &EventHeader, log: &v1::InboundLog) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 + header.subscriptions.len() * 32 + log.encoded_len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(header.id.as_bytes());
    bytes.extend_from_slice(&header.receive_ms.to_be_bytes());
    let count = u16::try_from(header.subscriptions.len()).expect("an event has few subscriptions");
    bytes.extend_from_slice(&count.to_be_bytes());
    for id in &header.subscriptions {
        bytes.push(u8::try_from(id.len()).expect("an id has at most 63 characters"));
        bytes.extend_from_slice(id.as_bytes());
    }
    log.encode_raw(&mut bytes);
    bytes
}

/// The header and where the log begins. None when the bytes end too early or are not an event.
pub(super) fn decode_event_header(bytes: &[u8]) -> Option<(EventHeader, usize)> {
    let mut rest = Reader(bytes);
    if rest.take(1)? != [FORMAT] {
        return None;
    }
    let id = EventId::from_bytes(rest.array()?);
    let receive_ms = i64::from_be_bytes(rest.array()?);
    let count = u16::from_be_bytes(rest.array()?);
    let mut subscriptions = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let [length] = rest.array()?;
        subscriptions.push(std::str::from_utf8(rest.take(usize::from(length))?).ok()?.into());
    }
    Some((EventHeader { id, receive_ms, subscriptions }, bytes.len() - rest.0.len()))
}

/// Reads the log of an event.
pub(super) fn read_log(store: &dyn Store, sequence: u64) -> Result<Option<v1::InboundLog>, StoreError> {
    let Some(bytes) = read_blob(store, |chunk| event_key(sequence, chunk))? else { return Ok(None) };
    let (_, offset) = decode_event_header(&bytes).ok_or(BadRecord("event"))?;
    let log = v1::InboundLog::decode(&bytes[offset..]).map_err(|_| BadRecord("event"))?;
    Ok(Some(log))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

const fn state_number(state: DeliveryState) -> u8 {
    state.to_proto() as u8
}

fn state_of(number: u8) -> DeliveryState {
    let state = v1::DeliveryState::try_from(i32::from(number)).unwrap_or(v1::DeliveryState::Pending);
    DeliveryState::from_proto(state)
}

pub(super) fn encode_state(deliveries: &Deliveries) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(deliveries.as_slice().len() * 11);
    for delivery in deliveries.as_slice() {
        bytes.extend_from_slice(&delivery.attempts.to_be_bytes());
        bytes.push(state_number(delivery.state));
        bytes.extend_from_slice(&delivery.due_ms.to_be_bytes());
    }
    bytes
}

/// Brings stored states into deliveries that have the order of the event's subscriptions.
pub(super) fn decode_state(bytes: &[u8], deliveries: &mut [Delivery]) -> Result<(), BadRecord> {
    let mut rest = Reader(bytes);
    for delivery in deliveries {
        let mut read = || {
            let attempts = u16::from_be_bytes(rest.array()?);
            let [state] = rest.array()?;
            Some((attempts, state, i64::from_be_bytes(rest.array()?)))
        };
        let (attempts, state, due_ms) = read().ok_or(BadRecord("delivery state"))?;
        delivery.attempts = attempts;
        delivery.state = state_of(state);
        delivery.due_ms = due_ms;
    }
    Ok(())
}

/// That an event was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The day since 1970 on which it may be forgotten.
    pub(super) expire_day: u32,
    /// How many times it came again.
    pub(super) duplicates: u32,
    /// The event's sequence; 0 for what is no event: an unrouted callback, a contact's wish that came alone.
    pub(super) sequence: u64,
}

impl Mark {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&self.expire_day.to_be_bytes());
        bytes.extend_from_slice(&self.duplicates.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let mut rest = Reader(bytes);
        let mut read = || {
            Some(Self {
                expire_day: u32::from_be_bytes(rest.array()?),
                duplicates: u32::from_be_bytes(rest.array()?),
                sequence: u64::from_be_bytes(rest.array()?),
            })
        };
        read().ok_or(BadRecord("mark"))
    }
}

/// The day since 1970 of a time in milliseconds.
pub(super) fn day_of(ms: i64) -> u32 {
    u32::try_from(ms / 86_400_000).unwrap_or(0)
}

/// A report that is not acked yet. An event's log is not repeated in it: it refers to the event.
#[derive(Debug)]
pub(super) struct ReportRecord {
    pub(super) sequence: u64,
    pub(super) time_ms: i64,
    /// The event whose log goes into the report; 0 for reports that are whole.
    pub(super) event: u64,
    pub(super) report: v1::Report,
    /// Length on disk.
    pub(super) bytes: usize,
}

const REPORT_HEADER_BYTES: usize = 17;

impl ReportRecord {
    pub(super) fn new(event: u64, time_ms: i64, report: v1::Report) -> Self {
        let bytes = REPORT_HEADER_BYTES + report.encoded_len();
        Self { sequence: report.sequence, time_ms, event, report, bytes }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.time_ms.to_be_bytes());
        bytes.extend_from_slice(&self.event.to_be_bytes());
        self.report.encode_raw(&mut bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Arc<Self>, BadRecord> {
        let (time_ms, event) = report_header(bytes).ok_or(BadRecord("report"))?;
        let report = v1::Report::decode(&bytes[REPORT_HEADER_BYTES..]).map_err(|_| BadRecord("report"))?;
        Ok(Arc::new(Self { sequence: report.sequence, time_ms, event, report, bytes: bytes.len() }))
    }
}

/// Time and event of a stored report, from its first bytes.
pub(super) fn report_header(bytes: &[u8]) -> Option<(i64, u64)> {
    let mut rest = Reader(bytes);
    if rest.take(1)? != [FORMAT] {
        return None;
    }
    Some((i64::from_be_bytes(rest.array()?), u64::from_be_bytes(rest.array()?)))
}

/// Reads reports of a lane after `after` and up to `up_to`, until `take` returns false.
pub(super) fn scan_reports(
    store: &dyn Store,
    lane: Lane,
    after: u64,
    up_to: u64,
    take: &mut dyn FnMut(Arc<ReportRecord>) -> bool,
) -> Result<(), StoreError> {
    let (from, to) = (report_key(lane, after + 1, 0), report_key(lane, up_to + 1, 0));
    let mut expected = 0;
    let mut blob = Vec::new();
    let mut bad = None;
    store.scan(&from, &to, &mut |key, value| {
        let is_head = report_sequence_of(key).is_some_and(|(_, chunk)| chunk == 0);
        if is_head {
            let Some((length, first)) = split_head(value) else {
                bad = Some(BadRecord("report"));
                return false;
            };
            expected = length;
            blob.clear();
            blob.extend_from_slice(first);
        } else {
            blob.extend_from_slice(value);
        }
        if blob.len() < expected {
            return true;
        }
        match ReportRecord::decode(&blob) {
            Ok(record) => take(record),
            Err(failure) => {
                bad = Some(failure);
                false
            }
        }
    })?;
    bad.map_or(Ok(()), |bad| Err(bad.into()))
}
