//! A slow or dead destination harms nobody else.

use std::collections::BTreeSet;

use anyhow::ensure;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Reply, World, eventually,
    meta::{text_message, unique_wamid},
    world::{PATH, update},
};
use tokio::task::JoinSet;

const MESSAGES: usize = 60;
/// Attempts of one subscription that may run at once.
const CONCURRENCY_MAX: usize = 8;

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
    let hangs = world.subscribe("/hangs", &["message.received"]).await.unwrap();
    // As long as can be: none is given up and tried again before the end.
    let change = v1::WebhookSubscription {
        attempt_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    update(world.client(), &hangs.id, change, "attempt_timeout").await.unwrap();
    world.config_applied().await.unwrap();
    let wamids: BTreeSet<String> = std::iter::repeat_with(unique_wamid).take(MESSAGES).collect();
    let messages: Vec<_> =
        wamids.iter().map(|wamid| text_message(wamid, "966500000001", "to both")).collect();
    let mut posts = JoinSet::new();
    for message in messages {
        let provider = world.provider.clone();
        posts.spawn(async move { provider.post(&provider.messages(&[message])).await.unwrap().status });
    }
    assert!(posts.join_all().await.iter().all(|status| *status == 200), "not every callback is answered 200");
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
    // The documented default of `concurrency_max`. All of it hangs, so the healthy destination was served beside it.
    eventually(DEADLINE, async || {
        let hanging = world.receiver.all().iter().filter(|webhook| webhook.path == "/hangs").count();
        ensure!(hanging >= CONCURRENCY_MAX, "{hanging} attempts are made at the hanging destination");
        assert_eq!(world.receiver.open_max("/hangs"), CONCURRENCY_MAX);
        Ok(())
    })
    .await
    .unwrap();
}
