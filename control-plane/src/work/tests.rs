use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{lease::LEASED_PER_STREAM_MAX, *};
use crate::inbound_log::SqliteLogStore;

const DEADLINE: Duration = Duration::from_secs(10);

fn task(number: u32) -> Task {
    Task::TestEvent(v1::TestEventWork { event_id: format!("evt_{number}"), ..Default::default() })
}

fn ids(work: &[v1::Work]) -> Vec<String> {
    work.iter().map(|work| work.id.clone()).collect()
}

/// Work goes to one stream of its region at a time, oldest first; it is free again when the stream
/// ends, and gone for good when it is acknowledged, also after a restart.
#[tokio::test]
async fn work_is_leased_until_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let store = Store::open(dir.path()).await.unwrap();
    let logs = SqliteLogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0);
    let logs: Arc<dyn LogStore> = Arc::new(logs.await.unwrap());
    let queue = WorkQueue::new(store.clone(), logs.clone());
    let [mut one, mut two, mut far] = ["eu", "eu", "eu-2"].map(|region| queue.open("agt_1", region, None));
    queue.enqueue(&["eu".into(), "us".into()], task(1)).await.unwrap();
    queue.enqueue(&[], task(2)).await.unwrap();
    let leased = one.lease(0).await.unwrap();
    assert_eq!(leased.iter().map(|work| work.work.clone().unwrap()).collect::<Vec<_>>(), [task(1), task(2)]);
    assert!(two.lease(0).await.unwrap().is_empty() && far.lease(0).await.unwrap().is_empty());
    one.acknowledge(ids(&leased[..1])).await.unwrap();
    drop(one);
    tokio::time::timeout(DEADLINE, two.available()).await.unwrap();
    assert_eq!(ids(&two.lease(0).await.unwrap()), ids(&leased[1..]));
    let restarted = WorkQueue::new(store, logs);
    assert_eq!(ids(&restarted.open("agt_1", "us", None).lease(0).await.unwrap()), ids(&leased[1..]));
    supervisor.stop().cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}

/// An agent of a tenant cannot acknowledge away what was not given to it.
#[tokio::test]
async fn tenants_agents_remove_only_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let store = Store::open(dir.path()).await.unwrap();
    let logs = SqliteLogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0);
    let logs: Arc<dyn LogStore> = Arc::new(logs.await.unwrap());
    let queue = WorkQueue::new(store, logs);
    queue.enqueue(&[], task(1)).await.unwrap();
    let mut platform = queue.open("agt_1", "eu", None);
    let leased = ids(&platform.lease(0).await.unwrap());
    let mut bound = queue.open("agt_1", "eu", Some("acme"));
    assert!(bound.lease(0).await.unwrap().is_empty());
    bound.acknowledge(leased.clone()).await.unwrap();
    drop(platform);
    assert_eq!(ids(&queue.open("agt_1", "eu", None).lease(0).await.unwrap()), leased);
    supervisor.stop().cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}

/// A stream holds a bounded amount of unacknowledged work; the rest waits for its acknowledgements.
#[tokio::test]
async fn leases_of_a_stream_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let store = Store::open(dir.path()).await.unwrap();
    let logs = SqliteLogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0);
    let logs: Arc<dyn LogStore> = Arc::new(logs.await.unwrap());
    let queue = WorkQueue::new(store, logs);
    let total = u32::try_from(LEASED_PER_STREAM_MAX).unwrap() + 10;
    queue.enqueue_all(&[], (0..total).map(task).collect()).await.unwrap();
    let mut stream = queue.open("agt_1", "eu", None);
    let first = stream.lease(0).await.unwrap();
    assert_eq!(first.len(), LEASED_PER_STREAM_MAX);
    assert!(stream.lease(0).await.unwrap().is_empty());
    stream.acknowledge(ids(&first)).await.unwrap();
    assert_eq!(stream.lease(0).await.unwrap().len(), 10);
    supervisor.stop().cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}

/// Queues deliveries to `sub_1`, which nobody checks, as they come out of a report.
async fn give_away(queue: &WorkQueue, count: u64) {
    let given = (1..=count).map(|sequence| GivenAway {
        sequence,
        id: Uuid::now_v7(),
        hand_over: v1::DeliveryHandOver {
            delivery: Some(v1::Delivery { subscription_id: "sub_1".into(), ..Default::default() }),
            ..Default::default()
        },
    });
    queue.hand_over(("agt_0", "eu"), "buf_1", given.collect()).await.unwrap();
}

/// The queue of a store in which `sub_1` is.
async fn with_subscription(dir: &std::path::Path, supervisor: &Supervisor) -> WorkQueue {
    let store = Store::open(dir).await.unwrap();
    let insert = "INSERT INTO webhook_subscriptions (id, tenant_id, version, instance_id, config) \
         VALUES ('sub_1', 'default', 1, 'inst_1', x'00')";
    let mut connection = store.pool().acquire().await.unwrap();
    sqlx::raw_sql("PRAGMA foreign_keys = OFF").execute(&mut *connection).await.unwrap();
    sqlx::raw_sql(insert).execute(&mut *connection).await.unwrap();
    sqlx::raw_sql("PRAGMA foreign_keys = ON").execute(&mut *connection).await.unwrap();
    drop(connection);
    let logs = SqliteLogStore::open(dir, supervisor, tokio::sync::mpsc::channel(1).0);
    WorkQueue::new(store, Arc::new(logs.await.unwrap()))
}

/// Deliveries go to streams that know how to take them over and whose agent has a configuration, and what is
/// urgent does not wait behind them: a stream that is full of deliveries is given a test event.
#[tokio::test]
async fn deliveries_do_not_hold_up_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let queue = with_subscription(dir.path(), &supervisor).await;
    let most = u64::try_from(LEASED_PER_STREAM_MAX).unwrap();
    give_away(&queue, 3 * most).await;
    queue.enqueue(&[], task(1)).await.unwrap();
    let mut earlier = queue.open("agt_1", "eu", None);
    let leased = earlier.lease(1).await.unwrap();
    assert_eq!(leased.iter().map(|work| work.work.clone().unwrap()).collect::<Vec<_>>(), [task(1)]);
    let mut one = queue.open("agt_2", "eu", None);
    one.takes_hand_overs();
    assert!(one.lease(0).await.unwrap().is_empty(), "it has no configuration");
    tokio::time::timeout(DEADLINE, one.available()).await.unwrap();
    let first = one.lease(1).await.unwrap();
    assert_eq!(first.len(), LEASED_PER_STREAM_MAX);
    queue.enqueue(&[], task(2)).await.unwrap();
    tokio::time::timeout(DEADLINE, one.available()).await.unwrap();
    let urgent = one.lease(1).await.unwrap();
    assert_eq!(urgent.iter().map(|work| work.work.clone().unwrap()).collect::<Vec<_>>(), [task(2)]);
    // Two streams share what there is; nothing comes twice and nothing is missed, also when one of them ends.
    let mut two = queue.open("agt_3", "eu", None);
    two.takes_hand_overs();
    let of_two = two.lease(1).await.unwrap();
    drop(one);
    two.acknowledge(ids(&of_two)).await.unwrap();
    let mut seen = ids(&of_two);
    while seen.len() < 3 * LEASED_PER_STREAM_MAX {
        let more = two.lease(1).await.unwrap();
        assert!(!more.is_empty(), "{} seen", seen.len());
        two.acknowledge(ids(&more)).await.unwrap();
        seen.extend(
            more.iter()
                .filter(|work| !matches!(work.work, Some(Task::TestEvent(_))))
                .map(|work| work.id.clone()),
        );
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3 * LEASED_PER_STREAM_MAX);
    assert!(two.lease(1).await.unwrap().is_empty());
    supervisor.stop().cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}

/// What an agent does not acknowledge for long goes to another one; as long as it acknowledges some, it keeps the rest.
#[tokio::test]
async fn leases_of_an_idle_stream_end() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let queue = with_subscription(dir.path(), &supervisor).await;
    give_away(&queue, 3).await;
    let [mut slow, mut other] = ["agt_1", "agt_2"].map(|agent| queue.open(agent, "eu", None));
    slow.takes_hand_overs();
    other.takes_hand_overs();
    let held = slow.lease(1).await.unwrap();
    assert_eq!(held.len(), 3);
    let two_thirds = LEASE_TIME * 2 / 3;
    tokio::time::pause();
    tokio::time::advance(two_thirds).await;
    tokio::time::resume();
    slow.acknowledge(ids(&held[..1])).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(two_thirds).await;
    tokio::time::resume();
    assert!(other.lease(1).await.unwrap().is_empty());
    tokio::time::pause();
    tokio::time::advance(two_thirds).await;
    tokio::time::resume();
    tokio::time::timeout(DEADLINE, other.available()).await.unwrap();
    assert_eq!(ids(&other.lease(1).await.unwrap()), ids(&held[1..]));
    assert!(slow.lease(1).await.unwrap().is_empty());
    supervisor.stop().cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}

/// A stream that has passed a long queue does not read it again for every lease, but for what is given back.
#[tokio::test]
async fn a_long_queue_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let queue = with_subscription(dir.path(), &supervisor).await;
    give_away(&queue, 700).await;
    let mut streams: Vec<_> = (0..3).map(|number| queue.open(&format!("agt_{number}"), "eu", None)).collect();
    let mut counts = Vec::new();
    for stream in &mut streams {
        stream.takes_hand_overs();
        counts.push(stream.lease(1).await.unwrap().len());
    }
    assert_eq!(counts, [256, 256, 188]);
    let mut late = queue.open("agt_late", "eu", None);
    late.takes_hand_overs();
    assert!(late.lease(1).await.unwrap().is_empty());
    assert_eq!(late.looked(store::work::WorkKind::DeliveryHandOver), Some(700));
    drop(streams.remove(1));
    assert_eq!(late.looked(store::work::WorkKind::DeliveryHandOver), Some(256));
    assert_eq!(late.lease(1).await.unwrap().len(), 256);
    supervisor.stop().cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}
