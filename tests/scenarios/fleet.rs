//! The fleet as its operators see and steer it: who is there, who is draining, and that all come back in good order.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gateway_proto::v1::{self, stream_config_request::Message};
use gateway_tests::{
    Clock, ControlPlane, DEADLINE, Reply, Within as _, World,
    agent::AgentOptions,
    eventually, http,
    meta::{Answer, text_message, unique_wamid},
    random::Random,
    raw::{ConfigSession, RawAgent},
    world::{WorldOptions, update},
};
use jiff::SignedDuration;
use tokio::{sync::watch, task::JoinSet};
use tonic::Status;
use tonic_types::StatusExt as _;

const FROM: &str = "966500000001";
/// Agents that come back.
const AGENTS: usize = 500;
/// Agents that enroll at the same time.
const ENROLLING: usize = 8;
/// How long all of them may take, with the time that a shared machine takes itself.
const RETURN_DEADLINE: Duration = Duration::from_secs(120);
/// The same for the control plane alone: a tenth comes within a second, and some a little later than they were told.
const RETURN_MAX: f64 = 60.0;
/// A second, less what may lie between the moment in which an agent is let in and the one that is noted.
const NEARLY_A_SECOND: f64 = 0.9;
/// How long an agent waits for an answer until it tries again.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long nothing is heard until an agent is offline.
const OFFLINE_MAX: Duration = Duration::from_secs(15);
/// How often an agent hangs until the machine does not stand still meanwhile.
const HANGS_MAX: usize = 3;

async fn agent(world: &World) -> anyhow::Result<v1::Agent> {
    let listed = world.client().agents().list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
    listed.agents.into_iter().next().context("find the agent")
}

async fn becomes(world: &World, state: v1::AgentState) -> v1::Agent {
    let become_so = eventually(DEADLINE, async || {
        let agent = agent(world).await?;
        ensure!(agent.state() == state, "the agent is {:?}: {agent:?}", agent.state());
        Ok(agent)
    });
    become_so.await.unwrap()
}

async fn drain(world: &World, undo: bool) {
    let id = agent(world).await.unwrap().id;
    world.client().agents().drain_agent(v1::DrainAgentRequest { id, undo }).await.unwrap();
}

async fn post(world: &World) -> anyhow::Result<Answer> {
    let message = text_message(&unique_wamid(), FROM, "is anybody there?");
    world.provider.post(&world.provider.messages(&[message])).await
}

/// An agent that hangs, so that its connection stays open and nothing comes over it, is offline within 15 s; when it
/// goes on it is online again. A killed one is offline at once. Whoever watches is told each of these changes.
#[tokio::test]
async fn silent_and_killed_agents_are_offline() {
    let mut world = World::start().await.unwrap();
    let online = becomes(&world, v1::AgentState::Online).await;
    assert!(online.address.starts_with("127.0.0.1:"), "{}", online.address);
    let skew = online.clock_skew.context("the agent's clock").unwrap();
    assert!(skew.seconds.abs() < 5, "{skew:?}");
    let mut watch =
        world.client().agents().watch_agents(v1::WatchAgentsRequest::default()).await.unwrap().into_inner();
    let mut told = async |state: v1::AgentState| {
        let wait = async {
            loop {
                let change = watch.message().await.unwrap().unwrap();
                if change.agent.is_some_and(|agent| agent.state() == state) {
                    return Instant::now();
                }
            }
        };
        wait.within(DEADLINE).await.unwrap()
    };
    told(v1::AgentState::Online).await;
    let mut took = Vec::new();
    // It may have been heard in the instant before, and 13 s of silence are its end.
    while took.last().is_none_or(|took| *took >= OFFLINE_MAX) {
        assert!(took.len() < HANGS_MAX, "{took:?}");
        world.agent.process().signal("STOP").await.unwrap();
        let hung = Instant::now();
        took.push(told(v1::AgentState::Offline).await - hung);
        world.agent.process().signal("CONT").await.unwrap();
        told(v1::AgentState::Online).await;
    }
    world.agent.kill().await.unwrap();
    told(v1::AgentState::Offline).await;
    becomes(&world, v1::AgentState::Offline).await;
}

/// An agent that drains refuses new callbacks with 503 and Retry-After, and says so in /readyz and in its metrics; what
/// it is delivering it goes on to deliver, and is drained only when that is over and everything is reported or handed
/// over. It stays so over a restart, also when the control plane is away. Then it takes callbacks again, and what it
/// had handed over.
#[tokio::test]
async fn a_draining_agent_empties_its_buffer() {
    let mut world = World::start().await.unwrap();
    let change = v1::WebhookSubscription {
        attempt_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    update(world.client(), &world.subscription.id, change, "attempt_timeout").await.unwrap();
    world.config_applied().await.unwrap();
    let (release, released) = watch::channel(false);
    world.receiver.answer_with(move |_| Reply::Held(released.clone(), 500));
    let wamid = world.provider.say(FROM, "wait for me").await.unwrap();
    let hanging = world.receiver.message(&wamid).within(DEADLINE).await.unwrap();
    drain(&world, false).await;
    let refused = eventually(DEADLINE, async || {
        let answer = post(&world).await?;
        ensure!(answer.status == 503, "answered {}", answer.status);
        Ok(answer)
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.headers["retry-after"], "30");
    let http = http::client().unwrap();
    let not_ready = http::expect_ok(&http, &world.agent.admin_url("/readyz")).await.unwrap_err().to_string();
    assert!(not_ready.contains("503"), "{not_ready}");
    let metrics = world.agent.metrics().await.unwrap();
    assert!(metrics.lines().any(|line| line.contains("outcome=\"draining\"")), "{metrics}");
    let draining = becomes(&world, v1::AgentState::Draining).await;
    assert!(draining.buffer_events > 0 && draining.drain_time.is_some(), "{draining:?}");

    world.receiver.answer_with(|_| Reply::Status(200));
    release.send_replace(true);
    let drained = becomes(&world, v1::AgentState::Drained).await;
    assert_eq!(drained.buffer_events, 0);
    let logs = world.logs().await.unwrap();
    assert!(logs.iter().any(|log| log.external_message_id == wamid), "everything is reported");

    world.control_plane.stop().await.unwrap();
    world.agent.stop().await.unwrap();
    world.agent.launch_again().unwrap();
    let still = eventually(DEADLINE, async || Ok(post(&world).await?.status)).await.unwrap();
    assert_eq!(still, 503);
    world.control_plane.start_again().await.unwrap();
    becomes(&world, v1::AgentState::Drained).await;
    drain(&world, true).await;
    becomes(&world, v1::AgentState::Online).await;
    let wamid = eventually(DEADLINE, async || world.provider.say(FROM, "again").await).await.unwrap();
    world.delivered(&wamid).await.unwrap();
    world.log_in(hanging.id(), v1::DeliveryState::Delivered).await.unwrap();
    world.agent.wait_ready().await.unwrap();
}

/// A clock that is a day off shows in the fleet, and both sides warn of it.
#[tokio::test]
async fn a_wrong_clock_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new(directory.path(), "agent").await.unwrap();
    clock.set_wall(SignedDuration::from_hours(24)).unwrap();
    let agent_options = AgentOptions { wrapper: clock.wrapper(), ..AgentOptions::default() };
    let world =
        World::start_with(WorldOptions { agent: agent_options, ..WorldOptions::default() }).await.unwrap();
    let shown = eventually(DEADLINE, async || agent(&world).await?.clock_skew.context("find the clock skew"));
    let off = shown.await.unwrap().seconds - 24 * 3_600;
    assert!(off.abs() < 60, "{off} s beside a day");
    let warned = eventually(DEADLINE, async || {
        let agent_log = world.agent.log_text()?;
        ensure!(agent_log.contains("our clock differs"), "the agent does not warn");
        let log = world.control_plane.log_text()?;
        ensure!(log.contains("the clock of an agent differs"), "the control plane does not warn");
        Ok(())
    });
    warned.await.unwrap();
}

/// Comes back like an agent: at once, and when it is told to come later then, with up to a fifth of that time more.
/// It does so again when its stream ends.
async fn stay(agent: RawAgent, mut random: Random) -> anyhow::Result<()> {
    loop {
        let session = come_back(&agent, &mut random).await?;
        while session.say(Message::Health(v1::AgentHealth::default())).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

async fn come_back(agent: &RawAgent, random: &mut Random) -> anyhow::Result<ConfigSession> {
    let mut share = || f64::from(u32::try_from(random.within(0..1_000)).unwrap_or(0)) / 1_000.0;
    loop {
        let wait = match agent.try_open_config(agent.hello()).within(ANSWER_MAX).await {
            Ok(Ok(Ok(session))) => return Ok(session),
            Ok(Ok(Err(status))) if status.message().contains("many agents") => {
                paced(&status)?.mul_f64(1.0 + share() / 5.0)
            }
            // The control plane is away, or the machine has no room for so many connections at once.
            _ => Duration::from_millis(200).mul_f64(share()),
        };
        tokio::time::sleep(wait).await;
    }
}

fn paced(status: &Status) -> anyhow::Result<Duration> {
    let info = status.get_details_retry_info().with_context(|| format!("find RetryInfo: {status:?}"))?;
    info.retry_delay.context("find the delay")
}

/// After a restart of the control plane 500 agents come back at once. By the control plane's own clock no more than a
/// tenth of them is let in within any second, those that are not are told when to come again, and soon all are in.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_comes_back_in_good_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let mut agents = Vec::new();
    let mut enrolling = JoinSet::new();
    let shared = std::sync::Arc::new(control_plane);
    for number in 0..AGENTS {
        if enrolling.len() == ENROLLING {
            agents.push(enrolling.join_next().await.unwrap().unwrap());
        }
        let control_plane = std::sync::Arc::clone(&shared);
        let region = if number % 2 == 0 { "eu" } else { "us" };
        enrolling.spawn(async move { RawAgent::enroll(&control_plane, region).await.unwrap() });
    }
    agents.extend(enrolling.join_all().await);
    control_plane = std::sync::Arc::into_inner(shared).unwrap();
    control_plane.kill().await.unwrap();
    let mut returning = JoinSet::new();
    for agent in agents {
        let random = Random::of_seed(u64::try_from(returning.len()).unwrap() + 1);
        returning.spawn(stay(agent, random));
    }
    control_plane.start_again().await.unwrap();
    let all_in = eventually(RETURN_DEADLINE, async || {
        let request = v1::ListAgentsRequest { page_size: 1_000, ..Default::default() };
        let listed = control_plane.client().agents().list_agents(request).await?.into_inner();
        let times: Vec<_> = listed.agents.iter().filter_map(|agent| agent.connect_time).collect();
        ensure!(times.len() == AGENTS, "{} of {AGENTS} agents are in", times.len());
        let online = listed.agents.iter().filter(|agent| agent.state() == v1::AgentState::Online).count();
        ensure!(online == AGENTS, "{online} of {AGENTS} agents are online");
        Ok(times)
    });
    let mut times: Vec<f64> = all_in
        .await
        .unwrap()
        .into_iter()
        .map(|time| f64::from(u32::try_from(time.seconds).unwrap()) + f64::from(time.nanos) / 1e9)
        .collect();
    times.sort_by(f64::total_cmp);
    let is_near = |place: usize, time: f64| time - times[place] < NEARLY_A_SECOND;
    let within = |place: usize| times[place..].iter().take_while(|time| is_near(place, **time)).count();
    let peak = (0..times.len()).map(within).max().unwrap();
    let took = times[AGENTS - 1] - times[0];
    gateway_tests::figure(format!(
        "{peak} of {AGENTS} agents came back within one second, all within {took:.1} s"
    ));
    assert!(peak <= AGENTS / 10, "{peak} agents within a second, all within {took} s");
    assert!(took < RETURN_MAX, "{took} s");
}
