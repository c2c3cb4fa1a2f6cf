//! From event id to log row, without an index on random keys.
//!
//! Event ids are hashes. An ordinary unique index on them dirties a random page per event, and SQLite
//! falls from 87,000 to 8,300 rows a second at a million rows. So the newest ids are kept in memory only
//! (the tail, rebuilt from the rows at start), and whenever the tail has [`SEGMENT_ROWS`] of them they are
//! written out sorted, as one sealed segment that never changes. The newest sealed segments stay in memory
//! too: with the tail they are the window in which a repeated event is recognized. Older ids are looked up
//! on disk, one seek per segment, which only reads and late attempts need.

use std::collections::VecDeque;

use futures_util::TryStreamExt as _;
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{
    changes,
    insert::RowInsert,
    instance_index::{self, InstanceSeqs},
};
use crate::inbound_log::event_key::{EventKey, EventKeyMap};

/// Rows of a sealed segment. With what a last group adds, a table of 65,536 places still holds them.
pub(super) const SEGMENT_ROWS: usize = 49_152;
/// Sealed segments kept in memory: with the tail, a window of at least 196,608 events in 8 MiB.
const SEGMENTS_IN_MEMORY: usize = 4;
/// Ids of one row of a sealed segment: few rows to write, and still few bytes to read for one of them.
const IDS_PER_ROW: usize = 128;
/// Bytes of one of them: the key, then the log's sequence, big endian.
const ID_BYTES: usize = 24;

/// Rows that are not sealed yet, by id, and what their segment will say about them.
#[derive(Debug, Default)]
struct Tail {
    seqs: EventKeyMap<i64>,
    instances: InstanceSeqs,
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
    /// The newest sealed segments, newest last.
    sealed: VecDeque<EventKeyMap<i64>>,
    /// The latest receive time of each of them.
    sealed_times: VecDeque<i64>,
    /// The latest receive time of all segments that are not in memory.
    older_time_max: Option<i64>,
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
            sealed_times: VecDeque::new(),
            older_time_max: None,
            next_segment: last_segment + 1,
        };
        let kept = i64::try_from(SEGMENTS_IN_MEMORY).expect("a small constant fits i64");
        let first_kept = (last_segment + 1 - kept).max(0);
        index.older_time_max =
            sqlx::query_scalar("SELECT max(receive_time_max) FROM log_segments WHERE segment < ?")
                .bind(first_kept)
                .fetch_one(&mut *connection)
                .await?;
        for segment in first_kept..=last_segment {
            let time: i64 = sqlx::query_scalar("SELECT receive_time_max FROM log_segments WHERE segment = ?")
                .bind(segment)
                .fetch_one(&mut *connection)
                .await?;
            index.sealed_times.push_back(time);
            let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT ids FROM log_event_ids WHERE segment = ?")
                .bind(segment)
                .fetch_all(&mut *connection)
                .await?;
            index.sealed.push_back(rows.iter().flat_map(|ids| unpack(ids)).collect());
        }
        let change_seq = changes::first_recorded(connection, last_change, last_seq).await?.unwrap_or(0);
        let mut rows = sqlx::query_as::<_, (i64, Vec<u8>, i64, String)>(
            "SELECT seq, event_key, receive_time, instance_id FROM logs WHERE seq > ? ORDER BY seq",
        )
        .bind(last_seq)
        .fetch(connection);
        while let Some((seq, key, receive_time, instance_id)) = rows.try_next().await? {
            if let Ok(key) = key.try_into() {
                index.insert(IndexedRow { key, seq, receive_time, change_seq });
            }
            instance_index::note(&mut index.tail.instances, &instance_id, seq);
        }
        drop(rows);
        Ok(index)
    }

    /// The row of an event of the window. None says nothing about older events.
    pub(super) fn recent(&self, key: &EventKey) -> Option<i64> {
        self.tail
            .seqs
            .get(key)
            .copied()
            .or_else(|| self.sealed.iter().rev().find_map(|segment| segment.get(key).copied()))
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

    /// Notes the instances of committed rows. Rows come in the order of their sequence.
    pub(super) fn insert_instances(&mut self, instances: InstanceSeqs) {
        for (instance_id, mut seqs) in instances {
            self.tail.instances.entry(instance_id).or_default().append(&mut seqs);
        }
    }

    /// The rows of an instance that are not sealed, in the order of their sequence.
    pub(super) fn tail_seqs(&self, instance_id: &str) -> &[i64] {
        self.tail.instances.get(instance_id).map_or(&[], Vec::as_slice)
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
        let mut instances: Vec<_> =
            self.tail.instances.iter().map(|(id, seqs)| (id.clone(), seqs.clone())).collect();
        instances.sort_unstable();
        Some(FullTail { segment: self.next_segment, bounds, keys, instances })
    }

    /// Takes note that a tail was written.
    pub(super) fn sealed(&mut self, tail: FullTail) {
        self.next_segment = tail.segment + 1;
        self.sealed.push_back(std::mem::take(&mut self.tail).seqs);
        self.sealed_times.push_back(tail.bounds.receive_time_max);
        if self.sealed.len() > SEGMENTS_IN_MEMORY {
            self.sealed.pop_front();
            self.older_time_max = self.older_time_max.max(self.sealed_times.pop_front());
        }
    }

    /// Whether an event that was received then can lie in a segment that is not in memory.
    pub(super) fn may_be_older(&self, receive_time: i64) -> bool {
        self.older_time_max.is_some_and(|latest| receive_time <= latest)
    }
}

/// A tail on its way to disk.
pub(super) struct FullTail {
    segment: i64,
    bounds: Bounds,
    keys: Vec<(EventKey, i64)>,
    instances: Vec<(Box<str>, Vec<i64>)>,
}

impl FullTail {
    /// Writes the segment, inside the caller's transaction. Keys come sorted, so pages fill one after the
    /// other.
    pub(super) async fn write(
        &self,
        connection: &mut SqliteConnection,
        insert: &RowInsert,
        insert_instances: &RowInsert,
    ) -> Result<(), sqlx::Error> {
        let rows: Vec<_> = self.keys.chunks(IDS_PER_ROW).collect();
        insert
            .run(connection, rows, |ids, row| {
                row.bind(self.segment)?;
                row.bind(ids[0].0.as_slice())?;
                row.bind(pack(ids))
            })
            .await?;
        instance_index::write(connection, insert_instances, self.segment, &self.instances).await?;
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

fn pack(ids: &[(EventKey, i64)]) -> Vec<u8> {
    ids.iter().flat_map(|(key, seq)| key.iter().copied().chain(seq.to_be_bytes())).collect()
}

fn unpack(ids: &[u8]) -> impl Iterator<Item = (EventKey, i64)> {
    ids.as_chunks::<ID_BYTES>().0.iter().filter_map(|id| {
        let (key, seq) = id.split_first_chunk()?;
        Some((*key, i64::from_be_bytes(seq.try_into().ok()?)))
    })
}

/// Which of several rows of an event are wanted. There is more than one when the event came again long after, or when
/// an agent of another tenant claimed its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The newest.
    Newest,
    /// The newest of those in segments with events that were received then.
    ReceivedAt(i64),
    /// All.
    All,
}

/// Rows of an event in sealed segments, newest segment first.
pub(super) async fn find_sealed(
    executor: impl SqliteExecutor<'_>,
    key: &EventKey,
    wanted: Wanted,
) -> Result<Vec<i64>, sqlx::Error> {
    let time = match wanted {
        Wanted::ReceivedAt(time) => Some(time),
        Wanted::Newest | Wanted::All => None,
    };
    // In each segment one seek: to the last row that begins at the key or before it.
    let mut rows =
        sqlx::query_scalar::<_, Option<Vec<u8>>>(FIND_SEALED).bind(key.as_slice()).bind(time).fetch(executor);
    let mut seqs = Vec::new();
    while let Some(ids) = rows.try_next().await? {
        let found = ids.iter().flat_map(|ids| unpack(ids)).find(|(candidate, _)| candidate == key);
        seqs.extend(found.map(|(_, seq)| seq));
        if wanted != Wanted::All && !seqs.is_empty() {
            break;
        }
    }
    Ok(seqs)
}

/// What [`find_sealed`] asks.
pub(super) const FIND_SEALED: &str = "SELECT (SELECT ids FROM log_event_ids \
    WHERE log_event_ids.segment = log_segments.segment AND key_first <= ?1 ORDER BY key_first DESC LIMIT 1) \
    FROM log_segments WHERE ?2 IS NULL OR ?2 BETWEEN receive_time_min AND receive_time_max ORDER BY segment DESC";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use gateway_core::id::EventId;

    use super::*;
    use crate::inbound_log::event_key::event_key;

    /// Memory is bounded: the window forgets its oldest segment when one is sealed, and knows all newer rows.
    #[test]
    fn the_window_is_bounded() {
        let mut index = EventIndex {
            segment_rows: 10,
            tail: Tail::default(),
            sealed: VecDeque::new(),
            sealed_times: VecDeque::new(),
            older_time_max: None,
            next_segment: 0,
        };
        let key = |seq: i64| event_key(&EventId::derive(&[&seq.to_string()]).to_string());
        for seq in 1..=1_000 {
            index.insert(IndexedRow { key: key(seq), seq, receive_time: seq, change_seq: seq });
            index.insert_instances([("inst_1".into(), vec![seq])].into());
            if let Some(tail) = index.full_tail() {
                index.sealed(tail);
            }
            let first_known = (seq / 10 - SEGMENTS_IN_MEMORY as i64).max(0) * 10 + 1;
            assert_eq!(index.recent(&key(first_known)), Some(first_known));
            assert_eq!(index.recent(&key(first_known - 1)), None);
            let oldest = first_known - 1;
            assert_eq!(index.may_be_older(oldest), oldest > 0, "{seq}");
            assert!(!index.may_be_older(first_known), "{seq}");
            assert_eq!(index.tail_seqs("inst_1").len() as i64, seq % 10);
        }
        let held: usize = index.sealed.iter().map(HashMap::len).sum();
        assert_eq!((held, index.tail.seqs.len()), (10 * SEGMENTS_IN_MEMORY, 0));
    }
}
