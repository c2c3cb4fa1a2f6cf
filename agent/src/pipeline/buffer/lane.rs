//! Reports on their way to the control plane: durable, in order, freed when acked. The newest are also in
//! memory; a backlog is read from the journal.

use std::{collections::VecDeque, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use gateway_proto::v1;
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use tracing::error;

use super::{
    ReadError, ReportBatch, ReportLimits,
    journal::{Place, format::Kind},
    keeper::Note,
    record::{self, Lane, LogIn, ReportPlace, ReportRecord},
    shared::{HandOvers, Shared},
};

/// Bytes of reports of one lane kept in memory. When there are more, the oldest are read from disk.
const TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a report in memory costs beside its encoded size.
const REPORT_OVERHEAD_BYTES: usize = 96;

/// One lane.
pub(super) struct LaneState {
    /// The id its sequences are scoped to.
    pub(super) buffer_id: String,
    /// Everything up to here is acked and freed.
    pub(super) acked: u64,
    /// Everything up to here is on disk.
    pub(super) durable: u64,
    /// Reports that are not acked, in the order of their sequence.
    places: VecDeque<ReportPlace>,
    bytes: u64,
    /// The newest of them: all after `tail_after`.
    tail: VecDeque<ReportRecord>,
    tail_after: u64,
    tail_bytes: usize,
}

impl LaneState {
    /// A lane with these reports, of which the next gets the sequence `next`.
    pub(super) fn new(buffer_id: String, places: VecDeque<ReportPlace>, next: u64) -> Self {
        let durable = next - 1;
        let acked = places.front().map_or(durable, |first| first.sequence - 1);
        let bytes = places.iter().map(|place| u64::from(place.place.bytes)).sum();
        Self {
            buffer_id,
            acked,
            durable,
            places,
            bytes,
            tail: VecDeque::new(),
            tail_after: durable,
            tail_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many reports are not acked.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes on disk of reports that are not acked.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the oldest report that is not acked was written, in milliseconds since 1970.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.places.front().map(|place| i64::from(place.time_s) * 1_000)
    }

    /// Takes a report that is now on disk.
    pub(super) fn push(&mut self, place: ReportPlace, record: ReportRecord) {
        self.durable = record.sequence;
        self.bytes += u64::from(place.place.bytes);
        self.places.push_back(place);
        self.tail_bytes += record.report.len() + REPORT_OVERHEAD_BYTES;
        self.tail.push_back(record);
        while self.tail_bytes > TAIL_BYTES_MAX {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(record) = self.tail.pop_front() {
            self.tail_after = record.sequence;
            self.tail_bytes -= record.report.len() + REPORT_OVERHEAD_BYTES;
        }
    }

    /// The reports up to a sequence.
    pub(super) fn up_to(&self, sequence: u64) -> impl Iterator<Item = &ReportPlace> {
        self.places.iter().take_while(move |place| place.sequence <= sequence)
    }

    /// Forgets reports up to a sequence.
    pub(super) fn free(&mut self, acked: u64) {
        self.acked = self.acked.max(acked);
        while let Some(place) = self.places.pop_front_if(|place| place.sequence <= acked) {
            self.bytes -= u64::from(place.place.bytes);
        }
        while self.tail.front().is_some_and(|record| record.sequence <= acked) {
            self.pop();
        }
    }

    /// Forgets these reports, in order, wherever they are. Returns where they were.
    pub(super) fn take_back(&mut self, sequences: &[u64]) -> Vec<Place> {
        let is_kept = |sequence: u64| sequences.binary_search(&sequence).is_err();
        let mut taken_back = Vec::with_capacity(sequences.len());
        self.places.retain(|report| {
            if !is_kept(report.sequence) {
                taken_back.push(report.place);
            }
            is_kept(report.sequence)
        });
        self.bytes -= taken_back.iter().map(|place| u64::from(place.bytes)).sum::<u64>();
        self.tail.retain(|record| is_kept(record.sequence));
        self.tail_bytes = self.tail.iter().map(|record| record.report.len() + REPORT_OVERHEAD_BYTES).sum();
        taken_back
    }

    /// A report that is not acked.
    pub(super) fn find(&mut self, sequence: u64) -> Option<&mut ReportPlace> {
        let index = self.places.partition_point(|place| place.sequence < sequence);
        self.places.get_mut(index).filter(|place| place.sequence == sequence)
    }

    /// Reports after `after` from memory, if all of them are there.
    fn in_memory(&self, after: u64, count: usize) -> Option<Vec<ReportRecord>> {
        if after < self.tail_after && self.acked < self.tail_after {
            return None;
        }
        let start = self.tail.partition_point(|record| record.sequence <= after);
        Some(self.tail.range(start..).take(count).cloned().collect())
    }

    /// Where reports after `after` are.
    fn on_disk(&self, after: u64, limits: ReportLimits) -> Vec<ReportPlace> {
        let start = self.places.partition_point(|place| place.sequence <= after);
        let mut bytes = 0;
        let fits = |place: &&ReportPlace| {
            let is_first = bytes == 0;
            bytes += place.place.bytes as usize;
            is_first || bytes <= limits.bytes
        };
        self.places.range(start..).take(limits.count).take_while(fits).copied().collect()
    }
}

/// Reports with their logs, as they are sent.
pub(super) async fn next_reports(
    shared: &Arc<Shared>,
    lane: Lane,
    after: u64,
    limits: ReportLimits,
) -> Result<ReportBatch, ReadError> {
    let (in_memory, durable) = {
        let state = shared.lane(lane);
        (state.in_memory(after, limits.count), state.durable)
    };
    if let Some(records) = in_memory {
        let batch = assemble(shared, &records, after, limits);
        if batch.count > 0 || batch.last >= durable {
            return Ok(batch);
        }
    }
    let shared = Arc::clone(shared);
    let read = tokio::task::spawn_blocking(move || from_disk(&shared, lane, after, limits)).await;
    read.map_err(|_panic| ReadError::Panicked)?
}

/// Joins reports with the logs they refer to, as long as these are in memory.
fn assemble(shared: &Shared, records: &[ReportRecord], after: u64, limits: ReportLimits) -> ReportBatch {
    let mut batch = ReportBatch { last: after, ..ReportBatch::default() };
    for record in records {
        if waits(shared, record.log) {
            break;
        }
        let log = match record.log {
            LogIn::Nothing => None,
            LogIn::Event | LogIn::HandOver(_) => match shared.cached_log(record.event) {
                Some(log) => Some(log),
                None => break,
            },
        };
        let log = log.as_deref().map(|log| (record.log, Log::Message(log)));
        if !batch.push(record.sequence, &record.report, log, limits) {
            break;
        }
    }
    batch
}

/// Whether a report, and what is behind it, waits for the word of the control plane: one that does not know hand-overs
/// would ack it unseen.
fn waits(shared: &Shared, log: LogIn) -> bool {
    matches!(log, LogIn::HandOver(_)) && shared.hand_overs() != HandOvers::Reported
}

fn from_disk(
    shared: &Shared,
    lane: Lane,
    after: u64,
    limits: ReportLimits,
) -> Result<ReportBatch, ReadError> {
    loop {
        let places = shared.lane(lane).on_disk(after, limits);
        let mut batch = ReportBatch { last: after, ..ReportBatch::default() };
        let has_moved = batch.fill(shared, lane, places, limits)?;
        // Nobody tells of a move, so it is looked for at once where the first report is now.
        if !(has_moved && batch.last == after) {
            return Ok(batch);
        }
    }
}

/// Field numbers of the messages that are put together here from encoded parts.
mod field {
    pub(super) const REPORTS_OF_REQUEST: u32 = 2;
    pub(super) const EVENT_OF_REPORT: u32 = 2;
    pub(super) const LOG_OF_EVENT: u32 = 1;
    pub(super) const HAND_OVER_OF_REPORT: u32 = 9;
    pub(super) const LOG_OF_HAND_OVER: u32 = 2;

    use super::LogIn;

    /// The part of a report that gets the log, and where in it.
    pub(super) const fn of_log(log: LogIn) -> (u32, u32) {
        match log {
            LogIn::Nothing | LogIn::Event => (EVENT_OF_REPORT, LOG_OF_EVENT),
            LogIn::HandOver(_) => (HAND_OVER_OF_REPORT, LOG_OF_HAND_OVER),
        }
    }
}

/// Length of a field with a payload of so many bytes; all field numbers here take one byte.
const fn field_len(payload: usize) -> usize {
    1 + encoded_len_varint(payload as u64) + payload
}

fn put_key(out: &mut BytesMut, field: u32, payload: usize) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(payload as u64, out);
}

/// The log that goes into a report.
#[derive(Clone, Copy)]
enum Log<'a> {
    Encoded(&'a [u8]),
    Message(&'a v1::InboundLog),
}

impl Log<'_> {
    fn encoded_len(self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Message(log) => log.encoded_len(),
        }
    }

    fn put(self, out: &mut BytesMut) {
        match self {
            Self::Encoded(bytes) => out.put_slice(bytes),
            Self::Message(log) => log.encode_raw(out),
        }
    }
}

impl ReportBatch {
    /// Reads reports from disk, as long as there is room. What is damaged is left out, so that it does not hold up
    /// the others; while the disk refuses they wait. Returns whether it ended early because a report has moved, or
    /// was acked.
    fn fill(
        &mut self,
        shared: &Shared,
        lane: Lane,
        places: Vec<ReportPlace>,
        limits: ReportLimits,
    ) -> Result<bool, ReadError> {
        for place in places {
            let sequence = place.sequence;
            if waits(shared, place.log) {
                break;
            }
            let is_there = || shared.lane(lane).find(sequence).is_some_and(|now| now.place == place.place);
            match self.read(shared, place, limits) {
                Ok(true) => self.last = sequence,
                Ok(false) => break,
                Err(_) if !is_there() => return Ok(true),
                Err(ReadError::Damaged) => {
                    error!(sequence, "failed to read a report from the buffer: it is damaged, and left out");
                    if matches!(place.log, LogIn::HandOver(_)) {
                        // Nobody else will come across the event.
                        shared.inbox.note(Note::EventUnreadable);
                    }
                    self.last = sequence;
                }
                // What was read before goes first.
                Err(_) if self.count > 0 => break,
                Err(failure) => return Err(failure),
            }
        }
        Ok(false)
    }

    /// Reads one report from disk, with its log. Returns whether there was room.
    fn read(&mut self, shared: &Shared, place: ReportPlace, limits: ReportLimits) -> Result<bool, ReadError> {
        let payload = shared.journal.read(place.place, Kind::Report)?;
        let (header, report) = record::read_report(&payload).ok_or(ReadError::Damaged)?;
        if header.log == LogIn::Nothing {
            return Ok(self.push(place.sequence, report, None, limits));
        }
        // Its event is open as long as the report is.
        let log = shared.read_log_bytes(header.event)?.ok_or(ReadError::Damaged)?;
        Ok(self.push(place.sequence, report, Some((header.log, Log::Encoded(&log))), limits))
    }

    /// Adds a report, if there is room. A log is merged into a part of the report: in protobuf, the parts of a
    /// message that comes twice are joined (<https://protobuf.dev/programming-guides/encoding/#last-one-wins>).
    fn push(
        &mut self,
        sequence: u64,
        report: &[u8],
        log: Option<(LogIn, Log<'_>)>,
        limits: ReportLimits,
    ) -> bool {
        let part_len = log.map(|(_, log)| field_len(log.encoded_len()));
        let report_len = report.len() + part_len.map_or(0, field_len);
        if self.count > 0 && self.encoded.len() + report_len > limits.bytes {
            return false;
        }
        self.encoded.reserve(field_len(report_len));
        put_key(&mut self.encoded, field::REPORTS_OF_REQUEST, report_len);
        self.encoded.put_slice(report);
        if let (Some(part_len), Some((part, log))) = (part_len, log) {
            let (part_field, log_field) = field::of_log(part);
            put_key(&mut self.encoded, part_field, part_len);
            put_key(&mut self.encoded, log_field, log.encoded_len());
            log.put(&mut self.encoded);
        }
        self.last = sequence;
        self.count += 1;
        true
    }

    /// The reports of this batch as one `ReportLogsRequest`.
    pub(crate) fn into_request(self, buffer_id: &str) -> Bytes {
        let head = v1::ReportLogsRequest { buffer_id: buffer_id.to_owned(), reports: Vec::new() };
        let mut request = self.encoded;
        // Fields may come in any order.
        request.reserve(head.encoded_len());
        head.encode_raw(&mut request);
        request.freeze()
    }

    /// The reports, for tests.
    #[cfg(test)]
    pub(crate) fn reports(&self) -> Vec<v1::Report> {
        v1::ReportLogsRequest::decode(self.encoded.clone().freeze()).expect("reports decode").reports
    }
}
