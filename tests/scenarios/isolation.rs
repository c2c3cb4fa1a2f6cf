//! A slow or dead destination harms nobody else.

use std::collections::BTreeSet;

use anyhow::ensure;
use gateway_tests::{DEADLINE, Reply, World, eventually, world::PATH};

const MESSAGES: usize = 60;

/// One subscription's destination never answers. Every callback is answered, and the other subscription of
/// the same instance gets every event while the first still hangs, which never has more than its share of
/// attempts open.
#[tokio::test]
async fn hanging_destination_delays_nobody() {
    let world = World::start().await.unwrap();
    world.receiver.answer_with(|webhook| match webhook.path.as_str() {
        "/hangs" => Reply::Hang,
        _ => Reply::Status(200),
    });
    world.subscribe("/hangs", &["message.received"]).await.unwrap();
    let mut wamids = BTreeSet::new();
    for _ in 0..MESSAGES {
        wamids.insert(world.provider.say("966500000001", "to both").await.unwrap());
    }
    eventually(DEADLINE, async || {
        let served: BTreeSet<String> = world
            .receiver
            .all()
            .iter()
            .filter(|webhook| webhook.path == PATH)
            .map(|webhook| webhook.text("external_message_id"))
            .collect();
        ensure!(served == wamids, "{} of {MESSAGES} are served", served.len());
        Ok(())
    })
    .await
    .unwrap();
    let hanging = world.receiver.all().iter().filter(|webhook| webhook.path == "/hangs").count();
    assert!(hanging >= 1, "the hanging destination was never called");
    // The documented default of `concurrency_max`. None of them has been answered or given up yet, so the
    // healthy destination was served meanwhile, not after.
    assert!(world.receiver.open_max("/hangs") <= 8, "{} attempts at once", world.receiver.open_max("/hangs"));
    assert_eq!(hanging, world.receiver.open_max("/hangs"));
}
