//! A world with several agents, one of which drains.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    Agent, DEADLINE, MetaProvider, Reply, World,
    agent::AgentOptions,
    eventually,
    raw::RawAgent,
    world::{APP_SECRET, PHONE_NUMBER_ID, update},
};

pub const FROM: &str = "966500000001";
/// Metric of the control plane: deliveries that wait for an agent.
pub const WAITING: &str = "gateway_work_waiting{kind=\"delivery\"}";
/// How long a crowd of deliveries may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(240);

/// A world whose destination refuses everything, with these pauses between attempts; the subscription is tried so
/// often that no test sees its end.
pub async fn refusing(pauses: &[u64]) -> anyhow::Result<World> {
    let world = World::start().await?;
    world.receiver.answer_with(|_| Reply::Status(500));
    retry_after(&world, pauses).await?;
    Ok(world)
}

/// Lets attempts come after these pauses, in seconds; the last one goes on.
pub async fn retry_after(world: &World, pauses: &[u64]) -> anyhow::Result<()> {
    let last = *pauses.last().context("give a pause")?;
    let all = pauses.iter().copied().chain(std::iter::repeat(last)).take(20);
    let delays = all.map(|seconds| prost_types::Duration { seconds: seconds.cast_signed(), nanos: 0 });
    let change = v1::WebhookSubscription {
        retry_policy: Some(v1::RetryPolicy { delays: delays.collect() }),
        ..Default::default()
    };
    update(world.client(), &world.subscription.id, change, "retry_policy").await?;
    world.config_applied().await
}

/// A further agent of the region, which uses the newest configuration, and the provider posting to it.
pub async fn join(world: &World, name: &str) -> anyhow::Result<(Agent, MetaProvider)> {
    join_with(world, name, AgentOptions::default()).await
}

/// The same as `options` say.
pub async fn join_with(
    world: &World,
    name: &str,
    options: AgentOptions,
) -> anyhow::Result<(Agent, MetaProvider)> {
    let agent = Agent::start(&world.directory().join(name), &world.control_plane, options).await?;
    let url = agent.callback_url(&world.inbound_route.callback_path);
    let provider = MetaProvider::new(url, APP_SECRET, PHONE_NUMBER_ID)?;
    Ok((agent, provider))
}

/// The id of an agent program.
pub fn id_of(agent: &Agent) -> String {
    let credential: PathBuf = agent.data_dir().join("credential.json");
    RawAgent::of_credential_file(&credential, String::new()).expect("an agent that is ready has enrolled").id
}

/// Asks an agent to drain, or no more.
pub async fn drain(world: &World, id: &str, undo: bool) -> anyhow::Result<()> {
    let request = v1::DrainAgentRequest { id: id.to_owned(), undo };
    world.client().agents().drain_agent(request).await?;
    Ok(())
}

pub async fn becomes(
    world: &World,
    id: &str,
    state: v1::AgentState,
    deadline: Duration,
) -> anyhow::Result<v1::Agent> {
    eventually(deadline, async || {
        let request = v1::GetAgentRequest { id: id.to_owned() };
        let agent = world.client().agents().get_agent(request).await?.into_inner().agent;
        let agent = agent.context("find the agent")?;
        ensure!(agent.state() == state, "the agent is {:?}: {agent:?}", agent.state());
        Ok(agent)
    })
    .await
}

/// Drains the agent of the world: then it has nothing left, and is stopped for good.
pub async fn retire_first(world: &mut World) -> anyhow::Result<()> {
    let id = id_of(&world.agent);
    drain(world, &id, false).await?;
    let drained = becomes(world, &id, v1::AgentState::Drained, DEADLINE).await?;
    ensure!(drained.buffer_events == 0, "{} events are left", drained.buffer_events);
    world.agent.kill().await
}

/// Waits until so many deliveries wait for an agent.
pub async fn waits(world: &World, count: f64) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let waiting = world.control_plane.metric(WAITING).await?;
        ensure!(waiting == count, "{waiting} deliveries wait, not {count}");
        Ok(())
    })
    .await
}

/// Every one of these messages has a log with one delivery, which was made, and attempts that count up without
/// a gap; each webhook about it has the same body. Returns the agents of the attempts of each, in their order.
pub async fn all_delivered(world: &World, wamids: &BTreeSet<String>) -> anyhow::Result<Vec<Vec<String>>> {
    let logs = settled(world, wamids).await?;
    let mut agents = Vec::new();
    for log in logs {
        ensure!(log.deliveries.len() == 1, "{:?}", log.deliveries);
        let attempts = world.attempts(&log.event_id).await?;
        let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.attempt_number).collect();
        let expected: Vec<u32> = (1..=u32::try_from(attempts.len())?).collect();
        ensure!(numbers == expected, "attempts {numbers:?}");
        ensure!(log.deliveries[0].attempt_count == *numbers.last().context("no attempt")?);
        agents.push(attempts.into_iter().map(|attempt| attempt.agent_id).collect());
    }
    Ok(agents)
}

/// The logs of these messages, once all are delivered; nothing else is logged. The body never changed.
pub async fn settled(world: &World, wamids: &BTreeSet<String>) -> anyhow::Result<Vec<v1::InboundLog>> {
    let logs = eventually(LONG, async || {
        let logs = world.logs().await?;
        let logged: BTreeSet<&String> = logs.iter().map(|log| &log.external_message_id).collect();
        ensure!(logged == wamids.iter().collect(), "{} of {} are logged", logged.len(), wamids.len());
        ensure!(logs.len() == wamids.len(), "a message is logged twice");
        let owed = logs.iter().flat_map(|log| &log.deliveries);
        let owed = owed.filter(|delivery| delivery.state() != v1::DeliveryState::Delivered);
        let owed: Vec<_> = owed.map(|delivery| (delivery.state(), delivery.attempt_count)).collect();
        ensure!(owed.is_empty(), "{} of {} deliveries are owed: {:?}", owed.len(), logs.len(), owed[0]);
        Ok(logs)
    });
    let logs = logs.await?;
    for webhooks in world.receiver.by_id().values() {
        ensure!(webhooks.iter().all(|again| again.body == webhooks[0].body), "the body changed");
    }
    Ok(logs)
}

/// Posts so many messages, fewer than ten, each with its first attempt refused.
pub async fn say(world: &World, provider: &MetaProvider, count: usize) -> anyhow::Result<BTreeSet<String>> {
    let mut wamids = BTreeSet::new();
    for _ in 0..count {
        wamids.insert(provider.say(FROM, "who will bring it?").await?);
    }
    for wamid in &wamids {
        world.delivered(wamid).await?;
    }
    Ok(wamids)
}
