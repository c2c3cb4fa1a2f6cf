//! The only writer of `logs.db`: group commit of report batches.

mod rows;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    LogStoreError, Record, ReportBatch,
    event_index::{EventIndex, EventKey, IndexedRow, event_key, find_sealed},
    failing::{Changed, FailingSubscription, FailingSubscriptions},
    insert::RowInsert,
    stage::{Stage, StagedLog},
};
use rows::{stored_repeats, write_repeats, write_unrouted};

/// Records of one transaction; what waits beyond them goes into the next one.
const GROUP_RECORDS_MAX: usize = 4_096;
/// How long the writer rests after a failed transaction, so that a full disk is not hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(200);

/// What the writer is asked to do.
pub(super) enum Job {
    Append(Append),
    DeleteUnrouted { seqs: Vec<i64>, answer: oneshot::Sender<Result<(), LogStoreError>> },
}

/// A batch and who waits for it.
pub(super) struct Append {
    pub(super) batch: ReportBatch,
    pub(super) answer: oneshot::Sender<Result<u64, LogStoreError>>,
}

/// A subscription whose failures until `time` count no more.
pub(super) struct Forget {
    pub(super) subscription_id: Box<str>,
    pub(super) time: Timestamp,
}

/// What comes to the writer and what goes from it.
pub(super) struct Channels {
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) forgets: mpsc::Receiver<Forget>,
    pub(super) failing: mpsc::Sender<FailingSubscription>,
}

type Position = (String, String);

pub(super) struct Writer {
    connection: SqliteConnection,
    channels: Channels,
    failing: FailingSubscriptions,
    index: Arc<RwLock<EventIndex>>,
    closing: CancellationToken,
    /// Committed sequence of each (agent, buffer).
    positions: HashMap<Position, u64>,
    next_seq: i64,
    next_change_seq: i64,
    head: watch::Sender<i64>,
    unrouted_head: watch::Sender<i64>,
    inserts: Inserts,
}

struct Inserts {
    logs: RowInsert,
    attempts: RowInsert,
    changes: RowInsert,
    event_ids: RowInsert,
    duplicates: RowInsert,
}

impl Inserts {
    fn new() -> Self {
        Self {
            logs: RowInsert::new(
                "INSERT INTO logs (seq, tenant_id, instance_id, event, from_phone, external_message_id, receive_time, \
                 event_key, attempt_count, record)",
                10,
                "ON CONFLICT (seq) DO UPDATE SET attempt_count = excluded.attempt_count, record = excluded.record",
            ),
            attempts: RowInsert::new("INSERT INTO attempts (log_seq, attempt_seq, body)", 3, ""),
            changes: RowInsert::new("INSERT INTO log_changes (change_seq, log_seq, subscription_id)", 3, ""),
            event_ids: RowInsert::new("INSERT INTO log_event_ids (segment, event_key, log_seq)", 3, ""),
            duplicates: RowInsert::new(
                "INSERT INTO log_duplicates (log_seq, agent_id, count)",
                3,
                "ON CONFLICT (log_seq, agent_id) DO UPDATE SET count = excluded.count",
            ),
        }
    }
}

impl Writer {
    pub(super) async fn new(
        mut connection: SqliteConnection,
        channels: Channels,
        index: Arc<RwLock<EventIndex>>,
        closing: CancellationToken,
    ) -> Result<(Self, watch::Receiver<i64>, watch::Receiver<i64>), sqlx::Error> {
        let (seq, change_seq, unrouted_seq): (i64, i64, i64) = sqlx::query_as(
            "SELECT coalesce((SELECT max(seq) FROM logs), 0), coalesce((SELECT max(change_seq) FROM log_changes), 0), \
             coalesce((SELECT max(seq) FROM unrouted_callbacks), 0)",
        )
        .fetch_one(&mut connection)
        .await?;
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT agent_id, buffer_id, sequence FROM report_positions")
                .fetch_all(&mut connection)
                .await?;
        let positions = rows
            .into_iter()
            .map(|(agent, buffer, sequence)| ((agent, buffer), sequence.cast_unsigned()))
            .collect();
        let failing = FailingSubscriptions::load(&mut connection, clock::now()).await?;
        let (head, head_receiver) = watch::channel(change_seq);
        let (unrouted_head, unrouted_receiver) = watch::channel(unrouted_seq);
        let writer = Self {
            connection,
            channels,
            failing,
            index,
            closing,
            positions,
            next_seq: seq + 1,
            next_change_seq: change_seq + 1,
            head,
            unrouted_head,
            inserts: Inserts::new(),
        };
        Ok((writer, head_receiver, unrouted_receiver))
    }

    /// Writes until `stop`, then what was submitted before, and closes the database.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let job = tokio::select! {
                biased;
                () = stop.cancelled(), if !self.closing.is_cancelled() => {
                    self.closing.cancel();
                    self.channels.jobs.close();
                    continue;
                }
                Some(forget) = self.channels.forgets.recv() => {
                    self.forget(&forget).await;
                    continue;
                }
                job = self.channels.jobs.recv() => job,
            };
            match job {
                None => break,
                Some(Job::Append(append)) => self.group(append).await,
                Some(Job::DeleteUnrouted { seqs, answer }) => {
                    // Nobody may be waiting any more; the rows are gone all the same.
                    let _ = answer.send(self.delete_unrouted(&seqs).await.map_err(LogStoreError::write));
                }
            }
        }
        if let Err(error) = self.failing.flush(&mut self.connection, clock::now()).await {
            warn!(%error, "failed to write which subscriptions are failing");
        }
        self.connection.close().await?;
        Ok(())
    }

    async fn forget(&mut self, forget: &Forget) {
        let Forget { subscription_id, time } = forget;
        let forgotten = self.failing.forget(&mut self.connection, subscription_id, *time, clock::now()).await;
        if let Err(error) = forgotten {
            // It holds in memory, and is written with the next attempt.
            warn!(gateway.subscription.id = %subscription_id, %error, "failed to write that failures are forgotten");
        }
    }

    /// Commits `first` and what waits behind it.
    async fn group(&mut self, first: Append) {
        let mut records = first.batch.records.len();
        let mut group = vec![first];
        let mut after = None;
        while records < GROUP_RECORDS_MAX {
            match self.channels.jobs.try_recv() {
                Ok(Job::Append(append)) => {
                    records += append.batch.records.len();
                    group.push(append);
                }
                Ok(other) => {
                    after = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let (batches, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|append| (append.batch, append.answer)).unzip();
        let result = self.commit(batches).await;
        let is_failed = result.is_err();
        for (place, answer) in answers.into_iter().enumerate() {
            // A report stream that has gone away learns its position when it comes back.
            let _ = answer.send(result.as_ref().map(|acked| acked[place]).map_err(Clone::clone));
        }
        if is_failed {
            tokio::time::sleep(FAILURE_PAUSE).await;
        } else {
            self.seal().await;
        }
        if let Some(Job::DeleteUnrouted { seqs, answer }) = after {
            let _ = answer.send(self.delete_unrouted(&seqs).await.map_err(LogStoreError::write));
        }
    }

    /// One transaction for all batches. Returns the acknowledged sequence of each.
    async fn commit(&mut self, mut batches: Vec<ReportBatch>) -> Result<Vec<u64>, LogStoreError> {
        let (acked, positions) = self.skip_committed(&mut batches);
        if positions.is_empty() {
            return Ok(acked);
        }
        let now = clock::now();
        let mut stage = Stage::new(now, self.next_seq, self.next_change_seq);
        self.load_stored(&batches, &mut stage).await?;
        for batch in batches {
            for record in batch.records {
                stage.apply(&batch.agent_id, record.record);
            }
        }
        if stage.unknown_events > 0 {
            warn!(count = stage.unknown_events, "reports about events that were never recorded");
        }
        stage.logs.retain(|staged| staged.is_changed);
        while let Ok(forget) = self.channels.forgets.try_recv() {
            self.forget(&forget).await;
        }
        let failing = self.failing.changed(&stage.attempts, now);
        let written = self.write(&stage, &positions, &failing, now).await;
        let unrouted_seq = written.map_err(LogStoreError::write)?;
        self.committed(&stage, positions, unrouted_seq);
        for failing in self.failing.committed(failing, now) {
            // When there is no room it is told again, with a later failure.
            let _ = self.channels.failing.try_send(failing);
        }
        Ok(acked)
    }

    /// Drops records that are committed already. Returns the sequence to acknowledge for each batch, and
    /// the positions that move.
    fn skip_committed(&self, batches: &mut [ReportBatch]) -> (Vec<u64>, HashMap<Position, u64>) {
        let mut moved: HashMap<Position, u64> = HashMap::new();
        let mut acked = Vec::with_capacity(batches.len());
        for batch in batches {
            let key = (batch.agent_id.clone(), batch.buffer_id.clone());
            let mut position = moved.get(&key).or_else(|| self.positions.get(&key)).copied().unwrap_or(0);
            let before = position;
            batch.records.retain(|record| {
                let is_new = record.sequence > position;
                position = position.max(record.sequence);
                is_new
            });
            position = position.max(batch.last_sequence);
            if position > before {
                moved.insert(key, position);
            }
            acked.push(position);
        }
        (acked, moved)
    }

    /// Loads the stored rows that the batches speak of.
    async fn load_stored(&mut self, batches: &[ReportBatch], stage: &mut Stage) -> Result<(), LogStoreError> {
        let (seqs, older) = self.stored_rows(batches);
        let mut rows: Vec<(i64, EventKey)> = seqs.into_iter().map(|(key, seq)| (seq, key)).collect();
        for key in older {
            let found = find_sealed(&mut self.connection, &key).await.map_err(LogStoreError::read)?;
            rows.extend(found.map(|seq| (seq, key)));
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
                stage.load(keys[&seq], seq, row.get(1), repeats, log);
            }
        }
        Ok(())
    }

    /// Rows of the window that the batches speak of, and keys that only sealed segments can know.
    fn stored_rows(&self, batches: &[ReportBatch]) -> (HashMap<EventKey, i64>, Vec<EventKey>) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut stored = HashMap::new();
        let mut new = std::collections::HashSet::new();
        let mut older = std::collections::HashSet::new();
        for record in batches.iter().flat_map(|batch| &batch.records) {
            let (event_id, is_event) = match &record.record {
                Record::Event(log, _) => (&log.event_id, true),
                Record::Attempts(report) => (&report.event_id, false),
                Record::Duplicate(report) => (&report.event_id, false),
                Record::Unrouted(_) => continue,
            };
            let key = event_key(event_id);
            match index.recent(&key) {
                Some(seq) => {
                    stored.insert(key, seq);
                }
                None if is_event => {
                    new.insert(key);
                }
                None if !new.contains(&key) => {
                    older.insert(key);
                }
                None => {}
            }
        }
        (stored, older.into_iter().collect())
    }

    /// The transaction. Returns the sequence of the newest unrouted callback in it.
    async fn write(
        &mut self,
        stage: &Stage,
        positions: &HashMap<Position, u64>,
        failing: &Changed,
        now: Timestamp,
    ) -> Result<Option<i64>, sqlx::Error> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        self.inserts
            .logs
            .run(&mut tx, &stage.logs, |staged, row| {
                row.bind(staged.seq)?;
                row.bind(staged.log.tenant_id.as_str())?;
                row.bind(staged.log.instance_id.as_str())?;
                row.bind(staged.log.event.as_str())?;
                row.bind(staged.log.from_phone.as_str())?;
                row.bind(staged.log.external_message_id.as_str())?;
                row.bind(staged.receive_time)?;
                row.bind(staged.key.as_slice())?;
                row.bind(staged.attempt_count)?;
                row.bind(staged.log.encode_to_vec())
            })
            .await?;
        self.inserts
            .attempts
            .run(&mut tx, &stage.attempts, |staged, row| {
                row.bind(staged.log_seq)?;
                row.bind(staged.attempt_seq)?;
                row.bind(staged.attempt.encode_to_vec())
            })
            .await?;
        self.inserts
            .changes
            .run(&mut tx, &stage.changes, |change, row| {
                row.bind(change.change_seq)?;
                row.bind(change.log_seq)?;
                row.bind(change.subscription_id.as_deref())
            })
            .await?;
        write_repeats(&mut tx, &self.inserts.duplicates, &stage.logs).await?;
        self.failing.write(&mut tx, failing, now).await?;
        let unrouted_seq = write_unrouted(&mut tx, &stage.unrouted).await?;
        for ((agent_id, buffer_id), sequence) in positions {
            sqlx::query(
                "INSERT OR REPLACE INTO report_positions (agent_id, buffer_id, sequence) VALUES (?, ?, ?)",
            )
            .bind(agent_id)
            .bind(buffer_id)
            .bind(sequence.cast_signed())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(unrouted_seq)
    }

    /// Makes a committed group visible.
    fn committed(&mut self, stage: &Stage, positions: HashMap<Position, u64>, unrouted_seq: Option<i64>) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for StagedLog { key, seq, receive_time, change_seq, .. } in
            stage.logs.iter().filter(|staged| staged.is_new)
        {
            index.insert(IndexedRow {
                key: *key,
                seq: *seq,
                receive_time: *receive_time,
                change_seq: *change_seq,
            });
        }
        drop(index);
        self.positions.extend(positions);
        self.next_seq = stage.next_seq();
        self.next_change_seq = stage.next_change_seq();
        let head = self.next_change_seq - 1;
        self.head.send_if_modified(|current| std::mem::replace(current, head) != head);
        if let Some(seq) = unrouted_seq {
            self.unrouted_head.send_replace(seq);
        }
    }

    /// Writes the tail of the event index out as a segment when it is full. When that fails the tail
    /// stays in memory and the next group tries again.
    async fn seal(&mut self) {
        let tail = self.index.read().unwrap_or_else(PoisonError::into_inner).full_tail();
        let Some(tail) = tail else { return };
        let written = async {
            let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
            tail.write(&mut tx, &self.inserts.event_ids).await?;
            tx.commit().await
        }
        .await;
        match written {
            Ok(()) => self.index.write().unwrap_or_else(PoisonError::into_inner).sealed(tail),
            Err(error) => warn!(%error, "failed to seal a segment of event ids"),
        }
    }

    async fn delete_unrouted(&mut self, seqs: &[i64]) -> Result<(), sqlx::Error> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for seq in seqs {
            sqlx::query("DELETE FROM unrouted_callbacks WHERE seq = ?").bind(seq).execute(&mut *tx).await?;
        }
        tx.commit().await
    }
}

/// Rows loaded by one statement.
const LOADED_ROWS: usize = 32;
/// Parameters that are not bound are NULL, which matches nothing.
const LOAD: &str = "SELECT seq, attempt_count, record FROM logs WHERE seq IN \
    (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";
