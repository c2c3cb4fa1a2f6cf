//! Reports on their way to the control plane: durable, in order, freed when acked. The newest are also in
//! memory; a backlog is read from disk.

use std::{collections::VecDeque, sync::Arc};

use gateway_proto::v1;
use prost::Message as _;
use tracing::error;

use super::{
    ReadError, ReportBatch, ReportLimits,
    record::{self, Lane, ReportRecord},
    shared::Shared,
    store::{Store, StoreError},
};

/// Bytes of reports of one lane kept in memory. When there are more, the oldest are read from disk.
const TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a report in memory costs beside its encoded size.
const REPORT_OVERHEAD_BYTES: usize = 512;

/// One lane.
pub(super) struct LaneState {
    /// The id its sequences are scoped to.
    pub(super) buffer_id: String,
    /// Everything up to here is acked and freed.
    pub(super) acked: u64,
    /// Everything up to here is on disk.
    pub(super) durable: u64,
    /// When the oldest report that is not acked was written.
    pub(super) oldest_ms: Option<i64>,
    /// The newest reports: all after `tail_after`.
    tail: VecDeque<Arc<ReportRecord>>,
    tail_after: u64,
    tail_bytes: usize,
}

impl LaneState {
    /// A lane with reports on disk after `acked` and up to `durable`.
    pub(super) const fn new(buffer_id: String, acked: u64, durable: u64, oldest_ms: Option<i64>) -> Self {
        Self {
            buffer_id,
            acked,
            durable,
            oldest_ms,
            tail: VecDeque::new(),
            tail_after: durable,
            tail_bytes: 0,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.oldest_ms.is_none()
    }

    /// Takes a report that is now on disk.
    pub(super) fn push(&mut self, record: Arc<ReportRecord>) {
        self.durable = record.sequence;
        self.oldest_ms.get_or_insert(record.time_ms);
        self.tail_bytes += record.bytes + REPORT_OVERHEAD_BYTES;
        self.tail.push_back(record);
        while self.tail_bytes > TAIL_BYTES_MAX {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(record) = self.tail.pop_front() {
            self.tail_after = record.sequence;
            self.tail_bytes -= record.bytes + REPORT_OVERHEAD_BYTES;
        }
    }

    /// Reports after `after` from memory, if all of them are there.
    fn in_memory(&self, after: u64, count: usize) -> Option<Vec<Arc<ReportRecord>>> {
        if after < self.tail_after && self.acked < self.tail_after {
            return None;
        }
        let start = self.tail.partition_point(|record| record.sequence <= after);
        Some(self.tail.range(start..).take(count).cloned().collect())
    }

    /// Forgets what is now acked and removed from disk; `oldest_ms` is of the first that is left.
    pub(super) fn free(&mut self, acked: u64, oldest_ms: Option<i64>) {
        self.acked = self.acked.max(acked);
        while self.tail.front().is_some_and(|record| record.sequence <= acked) {
            self.pop();
        }
        self.oldest_ms = oldest_ms;
    }
}

/// The reports of a lane from `after` (excluded) to `up_to` (included), for freeing them, and the time of
/// the first one left. Reads the disk for what is not in memory.
pub(super) fn acked_reports(
    shared: &Shared,
    store: &dyn Store,
    lane: Lane,
    up_to: u64,
) -> Result<(Vec<Arc<ReportRecord>>, Option<i64>), StoreError> {
    let (acked, durable, in_memory) = {
        let state = shared.lane(lane);
        (state.acked, state.durable, state.in_memory(state.acked, usize::MAX))
    };
    let mut records = match in_memory {
        Some(records) => records,
        None => {
            let mut records = Vec::new();
            record::scan_reports(store, lane, acked, durable, &mut |record| {
                let is_beyond = record.sequence > up_to;
                records.push(record);
                !is_beyond
            })?;
            records
        }
    };
    let count = records.partition_point(|record| record.sequence <= up_to);
    let oldest_ms = records.get(count).map(|record| record.time_ms);
    records.truncate(count);
    Ok((records, oldest_ms))
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
        let batch = assemble(records, after, limits, |record| Ok(shared.cached_log(record.event)), true)?;
        if !batch.reports.is_empty() || batch.last >= durable {
            return Ok(batch);
        }
    }
    let shared = Arc::clone(shared);
    let read = tokio::task::spawn_blocking(move || from_disk(&shared, lane, after, durable, limits)).await;
    match read {
        Ok(read) => Ok(read?),
        Err(_panic) => Err(StoreError::Panicked.into()),
    }
}

fn from_disk(
    shared: &Shared,
    lane: Lane,
    after: u64,
    durable: u64,
    limits: ReportLimits,
) -> Result<ReportBatch, StoreError> {
    let store = shared.store()?;
    let mut records = Vec::new();
    let mut bytes = 0;
    record::scan_reports(&*store, lane, after, durable, &mut |record| {
        bytes += record.bytes;
        records.push(record);
        records.len() < limits.count && bytes < limits.bytes
    })?;
    let log = |record: &ReportRecord| match shared.cached_log(record.event) {
        Some(log) => Ok(Some(log)),
        None => Ok(record::read_log(&*store, record.event)?.map(Arc::new)),
    };
    assemble(records, after, limits, log, false)
}

/// Joins reports with the logs they refer to. `stop_at_missing`: a log that is not found ends the batch
/// instead of being left out.
fn assemble(
    records: Vec<Arc<ReportRecord>>,
    after: u64,
    limits: ReportLimits,
    log: impl Fn(&ReportRecord) -> Result<Option<Arc<v1::InboundLog>>, StoreError>,
    stop_at_missing: bool,
) -> Result<ReportBatch, StoreError> {
    let mut batch = ReportBatch { reports: Vec::with_capacity(records.len()), last: after };
    let mut bytes = 0;
    for record in records {
        let mut report = record.report.clone();
        if record.event != 0 {
            match log(&record)? {
                Some(log) => fill_in(&mut report, &log),
                None if stop_at_missing => break,
                None => {
                    error!(sequence = record.sequence, "failed to report an event: it is missing on disk");
                    batch.last = record.sequence;
                    continue;
                }
            }
        }
        bytes += report.encoded_len();
        if bytes > limits.bytes && !batch.reports.is_empty() {
            break;
        }
        batch.last = record.sequence;
        batch.reports.push(report);
    }
    Ok(batch)
}

/// Puts the log around the deliveries that the report carries.
fn fill_in(report: &mut v1::Report, log: &v1::InboundLog) {
    if let Some(v1::report::Report::Event(event)) = &mut report.report {
        let deliveries = event.inbound_log.take().map(|log| log.deliveries).unwrap_or_default();
        event.inbound_log = Some(v1::InboundLog { deliveries, ..log.clone() });
    }
}
