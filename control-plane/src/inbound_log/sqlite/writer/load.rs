//! What is stored of the events that a group speaks of.

use std::{collections::HashMap, sync::PoisonError, time::Duration};

use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::Row as _;

use super::{Writer, rows::stored_repeats};
use crate::inbound_log::{
    LogStoreError, Record, ReportBatch,
    event_key::{EventKey, event_key},
    sqlite::{
        attempts,
        event_index::{Wanted, find_sealed},
    },
    stage::{Stage, microseconds},
};

/// Rows loaded by one statement.
const LOADED_ROWS: usize = 32;
/// Parameters that are not bound are NULL, which matches nothing.
const LOAD: &str = "SELECT seq, attempt_count, record FROM logs WHERE seq IN \
    (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";
/// What was received later than this ago comes for the first time, or is in the window: it is not looked up in segments
/// on disk. So what comes in now costs no reads, whatever an agent's clock wrote into a segment.
const LIVE_TIME: Duration = Duration::from_secs(60);
/// Logs whose attempts are loaded by one statement.
const LOADED_LISTS: usize = 256;

impl Writer {
    /// Loads the stored rows that the batches speak of.
    pub(super) async fn load_stored(
        &mut self,
        batches: &[ReportBatch],
        stage: &mut Stage,
        now: Timestamp,
    ) -> Result<(), LogStoreError> {
        let (seqs, older) = self.stored_rows(batches, now);
        let mut rows: Vec<(i64, EventKey)> = seqs.into_iter().map(|(key, seq)| (seq, key)).collect();
        for (key, wanted) in older {
            let found = find_sealed(&mut self.connection, &key, wanted).await.map_err(LogStoreError::read)?;
            rows.extend(found.first().map(|seq| (*seq, key)));
        }
        rows.sort_unstable();
        for chunk in rows.chunks(LOADED_ROWS) {
            let keys: HashMap<i64, EventKey> = chunk.iter().copied().collect();
            let mut query = sqlx::query(LOAD);
            for (seq, _) in chunk {
                query = query.bind(seq);
            }
            let found = query.fetch_all(&mut self.connection).await.map_err(LogStoreError::read)?;
            for row in found {
                let seq: i64 = row.get(0);
                let log = v1::InboundLog::decode(row.get::<&[u8], _>(2))
                    .map_err(|source| LogStoreError::Corrupt { table: "logs", source })?;
                // A further agent counts at least its own first sight, so without a count there is none.
                let repeats = match log.duplicate_count {
                    0 => Vec::new(),
                    _ => stored_repeats(&mut self.connection, seq).await.map_err(LogStoreError::read)?,
                };
                stage.load(keys[&seq], seq, row.get(1), repeats, Box::new(log));
            }
        }
        self.load_attempts(batches, stage).await
    }

    /// Loads the ids of stored attempts that the batches may repeat.
    async fn load_attempts(
        &mut self,
        batches: &[ReportBatch],
        stage: &mut Stage,
    ) -> Result<(), LogStoreError> {
        // New events have no stored attempts.
        if stage.logs.is_empty() {
            return Ok(());
        }
        // In the order of their sequence.
        let places = stage.may_repeat(batches);
        for chunk in places.chunks(LOADED_LISTS) {
            let seqs = chunk.iter().map(|(seq, _)| *seq);
            for (seq, attempt_id) in attempts::stored_ids(&mut self.connection, seqs).await? {
                if let Ok(found) = chunk.binary_search_by_key(&seq, |(seq, _)| *seq) {
                    stage.logs[chunk[found].1].stored_attempts.push(attempt_id);
                }
            }
        }
        Ok(())
    }

    /// Rows of the window that the batches speak of, and keys that only sealed segments can know.
    fn stored_rows(
        &self,
        batches: &[ReportBatch],
        now: Timestamp,
    ) -> (HashMap<EventKey, i64>, Vec<(EventKey, Wanted)>) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut stored = HashMap::new();
        let mut older = HashMap::new();
        let records = || batches.iter().flat_map(|batch| &batch.records);
        for record in records() {
            let event_id = match &record.record {
                Record::Event(log, _) => &log.event_id,
                Record::Attempts(report) => &report.event_id,
                Record::Duplicate(report) => &report.event_id,
                Record::Unrouted(_) => continue,
            };
            let key = event_key(event_id);
            if let Some(seq) = index.recent(&key) {
                stored.insert(key, seq);
            } else if !matches!(record.record, Record::Event(..)) {
                older.insert(key, Wanted::Newest);
            }
        }
        // What this group brings itself is new, unless it was received long ago: then it can be a repeat.
        let live = (now - LIVE_TIME).as_microsecond();
        for record in records() {
            let Record::Event(log, _) = &record.record else { continue };
            let time = microseconds(log.receive_time.as_ref(), now);
            let may_be_repeat = time < live && index.may_be_older(time);
            if !may_be_repeat && older.is_empty() {
                continue;
            }
            let key = event_key(&log.event_id);
            if may_be_repeat && !stored.contains_key(&key) {
                older.insert(key, Wanted::ReceivedAt(time));
            } else {
                older.remove(&key);
            }
        }
        drop(index);
        (stored, older.into_iter().collect())
    }
}
