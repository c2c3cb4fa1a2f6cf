//! Who an agent is: tokens that do not fit, one identity on two machines, a clock that is wrong, and the end of an
//! identity in the middle of its work.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_sdk::{Client, ClientOptions};
use gateway_tests::{
    Agent, Clock, ControlPlane, DEADLINE, Within as _, World,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually,
    meta::{text_message, unique_wamid},
    versions::copy,
    world::WorldOptions,
};
use jiff::SignedDuration;
use tonic::Code;

const FROM: &str = "966500000001";
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// A revoked API key works for at most so long.
const KEY_REVOKED_MAX: Duration = Duration::from_secs(5);
/// A revoked agent is cut off within this time.
const REVOKED_MAX: Duration = Duration::from_secs(30);
/// Whoever was kept out by a twin is back so soon after that has gone: about 10 s, on a machine with time for it.
const BACK_MAX: Duration = DEADLINE;

/// The agent does not enroll and ends; gives what it says.
async fn refusal(
    directory: &Path,
    control_plane: &ControlPlane,
    options: AgentOptions,
) -> anyhow::Result<String> {
    let token = options.join_token.clone().unwrap_or_default();
    let mut agent = Agent::launch(directory, control_plane, options).await?;
    let ended = agent.process().ended().await?;
    let text = agent.log_text()?;
    ensure!(!ended.success() && !text.contains("panicked"), "it ended with {ended}:\n{text}");
    let secret = token.rsplit('.').next().unwrap_or(&token);
    ensure!(secret.len() < 8 || !text.contains(secret), "the token is in the log:\n{text}");
    Ok(text)
}

/// A join token that is unknown, used, of another region or too old ends the agent with an error that says which
/// token it was, what is wrong and what to do; none of them costs anything, and the right one works after all.
/// Whether a token is too old is for the control plane's clock to say, not for the agent's.
#[tokio::test]
async fn join_tokens_that_do_not_fit_are_refused_with_words() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new(directory.path(), "control-plane").await.unwrap();
    let options = ControlPlaneOptions { wrapper: clock.wrapper(), ..ControlPlaneOptions::default() };
    let control_plane = ControlPlane::start_with(directory.path(), options).await.unwrap();
    let at = |name: &str| directory.path().join(name);
    let with = |join_token: &str, region: &str| AgentOptions {
        join_token: Some(join_token.to_owned()),
        region: region.to_owned(),
        ..AgentOptions::default()
    };
    let unknown =
        refusal(&at("unknown"), &control_plane, with("join_unheard-of-token", "north")).await.unwrap();
    assert!(unknown.contains("join token") && unknown.contains("unknown, used or expired"), "{unknown}");

    let token = control_plane.join_token("north").await.unwrap();
    let other = refusal(&at("other-region"), &control_plane, with(&token, "south")).await.unwrap();
    assert!(other.contains("region") && other.contains("north"), "{other}");
    let agent_clock = Clock::new(directory.path(), "agent").await.unwrap();
    agent_clock.set_wall(DAY).unwrap();
    let late = AgentOptions { wrapper: agent_clock.wrapper(), ..with(&token, "north") };
    let mut agent = Agent::start(&at("right"), &control_plane, late).await.unwrap();
    let used = refusal(&at("used"), &control_plane, with(&token, "north")).await.unwrap();
    assert!(used.contains("join token") && used.contains("CreateJoinToken"), "{used}");

    let token = control_plane.join_token("north").await.unwrap();
    clock.leap(Duration::from_secs(601)).unwrap();
    let expired = refusal(&at("expired"), &control_plane, with(&token, "north")).await.unwrap();
    assert!(expired.contains("expired") && expired.contains("CreateJoinToken"), "{expired}");
    agent.wait_ready().await.unwrap();
    let listed = control_plane.client().agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().agents.len(), 1);
}

async fn agents(world: &World) -> anyhow::Result<Vec<v1::Agent>> {
    let request = v1::ListAgentsRequest::default();
    Ok(world.client().agents().list_agents(request).await?.into_inner().agents)
}

/// The clock of an agent is a day off, one way or the other: it works all the same, what it reports is logged,
/// and the fleet shows by how much it is off, until somebody sets it right.
#[tokio::test]
async fn a_day_off_is_shown_and_harms_nothing() {
    for off in [DAY, -DAY] {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::new(directory.path(), "agent").await.unwrap();
        clock.set_wall(off).unwrap();
        let agent = AgentOptions { wrapper: clock.wrapper(), ..AgentOptions::default() };
        let world = World::start_with(WorldOptions { agent, ..WorldOptions::default() }).await.unwrap();
        let wamid = world.provider.say(FROM, "what day is it?").await.unwrap();
        let webhook = world.receiver.message(&wamid).within(DEADLINE).await.unwrap();
        world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
        let skew = async || {
            let agents = agents(&world).await?;
            let skew = agents.first().context("find the agent")?.clock_skew.context("find its skew")?;
            anyhow::Ok(skew.seconds)
        };
        eventually(DEADLINE, async || {
            let beside = skew().await? - off.as_secs();
            ensure!(beside.abs() < 60, "the fleet shows {beside} s beside");
            Ok(())
        })
        .await
        .unwrap();
        clock.set_wall(-off).unwrap();
        eventually(DEADLINE, async || {
            let skew = skew().await?;
            ensure!(skew.abs() < 60, "the fleet shows {skew} s");
            Ok(())
        })
        .await
        .unwrap();
        let wamid = world.provider.say(FROM, "and now?").await.unwrap();
        world.delivered(&wamid).await.unwrap();
    }
}

/// Copies the data directory of the world's agent and starts a second agent with it, which keeps the first one out. Gives
/// the second, and the agent as the fleet shows it.
async fn start_twin(world: &mut World) -> anyhow::Result<(Agent, v1::Agent)> {
    world.agent.stop().await?;
    let second = world.directory().join("copied");
    copy(&world.agent.data_dir(), &second.join("agent"))?;
    world.agent.start_again().await?;
    world.config_applied().await?;
    let mut twin = Agent::launch(&second, &world.control_plane, AgentOptions::default()).await?;
    twin.wait_ready().await?;
    let shown = eventually(DEADLINE, async || {
        let agents = agents(world).await?;
        let agent = agents.into_iter().find(|agent| !agent.twin_address.is_empty());
        agent.context("find an agent with a twin")
    });
    Ok((twin, shown.await?))
}

async fn readyz(agent: &Agent) -> anyhow::Result<String> {
    Ok(reqwest::get(agent.admin_url("/readyz")).await?.text().await?)
}

/// The data directory of an agent was copied to a second machine: both take and deliver, the fleet shows the
/// twin, the two do not drive each other out in turns, and what the one that stays connected reports is logged
/// once. The other says that it is kept out, and when the second is gone it is back soon, and nothing is left of the second.
#[tokio::test]
async fn two_agents_with_one_identity_are_shown_and_harm_nobody() {
    let mut world = World::start().await.unwrap();
    let before = world.provider.say(FROM, "before the copy").await.unwrap();
    let webhook = world.delivered(&before).await.unwrap();
    world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    let (mut twin, shown) = start_twin(&mut world).await.unwrap();
    assert!(shown.twin_address.contains("127.0.0.1"), "{}", shown.twin_address);
    eventually(DEADLINE, async || {
        let ready = readyz(&world.agent).await?;
        ensure!(ready.starts_with("ready, degraded: another process"), "it says {ready}");
        Ok(())
    })
    .await
    .unwrap();
    let twin_provider = world.provider.with_url(twin.callback_url(&world.inbound_route.callback_path));
    for number in 0..10 {
        for provider in [&world.provider, &twin_provider] {
            let wamid = provider.say(FROM, &format!("to both, {number}")).await.unwrap();
            world.delivered(&wamid).await.unwrap();
        }
    }
    let taken_over = |text: &str| text.matches("config stream").count();
    let logs = [world.agent.log_text().unwrap(), twin.log_text().unwrap()];
    assert!(logs.iter().all(|text| taken_over(text) < 20), "they drive each other out:\n{}", logs.concat());
    twin.stop().await.unwrap();
    eventually(BACK_MAX, async || {
        let (agents, ready) = (agents(&world).await?, readyz(&world.agent).await?);
        ensure!(agents.len() == 1 && agents[0].state() == v1::AgentState::Online, "{agents:?}");
        ensure!(!ready.contains("another process"), "it says {ready}");
        Ok(())
    })
    .await
    .unwrap();
    let after = world.provider.say(FROM, "after the twin").await.unwrap();
    let webhook = world.delivered(&after).await.unwrap();
    eventually(DEADLINE, async || {
        let log = world.log(webhook.id()).await?;
        ensure!(log.external_message_id == after, "{log:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// An agent is revoked in the middle of its streams: it is cut off within thirty seconds and stays so, says why,
/// and takes no callback any more, also not after a restart: nobody would see it.
#[tokio::test]
async fn revoked_agent_is_cut_off_and_takes_nothing() {
    let mut world = World::start().await.unwrap();
    let id = agents(&world).await.unwrap().remove(0).id;
    let request = v1::RevokeAgentRequest { id: id.clone() };
    world.client().agents().revoke_agent(request).await.unwrap();
    eventually(REVOKED_MAX, async || {
        let text = world.agent.log_text()?;
        ensure!(text.contains("revoked"), "the agent says nothing:\n{text}");
        let agents = agents(&world).await?;
        let online = agents.iter().any(|agent| agent.state() == v1::AgentState::Online);
        ensure!(!online, "a revoked agent is shown online");
        Ok(())
    })
    .await
    .unwrap();
    for is_restarted in [false, true] {
        if is_restarted {
            world.agent.stop().await.unwrap();
            world.agent.launch_again().unwrap();
        }
        let answer = eventually(DEADLINE, async || {
            let message = text_message(&unique_wamid(), FROM, "still there?");
            world.provider.post(&world.provider.messages(&[message])).await
        });
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, &answer.headers["retry-after"]), (503, &"30".parse().unwrap()));
    }
}

/// Two agents with one identity are revoked: both refuse callbacks within thirty seconds, also the one that was kept out and
/// has no stream that could be cut. The fleet says that it is revoked, and not that it is offline.
#[tokio::test]
async fn both_twins_hear_of_a_revocation() {
    let mut world = World::start().await.unwrap();
    let (twin, shown) = start_twin(&mut world).await.unwrap();
    let request = v1::RevokeAgentRequest { id: shown.id };
    let revoked = world.client().agents().revoke_agent(request).await.unwrap().into_inner().agent.unwrap();
    assert_eq!(revoked.state(), v1::AgentState::Revoked);
    let twin_provider = world.provider.with_url(twin.callback_url(&world.inbound_route.callback_path));
    eventually(REVOKED_MAX, async || {
        for (name, provider) in [("first", &world.provider), ("twin", &twin_provider)] {
            let message = text_message(&unique_wamid(), FROM, "still there?");
            let answer = provider.post(&provider.messages(&[message])).await?;
            ensure!(answer.status == 503, "the {name} answers {}", answer.status);
        }
        Ok(())
    })
    .await
    .unwrap();
    for agent in [&world.agent, &twin] {
        assert!(readyz(agent).await.unwrap().starts_with("not ready: revoked"));
    }
}

/// A viewer's key of the default tenant: its id, and a client with it.
async fn viewer(control_plane: &ControlPlane) -> anyhow::Result<(String, Client)> {
    let api_key = v1::ApiKey {
        tenant_id: "default".to_owned(),
        role: v1::Role::Viewer.into(),
        display_name: "a viewer".to_owned(),
        ..Default::default()
    };
    let request = v1::CreateApiKeyRequest { api_key: Some(api_key), ..Default::default() };
    let created = control_plane.client().tenants().create_api_key(request).await?.into_inner();
    let client = Client::connect(ClientOptions::new(control_plane.url(), created.secret)).await?;
    Ok((created.api_key.context("the response has no key")?.id, client))
}

/// An API key is revoked while streams are open with it, one that is read and one that is not: within five seconds
/// the stream ends and says why, and no further call is answered; the streams of another key go on.
#[tokio::test]
async fn revoked_key_ends_its_streams() {
    let world = World::start().await.unwrap();
    let (id, revoked) = viewer(&world.control_plane).await.unwrap();
    let (_, other) = viewer(&world.control_plane).await.unwrap();
    let request = v1::WatchInboundLogsRequest::default;
    let mut read = revoked.inbound_logs().watch_inbound_logs(request()).await.unwrap().into_inner();
    let unread = revoked.inbound_logs().watch_inbound_logs(request()).await.unwrap().into_inner();
    let mut others = other.inbound_logs().watch_inbound_logs(request()).await.unwrap().into_inner();
    let wamid = world.provider.say(FROM, "seen by both").await.unwrap();
    for watch in [&mut read, &mut others] {
        let change = watch.message().within(DEADLINE).await.unwrap().unwrap().unwrap();
        assert_eq!(change.inbound_log.unwrap().external_message_id, wamid);
    }
    let request = v1::RevokeApiKeyRequest { id, ..Default::default() };
    world.client().tenants().revoke_api_key(request).await.unwrap();
    let ended = async {
        loop {
            match read.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    };
    let ended = ended.within(KEY_REVOKED_MAX).await.unwrap().expect_err("the stream ends with a reason");
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    let refused = revoked.instances().list_instances(v1::ListInstancesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    drop(unread);
    let wamid = world.provider.say(FROM, "seen by the other").await.unwrap();
    let seen = async {
        while let Some(change) = others.message().await? {
            if change.inbound_log.is_some_and(|log| log.external_message_id == wamid) {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("the stream of another key ended")
    };
    seen.within(DEADLINE).await.unwrap().unwrap();
}
