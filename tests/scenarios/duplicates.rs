//! A provider repeats itself; the customer hears it once.

use anyhow::ensure;
use gateway_core::id::EventId;
use gateway_proto::v1::DeliveryState;
use gateway_tests::{
    DEADLINE, World, eventually,
    meta::{text_message, unique_wamid},
    world::INSTANCE_ID,
};

const FROM: &str = "966500000001";

/// The same callback again, the same item in another batch, and twice in one batch: each item is
/// delivered once, and the log counts the repeats.
#[tokio::test]
async fn repeated_items_are_delivered_once_and_counted() {
    let world = World::start().await.unwrap();
    let (first, second, twice) = (unique_wamid(), unique_wamid(), unique_wamid());
    let provider = &world.provider;
    let repeated = text_message(&first, FROM, "once");
    let callback = provider.messages(std::slice::from_ref(&repeated));
    let batch = provider.messages(&[repeated, text_message(&second, FROM, "new in the batch")]);
    let item = text_message(&twice, FROM, "twice in one batch");
    let double = provider.messages(&[item.clone(), item]);
    for callback in [&callback, &callback, &batch, &double, &callback] {
        assert_eq!(provider.post(callback).await.unwrap().status, 200);
    }
    for (wamid, duplicates) in [(&first, 3), (&second, 0), (&twice, 1)] {
        world.delivered(wamid).await.unwrap();
        let id = EventId::derive(&["message.received", "meta", INSTANCE_ID, wamid, "", "", ""]).to_string();
        eventually(DEADLINE, async || {
            let count = world.log(&id).await?.duplicate_count;
            ensure!(count == duplicates, "the log counts {count} repeats, not {duplicates}");
            Ok(())
        })
        .await
        .unwrap();
    }
    assert_eq!(world.receiver.count(), 3);
    assert_eq!(world.logs().await.unwrap().len(), 3);
}

/// The marks are on disk with the events: after kill -9 and a restart a repeat is still a repeat.
#[tokio::test]
async fn repeats_are_known_after_a_crash() {
    let mut world = World::start().await.unwrap();
    let wamid = unique_wamid();
    let callback = world.provider.messages(&[text_message(&wamid, FROM, "before the crash")]);
    assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
    let webhook = world.delivered(&wamid).await.unwrap();
    world.log_in(webhook.id(), DeliveryState::Delivered).await.unwrap();
    world.agent.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
    eventually(DEADLINE, async || {
        let count = world.log(webhook.id()).await?.duplicate_count;
        ensure!(count == 1, "the log counts {count} repeats");
        Ok(())
    })
    .await
    .unwrap();
    // What comes later is delivered, so the repeat would have been too.
    let later = world.provider.say(FROM, "after the crash").await.unwrap();
    let later = world.delivered(&later).await.unwrap();
    world.log_in(later.id(), DeliveryState::Delivered).await.unwrap();
    assert!(
        world
            .receiver
            .by_id()
            .values()
            .all(|webhooks| { webhooks.iter().all(|again| again.body == webhooks[0].body) })
    );
    assert_eq!(world.logs().await.unwrap().len(), 2);
}
