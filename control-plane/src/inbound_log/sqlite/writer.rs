//! The only writer of `logs.db`: group commit of report batches.

mod load;
mod rows;
mod staged;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{Connection as _, SqliteConnection};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    changes,
    event_index::EventIndex,
    failing,
    insert::RowInsert,
    instance_index,
    positions::{Moved, Position, Positions},
    schema,
    unrouted_keys::UnroutedKeys,
};
use crate::inbound_log::{
    FailingSubscription, LogStoreError, ReportBatch,
    event_key::EventKey,
    failing::{Changed, FailingSubscriptions},
    stage::Stage,
};
use rows::{write_repeats, write_unrouted};
use staged::Staged;

/// Records of one transaction; what waits beyond them goes into the next one.
const GROUP_RECORDS_MAX: usize = 4_096;
/// How often a group is committed at most, unless one is full: what comes meanwhile goes into the next one. A
/// commit costs about as much as recording a hundred events, however few are in it. What comes after a quiet
/// time is committed at once.
const GROUP_INTERVAL: Duration = Duration::from_millis(50);
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

pub(super) struct Writer {
    connection: SqliteConnection,
    /// The database file.
    path: PathBuf,
    /// Whether a transaction failed over the connection. SQLite may have ended it by itself
    /// (<https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction>), and then the
    /// connection cannot begin another one.
    is_broken: bool,
    channels: Channels,
    failing: FailingSubscriptions,
    index: Arc<RwLock<EventIndex>>,
    unrouted: UnroutedKeys,
    closing: CancellationToken,
    positions: Positions,
    next_seq: i64,
    next_change_seq: i64,
    head: watch::Sender<i64>,
    unrouted_head: watch::Sender<i64>,
    inserts: Inserts,
    /// When the last group was committed, or began to be.
    group_start: Instant,
}

struct Inserts {
    logs: RowInsert,
    attempts: RowInsert,
    changes: RowInsert,
    event_ids: RowInsert,
    instances: RowInsert,
    duplicates: RowInsert,
    failing: RowInsert,
}

impl Inserts {
    fn new() -> Self {
        Self {
            logs: RowInsert::new(
                "INSERT INTO logs (seq, tenant_id, instance_id, event, from_phone, external_message_id, receive_time, \
                 event_key, attempt_count, record, first_attempts)",
                11,
                "ON CONFLICT (seq) DO UPDATE SET attempt_count = excluded.attempt_count, record = excluded.record",
            ),
            attempts: RowInsert::new("INSERT INTO attempts (log_seq, attempt_seq, body)", 3, ""),
            changes: changes::insert(),
            event_ids: RowInsert::new("INSERT INTO log_event_ids (segment, key_first, ids)", 3, ""),
            instances: instance_index::insert(),
            duplicates: RowInsert::new(
                "INSERT INTO log_duplicates (log_seq, agent_id, count)",
                3,
                "ON CONFLICT (log_seq, agent_id) DO UPDATE SET count = excluded.count",
            ),
            failing: failing::insert(),
        }
    }
}

impl Writer {
    pub(super) async fn new(
        mut connection: SqliteConnection,
        path: PathBuf,
        channels: Channels,
        index: Arc<RwLock<EventIndex>>,
        closing: CancellationToken,
    ) -> Result<(Self, watch::Receiver<i64>, watch::Receiver<i64>), sqlx::Error> {
        let (seq, change_seq, unrouted_seq): (i64, i64, i64) = sqlx::query_as(
            "SELECT coalesce((SELECT max(seq) FROM logs), 0), coalesce((SELECT max(change_seq_last) FROM log_changes), 0), \
             coalesce((SELECT max(seq) FROM unrouted_callbacks), 0)",
        )
        .fetch_one(&mut connection)
        .await?;
        let positions = Positions::load(&mut connection, clock::now()).await?;
        let failing = failing::load(&mut connection, clock::now()).await?;
        let (head, head_receiver) = watch::channel(change_seq);
        let (unrouted_head, unrouted_receiver) = watch::channel(unrouted_seq);
        let writer = Self {
            connection,
            path,
            is_broken: false,
            channels,
            failing,
            index,
            unrouted: UnroutedKeys::default(),
            closing,
            positions,
            next_seq: seq + 1,
            next_change_seq: change_seq + 1,
            head,
            unrouted_head,
            inserts: Inserts::new(),
            group_start: Instant::now(),
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
                    let _ = answer.send(self.delete_unrouted(&seqs).await);
                }
            }
        }
        let unwritten = self.failing.unwritten(clock::now());
        if let Err(error) = failing::write(&mut self.connection, &self.inserts.failing, unwritten).await {
            warn!(%error, "failed to write which subscriptions are failing");
        }
        self.connection.close().await?;
        Ok(())
    }

    async fn forget(&mut self, forget: &Forget) {
        let Forget { subscription_id, time } = forget;
        let now = clock::now();
        let Some(row) = self.failing.forget(subscription_id, *time, now) else { return };
        match failing::write(&mut self.connection, &self.inserts.failing, vec![row]).await {
            Ok(()) => self.failing.forgotten(subscription_id, now),
            // It holds in memory, and is written with the next attempt.
            Err(error) => {
                warn!(gateway.subscription.id = %subscription_id, %error, "failed to write that failures are forgotten");
            }
        }
    }

    /// Commits `first` and what comes soon after it.
    async fn group(&mut self, first: Append) {
        let (group, after) = self.gather(first).await;
        self.group_start = Instant::now();
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
            let _ = answer.send(self.delete_unrouted(&seqs).await);
        }
    }

    /// Takes what waits behind `first`, and what comes until the next group is due.
    async fn gather(&mut self, first: Append) -> (Vec<Append>, Option<Job>) {
        let due = self.group_start + GROUP_INTERVAL;
        let mut records = first.batch.records.len();
        let mut group = vec![first];
        while records < GROUP_RECORDS_MAX {
            let Ok(Some(job)) = timeout_at(due, self.channels.jobs.recv()).await else { break };
            match job {
                Job::Append(append) => {
                    records += append.batch.records.len();
                    group.push(append);
                }
                other => return (group, Some(other)),
            }
        }
        (group, None)
    }

    /// One transaction for all batches. Returns the acknowledged sequence of each.
    async fn commit(&mut self, mut batches: Vec<ReportBatch>) -> Result<Vec<u64>, LogStoreError> {
        let (acked, positions) = self.skip_committed(&mut batches);
        if positions.is_empty() {
            return Ok(acked);
        }
        self.mend().await?;
        let now = clock::now();
        let records = batches.iter().map(|batch| batch.records.len()).sum();
        let mut stage = Stage::new(now, self.next_seq, self.next_change_seq, records);
        self.load_stored(&batches, &mut stage, now).await?;
        for batch in batches {
            for record in batch.records {
                stage.apply(&batch.agent_id, batch.tenant_id.as_deref(), record.record);
            }
        }
        if stage.unknown_events > 0 {
            warn!(count = stage.unknown_events, "reports about events that were never recorded");
        }
        stage.logs.retain(|staged| staged.is_changed);
        let unrouted_keys = self
            .unrouted
            .keep_new(&mut self.connection, &mut stage.unrouted)
            .await
            .map_err(LogStoreError::read)?;
        while let Ok(forget) = self.channels.forgets.try_recv() {
            self.forget(&forget).await;
        }
        let failing = self.failing.changed(&stage.attempts, now);
        let staged = Staged::of(&stage);
        let positions = self.positions.moved(positions, now);
        let written = self.write(stage, &positions, &failing, now).await;
        self.is_broken = written.is_err();
        let unrouted_seq = written.map_err(LogStoreError::write)?;
        self.committed(staged, positions, unrouted_seq, unrouted_keys);
        for failing in self.failing.committed(failing, now) {
            // When there is no room it is told again, with a later failure.
            let _ = self.channels.failing.try_send(failing);
        }
        Ok(acked)
    }

    /// Opens the database anew after a failed transaction.
    async fn mend(&mut self) -> Result<(), LogStoreError> {
        if self.is_broken {
            self.connection = schema::open_writer(&self.path).await.map_err(|error| match error {
                LogStoreError::Open { source, .. } => LogStoreError::Write(source),
                other => other,
            })?;
            self.is_broken = false;
        }
        Ok(())
    }

    /// Drops records that are committed already. Returns the sequence to acknowledge for each batch, and
    /// the positions that move.
    fn skip_committed(&self, batches: &mut [ReportBatch]) -> (Vec<u64>, HashMap<Position, u64>) {
        let mut moved: HashMap<Position, u64> = HashMap::new();
        let mut acked = Vec::with_capacity(batches.len());
        for batch in batches {
            let key = (batch.agent_id.clone(), batch.buffer_id.clone());
            let mut position = moved.get(&key).copied().or_else(|| self.positions.get(&key)).unwrap_or(0);
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

    /// The transaction. Returns the sequence of the newest unrouted callback in it.
    async fn write(
        &mut self,
        stage: Stage,
        positions: &Moved,
        failing: &Changed,
        now: Timestamp,
    ) -> Result<Option<i64>, sqlx::Error> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        write_repeats(&mut tx, &self.inserts.duplicates, &stage.logs).await?;
        self.inserts
            .logs
            .run(&mut tx, stage.logs, |staged, row| {
                let (record, log) = (staged.log.encode_to_vec(), *staged.log);
                row.bind(staged.seq)?;
                row.bind(log.tenant_id)?;
                row.bind(log.instance_id)?;
                row.bind(log.event)?;
                row.bind(log.from_phone)?;
                row.bind(log.external_message_id)?;
                row.bind(staged.receive_time)?;
                row.bind(staged.key.to_vec())?;
                row.bind(staged.attempt_count)?;
                row.bind(record)?;
                row.bind(Some(staged.first_attempts).filter(|attempts| !attempts.is_empty()))
            })
            .await?;
        let later: Vec<_> = stage.attempts.iter().filter(|staged| !staged.is_first).collect();
        self.inserts
            .attempts
            .run(&mut tx, later, |staged, row| {
                row.bind(staged.log_seq)?;
                row.bind(staged.attempt_seq)?;
                row.bind(staged.attempt.encode_to_vec())
            })
            .await?;
        changes::write(&mut tx, &self.inserts.changes, &stage.changes).await?;
        failing::write(&mut tx, &self.inserts.failing, failing.rows(now)).await?;
        let unrouted_seq = write_unrouted(&mut tx, &stage.unrouted).await?;
        positions.write(&mut tx).await?;
        tx.commit().await?;
        Ok(unrouted_seq)
    }

    /// Makes a committed group visible.
    fn committed(
        &mut self,
        staged: Staged,
        positions: Moved,
        unrouted_seq: Option<i64>,
        unrouted_keys: Vec<EventKey>,
    ) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for row in staged.new_rows {
            index.insert(row);
        }
        index.insert_instances(staged.instances);
        drop(index);
        self.unrouted.insert(unrouted_keys);
        self.positions.committed(positions);
        self.next_seq = staged.next_seq;
        self.next_change_seq = staged.next_change_seq;
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
            tail.write(&mut tx, &self.inserts.event_ids, &self.inserts.instances).await?;
            tx.commit().await
        }
        .await;
        match written {
            Ok(()) => self.index.write().unwrap_or_else(PoisonError::into_inner).sealed(tail),
            Err(error) => {
                self.is_broken = true;
                warn!(%error, "failed to seal a segment of event ids");
            }
        }
    }

    async fn delete_unrouted(&mut self, seqs: &[i64]) -> Result<(), LogStoreError> {
        self.mend().await?;
        let deleted = self.try_delete_unrouted(seqs).await;
        self.is_broken = deleted.is_err();
        deleted.map_err(LogStoreError::write)
    }

    async fn try_delete_unrouted(&mut self, seqs: &[i64]) -> Result<(), sqlx::Error> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for seq in seqs {
            sqlx::query("DELETE FROM unrouted_callbacks WHERE seq = ?").bind(seq).execute(&mut *tx).await?;
        }
        tx.commit().await
    }
}
