//! What every inbound log must do, whatever engine it runs on: `suite!` runs all of it against one.

use std::{sync::Arc, time::Duration};

use gateway_core::id::EventId;
use gateway_proto::v1;
use gateway_runtime::supervise::Supervisor;
use prost_types::Timestamp as ProtoTimestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{FailingSubscription, LogFilter, LogStore, LogWatch, Record, ReportBatch, SequencedRecord};

pub(super) mod reports;
pub(super) mod repeats;
pub(super) mod deliveries;
pub(super) mod lists;
pub(super) mod watches;
pub(super) mod unrouted;

/// How long anything may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// A database of the engine under test.
pub(super) trait Engine: Sized {
    /// An empty one.
    async fn fresh() -> Self;

    /// Opens it. It should seal or move away what is older than a few dozen events, if it does such a thing.
    async fn open(
        &self,
        supervisor: &Supervisor,
        failing: mpsc::Sender<FailingSubscription>,
    ) -> Arc<dyn LogStore>;

    /// What would be left of it if the process ended at this moment. It goes on being used.
    async fn crashed(&self) -> Self;

    /// From now on every transaction that takes in reports fails, after its rows were written, or does so no more.
    async fn fail_writes(&self, fail: bool);
}

/// Makes a test of everything below, for one engine.
macro_rules! suite {
    ($engine:ty) => {
        $crate::inbound_log::conformance::suite! { @each $engine,
            reports: [
                reports_are_taken_once,
                gaps_in_the_sequence_are_taken,
                failed_transactions_store_nothing,
                what_is_acknowledged_survives_a_crash,
                later_reports_change_their_log,
                events_are_found_by_id,
                agents_of_a_tenant_change_their_own_only,
            ],
            repeats: [
                other_buffers_repeat_nothing,
                repeats_of_one_group_are_taken_once,
                new_attempts_of_repeats_are_taken,
                repeats_add_up_over_agents,
                repeated_failures_count_once,
            ],
            deliveries: [
                an_event_of_two_agents_is_one_log,
                held_deliveries_keep_the_last_outcome,
                handed_over_deliveries_go_on,
                settled_deliveries_stay_settled,
            ],
            lists: [
                filters_narrow_the_list,
                pages_do_not_move_under_writes,
                pages_are_bounded_in_bytes,
                large_logs_hide_nothing,
                attempts_are_paged_oldest_first,
                tenants_see_their_own_only,
            ],
            watches: [
                watches_resume_from_any_cursor,
                watches_meet_concurrent_writes,
                watches_go_on_past_large_logs,
                foreign_cursors_are_refused,
                tenants_watch_their_own_only,
            ],
            unrouted: [
                callbacks_are_kept_and_bounded,
                repeated_callbacks_are_listed_once,
                taken_callbacks_stay_taken,
                pages_of_callbacks_do_not_move_under_writes,
                large_callbacks_hide_nothing,
            ],
        }
    };
    (@each $engine:ty, $($part:ident: [$($test:ident),* $(,)?]),* $(,)?) => {
        $($(
            #[tokio::test]
            async fn $test() {
                $crate::inbound_log::conformance::$part::$test::<$engine>().await;
            }
        )*)*
    };
}
pub(super) use suite;

/// An open store.
pub(super) struct World<E> {
    engine: E,
    logs: Arc<dyn LogStore>,
    failing: mpsc::Receiver<FailingSubscription>,
    supervisor: Supervisor,
    stop: CancellationToken,
}

impl<E: Engine> World<E> {
    async fn new() -> Self {
        Self::of(E::fresh().await).await
    }

    async fn of(engine: E) -> Self {
        let stop = CancellationToken::new();
        let supervisor = Supervisor::new(stop.clone());
        let (sender, failing) = mpsc::channel(8);
        let logs = engine.open(&supervisor, sender).await;
        Self { engine, logs, failing, supervisor, stop }
    }

    async fn close(self) -> E {
        self.stop.cancel();
        self.supervisor.wait(DEADLINE).await.unwrap();
        self.engine
    }

    async fn reopen(self) -> Self {
        Self::of(self.close().await).await
    }

    async fn append(&self, batch: ReportBatch) -> u64 {
        self.logs.append(batch).await.unwrap()
    }

    /// The log of an event.
    async fn get(&self, number: u32) -> v1::InboundLog {
        self.logs.get(None, &event_id(number)).await.unwrap().unwrap()
    }

    /// The numbers of the attempts of an event to a webhook subscription, as they are listed.
    async fn attempt_numbers(&self, number: u32, subscription_id: &str) -> Vec<u32> {
        let page = self
            .logs
            .list_attempts(None, &event_id(number), Some(subscription_id), None, 1_000)
            .await
            .unwrap();
        page.unwrap().attempts.iter().map(|attempt| attempt.attempt_number).collect()
    }

    /// Ids of all logs, by pages of this size.
    async fn all(&self, filter: &LogFilter, page_size: usize) -> Vec<String> {
        let (mut ids, mut before) = (Vec::new(), None);
        loop {
            let page = self.logs.list(filter, before, page_size).await.unwrap();
            assert!(page.logs.len() <= page_size);
            ids.extend(page.logs.into_iter().map(|log| log.event_id));
            assert!(ids.len() < 10_000, "pages go round in circles");
            before = page.next;
            if before.is_none() {
                return ids;
            }
        }
    }

    /// Makes every event so far an old one.
    async fn age(&self, first_number: u32) {
        for start in (first_number..first_number + 60).step_by(10) {
            let events = (start..start + 10).map(event).collect();
            self.append(batch("agt_age", u64::from(start) + 1, events)).await;
        }
    }
}

fn event_id(number: u32) -> String {
    EventId::derive(&[&number.to_string()]).to_string()
}

fn delivery(subscription_id: &str, state: v1::DeliveryState) -> v1::Delivery {
    v1::Delivery {
        subscription_id: subscription_id.into(),
        state: state.into(),
        attempt_count: 1,
        ..Default::default()
    }
}

fn log(number: u32) -> v1::InboundLog {
    v1::InboundLog {
        event_id: event_id(number),
        tenant_id: "default".into(),
        instance_id: format!("inst_{}", number % 3),
        event: if number.is_multiple_of(2) { "message.received".into() } else { "message.delivered".into() },
        from_phone: format!("+9665000000{:02}", number % 7),
        external_message_id: format!("wamid.{number}"),
        receive_time: Some(ProtoTimestamp { seconds: 1_000 + i64::from(number), nanos: 0 }),
        agent_id: "agt_1".into(),
        deliveries: vec![delivery("sub_1", v1::DeliveryState::Delivered)],
        ..Default::default()
    }
}

fn attempt(number: u32, attempt_number: u32, subscription_id: &str) -> v1::DeliveryAttempt {
    v1::DeliveryAttempt {
        attempt_id: format!("{number}-{subscription_id}-{attempt_number}"),
        event_id: event_id(number),
        subscription_id: subscription_id.into(),
        attempt_number,
        start_time: Some(ProtoTimestamp { seconds: 2_000 + i64::from(attempt_number), nanos: 0 }),
        ..Default::default()
    }
}

/// An event of `agt_1` with one attempt, which delivered it.
fn event(number: u32) -> Record {
    Record::Event(Box::new(log(number)), vec![attempt(number, 1, "sub_1")])
}

/// An event that is still owed to `sub_1` after its first attempt.
fn owed(number: u32) -> Record {
    let log =
        v1::InboundLog { deliveries: vec![delivery("sub_1", v1::DeliveryState::Pending)], ..log(number) };
    Record::Event(Box::new(log), vec![attempt(number, 1, "sub_1")])
}

/// What became of a delivery to `sub_1` with its attempt of this number.
fn attempted(number: u32, attempt_number: u32, state: v1::DeliveryState) -> Record {
    Record::Attempts(v1::AttemptsReport {
        event_id: event_id(number),
        deliveries: vec![v1::Delivery { attempt_count: attempt_number, ..delivery("sub_1", state) }],
        attempts: vec![attempt(number, attempt_number, "sub_1")],
    })
}

/// That a delivery to `sub_1` is in another state, without an attempt.
fn moved(number: u32, attempt_count: u32, state: v1::DeliveryState) -> Record {
    Record::Attempts(v1::AttemptsReport {
        event_id: event_id(number),
        deliveries: vec![v1::Delivery { attempt_count, ..delivery("sub_1", state) }],
        attempts: vec![],
    })
}

fn duplicate(number: u32, duplicate_count: u32) -> Record {
    Record::Duplicate(v1::DuplicateReport { event_id: event_id(number), duplicate_count })
}

fn batch(agent_id: &str, first_sequence: u64, records: Vec<Record>) -> ReportBatch {
    let records: Vec<_> = (first_sequence..)
        .zip(records)
        .map(|(sequence, record)| SequencedRecord { sequence, record })
        .collect();
    let last_sequence = records.last().map_or(0, |record| record.sequence);
    ReportBatch {
        agent_id: agent_id.into(),
        tenant_id: None,
        buffer_id: "buf_1".into(),
        records,
        last_sequence,
    }
}

fn of_buffer(buffer_id: &str, batch: ReportBatch) -> ReportBatch {
    ReportBatch { buffer_id: buffer_id.into(), ..batch }
}

fn of_tenant(tenant_id: &str, batch: ReportBatch) -> ReportBatch {
    ReportBatch { tenant_id: Some(tenant_id.into()), ..batch }
}

fn newest_first(numbers: impl DoubleEndedIterator<Item = u32>) -> Vec<String> {
    numbers.rev().map(event_id).collect()
}

/// The next step of a watch: event, webhook subscription, cursor.
async fn step(watch: &mut LogWatch) -> (String, Option<String>, String) {
    let change = tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    (change.log.event_id, change.subscription_id, change.cursor)
}
