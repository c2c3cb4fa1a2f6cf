//! A new agent starts from a snapshot export while the control plane cannot be reached: it takes callbacks, delivers,
//! knows who opted out, survives a crash, and enrolls and reports when the control plane is back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    Agent, DEADLINE, MetaProvider, Within as _, World,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually,
    meta::{text_message_at, unique_wamid},
    process::free_port,
    programs::programs,
    world::{INSTANCE_ID, WorldOptions, add_instance, subscribe_instance},
};
use tokio::process::Command;

mod many;
mod refusals;

const REGION: &str = "test-region";
const FROM: &str = "966500000001";
/// Opted out before the export.
const OPTED_OUT: &str = "966500000002";
/// The same, and comes back while the control plane is away.
const RETURNS: &str = "966500000003";
/// Opts out while the control plane is away.
const OPTS_OUT: &str = "966500000004";
const SECOND_INSTANCE: &str = "inst-second";
const SECOND_NUMBER: &str = "106540352242923";
/// What a backup does not have.
const KEPT_ELSEWHERE: [&str; 4] = ["root.key", "ca.key", "admin.key", "snapshot-signing.key"];

async fn control_plane_command(arguments: &[&str], paths: &[(&str, &Path)]) -> anyhow::Result<String> {
    let mut command = Command::new(&programs().await?.control_plane);
    command.args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    let output = command.output().within(DEADLINE).await?.context("run the control plane program")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?} ended with {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A world over TLS, whose second instance delivers to `/second`, and in which two contacts have opted out.
async fn world() -> World {
    let arguments = vec!["--tls-own-ca".to_owned()];
    let control_plane = ControlPlaneOptions { arguments, ..Default::default() };
    let world = World::start_with(WorldOptions { control_plane, ..Default::default() }).await.unwrap();
    add_instance(world.client(), SECOND_INSTANCE, &world.inbound_route.id, SECOND_NUMBER).await.unwrap();
    let url = world.receiver.url("/second");
    subscribe_instance(world.client(), SECOND_INSTANCE, &url, &["message.received"]).await.unwrap();
    world.config_applied().await.unwrap();
    for phone in [OPTED_OUT, RETURNS] {
        // A while ago: between agents, STOP wins over START of the same second.
        let then = jiff::Timestamp::now().as_second() - 60;
        let stop = text_message_at(&unique_wamid(), phone, "STOP", then);
        assert_eq!(world.provider.post(&world.provider.messages(&[stop])).await.unwrap().status, 200);
        world.becomes_allowed(phone, false).await.unwrap();
        until_told(&world, "recipient.opted_out", phone).await;
    }
    world
}

/// Where the files of an export are.
struct Files {
    snapshot: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(world: &World) -> Self {
        Self { snapshot: world.directory().join("eu.snapshot"), key: world.directory().join("snapshot.key") }
    }

    fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        vec![
            "--snapshot-file".to_owned(),
            path(&self.snapshot),
            "--snapshot-key-file".to_owned(),
            path(&self.key),
        ]
    }
}

async fn export(world: &World, region: &str) -> anyhow::Result<(Files, String)> {
    let files = Files::of(world);
    let data_dir = world.control_plane.data_dir();
    let paths = [("--data-dir", &*data_dir), ("--output", &files.snapshot), ("--key-file", &files.key)];
    let told = control_plane_command(&["export-snapshot", "--region", region], &paths).await?;
    Ok((files, told))
}

/// An agent elsewhere, without anything but the export and a join token.
async fn launch_new(world: &World, files: &Files, join_token: &str) -> anyhow::Result<Agent> {
    let options = AgentOptions {
        join_token: Some(join_token.to_owned()),
        control_plane_url: Some(world.control_plane.url()),
        arguments: files.arguments(),
        ..Default::default()
    };
    Agent::launch_alone(&world.directory().join("new"), options).await
}

fn calling(world: &World, agent: &Agent) -> MetaProvider {
    world.provider.with_url(agent.callback_url(&world.inbound_route.callback_path))
}

async fn readyz(agent: &Agent) -> anyhow::Result<String> {
    Ok(reqwest::get(agent.admin_url("/readyz")).await?.text().await?)
}

/// How often customers were told this of a contact.
fn told(world: &World, event: &str, phone: &str) -> usize {
    let webhooks = world.receiver.by_id();
    let is_it = |webhook: &gateway_tests::Webhook| {
        webhook.event() == event && webhook.json().to_string().contains(phone)
    };
    webhooks.values().filter(|webhooks| is_it(&webhooks[0])).count()
}

async fn until_told(world: &World, event: &'static str, phone: &'static str) {
    let is_it = move |webhook: &gateway_tests::Webhook| {
        webhook.event() == event && webhook.json().to_string().contains(phone)
    };
    let found = world.receiver.find(is_it).within(DEADLINE).await;
    found.with_context(|| format!("{phone}: {event}")).unwrap();
}

/// A message is answered 200 and delivered.
async fn say(world: &World, provider: &MetaProvider, from: &str, text: &str) -> String {
    let wamid = provider.say(from, text).await.unwrap();
    world.delivered(&wamid).await.unwrap();
    wamid
}

/// The agents that the control plane knows, once so many are online and use its newest configuration.
async fn online(world: &World, count: usize) -> Vec<v1::Agent> {
    eventually(DEADLINE, async || {
        let response = world.client().agents().list_agents(v1::ListAgentsRequest::default()).await?;
        let response = response.into_inner();
        let is_current = |agent: &v1::Agent| {
            agent.state() == v1::AgentState::Online && agent.applied_version == response.config_version
        };
        let agents: Vec<_> = response.agents.into_iter().filter(is_current).collect();
        ensure!(agents.len() == count, "{} agents are online and current, not {count}", agents.len());
        Ok(agents)
    })
    .await
    .unwrap()
}

/// Every one of these messages has exactly one log, by this agent, with all its deliveries made, in one attempt each
/// that is this agent's too.
async fn logged_once(world: &World, wamids: &BTreeSet<String>, agent_id: &str) {
    let logs = eventually(DEADLINE, async || {
        let mut logs = BTreeMap::<String, Vec<v1::InboundLog>>::new();
        for log in world.logs().await?.into_iter().filter(|log| log.event == "message.received") {
            logs.entry(log.external_message_id.clone()).or_default().push(log);
        }
        logs.retain(|wamid, _| wamids.contains(wamid));
        ensure!(logs.len() == wamids.len(), "{} of {} messages are logged", logs.len(), wamids.len());
        let all = logs.values().flatten().flat_map(|log| &log.deliveries);
        let open = all.filter(|delivery| delivery.state() != v1::DeliveryState::Delivered).count();
        ensure!(open == 0, "{open} deliveries are open");
        Ok(logs)
    })
    .await
    .unwrap();
    for (wamid, logs) in logs {
        let [log] = logs.as_slice() else { panic!("{wamid} is logged {} times", logs.len()) };
        assert_eq!((log.agent_id.as_str(), log.region.as_str()), (agent_id, REGION));
        let attempts = world.attempts(&log.event_id).await.unwrap();
        let [attempt] = attempts.as_slice() else { panic!("{wamid} has {} attempts", attempts.len()) };
        assert_eq!(attempt.agent_id, agent_id);
    }
}

/// The version with which the control plane saw an agent connect first.
fn connected_with(world: &World, agent_id: &str) -> anyhow::Result<u64> {
    let log = world.control_plane.log_text()?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let version = |line: serde_json::Value| {
        let is_it = line.to_string().contains("agent connected") && line.to_string().contains(agent_id);
        is_it.then(|| line["fields"]["version"].as_u64().or_else(|| line["version"].as_u64()))?
    };
    lines.into_iter().find_map(version).context("find where the agent connected")
}

/// The control plane and the only agent are gone. A new agent elsewhere, with an export that was made before, takes and
/// delivers callbacks of all instances; who had opted out is not told of again and may come back, who opts out does so
/// at once; and so it is after kill -9, without the export's files. When the control plane is back the agent enrolls
/// with its join token, everything is logged once under its new name, and it goes on from the version of the export.
#[tokio::test]
async fn a_new_agent_starts_without_control_plane() {
    let mut world = world().await;
    let (files, shown) = export(&world, REGION).await.unwrap();
    assert!(
        shown.contains("2 instances, 2 webhook subscriptions") && shown.contains("2 opt-out decisions"),
        "{shown}"
    );
    let version = online(&world, 1).await[0].applied_version;
    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    world.control_plane.stop().await.unwrap();
    world.agent.kill().await.unwrap();

    let mut agent = launch_new(&world, &files, &join_token).await.unwrap();
    agent.wait_ready().await.unwrap();
    assert!(readyz(&agent).await.unwrap().contains("degraded: not enrolled"));
    assert_eq!(agent.metric("gateway_enrolled").await.unwrap(), 0.0);
    let provider = calling(&world, &agent);
    let mut wamids = BTreeSet::from([
        say(&world, &provider, FROM, "is anybody there?").await,
        say(&world, &provider.with_number(SECOND_NUMBER), FROM, "and there?").await,
        say(&world, &provider, OPTED_OUT, "STOP").await,
        say(&world, &provider, RETURNS, "START").await,
        say(&world, &provider, OPTS_OUT, "STOP").await,
    ]);
    until_told(&world, "recipient.opted_in", RETURNS).await;
    until_told(&world, "recipient.opted_out", OPTS_OUT).await;

    agent.kill().await.unwrap();
    fs::remove_file(&files.snapshot).unwrap();
    fs::remove_file(&files.key).unwrap();
    agent.start_again().await.unwrap();
    assert!(readyz(&agent).await.unwrap().contains("degraded: not enrolled"));
    let provider = calling(&world, &agent);
    wamids.insert(say(&world, &provider, FROM, "still there?").await);
    for phone in [OPTED_OUT, OPTS_OUT] {
        wamids.insert(say(&world, &provider, phone, "STOP").await);
    }

    world.control_plane.start_again().await.unwrap();
    let found = online(&world, 1).await.remove(0);
    assert_eq!(readyz(&agent).await.unwrap(), "ready\n");
    assert_eq!(agent.metric("gateway_enrolled").await.unwrap(), 1.0);
    assert!(!agent.data_dir().join("unenrolled.json").exists());
    assert_eq!(connected_with(&world, &found.id).unwrap(), version, "only a delta is needed");
    logged_once(&world, &wamids, &found.id).await;
    for (phone, allowed) in [(OPTED_OUT, false), (OPTS_OUT, false), (RETURNS, true)] {
        world.becomes_allowed(phone, allowed).await.unwrap();
        assert_eq!(told(&world, "recipient.opted_out", phone), 1, "{phone}");
    }
    let subscription = world.receiver.url("/later");
    subscribe_instance(world.client(), INSTANCE_ID, &subscription, &["message.received"]).await.unwrap();
    online(&world, 1).await;
    let wamid = provider.say(FROM, "after").await.unwrap();
    let is_it = |webhook: &gateway_tests::Webhook| {
        webhook.path == "/later" && webhook.text("external_message_id") == wamid
    };
    world.receiver.find(is_it).within(DEADLINE).await.unwrap();
}

/// The control plane comes back from a backup that is older than the export: its join tokens are void, and the agent
/// says what to do and goes on serving. With a new token in the same file it enrolls without a restart, gives back the
/// opt-outs that the control plane has forgotten, and reports everything.
#[tokio::test]
async fn the_control_plane_comes_back_from_an_older_backup() {
    let mut world = world().await;
    let (backup, data_dir) = (world.directory().join("backup"), world.control_plane.data_dir());
    control_plane_command(&["backup"], &[("--to", &backup), ("--data-dir", &data_dir)]).await.unwrap();
    world.provider.say(OPTS_OUT, "STOP").await.unwrap();
    world.becomes_allowed(OPTS_OUT, false).await.unwrap();
    let (files, _) = export(&world, REGION).await.unwrap();
    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    world.control_plane.kill().await.unwrap();
    world.agent.kill().await.unwrap();
    fs::remove_dir_all(world.agent.data_dir()).unwrap();

    let mut agent = launch_new(&world, &files, &join_token).await.unwrap();
    agent.wait_ready().await.unwrap();
    let provider = calling(&world, &agent);
    let mut wamids = BTreeSet::from([say(&world, &provider, FROM, "is anybody there?").await]);

    let lost = data_dir.with_extension("lost");
    fs::rename(&data_dir, &lost).unwrap();
    control_plane_command(&["restore"], &[("--from", &backup), ("--data-dir", &data_dir)]).await.unwrap();
    for name in KEPT_ELSEWHERE {
        fs::copy(lost.join(name), data_dir.join(name)).unwrap();
    }
    world.control_plane.start_again().await.unwrap();
    let is_refused = |line: &serde_json::Value| {
        let line = line.to_string();
        (line.contains("unknown, used or expired") && line.contains("CreateJoinToken")).then_some(())
    };
    agent.process().logged(is_refused).await.unwrap();
    wamids.insert(say(&world, &provider, FROM, "still there?").await);
    assert!(world.is_allowed(OPTS_OUT).await.unwrap(), "the backup is older than the opt-out");

    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    fs::write(world.directory().join("new/join-token"), join_token).unwrap();
    let found = online(&world, 1).await.remove(0);
    world.becomes_allowed(OPTS_OUT, false).await.unwrap();
    logged_once(&world, &wamids, &found.id).await;
    // The same keys sign for the agents that are to come.
    let (_, shown) = export(&world, REGION).await.unwrap();
    assert!(!shown.contains("made key file"), "{shown}");
}

/// A port on which no control plane answers.
fn nobody() -> String {
    format!("https://127.0.0.1:{}", free_port().unwrap())
}
