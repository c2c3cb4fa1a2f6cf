//! Deliveries that agents give away: queued once their event is in the log, and cancelled when their webhook
//! subscription is gone before another agent has taken them.

use gateway_proto::v1::{self, work::Work as Task};
use tracing::error;
use uuid::Uuid;

use super::{ClaimError, HandOverOutcome, WorkQueue};
use crate::{
    inbound_log::{Record, ReportBatch, SequencedRecord},
    store::{
        self, StoreError,
        work::{NewWork, Orphan, WorkKind},
    },
};

/// Deliveries that are cancelled at a time.
const CANCELLED_AT_A_TIME: i64 = 100;

/// A delivery that an agent gives away, fit to be queued.
#[derive(Debug, Clone)]
pub struct GivenAway {
    /// The sequence of its report.
    pub sequence: u64,
    /// Its id, which is a UUID.
    pub id: Uuid,
    /// The delivery.
    pub hand_over: v1::DeliveryHandOver,
}

/// Writes what no agent reported into the log. Its sequences are of this process.
pub(super) struct Canceller {
    buffer_id: String,
    sequence: u64,
}

impl WorkQueue {
    /// Queues deliveries that an agent gives away for the agents of its region. Their events must be in the log, so
    /// that whoever takes them over can report attempts. A report that comes again changes nothing.
    ///
    /// # Errors
    /// When the store cannot be written; then nothing is queued.
    pub async fn hand_over(
        &self,
        (agent_id, region): (&str, &str),
        buffer_id: &str,
        given: Vec<GivenAway>,
    ) -> Result<(), StoreError> {
        if given.is_empty() {
            return Ok(());
        }
        let regions = vec![region.to_owned()];
        let new_work = |given: GivenAway| {
            let work = v1::Work {
                id: format!("work_{}", given.id.simple()),
                work: Some(Task::DeliveryHandOver(given.hand_over)),
            };
            (given.sequence, NewWork { work, regions: regions.clone() })
        };
        let given: Vec<_> = given.into_iter().map(new_work).collect();
        let queue = self.clone();
        let tell = move || queue.lock().wake(|open| open.takes_hand_overs && open.serves(&regions));
        store::work::hand_over(&self.inner.store, (agent_id, buffer_id), given, tell).await
    }
}

/// What was found of deliveries whose webhook subscription is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cancelled {
    /// Those that are cancelled now.
    pub(super) count: usize,
    /// Those that a stream holds; what it gives back is to be looked at again.
    pub(super) held: usize,
}

impl Canceller {
    pub(super) fn new() -> Self {
        Self { buffer_id: format!("work_{}", Uuid::now_v7().simple()), sequence: 0 }
    }

    /// Cancels deliveries that wait for an agent and whose webhook subscription is gone: the log says so, then they
    /// leave the queue. What cannot be opened leaves it too, with an ERROR instead.
    pub(super) async fn cancel(&mut self, queue: &WorkQueue) -> Result<Cancelled, ClaimError> {
        let (mut after, mut cancelled) = (0, Cancelled { count: 0, held: 0 });
        loop {
            let page = store::work::orphans(&queue.inner.store, after, CANCELLED_AT_A_TIME).await?;
            let Some(last) = page.last() else { return Ok(cancelled) };
            after = last.seq;
            // An agent that holds it says itself what becomes of it.
            let (held, free): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|row| queue.lock().is_held(&row.id));
            cancelled.held += held.len();
            let seqs: Vec<i64> = free.iter().map(|row| row.seq).collect();
            let mut records = Vec::new();
            let (mut ids, mut unreadable) = (Vec::new(), Vec::new());
            for (seq, work) in store::work::read(&queue.inner.store, &seqs).await? {
                let hand_over = match work {
                    Ok(v1::Work { work: Some(Task::DeliveryHandOver(hand_over)), .. }) => Some(hand_over),
                    Ok(_) => None,
                    Err(failure) if failure.is_damage() => None,
                    Err(failure) => return Err(failure.into()),
                };
                let Some(row) = free.iter().find(|row| row.seq == seq) else { continue };
                let Some(hand_over) = hand_over else {
                    unreadable.push(row);
                    continue;
                };
                ids.push(row.id.clone());
                self.sequence += 1;
                let record = settled(&hand_over, v1::DeliveryState::Cancelled);
                records.extend(record.map(|record| SequencedRecord { sequence: self.sequence, record }));
            }
            if !ids.is_empty() {
                let batch = ReportBatch {
                    buffer_id: self.buffer_id.clone(),
                    records,
                    last_sequence: self.sequence,
                    ..ReportBatch::default()
                };
                queue.inner.logs.append(batch).await?;
                queue.remove(&ids).await?;
                queue.handed_over(HandOverOutcome::Cancelled, ids.len());
                cancelled.count += ids.len();
            }
            queue.remove_unreadable(&unreadable).await?;
        }
    }
}

impl WorkQueue {
    /// Removes deliveries that cannot be opened, which nobody can make nor cancel: only the body knows the event.
    async fn remove_unreadable(&self, rows: &[&Orphan]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        self.remove(&ids).await?;
        for Orphan { seq, id, tenant_id, subscription_id } in rows {
            error!(
                seq,
                gateway.work.id = id,
                gateway.tenant.id = tenant_id,
                gateway.subscription.id = subscription_id,
                "removed a queued delivery that could not be opened, as its webhook subscription is gone: the log of its \
                 event goes on showing it as it was"
            );
        }
        self.handed_over(HandOverOutcome::Unreadable, rows.len());
        Ok(())
    }

    async fn remove(&self, ids: &[String]) -> Result<(), StoreError> {
        let mut tx = self.inner.store.begin_write().await?;
        store::work::delete(&mut tx, ids).await?;
        tx.commit().await
    }

    /// Whether deliveries wait that may have to be cancelled. `is_changed` says whether the configuration has changed since
    /// they were all looked at; a webhook subscription that was deleted just before a delivery to it was queued left
    /// that without a tenant.
    pub(super) fn may_cancel(counts: &[store::work::WorkCount], is_changed: bool) -> bool {
        let mut deliveries =
            counts.iter().filter(|count| count.kind == WorkKind::DeliveryHandOver && count.count > 0);
        deliveries.any(|count| is_changed || count.tenant_id.is_empty())
    }
}

/// What the log is told of a delivery that nobody makes any more. None when it cannot be told which one it is.
pub fn settled(hand_over: &v1::DeliveryHandOver, state: v1::DeliveryState) -> Option<Record> {
    let event_id = hand_over.inbound_log.as_ref().map(|log| log.event_id.clone())?;
    let delivery = hand_over.delivery.as_ref()?;
    if event_id.is_empty() || delivery.subscription_id.is_empty() {
        return None;
    }
    let delivery = v1::Delivery { state: state.into(), next_attempt_time: None, ..delivery.clone() };
    Some(Record::Attempts(v1::AttemptsReport { event_id, deliveries: vec![delivery], attempts: Vec::new() }))
}
