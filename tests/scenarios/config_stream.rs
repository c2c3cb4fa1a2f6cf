//! A change of configuration is in use on a running agent at once, and the last good one outlives everything.

mod verdicts;
mod deltas;
mod digests;
mod edits;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, World, eventually, figure,
    figure::Spread,
    world::{PATH, update},
};

const FROM: &str = "966500000001";
const CHANGES: usize = 20;
/// The goal is 200 ms; this is what a test on a shared machine may demand as a rule: it may stand still once.
const IN_USE_MAX: Duration = Duration::from_secs(1);

/// Posts messages until one is delivered to `path`.
async fn until_delivered_to(world: &World, path: &str) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let wamid = world.provider.say(FROM, "where to?").await?;
        let webhook = world.receiver.message(&wamid).await;
        ensure!(webhook.path == path, "delivered to {}", webhook.path);
        Ok(())
    })
    .await
}

/// The destination of a subscription is changed twenty times; each time messages go to the new one at once.
/// Prints how long it took, delivery included.
#[tokio::test]
async fn changed_destination_is_in_use_at_once() {
    let world = World::start().await.unwrap();
    let mut durations = Vec::new();
    for number in 0..CHANGES {
        let path = format!("/destination-{number}");
        let change =
            v1::WebhookSubscription { destination_url: world.receiver.url(&path), ..Default::default() };
        update(world.client(), &world.subscription.id, change, "destination_url").await.unwrap();
        let changed = Instant::now();
        until_delivered_to(&world, &path).await.unwrap();
        durations.push(changed.elapsed());
    }
    let spread = Spread::of(durations);
    figure(format_args!("a change is in use and has delivered after: {spread}"));
    assert!(spread.median < IN_USE_MAX, "{spread}");
}

/// Events are added, a subscription is paused, resumed and deleted: the running agent does as it is told, and
/// a deleted subscription's open deliveries are cancelled.
#[tokio::test]
async fn every_kind_of_change_reaches_a_running_agent() {
    let world = World::selecting(&["recipient.opted_out"]).await.unwrap();
    let mut subscriptions = world.client().webhook_subscriptions();
    let id = || world.subscription.id.clone();
    let unheard = world.provider.say(FROM, "nobody listens").await.unwrap();
    let change = v1::WebhookSubscription { events: vec!["message.*".to_owned()], ..Default::default() };
    update(world.client(), &id(), change, "events").await.unwrap();
    world.config_applied().await.unwrap();
    let heard = world.provider.say(FROM, "now they do").await.unwrap();
    world.delivered(&heard).await.unwrap();
    assert!(world.receiver.all().iter().all(|webhook| webhook.text("external_message_id") != unheard));
    // What nobody selected is logged all the same, and owed to nobody.
    let unheard = eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let log = logs.into_iter().find(|log| log.external_message_id == unheard);
        log.context("what nobody selected is not logged yet")
    });
    let unheard = unheard.await.unwrap();
    assert!(unheard.deliveries.is_empty(), "{unheard:?}");

    let request = v1::PauseWebhookSubscriptionRequest { id: id(), reason: "maintenance".to_owned() };
    let paused = subscriptions.pause_webhook_subscription(request).await.unwrap().into_inner();
    assert_eq!(paused.webhook_subscription.unwrap().pause_reason, "maintenance");
    world.config_applied().await.unwrap();
    let held = world.provider.say(FROM, "held").await.unwrap();
    let other = world.subscribe("/other", &["message.received"]).await.unwrap();
    let both = world.provider.say(FROM, "held, and delivered elsewhere").await.unwrap();
    assert_eq!(world.delivered(&both).await.unwrap().path, "/other");
    let request = v1::ResumeWebhookSubscriptionRequest { id: id() };
    subscriptions.resume_webhook_subscription(request).await.unwrap();
    assert_eq!(world.delivered(&held).await.unwrap().path, PATH);

    let change = v1::Instance {
        id: world.subscription.instance_id.clone(),
        display_name: "New Name".to_owned(),
        ..Default::default()
    };
    let request = v1::UpdateInstanceRequest {
        instance: Some(change),
        update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] }),
    };
    world.client().instances().update_instance(request).await.unwrap();
    world.config_applied().await.unwrap();
    let renamed = world.provider.say(FROM, "who are you?").await.unwrap();
    assert_eq!(world.delivered(&renamed).await.unwrap().text("instance_name"), "New Name");

    let request = v1::PauseWebhookSubscriptionRequest { id: other.id.clone(), ..Default::default() };
    subscriptions.pause_webhook_subscription(request).await.unwrap();
    world.config_applied().await.unwrap();
    let cancelled = world.provider.say(FROM, "never delivered there").await.unwrap();
    let webhook = world.delivered(&cancelled).await.unwrap();
    let request = v1::DeleteWebhookSubscriptionRequest { id: other.id.clone(), ..Default::default() };
    subscriptions.delete_webhook_subscription(request).await.unwrap();
    eventually(DEADLINE, async || {
        let log = world.log(webhook.id()).await?;
        let state = log.deliveries.iter().find(|delivery| delivery.subscription_id == other.id);
        let state = state.map(v1::Delivery::state);
        ensure!(state == Some(v1::DeliveryState::Cancelled), "the delivery is {state:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// The fleet shows an agent that is there with what it uses, and one that is gone.
#[tokio::test]
async fn fleet_shows_agents_and_their_versions() {
    let mut world = World::start().await.unwrap();
    let list = async || {
        let request = v1::ListAgentsRequest { region: "test-region".to_owned(), ..Default::default() };
        world.client().agents().list_agents(request).await.map(tonic::Response::into_inner)
    };
    let response = list().await.unwrap();
    let agent = &response.agents[0];
    assert_eq!(agent.state(), v1::AgentState::Online);
    assert_eq!(
        (agent.applied_version, agent.accepted_version),
        (response.config_version, response.config_version)
    );
    assert!(agent.id.starts_with("agt_") && !agent.build.is_empty() && agent.refused.is_empty(), "{agent:?}");
    let id = agent.id.clone();
    world.agent.stop().await.unwrap();
    let request = v1::GetAgentRequest { id };
    eventually(DEADLINE, async || {
        let response = world.client().agents().get_agent(request.clone()).await?.into_inner();
        let state = response.agent.map(|agent| agent.state());
        ensure!(state == Some(v1::AgentState::Offline), "the agent is {state:?}");
        Ok(())
    })
    .await
    .unwrap();
}
