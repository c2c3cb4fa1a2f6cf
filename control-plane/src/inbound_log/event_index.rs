//! From event id to log row, without an index on random keys.
//!
//! Event ids are hashes. An ordinary unique index on them dirties a random page per event, and SQLite
//! falls from 87,000 to 8,300 rows a second at a million rows. So the newest ids are kept in memory only
//! (the tail, rebuilt from the rows at start), and whenever the tail has [`SEGMENT_ROWS`] of them they are
//! written out sorted, as one sealed segment that never changes. The newest sealed segments stay in memory
//! too: with the tail they are the window in which a repeated event is recognized. Older ids are looked up
//! on disk, one seek per segment, which only reads and late attempts need.

use std::collections::{HashMap, VecDeque};

use gateway_core::id::EventId;
use sqlx::{SqliteConnection, SqliteExecutor};

use super::insert::RowInsert;

/// Rows of a sealed segment.
pub(super) const SEGMENT_ROWS: usize = 65_536;
/// Sealed segments kept in memory: with the tail, a window of at least 196,608 events, at 24 bytes each.
const SEGMENTS_IN_MEMORY: usize = 3;

/// The 16 bytes that an event id stands for.
pub(super) type EventKey = [u8; 16];

/// The key of an event id. Ids of another form than ours get the hash of their text.
pub(super) fn event_key(event_id: &str) -> EventKey {
    let id = event_id.parse().unwrap_or_else(|_| EventId::derive(&[event_id]));
    *id.as_bytes()
}

/// Rows that are not sealed yet, by id, and what their segment will say about them.
#[derive(Debug, Default)]
struct Tail {
    seqs: HashMap<EventKey, i64>,
    bounds: Option<Bounds>,
}

/// What a segment says about its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) seq_first: i64,
    pub(super) seq_last: i64,
    pub(super) receive_time_min: i64,
    pub(super) receive_time_max: i64,
    /// The change that recorded the first row.
    pub(super) change_seq_first: i64,
}

/// One new row.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexedRow {
    pub(super) key: EventKey,
    pub(super) seq: i64,
    pub(super) receive_time: i64,
    pub(super) change_seq: i64,
}

/// Finds rows by event id.
#[derive(Debug)]
pub(super) struct EventIndex {
    segment_rows: usize,
    tail: Tail,
    /// The newest sealed segments, newest last, each sorted by key.
    sealed: VecDeque<Vec<(EventKey, i64)>>,
    next_segment: i64,
}

impl EventIndex {
    /// Reads the newest segments and every row after them.
    pub(super) async fn load(
        connection: &mut SqliteConnection,
        segment_rows: usize,
    ) -> Result<Self, sqlx::Error> {
        let newest: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT segment, seq_last, change_seq_first FROM log_segments ORDER BY segment DESC LIMIT 1",
        )
        .fetch_optional(&mut *connection)
        .await?;
        let (last_segment, last_seq, last_change) = newest.unwrap_or((-1, 0, 0));
        let mut index = Self {
            segment_rows,
            tail: Tail::default(),
            sealed: VecDeque::new(),
            next_segment: last_segment + 1,
        };
        let kept = i64::try_from(SEGMENTS_IN_MEMORY).expect("a small constant fits i64");
        for segment in (last_segment + 1 - kept).max(0)..=last_segment {
            let keys: Vec<(Vec<u8>, i64)> = sqlx::query_as(
                "SELECT event_key, log_seq FROM log_event_ids WHERE segment = ? ORDER BY event_key",
            )
            .bind(segment)
            .fetch_all(&mut *connection)
            .await?;
            index.sealed.push_back(
                keys.into_iter().filter_map(|(key, seq)| Some((key.try_into().ok()?, seq))).collect(),
            );
        }
        let change_seq = sqlx::query_scalar(
            "SELECT change_seq FROM log_changes WHERE change_seq > ? AND log_seq > ? AND subscription_id IS NULL \
             ORDER BY change_seq LIMIT 1",
        )
        .bind(last_change)
        .bind(last_seq)
        .fetch_optional(&mut *connection)
        .await?
        .unwrap_or(0);
        let rows: Vec<(i64, Vec<u8>, i64)> =
            sqlx::query_as("SELECT seq, event_key, receive_time FROM logs WHERE seq > ? ORDER BY seq")
                .bind(last_seq)
                .fetch_all(connection)
                .await?;
        for (seq, key, receive_time) in rows {
            if let Ok(key) = key.try_into() {
                index.insert(IndexedRow { key, seq, receive_time, change_seq });
            }
        }
        Ok(index)
    }

    /// The row of an event of the window. None says nothing about older events.
    pub(super) fn recent(&self, key: &EventKey) -> Option<i64> {
        self.tail.seqs.get(key).copied().or_else(|| {
            self.sealed.iter().rev().find_map(|segment| {
                let place = segment.binary_search_by(|(candidate, _)| candidate.cmp(key)).ok()?;
                Some(segment[place].1)
            })
        })
    }

    /// Notes a committed row. Rows come in the order of their sequence.
    pub(super) fn insert(&mut self, row: IndexedRow) {
        self.tail.seqs.insert(row.key, row.seq);
        let bounds = self.tail.bounds.get_or_insert(Bounds {
            seq_first: row.seq,
            seq_last: row.seq,
            receive_time_min: row.receive_time,
            receive_time_max: row.receive_time,
            change_seq_first: row.change_seq,
        });
        bounds.seq_last = row.seq;
        bounds.receive_time_min = bounds.receive_time_min.min(row.receive_time);
        bounds.receive_time_max = bounds.receive_time_max.max(row.receive_time);
    }

    /// Bounds of the rows that are not sealed.
    pub(super) fn tail_bounds(&self) -> Option<Bounds> {
        self.tail.bounds
    }

    /// What is to be sealed, when the tail is full.
    pub(super) fn full_tail(&self) -> Option<FullTail> {
        let bounds = self.tail.bounds.filter(|_| self.tail.seqs.len() >= self.segment_rows)?;
        let mut keys: Vec<(EventKey, i64)> = self.tail.seqs.iter().map(|(key, seq)| (*key, *seq)).collect();
        keys.sort_unstable();
        Some(FullTail { segment: self.next_segment, bounds, keys })
    }

    /// Takes note that a tail was written.
    pub(super) fn sealed(&mut self, tail: FullTail) {
        self.tail = Tail::default();
        self.next_segment = tail.segment + 1;
        self.sealed.push_back(tail.keys);
        if self.sealed.len() > SEGMENTS_IN_MEMORY {
            self.sealed.pop_front();
        }
    }
}

/// A tail on its way to disk.
pub(super) struct FullTail {
    segment: i64,
    bounds: Bounds,
    keys: Vec<(EventKey, i64)>,
}

impl FullTail {
    /// Writes the segment, inside the caller's transaction. Keys come sorted, so pages fill one after the
    /// other.
    pub(super) async fn write(
        &self,
        connection: &mut SqliteConnection,
        insert: &RowInsert,
    ) -> Result<(), sqlx::Error> {
        insert
            .run(connection, &self.keys, |(key, seq), row| {
                row.bind(self.segment)?;
                row.bind(key.as_slice())?;
                row.bind(*seq)
            })
            .await?;
        sqlx::query("INSERT INTO log_segments VALUES (?, ?, ?, ?, ?, ?)")
            .bind(self.segment)
            .bind(self.bounds.seq_first)
            .bind(self.bounds.seq_last)
            .bind(self.bounds.receive_time_min)
            .bind(self.bounds.receive_time_max)
            .bind(self.bounds.change_seq_first)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// The row of an event in sealed segments, newest segment first.
pub(super) async fn find_sealed(
    executor: impl SqliteExecutor<'_>,
    key: &EventKey,
) -> Result<Option<i64>, sqlx::Error> {
    // CROSS JOIN fixes the order of the loops: one seek in each segment instead of a scan over all ids.
    sqlx::query_scalar(
        "SELECT ids.log_seq FROM log_segments CROSS JOIN log_event_ids AS ids \
         ON ids.segment = log_segments.segment AND ids.event_key = ? ORDER BY log_segments.segment DESC LIMIT 1",
    )
    .bind(key.as_slice())
    .fetch_optional(executor)
    .await
}
