//! The buffer on a real disk: what was accepted is there, once, also after a crash.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use gateway_core::id::EventId;

use super::*;

mod model;
mod faults;
mod reports;
mod hand_over;
mod copies;
mod damage;
mod space;
mod cleaning;
mod recovery;
mod tools;

/// Longest wait for something that must happen.
pub(in crate::pipeline) const DEADLINE: Duration = Duration::from_secs(25);

fn config(directory: &Path) -> Config {
    Config::for_tests(directory)
}

pub(in crate::pipeline) async fn open(directory: &Path) -> Buffer {
    Buffer::open(config(directory), Metrics::new()).await.unwrap()
}

/// Ends the buffer's thread as a kill of the process would.
pub(in crate::pipeline) async fn kill(buffer: Buffer) {
    let (reply, ended) = oneshot::channel();
    buffer.shared.inbox.kill(reply);
    ended.await.unwrap();
}

pub(in crate::pipeline) fn event_id(number: u32) -> EventId {
    EventId::derive(&["event", &number.to_string()])
}

pub(crate) fn event(number: u32, subscriptions: &[&str]) -> NewEvent {
    let id = event_id(number);
    NewEvent {
        id,
        event_type: EventType::MessageReceived,
        log: v1::InboundLog {
            event_id: id.to_string(),
            instance_id: "inst_1".to_owned(),
            payload_json: format!(r#"{{"event_id":"{id}","number":{number}}}"#),
            ..v1::InboundLog::default()
        },
        subscriptions: subscriptions.iter().map(|id| id.parse().unwrap()).collect(),
    }
}

pub(in crate::pipeline) fn entry(events: impl IntoIterator<Item = NewEvent>) -> Entry {
    Entry { events: events.into_iter().collect(), ..Entry::default() }
}

fn outcome(delivery: OpenDelivery, number: u32, log: &v1::InboundLog, state: DeliveryState) -> Outcome {
    let attempt = v1::DeliveryAttempt {
        attempt_id: uuid::Uuid::now_v7().to_string(),
        event_id: log.event_id.clone(),
        attempt_number: number,
        status_code: 200,
        ..v1::DeliveryAttempt::default()
    };
    Outcome {
        event: delivery.event,
        subscription: delivery.subscription,
        state,
        due_ms: None,
        attempt: Some(attempt),
        gone: None,
    }
}

/// Makes the next attempt of a delivery, without a network.
async fn attempt(buffer: &Buffer, delivery: OpenDelivery, state: DeliveryState, due_ms: Option<i64>) {
    let owed = buffer.load(delivery.event, delivery.subscription).await.unwrap().expect("it is owed");
    let outcome = outcome(delivery, owed.attempts + 1, &owed.log, state);
    buffer.settle(Outcome { due_ms, ..outcome }).await;
}

/// Deliveries as they are handed out.
async fn deliveries(buffer: &Buffer, count: usize) -> Vec<OpenDelivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(buffer.take_new_deliveries());
        if all.len() < count {
            tokio::time::timeout(DEADLINE, buffer.new_deliveries()).await.expect("deliveries come");
        }
    }
    assert_eq!(all.len(), count);
    all
}

const LIMITS: ReportLimits = ReportLimits { bytes: 1 << 20, count: 100 };

/// Reports of a lane after `after`, once there are some.
pub(in crate::pipeline) async fn reports_after(buffer: &Buffer, lane: Lane, after: u64) -> ReportBatch {
    let some = async {
        loop {
            let batch = buffer.next_reports(lane, after, LIMITS).await.unwrap();
            if !batch.reports().is_empty() {
                return batch;
            }
            buffer.new_reports().await;
        }
    };
    tokio::time::timeout(DEADLINE, some).await.expect("reports come")
}

/// Waits until so many attempts are durable in the log lane. Returns the last sequence.
async fn attempts_reported(buffer: &Buffer, count: usize) -> u64 {
    let (mut after, mut attempts) = (buffer.acked_sequence(Lane::Logs), 0);
    while attempts < count {
        let batch = reports_after(buffer, Lane::Logs, after).await;
        after = batch.last;
        for report in batch.reports() {
            attempts += match report.report {
                Some(v1::report::Report::Event(event)) => event.attempts.len(),
                Some(v1::report::Report::Attempts(report)) => report.attempts.len(),
                _ => 0,
            };
        }
    }
    after
}

/// Waits for a condition on the buffer.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(2));
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        look.tick().await;
    }
}

/// What was answered is there after a kill: events, marks, retry times and the numbers of attempts.
#[tokio::test]
async fn accepted_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let receipt = buffer.append(entry([event(1, &["sub_a"]), event(2, &["sub_a", "sub_b"])])).await.unwrap();
    assert_eq!(receipt, Receipt { stored: 2, duplicates: 0 });
    let open_deliveries = deliveries(&buffer, 3).await;
    let due_ms = 4_102_444_800_000;
    attempt(&buffer, open_deliveries[0], DeliveryState::Pending, Some(due_ms)).await;
    attempts_reported(&buffer, 1).await;
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let again = deliveries(&buffer, 3).await;
    assert_eq!(again[0].due_ms, due_ms);
    let owed = buffer.load(again[0].event, again[0].subscription).await.unwrap().unwrap();
    assert_eq!((owed.attempts, &owed.log.payload_json), (1, &event(1, &[]).log.payload_json));
    assert_eq!(buffer.subscription_id(again[2].subscription).as_str(), "sub_b");
    assert!(buffer.contains(&event_id(2)) && !buffer.contains(&event_id(3)));
    let receipt = buffer.append(entry([event(2, &["sub_a"])])).await.unwrap();
    assert_eq!(receipt, Receipt { stored: 0, duplicates: 1 });
    assert_eq!(buffer.take_new_deliveries(), []);
}

/// A settled event is not delivered again after a restart, and once its report is acked nothing of it is
/// left but the mark.
#[tokio::test]
async fn settled_and_acked_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let delivery = deliveries(&buffer, 1).await[0];
    attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    attempts_reported(&buffer, 1).await;
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    assert_eq!(buffer.take_new_deliveries(), []);
    assert!(buffer.load(delivery.event, delivery.subscription).await.unwrap().is_none());
    let last = attempts_reported(&buffer, 1).await;
    buffer.acked(Lane::Logs, last);
    eventually("the event is freed", || buffer.is_drained()).await;
    assert_eq!(buffer.stats(), BufferStats::default());
    buffer.close().await;

    let buffer = open(directory.path()).await;
    let left = buffer.next_reports(Lane::Urgent, 0, LIMITS).await.unwrap().reports();
    assert!(buffer.is_drained(), "{:?}, {left:?}", buffer.stats());
    assert!(buffer.contains(&event_id(1)), "its mark is lost");
}

/// A body larger than a page of the store comes back whole, also beside a header that is longer than one
/// value.
#[tokio::test]
async fn large_events_come_back_whole() {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..64).map(|number| format!("sub_{number:0>59}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut large = event(1, &names);
    large.log.payload_json = (0..300_000).map(|number: u32| char::from(b'a' + (number % 26) as u8)).collect();
    let body = large.log.payload_json.clone();
    let buffer = open(directory.path()).await;
    buffer.append(entry([large])).await.unwrap();
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let delivery = deliveries(&buffer, 64).await[63];
    let owed = buffer.load(delivery.event, delivery.subscription).await.unwrap().unwrap();
    assert_eq!(owed.log.payload_json, body);
}

/// The same item twice in one callback, and again later, is delivered once and counted.
#[tokio::test]
async fn repeats_are_counted_not_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let receipt = buffer.append(entry([event(1, &["sub_a"]), event(1, &["sub_a"])])).await.unwrap();
    assert_eq!(receipt, Receipt { stored: 1, duplicates: 1 });
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    assert_eq!(deliveries(&buffer, 1).await.len(), 1);

    let mut counts = Vec::new();
    let mut after = 0;
    while counts.len() < 2 {
        let batch = reports_after(&buffer, Lane::Logs, after).await;
        after = batch.last;
        for report in batch.reports() {
            match report.report {
                Some(v1::report::Report::Event(event)) => {
                    assert!(counts.is_empty(), "the event is reported before its repeats");
                    assert_eq!(event.inbound_log.unwrap().event_id, event_id(1).to_string());
                }
                Some(v1::report::Report::Duplicate(duplicate)) => counts.push(duplicate.duplicate_count),
                other => panic!("unexpected report {other:?}"),
            }
        }
    }
    assert_eq!(counts, [1, 2]);
}

/// A mark without an event is as durable as one: its repeat is a duplicate, also after a kill.
#[tokio::test]
async fn marks_without_events_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let marked = || Entry { marks: vec![event_id(1), event_id(1)], ..Entry::default() };
    assert!(!buffer.contains(&event_id(1)));
    assert_eq!(buffer.append(marked()).await, Ok(Receipt { stored: 0, duplicates: 1 }));
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    assert!(buffer.contains(&event_id(1)));
    assert_eq!(buffer.append(marked()).await, Ok(Receipt { stored: 0, duplicates: 2 }));
    assert!(buffer.is_drained());
}

/// Two agents never share a directory, and the second one says who is there.
#[tokio::test]
async fn second_opener_is_told_who_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let Err(refusal) = Buffer::open(config(directory.path()), Metrics::new()).await else {
        panic!("two buffers share a directory");
    };
    let text = refusal.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains(&*directory.path().to_string_lossy()), "{text}");
    buffer.close().await;
    open(directory.path()).await;
}

/// After closing, appends are refused and not lost in silence.
#[tokio::test]
async fn closed_buffer_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.close().await;
    assert_eq!(buffer.append(entry([event(1, &[])])).await, Err(AppendError::Stopped));
    buffer.close().await;
    assert!(buffer.watch(CancellationToken::new()).await.is_err());
}

/// Many callers at once share commits, and every one of them gets its own answer.
#[tokio::test]
async fn callers_share_commits() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let mut appends = tokio::task::JoinSet::new();
    for number in 0..200 {
        let buffer = buffer.clone();
        // Every number comes twice.
        appends.spawn(async move { buffer.append(entry([event(number / 2, &["sub_a"])])).await.unwrap() });
    }
    let receipts = appends.join_all().await;
    assert_eq!(receipts.iter().map(|receipt| receipt.stored).sum::<usize>(), 100);
    assert_eq!(receipts.iter().map(|receipt| receipt.duplicates).sum::<usize>(), 100);
    let events: BTreeSet<u64> =
        deliveries(&buffer, 100).await.iter().map(|delivery| delivery.event).collect();
    assert_eq!(events.len(), 100);
}
