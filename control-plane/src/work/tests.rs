use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{lease::LEASED_PER_STREAM_MAX, *};
use crate::{inbound_log::SqliteLogStore, store::sqlite::testing};

const DEADLINE: Duration = Duration::from_secs(25);

fn task(number: u32) -> Task {
    Task::TestEvent(v1::TestEventWork { event_id: format!("evt_{number}"), ..Default::default() })
}

fn ids(work: &[v1::Work]) -> Vec<String> {
    work.iter().map(|work| work.id.clone()).collect()
}

/// A queue and what is below it.
struct Place {
    dir: tempfile::TempDir,
    supervisor: Supervisor,
    store: Store,
    logs: Arc<dyn LogStore>,
    queue: WorkQueue,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let store = Store::open(dir.path()).await.unwrap();
        let logs = SqliteLogStore::open(dir.path(), &supervisor, tokio::sync::mpsc::channel(1).0);
        let logs: Arc<dyn LogStore> = Arc::new(logs.await.unwrap());
        let queue = WorkQueue::new(store.clone(), Arc::clone(&logs));
        Self { dir, supervisor, store, logs, queue }
    }

    /// With `sub_1` in the store.
    async fn with_subscription() -> Self {
        let place = Self::new().await;
        let insert = "INSERT INTO webhook_subscriptions (id, tenant_id, version, instance_id, config) \
             VALUES ('sub_1', 'default', 1, 'inst_1', x'00')";
        testing::execute(place.dir.path(), format!("PRAGMA foreign_keys = OFF; {insert}")).await;
        place
    }

    async fn end(self) {
        self.supervisor.stop().cancel();
        self.supervisor.wait(DEADLINE).await.unwrap();
    }
}

/// Work goes to one stream of its region at a time, oldest first; it is free again when the stream
/// ends, and gone for good when it is acknowledged, also after a restart.
#[tokio::test]
async fn work_is_leased_until_acknowledged() {
    let place = Place::new().await;
    let queue = place.queue.clone();
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
    let restarted = WorkQueue::new(place.store.clone(), Arc::clone(&place.logs));
    assert_eq!(ids(&restarted.open("agt_1", "us", None).lease(0).await.unwrap()), ids(&leased[1..]));
    place.end().await;
}

/// An agent of a tenant cannot acknowledge away what was not given to it.
#[tokio::test]
async fn tenants_agents_remove_only_what_they_hold() {
    let place = Place::new().await;
    let queue = place.queue.clone();
    queue.enqueue(&[], task(1)).await.unwrap();
    let mut platform = queue.open("agt_1", "eu", None);
    let leased = ids(&platform.lease(0).await.unwrap());
    let mut bound = queue.open("agt_1", "eu", Some("acme"));
    assert!(bound.lease(0).await.unwrap().is_empty());
    bound.acknowledge(leased.clone()).await.unwrap();
    drop(platform);
    assert_eq!(ids(&queue.open("agt_1", "eu", None).lease(0).await.unwrap()), leased);
    place.end().await;
}

/// A stream holds a bounded amount of unacknowledged work; the rest waits for its acknowledgements.
#[tokio::test]
async fn leases_of_a_stream_are_bounded() {
    let place = Place::new().await;
    let queue = place.queue.clone();
    let total = u32::try_from(LEASED_PER_STREAM_MAX).unwrap() + 10;
    queue.enqueue_all(&[], (0..total).map(task).collect()).await.unwrap();
    let mut stream = queue.open("agt_1", "eu", None);
    let first = stream.lease(0).await.unwrap();
    assert_eq!(first.len(), LEASED_PER_STREAM_MAX);
    assert!(stream.lease(0).await.unwrap().is_empty());
    stream.acknowledge(ids(&first)).await.unwrap();
    assert_eq!(stream.lease(0).await.unwrap().len(), 10);
    place.end().await;
}

/// Queues deliveries to `sub_1`, which nobody checks, as they come out of a report.
async fn give_away(queue: &WorkQueue, count: u64) {
    let given = (1..=count).map(|sequence| GivenAway {
        sequence,
        id: Uuid::now_v7(),
        hand_over: v1::DeliveryHandOver {
            inbound_log: Some(v1::InboundLog { tenant_id: "default".into(), ..Default::default() }),
            delivery: Some(v1::Delivery { subscription_id: "sub_1".into(), ..Default::default() }),
            ..Default::default()
        },
    });
    queue.hand_over(("agt_0", "eu"), "buf_1", given.collect()).await.unwrap();
}

/// Deliveries go to streams that know how to take them over and whose agent has a configuration, and what is
/// urgent does not wait behind them: a stream that is full of deliveries is given a test event.
#[tokio::test]
async fn deliveries_do_not_hold_up_the_rest() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
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
    place.end().await;
}

/// What an agent does not acknowledge for long goes to another one; as long as it acknowledges some, it keeps the rest.
#[tokio::test]
async fn leases_of_an_idle_stream_end() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
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
    place.end().await;
}

/// A stream that has passed a long queue does not read it again for every lease, but for what is given back.
#[tokio::test]
async fn a_long_queue_is_read_once() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
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
    place.end().await;
}

/// The lease of a stream ends although nobody looks for work, as when every agent drains: whoever waits for work is
/// woken by that once, and not again and again.
#[tokio::test]
async fn leases_end_without_anybody_who_looks() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
    give_away(&queue, 3).await;
    let mut drains = queue.open("agt_1", "eu", None);
    drains.takes_hand_overs();
    assert_eq!(drains.lease(1).await.unwrap().len(), 3);
    tokio::time::pause();
    tokio::time::advance(LEASE_TIME * 2).await;
    let mut woken = 0;
    while woken < 10 && tokio::time::timeout(Duration::from_secs(1), drains.available()).await.is_ok() {
        woken += 1;
    }
    tokio::time::resume();
    assert!((1..=2).contains(&woken), "{woken}");
    assert_eq!(queue.open("agt_2", "eu", None).looked(store::work::WorkKind::DeliveryHandOver), Some(0));
    assert_eq!(drains.lease(1).await.unwrap().len(), 3);
    place.end().await;
}

/// Callbacks that a committed change lets an instance claim are looked for once more when they were not claimed with it:
/// also when the caller went away while it was being committed. Otherwise nobody looks.
#[tokio::test]
async fn claims_are_made_up_for() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
    let is_told = async || {
        let told = queue.inner.unclaimed.notified();
        tokio::time::timeout(Duration::ZERO, told).await.is_ok()
    };
    for (is_committed, is_claimed) in [(false, false), (true, true), (true, false)] {
        let mut tx = queue.inner.store.begin_write().await.unwrap();
        let due = queue.claim_due(&mut tx);
        if is_committed {
            tx.commit().await.unwrap();
        } else {
            drop(tx);
        }
        if is_claimed {
            due.claimed();
        }
        drop(due);
        assert_eq!(is_told().await, is_committed && !is_claimed);
    }
    let mut tx = queue.inner.store.begin_write().await.unwrap();
    let due = queue.claim_due(&mut tx);
    let mut commit = Box::pin(tx.commit());
    assert!(futures_util::poll!(&mut commit).is_pending());
    drop((due, commit));
    tokio::time::timeout(DEADLINE, queue.inner.unclaimed.notified()).await.unwrap();
    place.end().await;
}

/// A delivery that is queued just after its webhook subscription was deleted is looked for, though the configuration
/// does not change any more; others are not looked for again and again.
#[tokio::test]
async fn deliveries_without_a_subscription_are_found() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
    let may_cancel = async |is_changed| {
        let counts = store::work::counts(&queue.inner.store).await.unwrap();
        WorkQueue::may_cancel(&counts, is_changed)
    };
    assert!(!may_cancel(true).await);
    give_away(&queue, 1).await;
    assert_eq!([may_cancel(true).await, may_cancel(false).await], [true, false]);
    testing::execute(place.dir.path(), "DELETE FROM webhook_subscriptions").await;
    let given = GivenAway {
        sequence: 2,
        id: Uuid::now_v7(),
        hand_over: v1::DeliveryHandOver {
            inbound_log: Some(v1::InboundLog { tenant_id: "default".into(), ..Default::default() }),
            delivery: Some(v1::Delivery { subscription_id: "sub_1".into(), ..Default::default() }),
            ..Default::default()
        },
    };
    queue.hand_over(("agt_0", "eu"), "buf_1", vec![given]).await.unwrap();
    assert!(may_cancel(false).await);
    place.end().await;
}

/// What an agent did not read in the time of a lease goes to another one and to no third: the first is not sent it any
/// more, and cannot give it back.
#[tokio::test]
async fn late_streams_let_go() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
    give_away(&queue, 3).await;
    let [mut late, mut other, mut third] = ["agt_1", "agt_2", "agt_3"].map(|agent| {
        let mut stream = queue.open(agent, "eu", None);
        stream.takes_hand_overs();
        stream
    });
    let mut unsent: std::collections::VecDeque<_> = late.lease(1).await.unwrap().into();
    late.keep_held(&mut unsent);
    assert_eq!(unsent.len(), 3);
    tokio::time::pause();
    tokio::time::advance(LEASE_TIME).await;
    tokio::time::resume();
    assert_eq!(other.lease(1).await.unwrap().len(), 3);
    late.give_back(&unsent.iter().map(|work| work.id.clone()).collect::<Vec<_>>());
    late.keep_held(&mut unsent);
    assert!(unsent.is_empty());
    assert!(third.lease(1).await.unwrap().is_empty());
    place.end().await;
}

/// A delivery that cannot be opened is for nobody once its webhook subscription is gone, so it leaves the queue then and
/// not before; what can be opened is cancelled beside it. Both are counted.
#[tokio::test]
async fn unreadable_deliveries_leave_with_their_subscription() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
    give_away(&queue, 3).await;
    testing::execute(place.dir.path(), "UPDATE queued_work SET body = x'0102' WHERE seq = 2").await;
    let waiting = async || {
        let counts = store::work::counts(&queue.inner.store).await.unwrap();
        counts.iter().map(|count| count.count).sum::<i64>()
    };
    let mut canceller = deliveries::Canceller::new();
    let nothing = deliveries::Cancelled { count: 0, held: 0 };
    assert_eq!(canceller.cancel(&queue).await.unwrap(), nothing);
    assert_eq!(waiting().await, 3, "its subscription may come back with a backup");
    testing::execute(place.dir.path(), "DELETE FROM webhook_subscriptions").await;
    let two = deliveries::Cancelled { count: 2, held: 0 };
    assert_eq!(canceller.cancel(&queue).await.unwrap(), two);
    assert_eq!(waiting().await, 0);
    let counted = [HandOverOutcome::Cancelled, HandOverOutcome::Unreadable].map(|what| queue.counted(what));
    assert_eq!(counted, [2, 1]);
    place.end().await;
}

/// A delivery about one tenant's event never goes to another one's webhook subscription, whoever says so and however that
/// came about. It is for nobody, and is cancelled.
#[tokio::test]
async fn deliveries_stay_with_their_tenant() {
    let place = Place::with_subscription().await;
    let queue = place.queue.clone();
    give_away(&queue, 1).await;
    let taken = "PRAGMA foreign_keys = OFF; UPDATE webhook_subscriptions SET tenant_id = 'other'";
    testing::execute(place.dir.path(), taken).await;
    give_away(&queue, 2).await;
    let counts = store::work::counts(&queue.inner.store).await.unwrap();
    let of: Vec<_> = counts.iter().map(|count| (count.tenant_id.as_str(), count.count)).collect();
    assert_eq!(of, [("", 1), ("default", 1)]);
    for tenant_id in [None, Some("other"), Some("default")] {
        let mut stream = queue.open("agt_1", "eu", tenant_id);
        stream.takes_hand_overs();
        assert!(stream.lease(1).await.unwrap().is_empty(), "{tenant_id:?}");
    }
    let both = deliveries::Cancelled { count: 2, held: 0 };
    assert_eq!(deliveries::Canceller::new().cancel(&queue).await.unwrap(), both);
    place.end().await;
}
