//! One event, one id, everywhere: also when two agents of a region take it.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    Agent, DEADLINE, MetaProvider, World,
    agent::AgentOptions,
    eventually,
    meta::{text_message_at, unique_wamid},
};

const FROM: &str = "966500000001";
const NOON: i64 = 1_778_241_600;

/// A second agent, and the provider posting to it.
async fn second_agent(world: &World) -> anyhow::Result<(Agent, MetaProvider)> {
    let directory = world.directory().join("second");
    let agent = Agent::start(&directory, &world.control_plane, AgentOptions::default()).await?;
    let provider = world.provider.with_url(agent.callback_url(&world.inbound_route.callback_path));
    Ok((agent, provider))
}

async fn post(provider: &MetaProvider, text: &str, timestamp: i64) -> String {
    let wamid = unique_wamid();
    let callback = provider.messages(&[text_message_at(&wamid, FROM, text, timestamp)]);
    assert_eq!(provider.post(&callback).await.unwrap().status, 200);
    wamid
}

/// A provider repeats a callback at another agent: whatever is delivered has one id and one body, and there
/// is one log, with the deliveries and attempts of both.
#[tokio::test]
async fn repeat_at_another_agent_keeps_the_id() {
    let world = World::start().await.unwrap();
    let (_agent, second) = second_agent(&world).await.unwrap();
    let wamid = unique_wamid();
    let callback = world.provider.messages(&[text_message_at(&wamid, FROM, "to both", NOON)]);
    for provider in [&world.provider, &second] {
        assert_eq!(provider.post(&callback).await.unwrap().status, 200);
    }
    let webhook = world.delivered(&wamid).await.unwrap();
    let log = world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    assert_eq!(log.external_message_id, wamid);
    // What comes later at both agents is logged, so the repeat would have been too.
    for provider in [&world.provider, &second] {
        let later = post(provider, "later", NOON).await;
        let later = world.delivered(&later).await.unwrap();
        world.log_in(later.id(), v1::DeliveryState::Delivered).await.unwrap();
    }
    assert_eq!(world.logs().await.unwrap().len(), 3);
    for webhooks in world.receiver.by_id().values() {
        assert!(webhooks.iter().all(|again| again.body == webhooks[0].body));
    }
    let attempts = world.attempts(webhook.id()).await.unwrap();
    let ids: BTreeSet<&str> = attempts.iter().map(|attempt| attempt.attempt_id.as_str()).collect();
    assert_eq!(ids.len(), attempts.len());
    let response = world.client().agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    assert_eq!(response.into_inner().agents.len(), 2);
}

/// An opt-out seen by one agent is known to the other: a STOP there tells nothing new, and a START there ends
/// it for both.
#[tokio::test]
async fn opt_outs_reach_the_other_agent() {
    let world = World::start().await.unwrap();
    let (_agent, second) = second_agent(&world).await.unwrap();
    let told = async |event: &'static str, count: usize| {
        eventually(DEADLINE, async || {
            let webhooks = world.receiver.by_id();
            let found = webhooks.values().filter(|webhooks| webhooks[0].event() == event).count();
            ensure!(found == count, "{found} events {event}, not {count}");
            Ok(())
        })
        .await
        .context(event)
        .unwrap();
    };
    post(&world.provider, "STOP", NOON).await;
    told("recipient.opted_out", 1).await;
    // Seen by both before or after the news: one change, one event, one id.
    post(&second, "STOP", NOON).await;
    eventually(DEADLINE, async || {
        let applied =
            world.client().agents().list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
        ensure!(
            applied.agents.iter().all(|agent| agent.state() == v1::AgentState::Online),
            "an agent is away"
        );
        let request = v1::ListOptOutsRequest::default();
        let opt_outs = world.client().opt_outs().list_opt_outs(request).await?.into_inner().opt_outs;
        ensure!(opt_outs.len() == 1 && opt_outs[0].change_number == 1, "{opt_outs:?}");
        Ok(())
    })
    .await
    .unwrap();
    eventually(DEADLINE, async || {
        // Until the news is there, a START at the other agent would change nothing and be told to nobody.
        post(&second, "START", NOON + 60).await;
        let webhooks = world.receiver.by_id();
        ensure!(
            webhooks.values().any(|webhooks| webhooks[0].event() == "recipient.opted_in"),
            "no opt-in yet"
        );
        Ok(())
    })
    .await
    .unwrap();
    told("recipient.opted_in", 1).await;
    let later = post(&world.provider, "what now?", NOON + 120).await;
    world.delivered(&later).await.unwrap();
    told("recipient.opted_out", 1).await;
}
