//! Figures of the config stream, on real programs: how long a fresh agent takes to use a large configuration, what
//! memory it takes, and how soon a change is in use on many agents. `just config-figures` runs it on a release build.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gateway_proto::v1::{self, stream_config_request::Message};
use gateway_tests::{
    Agent, ControlPlane, Within as _,
    agent::AgentOptions,
    eventually, figure,
    figure::Spread,
    raw::{ConfigSession, RawAgent},
    world::{create_instance, subscribe, update},
};
use tokio::{sync::mpsc, task::JoinSet};

/// Calls at the same time.
const AT_ONCE: usize = 64;
/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a light agent says how it is.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Changes in use that wait to be counted.
const SEEN_MAX: usize = 10_000;

/// Figures of the config stream.
#[derive(Parser)]
struct Arguments {
    /// Subscriptions that a fresh agent gets.
    #[arg(long, default_value_t = 100_000)]
    subscriptions: usize,
    /// Agents that a change is sent to: each takes it, acknowledges it and says that it uses it, without a
    /// pipeline behind it.
    #[arg(long, default_value_t = 100)]
    agents: usize,
    /// Changes, one after the other.
    #[arg(long, default_value_t = 50)]
    changes: usize,
}

async fn config_version(control_plane: &ControlPlane) -> anyhow::Result<u64> {
    let request = v1::ListAgentsRequest::default();
    Ok(control_plane.client().agents().list_agents(request).await?.into_inner().config_version)
}

/// A fresh agent and a large configuration.
async fn fresh_agent(
    directory: &std::path::Path,
    control_plane: &ControlPlane,
    subscriptions: usize,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let create = async |number: usize| {
        let url = format!("http://127.0.0.1:1025/{number}");
        subscribe(control_plane.client(), &url, &["message.received"]).await.map(drop)
    };
    stream::iter(0..subscriptions).map(create).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    figure(format_args!("{subscriptions} subscriptions were created in {:?}", began.elapsed()));
    let version = u32::try_from(config_version(control_plane).await?)?;
    // An agent without a configuration, so that the start of a program is not measured: its own is empty.
    fs::create_dir_all(directory.join("empty"))?;
    let empty = ControlPlane::start(&directory.join("empty")).await?;
    let small = Agent::start(&directory.join("small"), &empty, AgentOptions::default()).await?;
    let small_bytes = small.usage()?.rss_bytes_max;
    let began = Instant::now();
    let agent = Agent::launch(directory, control_plane, AgentOptions::default()).await?;
    eventually(PATIENCE, async || {
        let applied = agent.metric("gateway_config_applied_version").await?;
        ensure!(applied >= f64::from(version), "it uses {applied} of {version}");
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    let bytes = agent.usage()?.rss_bytes_max;
    figure(format_args!(
        "a fresh agent, program start and enrolling included, uses them after {took:?}; its peak of memory is {} MiB, \
         {} MiB with an empty configuration",
        bytes >> 20,
        small_bytes >> 20
    ));
    Ok(())
}

/// Takes everything, at once; tells when a version came into use.
async fn follow(mut session: ConfigSession, seen: mpsc::Sender<(u64, Instant)>) -> anyhow::Result<()> {
    let mut health = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        tokio::select! {
            response = session.message() => {
                let response = response?;
                session.ack(&response).await?;
                session.applied(response.version).await?;
                if seen.send((response.version, Instant::now())).await.is_err() {
                    return Ok(());
                }
            }
            _ = health.tick() => session.say(Message::Health(v1::AgentHealth::default())).await?,
        }
    }
}

/// Many agents and one change after the other.
async fn many_agents(control_plane: &ControlPlane, agents: usize, changes: usize) -> anyhow::Result<()> {
    let subscription =
        subscribe(control_plane.client(), "http://127.0.0.1:1025/x", &["message.received"]).await?;
    let version = config_version(control_plane).await?;
    let epoch = {
        let agent = RawAgent::enroll(control_plane, "test-region").await?;
        agent.open_config(agent.hello()).await?.next().await?.store_epoch
    };
    let (sender, mut seen) = mpsc::channel(SEEN_MAX);
    let mut followers = JoinSet::new();
    for _ in 0..agents {
        let agent = RawAgent::enroll(control_plane, "test-region").await?;
        // With the configuration already, so that only changes come.
        let hello = v1::ConfigHello { version, store_epoch: epoch.clone(), ..agent.hello() };
        let session = agent.open_config(hello).await?;
        followers.spawn(follow(session, sender.clone()));
    }
    drop(sender);
    let mut durations = Vec::with_capacity(agents * changes);
    for number in 1..=changes {
        let began = Instant::now();
        let url = format!("http://127.0.0.1:1025/moved/{number}");
        let change = v1::WebhookSubscription { destination_url: url, ..Default::default() };
        update(control_plane.client(), &subscription.id, change, "destination_url").await?;
        let expected = version + u64::try_from(number)?;
        let mut count = 0;
        while count < agents {
            let (version, at) = seen.recv().within(PATIENCE).await?.context("every agent has gone")?;
            if version == expected {
                durations.push(at.duration_since(began));
                count += 1;
            }
        }
    }
    figure(format_args!("a change is in use on {agents} agents after: {}", Spread::of(durations)));
    followers.abort_all();
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let directory = Arc::new(tempfile::tempdir()?);
    let control_plane = ControlPlane::start(directory.path()).await?;
    create_instance(control_plane.client()).await?;
    many_agents(&control_plane, arguments.agents, arguments.changes).await?;
    fresh_agent(directory.path(), &control_plane, arguments.subscriptions).await
}
