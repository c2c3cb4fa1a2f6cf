//! Nothing unknown is dropped: callbacks for numbers that nobody claims are kept until somebody does.

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Within as _, World, eventually,
    meta::{text_message, unique_wamid},
    world::INSTANCE_ID,
};
use serde_json::json;

const FROM: &str = "966500000001";
const UNCLAIMED: &str = "999999999999999";

async fn unrouted(world: &World) -> anyhow::Result<Vec<v1::UnroutedCallback>> {
    let request = v1::ListUnroutedCallbacksRequest {
        inbound_route_id: world.inbound_route.id.clone(),
        ..Default::default()
    };
    Ok(world.client().list(request).try_collect().await?)
}

fn second_instance(world: &World) -> v1::CreateInstanceRequest {
    v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: "inst-second".to_owned(),
            display_name: "Second Line".to_owned(),
            inbound_route_id: world.inbound_route.id.clone(),
            provider_number_id: UNCLAIMED.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn subscribe_second(world: &World, path: &str) {
    let request = v1::CreateWebhookSubscriptionRequest {
        webhook_subscription: Some(v1::WebhookSubscription {
            instance_id: "inst-second".to_owned(),
            destination_url: world.receiver.url(path),
            events: vec!["*".to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    };
    world.client().webhook_subscriptions().create_webhook_subscription(request).await.unwrap();
}

/// Messages for a number that no instance claims are answered 200, listed once each with the payload they
/// came with, and delivered when an instance claims the number and has a webhook subscription; then the list
/// is empty.
#[tokio::test]
async fn unclaimed_number_is_delivered_once_claimed() {
    let world = World::start().await.unwrap();
    let stranger = world.provider.with_number(UNCLAIMED);
    let wamid = unique_wamid();
    let callback = stranger.messages(&[text_message(&wamid, FROM, "anybody there?")]);
    // Repeated by the provider, as it does.
    for _ in 0..2 {
        assert_eq!(stranger.post(&callback).await.unwrap().status, 200);
    }
    let kept = eventually(DEADLINE, async || {
        let kept = unrouted(&world).await?;
        ensure!(!kept.is_empty(), "nothing is listed");
        Ok(kept)
    });
    let kept = kept.await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].provider_number_id, UNCLAIMED);
    assert_eq!(kept[0].inbound_route_id, world.inbound_route.id);
    assert!(kept[0].payload_json.contains(&wamid) && kept[0].payload_json.contains("anybody there?"));

    world.client().instances().create_instance(second_instance(&world)).await.unwrap();
    assert_eq!(unrouted(&world).await.unwrap().len(), 1, "nobody would get it yet");
    subscribe_second(&world, "/second").await;
    let webhook = world.receiver.message(&wamid).within(DEADLINE).await.unwrap();
    assert_eq!((webhook.path.as_str(), webhook.text("instance_id").as_str()), ("/second", "inst-second"));
    let log = eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        logs.into_iter().find(|log| log.external_message_id == wamid).context("the event is not logged yet")
    });
    assert_eq!(log.await.unwrap().instance_id, "inst-second");
    eventually(DEADLINE, async || {
        ensure!(unrouted(&world).await?.is_empty(), "still listed");
        Ok(())
    })
    .await
    .unwrap();
}

/// The same, with the subscription there when the work arrives: the customer gets the webhook. Instance and
/// subscription are created right after each other, as a customer's script does.
#[tokio::test]
async fn claimed_callbacks_reach_the_customer() {
    let world = World::start().await.unwrap();
    world.client().instances().create_instance(second_instance(&world)).await.unwrap();
    subscribe_second(&world, "/second").await;
    // Nobody claims a third number yet.
    let third = world.provider.with_number("888888888888888");
    let wamid = unique_wamid();
    let callback = third.messages(&[text_message(&wamid, FROM, "wrong number")]);
    assert_eq!(third.post(&callback).await.unwrap().status, 200);
    eventually(DEADLINE, async || {
        ensure!(unrouted(&world).await?.len() == 1, "nothing is listed");
        Ok(())
    })
    .await
    .unwrap();
    // The second instance moves to that number, which claims it.
    let request = v1::UpdateInstanceRequest {
        instance: Some(v1::Instance {
            id: "inst-second".to_owned(),
            provider_number_id: "888888888888888".to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["provider_number_id".to_owned()] }),
    };
    world.client().instances().update_instance(request).await.unwrap();
    let webhook = world.receiver.message(&wamid).within(DEADLINE).await.unwrap();
    assert_eq!((webhook.path.as_str(), webhook.text("instance_id").as_str()), ("/second", "inst-second"));
}

/// One callback for two numbers of a route reaches both instances, each with its own events.
#[tokio::test]
async fn callback_for_several_numbers_reaches_each_instance() {
    let world = World::start().await.unwrap();
    world.client().instances().create_instance(second_instance(&world)).await.unwrap();
    subscribe_second(&world, "/second").await;
    world.config_applied().await.unwrap();
    let (first, second) = (unique_wamid(), unique_wamid());
    let other = world.provider.with_number(UNCLAIMED);
    let mut callback = world.provider.messages(&[text_message(&first, FROM, "for the first")]);
    let change =
        other.change("messages", json!({"messages": [text_message(&second, FROM, "for the second")]}));
    callback["entry"][0]["changes"].as_array_mut().unwrap().push(change);
    assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
    let webhook = world.delivered(&first).await.unwrap();
    assert_eq!(webhook.text("instance_id"), INSTANCE_ID);
    let webhook = world.receiver.message(&second).within(DEADLINE).await.unwrap();
    assert_eq!((webhook.path.as_str(), webhook.text("instance_name").as_str()), ("/second", "Second Line"));
    assert_eq!(world.receiver.count(), 2);
}
