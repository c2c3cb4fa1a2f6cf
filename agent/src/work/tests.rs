//! What becomes of deliveries that the control plane hands over.

use super::*;
use crate::{
    control_plane::Identity,
    metrics::Metrics,
    opt_out::OptOuts,
    pipeline::buffer::{Buffer, Config, tests::event},
    provider::Refusals,
};

/// A worker whose buffer has little room, of which one destination gets a third.
async fn worker(directory: &std::path::Path) -> (Worker, Buffer) {
    let small = Config { bytes_max: 20_000, destination_share: 30, ..Config::for_tests(directory) };
    let buffer = Buffer::open(small, Metrics::new()).await.unwrap();
    let snapshot = SnapshotHandle::empty();
    let identity = r#"{"agent_id":"agt_1","region":"eu","credential":"secret"}"#;
    let identity: Identity = serde_json::from_str(identity).unwrap();
    let (metrics, refusals) = (Metrics::new(), Refusals::default());
    let pipeline =
        Pipeline::new(&identity, snapshot.clone(), buffer.clone(), OptOuts::new(), metrics, refusals);
    (Worker { snapshot, pipeline }, buffer)
}

fn hand_over(number: u32, subscription: &str) -> (String, v1::DeliveryHandOver) {
    let delivery = v1::Delivery { subscription_id: subscription.to_owned(), ..v1::Delivery::default() };
    let hand_over = v1::DeliveryHandOver {
        id: format!("{subscription} {number}"),
        inbound_log: Some(event(number, &[]).log),
        delivery: Some(delivery),
        had_quick_retry: false,
    };
    (format!("work_{subscription}_{number}"), hand_over)
}

/// What is durable is acked, and so is what can never be taken; a destination without room holds up nobody else, and
/// its deliveries are not acked.
#[tokio::test]
async fn only_what_is_durable_is_acked() {
    let directory = tempfile::tempdir().unwrap();
    let (worker, buffer) = worker(directory.path()).await;
    let many = (0..50).map(|number| hand_over(number, "sub_a")).collect();
    let acked: Vec<Vec<String>> = worker.take_over(many).await.unwrap();
    assert_eq!((acked.len(), acked[0].len(), buffer.stats().events), (1, 50, 50), "one commit for all");

    let mut senseless = hand_over(60, "sub_b");
    senseless.1.inbound_log = None;
    let mixed = vec![hand_over(50, "sub_a"), senseless, hand_over(51, "sub_b"), hand_over(52, "sub_b")];
    let acked: Vec<String> = worker.take_over(mixed).await.unwrap().concat();
    assert_eq!(acked, ["work_sub_b_60", "work_sub_b_51", "work_sub_b_52"]);
    assert_eq!(buffer.stats().events, 52);
    buffer.close().await;
    assert!(worker.take_over(vec![hand_over(53, "sub_b")]).await.is_err());
}

/// A draining agent takes nothing over, whatever was on its way to it: it may have said already that it is drained, and
/// be stopped for good. What it takes when the drain begins keeps it from saying so.
#[tokio::test]
async fn draining_agents_take_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (worker, buffer) = worker(directory.path()).await;
    let drain = worker.snapshot.drain();
    let mut taking = Box::pin(worker.take_over(vec![hand_over(1, "sub_a")]));
    tokio::select! {
        biased;
        _ = &mut taking => panic!("it waits for the disk"),
        () = std::future::ready(()) => {}
    }
    drain.set(true).unwrap();
    assert!(!drain.is_quiet());
    assert_eq!(taking.await.unwrap().concat(), ["work_sub_a_1"]);
    assert!(drain.is_quiet() && buffer.stats().events == 1);

    tokio::time::pause();
    let late = worker.take_over(vec![hand_over(2, "sub_a")]).await.unwrap();
    tokio::time::resume();
    assert_eq!((late.len(), buffer.stats().events), (0, 1));
    // Work may be there before the word that the drain has ended.
    let mut taking = Box::pin(worker.take_over(vec![hand_over(2, "sub_a")]));
    tokio::select! {
        biased;
        _ = &mut taking => panic!("it drains"),
        () = std::future::ready(()) => {}
    }
    drain.set(false).unwrap();
    worker.snapshot.replace(gateway_core::snapshot::Snapshot::default());
    assert_eq!(taking.await.unwrap().concat(), ["work_sub_a_2"]);
}
