//! How fast, how often and how many at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::io::AsyncWriteExt as _;

use super::*;

fn at_rate(per_second: i32, subscription: v1::WebhookSubscription) -> v1::WebhookSubscription {
    v1::WebhookSubscription { rate_per_second_max: per_second, ..subscription }
}

fn seconds_of(time: &Option<ProtoTimestamp>) -> f64 {
    let time = time.as_ref().unwrap();
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

/// A rate of ten per second is between nine and eleven.
#[tokio::test]
async fn rate_is_kept() {
    let receiver = Receiver::start(ok).await;
    let world = World::new([at_rate(10, subscription("sub_a", &receiver.url()))]).await;
    world.buffer.append(entry((0..40).map(|number| event(number, &["sub_a"])))).await.unwrap();
    receiver.wait_for(1).await;
    let first = Instant::now();
    let made = |reported: &Reported| reported.attempts.len() >= 25;
    let reported = world.reported_when("25 attempts are made", made).await;
    assert!(first.elapsed() > Duration::from_secs(2), "{:?}", first.elapsed());
    let mut begun: Vec<f64> =
        reported.attempts.iter().map(|attempt| seconds_of(&attempt.start_time)).collect();
    begun.sort_unstable_by(f64::total_cmp);
    let seconds: Vec<f64> = begun.windows(21).map(|window| window[20] - window[0]).collect();
    assert!(seconds.iter().all(|seconds| *seconds >= 20.0 / 11.0), "20 in {seconds:?} s");
    // A busy machine may stand still for a moment, which nothing makes up for.
    let seconds: Vec<f64> = begun.windows(6).map(|window| window[5] - window[0]).collect();
    assert!(seconds.iter().any(|seconds| *seconds <= 5.0 / 9.0), "5 in {seconds:?} s");
    world.stop().await;
}

/// A connection that is refused is tried again at once, once, as an attempt of its own that takes no step of the
/// schedule: the first delay follows it. That is so across a restart, too.
#[tokio::test]
async fn refused_connections_get_one_quick_retry() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refusing = after(&[3_000, 60_000], subscription("sub_a", &format!("http://{unused}/")));
    let world = World::new([refusing]).await;
    world.append(1, &["sub_a"]).await;
    let made = |count| move |reported: &Reported| reported.attempts.len() >= count;
    let reported = world.reported_when("two attempts are made", made(2)).await;
    let begun: Vec<f64> = reported.attempts.iter().map(|attempt| seconds_of(&attempt.start_time)).collect();
    assert!((0.25..2.5).contains(&(begun[1] - begun[0])), "{begun:?}");
    let delivery = reported.deliveries.values().next().unwrap();
    assert_eq!((delivery.attempt_count, delivery.state()), (2, v1::DeliveryState::Pending));
    let wait = seconds_of(&delivery.next_attempt_time) - begun[1];
    assert!((3.0..20.0).contains(&wait), "{wait}");

    let world = world.restart(clock::now).await;
    let reported = world.reported_when("the third attempt is made", made(3)).await;
    let numbers: Vec<u32> = reported.attempts.iter().map(|attempt| attempt.attempt_number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let delivery = reported.deliveries.values().next().unwrap();
    let wait = seconds_of(&delivery.next_attempt_time) - seconds_of(&reported.attempts[2].start_time);
    assert!((60.0..90.0).contains(&wait), "{wait}");
    world.stop().await;
}

/// When ten attempts in a row have failed, one delivery after the other is tried, and all the others keep
/// their attempts. Once one succeeds, everything is delivered.
#[tokio::test]
async fn breaker_spares_what_waits() {
    let receiver = Receiver::start(|before| match before {
        0..18 => Reply::Status(500, "", ""),
        _ => Reply::Status(200, "", ""),
    })
    .await;
    let probe_interval = Duration::from_millis(200);
    let tuning = Tuning { probe_interval, ..Tuning::default() };
    let failing = after(&[100], subscription("sub_a", &receiver.url()));
    let world = World::with([failing], clock::now, tuning).await;
    world.buffer.append(entry((0..60).map(|number| event(number, &["sub_a"])))).await.unwrap();
    receiver.wait_for(10).await;
    let opened = Instant::now();
    // At most what ran when the tenth failed, and two probes.
    receiver.wait_for(19).await;
    assert!(opened.elapsed() >= probe_interval, "{:?}", opened.elapsed());
    let all = |reported: &Reported| {
        let delivered = |delivery: &&v1::Delivery| delivery.state() == v1::DeliveryState::Delivered;
        reported.deliveries.values().filter(delivered).count() == 60
    };
    let reported = world.reported_when("all are delivered", all).await;
    assert_eq!(reported.attempts.len(), 78);
    assert!(reported.deliveries.values().all(|delivery| delivery.attempt_count <= 2));
    world.stop().await;
}

/// An answer that asks for fewer requests makes the whole subscription wait a moment, and its own delivery a
/// minute.
#[tokio::test]
async fn busy_destination_is_spared() {
    let receiver = Receiver::start(|before| match before {
        0 => Reply::Status(429, "", ""),
        _ => Reply::Status(200, "", ""),
    })
    .await;
    let world = World::new([subscription("sub_a", &receiver.url())]).await;
    world.append(1, &["sub_a"]).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    let reported = world.reported_when("the attempt is made", is_made).await;
    let delivery = reported.deliveries.values().next().unwrap();
    let first = seconds_of(&reported.attempts[0].start_time);
    let wait = seconds_of(&delivery.next_attempt_time) - first;
    assert!((60.0..70.0).contains(&wait), "{wait}");
    world.append(2, &["sub_a"]).await;
    world.delivery(2, "sub_a", v1::DeliveryState::Delivered).await;
    let wait = seconds_of(&world.reported().await.attempts[1].start_time) - first;
    assert!(wait > 0.999, "{wait}");
    world.stop().await;
}

/// Destinations that hang, with more deliveries than there are slots, leave room for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_destinations_harm_nobody_else() {
    let silent = Receiver::start(|_| Reply::Silence).await;
    let lively = Receiver::start(ok).await;
    let hanging: Vec<String> = (0..100).map(|number| format!("sub_hanging_{number}")).collect();
    let subscriptions = hanging.iter().map(|id| subscription(id, &silent.url()));
    let world = World::new(subscriptions.chain([subscription("sub_a", &lively.url())])).await;
    let ids: Vec<&str> = hanging.iter().map(String::as_str).collect();
    world.buffer.append(entry((0..10).map(|number| event(number, &ids)))).await.unwrap();
    silent.wait_for(300).await;
    let begun = Instant::now();
    for number in 100..150 {
        world.append(number, &["sub_a"]).await;
        lively.wait_for(number as usize - 99).await;
    }
    // Sooner than the first of those that hang is given up.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert!(silent.requests().len() < turns::ATTEMPTS_MAX);
    let World { mut tasks, .. } = world;
    tasks.shutdown().await;
}

/// A backlog is delivered completely, everything once, and by no more attempts at once than allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_is_delivered_completely() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let receiver = receiver::Raw::start(move |stream, _| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        async move {
            let mut stream = receiver::respond(stream, b"").await;
            most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
            running.fetch_sub(1, Ordering::Relaxed);
            stream.write_all(ANSWER).await.unwrap_or_default();
        }
    })
    .await;
    let ids: Vec<String> = (0..5).map(|number| format!("sub_{number}")).collect();
    let world = World::new(ids.iter().map(|id| subscription(id, &receiver.url()))).await;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for round in 0..10 {
        world.buffer.append(entry((round * 20..round * 20 + 20).map(|n| event(n, &ids)))).await.unwrap();
    }
    let all = |reported: &Reported| {
        let delivered = |delivery: &&v1::Delivery| delivery.state() == v1::DeliveryState::Delivered;
        reported.deliveries.values().filter(delivered).count() == 1_000
    };
    let reported = world.reported_when("all are delivered", all).await;
    assert_eq!((reported.attempts.len(), receiver.accepted()), (1_000, 1_000));
    let most = seen.load(Ordering::Relaxed);
    assert!((20..=5 * 8).contains(&most), "{most} at once");
    world.stop().await;
}

/// Counts the calls of the clock in [`panics_lose_nothing`].
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// A bug that makes an attempt panic costs one more webhook, not the delivery, and nobody else anything.
#[tokio::test]
async fn panics_lose_nothing() {
    let receiver = Receiver::start(ok).await;
    // It is asked when a delivery is taken over, and when an attempt has ended.
    let panicking = || match CALLS.fetch_add(1, Ordering::Relaxed) {
        1 => panic!("a bug"),
        _ => clock::now(),
    };
    let world = World::with([subscription("sub_a", &receiver.url())], panicking, Tuning::default()).await;
    world.append(1, &["sub_a"]).await;
    receiver.wait_for(1).await;
    world.append(2, &["sub_a"]).await;
    world.delivery(2, "sub_a", v1::DeliveryState::Delivered).await;
    world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await;
    assert_eq!(receiver.requests().len(), 3);
    world.stop().await;
}
