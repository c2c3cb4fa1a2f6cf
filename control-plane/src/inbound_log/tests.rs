//! The inbound log on a real file: what is acknowledged is there once, in order, and can be found.

use std::time::Duration;

use gateway_core::id::EventId;
use gateway_runtime::supervise::Supervisor;
use prost_types::Timestamp as ProtoTimestamp;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// A store, and what keeps it running.
struct Running {
    logs: LogStore,
    supervisor: Supervisor,
    stop: CancellationToken,
}

impl Running {
    async fn open(dir: &TempDir, segment_rows: usize) -> Self {
        let stop = CancellationToken::new();
        let supervisor = Supervisor::new(stop.clone());
        let logs =
            LogStore::open_with(dir.path(), &supervisor, mpsc::channel(1).0, segment_rows).await.unwrap();
        Self { logs, supervisor, stop }
    }

    async fn close(self) {
        self.stop.cancel();
        self.supervisor.wait(DEADLINE).await.unwrap();
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
        ..Default::default()
    }
}

fn event(number: u32) -> Record {
    Record::Event(Box::new(log(number)), vec![attempt(number, 1, "sub_1")])
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

async fn all(logs: &LogStore, filter: &LogFilter, page_size: usize) -> Vec<String> {
    let (mut ids, mut before) = (Vec::new(), None);
    loop {
        let page = logs.list(filter, before, page_size).await.unwrap();
        assert!(page.logs.len() <= page_size);
        ids.extend(page.logs.into_iter().map(|log| log.event_id));
        before = page.next;
        if before.is_none() {
            return ids;
        }
    }
}

fn newest_first(numbers: impl DoubleEndedIterator<Item = u32>) -> Vec<String> {
    numbers.rev().map(event_id).collect()
}

async fn step(watch: &mut LogWatch) -> (String, Option<String>, String) {
    let change = tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    (change.log.event_id, change.subscription_id, change.cursor)
}

/// A repeated report changes nothing, also after a restart, and the answer is the same.
#[tokio::test]
async fn reports_are_idempotent() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 65_536).await;
    let reports = || batch("agt_1", 5, (0..10).map(event).collect());
    assert_eq!(running.logs.append(reports()).await.unwrap(), 14);
    assert_eq!(running.logs.append(reports()).await.unwrap(), 14);
    running.close().await;
    let running = Running::open(&dir, 65_536).await;
    assert_eq!(running.logs.append(reports()).await.unwrap(), 14);
    // An empty batch asks for the position.
    assert_eq!(running.logs.append(batch("agt_1", 0, vec![])).await.unwrap(), 14);
    assert_eq!(all(&running.logs, &LogFilter::default(), 4).await, newest_first(0..10));
    let attempts = running.logs.list_attempts(None, &event_id(3), None, None, 10).await.unwrap().unwrap();
    assert_eq!(attempts.attempts.len(), 1);
    // Half of it is new: only that half is recorded.
    assert_eq!(running.logs.append(batch("agt_1", 10, (5..15).map(event).collect())).await.unwrap(), 19);
    assert_eq!(all(&running.logs, &LogFilter::default(), 100).await, newest_first(0..15));
    running.close().await;
}

/// An event that two agents report is one log: deliveries merge, what one delivered stays delivered, and
/// the repeat is counted.
#[tokio::test]
async fn an_event_of_two_agents_is_one_log() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 65_536).await;
    running.logs.append(batch("agt_1", 1, vec![event(1)])).await.unwrap();
    let mut second = log(1);
    second.agent_id = "agt_2".into();
    second.deliveries =
        vec![delivery("sub_1", v1::DeliveryState::Pending), delivery("sub_2", v1::DeliveryState::Exhausted)];
    let second = Record::Event(Box::new(second), vec![attempt(1, 1, "sub_2")]);
    running.logs.append(batch("agt_2", 1, vec![second])).await.unwrap();
    assert_eq!(all(&running.logs, &LogFilter::default(), 10).await, newest_first(1..2));
    let merged = running.logs.get(None, &event_id(1)).await.unwrap().unwrap();
    assert_eq!((merged.agent_id.as_str(), merged.duplicate_count), ("agt_1", 1));
    let states: Vec<_> = merged
        .deliveries
        .iter()
        .map(|delivery| (delivery.subscription_id.as_str(), delivery.state()))
        .collect();
    assert_eq!(states, [("sub_1", v1::DeliveryState::Delivered), ("sub_2", v1::DeliveryState::Exhausted)]);
    let of_two =
        running.logs.list_attempts(None, &event_id(1), Some("sub_2"), None, 10).await.unwrap().unwrap();
    assert_eq!(of_two.attempts.len(), 1);
    running.close().await;
}

/// Repeats add up over agents: what each counts, and one for each agent that did not take the event first;
/// also after a restart, and in one group with the event.
#[tokio::test]
async fn repeats_add_up_over_agents() {
    let dir = TempDir::new().unwrap();
    let duplicate = |number, duplicate_count| {
        Record::Duplicate(v1::DuplicateReport { event_id: event_id(number), duplicate_count })
    };
    let running = Running::open(&dir, 65_536).await;
    let count = async |running: &Running, number| {
        running.logs.get(None, &event_id(number)).await.unwrap().unwrap().duplicate_count
    };
    running.logs.append(batch("agt_1", 1, vec![event(1), event(2), duplicate(2, 5)])).await.unwrap();
    let three = vec![event(1), duplicate(1, 1), duplicate(1, 2)];
    running.logs.append(batch("agt_2", 1, three)).await.unwrap();
    assert_eq!(count(&running, 1).await, 3);
    running.logs.append(batch("agt_2", 4, vec![event(2), duplicate(2, 1)])).await.unwrap();
    assert_eq!(count(&running, 2).await, 7);
    running.close().await;
    let running = Running::open(&dir, 65_536).await;
    running.logs.append(batch("agt_1", 4, vec![duplicate(2, 6), duplicate(2, 6)])).await.unwrap();
    running.logs.append(batch("agt_2", 6, vec![duplicate(2, 1), duplicate(2, 2)])).await.unwrap();
    running.logs.append(batch("agt_3", 1, vec![event(2)])).await.unwrap();
    assert_eq!(count(&running, 2).await, 10);
    running.close().await;
}

/// A change of state without an attempt keeps what the last attempt came to.
#[tokio::test]
async fn held_deliveries_keep_the_last_outcome() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 65_536).await;
    let failed = v1::Delivery {
        attempt_count: 2,
        last_status_code: 503,
        last_error: "answered 503".into(),
        ..delivery("sub_1", v1::DeliveryState::Pending)
    };
    let failed = v1::InboundLog { deliveries: vec![failed], ..log(1) };
    let failed = Record::Event(Box::new(failed), vec![attempt(1, 2, "sub_1")]);
    let cancelled = v1::Delivery { attempt_count: 1, ..delivery("sub_1", v1::DeliveryState::Cancelled) };
    let cancelled = Record::Attempts(v1::AttemptsReport {
        event_id: event_id(1),
        deliveries: vec![cancelled],
        attempts: vec![],
    });
    running.logs.append(batch("agt_1", 1, vec![failed, cancelled])).await.unwrap();
    let kept = running.logs.get(None, &event_id(1)).await.unwrap().unwrap().deliveries.remove(0);
    assert_eq!(kept.state(), v1::DeliveryState::Cancelled);
    assert_eq!(
        (kept.attempt_count, kept.last_status_code, kept.last_error.as_str()),
        (2, 503, "answered 503")
    );
    running.close().await;
}

/// Attempts and repeats reported later change their log, in the same group as the event or long after;
/// reports about unknown events hold up nothing.
#[tokio::test]
async fn later_reports_change_their_log() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 8).await;
    let mut pending = log(1);
    pending.deliveries = vec![delivery("sub_1", v1::DeliveryState::Pending)];
    let attempts = |number, attempt_number, state| {
        Record::Attempts(v1::AttemptsReport {
            event_id: event_id(number),
            deliveries: vec![v1::Delivery { attempt_count: attempt_number, ..delivery("sub_1", state) }],
            attempts: vec![attempt(number, attempt_number, "sub_1")],
        })
    };
    let first = vec![
        Record::Event(Box::new(pending), vec![attempt(1, 1, "sub_1")]),
        attempts(1, 2, v1::DeliveryState::Pending),
        attempts(999, 1, v1::DeliveryState::Delivered),
    ];
    running.logs.append(batch("agt_1", 1, first)).await.unwrap();
    // The event leaves the window: its segment, and more than stay in memory, are sealed.
    running.logs.append(batch("agt_1", 10, (100..108).map(event).collect())).await.unwrap();
    for start in 0..5 {
        let events = (200 + start * 10..208 + start * 10).map(event).collect();
        running.logs.append(batch("agt_1", 100 + u64::from(start) * 10, events)).await.unwrap();
    }
    let duplicate = v1::DuplicateReport { event_id: event_id(1), duplicate_count: 4 };
    let later = vec![attempts(1, 3, v1::DeliveryState::Delivered), Record::Duplicate(duplicate)];
    running.logs.append(batch("agt_1", 1_000, later)).await.unwrap();
    let changed = running.logs.get(None, &event_id(1)).await.unwrap().unwrap();
    assert_eq!((changed.duplicate_count, changed.deliveries[0].attempt_count), (4, 3));
    assert_eq!(changed.deliveries[0].state(), v1::DeliveryState::Delivered);
    let page = running.logs.list_attempts(None, &event_id(1), None, None, 2).await.unwrap().unwrap();
    let next = running.logs.list_attempts(None, &event_id(1), None, page.next, 2).await.unwrap().unwrap();
    let numbers: Vec<_> =
        page.attempts.iter().chain(&next.attempts).map(|attempt| attempt.attempt_number).collect();
    assert_eq!((numbers, next.next), (vec![1, 2, 3], None));
    running.close().await;
}

/// Every event is found by id in the tail, in sealed segments in memory and on disk, also after a restart.
#[tokio::test]
async fn event_ids_are_found_across_sealing() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 16).await;
    for start in (0..200).step_by(10) {
        let events = (start..start + 10).map(event).collect();
        running.logs.append(batch("agt_1", u64::from(start) + 1, events)).await.unwrap();
    }
    running.close().await;
    let running = Running::open(&dir, 16).await;
    running.logs.append(batch("agt_1", 201, (200..205).map(event).collect())).await.unwrap();
    for number in 0..205 {
        let found = running.logs.get(None, &event_id(number)).await.unwrap().unwrap();
        assert_eq!(found.external_message_id, format!("wamid.{number}"));
    }
    assert!(running.logs.get(None, &event_id(999)).await.unwrap().is_none());
    assert!(running.logs.get(None, "evt_of_another_form").await.unwrap().is_none());
    let other = "other".parse().unwrap();
    assert!(running.logs.get(Some(&other), &event_id(1)).await.unwrap().is_none());
    // A repeat within the window is recognized after the restart.
    running.logs.append(batch("agt_2", 1, vec![event(199)])).await.unwrap();
    assert_eq!(all(&running.logs, &LogFilter::default(), 1_000).await.len(), 205);
    running.close().await;
}

/// Which numbers a filter should let through.
type Wanted = dyn Fn(&u32) -> bool;

/// Filters narrow the list, over sealed segments and the tail.
#[tokio::test]
async fn filters_narrow_the_list() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 16).await;
    for number in 0..100 {
        running.logs.append(batch("agt_1", u64::from(number) + 1, vec![event(number)])).await.unwrap();
    }
    let time = |seconds: i64| jiff::Timestamp::from_second(1_000 + seconds).ok();
    let cases: [(LogFilter, Box<Wanted>); 6] = [
        (
            LogFilter { instance_id: Some("inst_1".into()), ..Default::default() },
            Box::new(|number| number % 3 == 1),
        ),
        (
            LogFilter { from_phone: Some("+966500000003".into()), ..Default::default() },
            Box::new(|number| number % 7 == 3),
        ),
        (
            LogFilter { external_message_id: Some("wamid.42".into()), ..Default::default() },
            Box::new(|number| *number == 42),
        ),
        (
            LogFilter {
                events: gateway_core::filter::EventFilter::parse(&["message.received"]).ok(),
                start_time: time(10),
                end_time: time(50),
                ..Default::default()
            },
            Box::new(|number| number % 2 == 0 && (10..50).contains(number)),
        ),
        (
            LogFilter { instance_id: Some("inst_2".into()), start_time: time(95), ..Default::default() },
            Box::new(|number| number % 3 == 2 && *number >= 95),
        ),
        (LogFilter { tenant_id: "other".parse().ok(), ..Default::default() }, Box::new(|_| false)),
    ];
    for (filter, wanted) in cases {
        for page_size in [1, 7, 1_000] {
            let expected =
                newest_first((0..100).filter(|number| wanted(number)).collect::<Vec<_>>().into_iter());
            assert_eq!(all(&running.logs, &filter, page_size).await, expected, "{filter:?}");
        }
    }
    let last = running.logs.last_event_time("inst_0").await.unwrap();
    assert_eq!(last, time(99));
    assert_eq!(running.logs.last_event_time("inst_9").await.unwrap(), None);
    running.close().await;
}

/// Pages do not move when logs are recorded between them.
#[tokio::test]
async fn pages_are_stable_under_writes() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 8).await;
    running.logs.append(batch("agt_1", 1, (0..20).map(event).collect())).await.unwrap();
    let (mut ids, mut before, mut sequence) = (Vec::new(), None, 100_u32);
    loop {
        let page = running.logs.list(&LogFilter::default(), before, 3).await.unwrap();
        ids.extend(page.logs.into_iter().map(|log| log.event_id));
        running.logs.append(batch("agt_1", sequence.into(), vec![event(sequence)])).await.unwrap();
        sequence += 1;
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(ids, newest_first(0..20));
    running.close().await;
}

/// A page of large logs ends before it is too large for a gRPC message, and nothing is left out.
#[tokio::test]
async fn pages_are_bounded_in_bytes() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 8).await;
    let large = |number| {
        let log = v1::InboundLog { payload_json: "x".repeat(1 << 20), ..log(number) };
        Record::Event(Box::new(log), Vec::new())
    };
    running.logs.append(batch("agt_1", 1, (0..10).map(large).collect())).await.unwrap();
    let first = running.logs.list(&LogFilter::default(), None, 10).await.unwrap();
    assert_eq!(first.logs.len(), 2);
    assert_eq!(all(&running.logs, &LogFilter::default(), 10).await, newest_first(0..10));
    running.close().await;
}

/// A watch gives every record and every settled delivery once and in order, resumes from any cursor
/// without gap or repeat, and can begin in the past.
#[tokio::test]
async fn watch_resumes_from_its_cursor() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 4).await;
    let mut live = running.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    for number in 0..10 {
        running.logs.append(batch("agt_1", u64::from(number) + 1, vec![event(number)])).await.unwrap();
    }
    let mut steps = Vec::new();
    for _ in 0..20 {
        steps.push(step(&mut live).await);
    }
    let expected: Vec<_> = (0..10)
        .flat_map(|number| [(event_id(number), None), (event_id(number), Some("sub_1".to_owned()))])
        .collect();
    let seen: Vec<_> = steps.iter().map(|(id, subscription, _)| (id.clone(), subscription.clone())).collect();
    assert_eq!(seen, expected);
    for (place, (_, _, cursor)) in steps.iter().enumerate().take(19) {
        let mut resumed = running.logs.watch(LogFilter::default(), WatchFrom::Cursor(cursor)).await.unwrap();
        assert_eq!(step(&mut resumed).await, steps[place + 1]);
    }
    let since = WatchFrom::Time(jiff::Timestamp::from_second(1_006).unwrap());
    let filter = LogFilter { instance_id: Some("inst_1".into()), ..Default::default() };
    let mut past = running.logs.watch(filter, since).await.unwrap();
    assert_eq!(step(&mut past).await.0, event_id(7));
    assert_eq!(step(&mut past).await.1.as_deref(), Some("sub_1"));
    running.logs.append(batch("agt_1", 100, vec![event(13)])).await.unwrap();
    assert_eq!(step(&mut past).await.0, event_id(13));
    running.close().await;
    // Closing ends a watch, after what it had read.
    assert!(step(&mut past).await.1.is_some());
    assert!(past.next().await.is_none());
}

/// A cursor of another database, of the future or of no database is refused.
#[tokio::test]
async fn foreign_cursors_are_refused() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (running, foreign) = (Running::open(&dir, 4).await, Running::open(&other, 4).await);
    let mut watch = foreign.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    foreign.logs.append(batch("agt_1", 1, vec![event(1)])).await.unwrap();
    let cursor = step(&mut watch).await.2;
    let future = cursor.replace(&foreign.logs.inner.epoch, &running.logs.inner.epoch);
    for bad in [cursor.as_str(), &future, "", "x", "1-2-3", &format!("{}--1", running.logs.inner.epoch)] {
        let refused = running.logs.watch(LogFilter::default(), WatchFrom::Cursor(bad)).await;
        assert!(matches!(refused, Err(LogStoreError::UnknownCursor)), "{bad}");
    }
    running.close().await;
    foreign.close().await;
}

fn unrouted(route_id: &str, number: &str, payload: &str) -> Record {
    Record::Unrouted(v1::UnroutedCallback {
        inbound_route_id: route_id.into(),
        provider_number_id: number.into(),
        payload_json: payload.into(),
        ..Default::default()
    })
}

/// Unrouted callbacks are listed newest first, found by number however it is written, bounded per route
/// with the oldest going first, and gone when taken out.
#[tokio::test]
async fn unrouted_callbacks_are_kept_and_bounded() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 4).await;
    let max = u64::try_from(UNROUTED_PER_ROUTE_MAX).unwrap();
    let many = (0..max + 5).map(|place| unrouted("route_1", "123", &place.to_string())).collect();
    running.logs.append(batch("agt_1", 1, many)).await.unwrap();
    let few = vec![
        unrouted("route_2", "+966 11 000 0000", "a"),
        unrouted("route_2", "966110000000", "b"),
        unrouted("route_2", "", "c"),
    ];
    running.logs.append(batch("agt_1", max + 100, few)).await.unwrap();
    let number =
        |route_id: &str, key: &str| UnroutedNumber { route_id: route_id.into(), number_key: key.into() };
    let oldest = running.logs.unrouted_of(&number("route_1", "123"), -1, 1).await.unwrap();
    assert_eq!(oldest[0].callback.payload_json, "5");
    let (page, next) = running.logs.list_unrouted(Some(&["route_2".to_owned()]), None, 2).await.unwrap();
    assert_eq!(page.iter().map(|callback| callback.payload_json.as_str()).collect::<Vec<_>>(), ["c", "b"]);
    let (page, next) = running.logs.list_unrouted(Some(&["route_2".to_owned()]), next, 2).await.unwrap();
    assert_eq!((page.len(), next), (1, None));
    let of_number = running.logs.unrouted_of(&number("route_2", "966110000000"), -1, 10).await.unwrap();
    assert_eq!(of_number.len(), 2);
    running.logs.delete_unrouted(of_number.iter().map(|unrouted| unrouted.seq).collect()).await.unwrap();
    let (left, _) = running.logs.list_unrouted(Some(&["route_2".to_owned()]), None, 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(running.logs.unrouted_numbers(0).await.unwrap().len(), 2);
    running.close().await;
}

/// The log of a large data set answers by index: the plan of an instance's page and of an id never scans.
#[tokio::test]
async fn plans_use_the_indexes() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(&dir, 4).await;
    let rows_of = format!(
        "SELECT logs.seq FROM {}'[1]'{} AND logs.tenant_id = 'a'",
        query::ROWS_OF,
        query::ROWS_OF_WHERE
    );
    for (sql, wanted) in [
        (rows_of.as_str(), "SEARCH logs USING INTEGER PRIMARY KEY (rowid=?)"),
        (
            instance_index::NEWEST_SEALED,
            "SEARCH log_instances USING PRIMARY KEY (segment=? AND instance_id=?)",
        ),
        (event_index::FIND_SEALED, "SEARCH log_event_ids USING PRIMARY KEY (segment=? AND key_first<?)"),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).fetch_all(&running.logs.inner.readers).await.unwrap();
        let text: Vec<_> = plan.into_iter().map(|row| row.3).collect();
        assert!(text.iter().any(|line| line.contains(wanted)), "{text:?}");
        assert!(!text.iter().any(|line| line.contains("TEMP B-TREE")), "{text:?}");
    }
    running.close().await;
}
