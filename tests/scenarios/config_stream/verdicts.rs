//! Each resource gets its own verdict: one bad one holds up no other.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use gateway_core::signature::WebhookSecret;
use gateway_proto::v1::{self, stream_config_request::Message};
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, MetaProvider, Receiver, Within as _,
    agent::AgentOptions,
    eventually,
    raw::{self, CALLBACK_PATH, ConfigLink, ConfigSession, RawAgent, RawControlPlane},
    world::{APP_SECRET, PHONE_NUMBER_ID, VERIFY_TOKEN, create_instance, subscribe},
};
use tempfile::TempDir;

use super::digests::digests_of;

const FROM: &str = "966500000001";
/// Resources of one push.
const RESOURCES: usize = 1_000;
const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const BAD: &str = "sub-0500";
const EPOCH: &str = "raw-epoch";

/// A real agent that follows a control plane played by the test.
struct Followed {
    control_plane: RawControlPlane,
    link: ConfigLink,
    agent: Agent,
    provider: MetaProvider,
    receiver: Receiver,
    /// What was sent so far.
    pushed: Vec<v1::StreamConfigResponse>,
    /// What the agent said last that it has.
    said: Vec<v1::ConfigDigest>,
    _directory: TempDir,
}

impl Followed {
    async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let control_plane = RawControlPlane::start().await?;
        let options = AgentOptions {
            control_plane_url: Some(control_plane.url()),
            join_token: Some("raw-join-token".to_owned()),
            ..AgentOptions::default()
        };
        let agent = Agent::launch_alone(directory.path(), options).await?;
        let link = control_plane.connected().await?;
        let provider = MetaProvider::new(agent.callback_url(CALLBACK_PATH), APP_SECRET, PHONE_NUMBER_ID)?;
        let receiver = Receiver::start().await?;
        let (pushed, said) = (Vec::new(), Vec::new());
        Ok(Self { control_plane, link, agent, provider, receiver, pushed, said, _directory: directory })
    }

    fn subscription(&self, version: u64, id: &str, path: &str) -> v1::ConfigResource {
        raw::subscription(version, id, &self.receiver.url(path), SECRET)
    }

    /// Sends a response; gives what the agent refuses of it, once it is in use. The agent says that it has all that it was
    /// sent, what it refuses included.
    async fn push(&mut self, response: v1::StreamConfigResponse) -> anyhow::Result<Vec<v1::RefusedResource>> {
        let version = response.version;
        let nonce = format!("nonce-{version}");
        let response = v1::StreamConfigResponse {
            nonce: nonce.clone(),
            store_epoch: EPOCH.to_owned(),
            opt_out_cursor: 0,
            ..response
        };
        let pushed = response.clone();
        self.link.send(response).await?;
        let refused = match self.link.heard().await? {
            Message::Ack(ack) if ack.nonce == nonce => Vec::new(),
            Message::Nack(nack) if nack.nonce == nonce => nack.refused,
            other => anyhow::bail!("the verdict on {nonce} is {other:?}"),
        };
        match self.link.heard().await? {
            Message::Applied(applied) if applied.version == version => self.said = applied.digests,
            other => anyhow::bail!("after the verdict: {other:?}"),
        }
        self.pushed.push(pushed);
        ensure!(self.said == digests_of(&self.pushed), "at version {version} the agent says {:?}", self.said);
        Ok(refused)
    }

    /// The paths to which a new message is delivered, once there are this many; each webhook is signed. A
    /// message before it may come again after a restart, and does not count.
    async fn paths_of_a_message(&self, count: usize) -> anyhow::Result<BTreeSet<String>> {
        let message = self.provider.say(FROM, "to whom?").await?;
        let paths = async || {
            let secret = WebhookSecret::parse(SECRET)?;
            let webhooks = self.receiver.all();
            let own = webhooks.iter().filter(|webhook| webhook.text("external_message_id") == message);
            let own: Vec<_> = own.collect();
            own.iter().try_for_each(|webhook| webhook.verify(&secret))?;
            let paths: BTreeSet<String> = own.iter().map(|webhook| webhook.path.clone()).collect();
            ensure!(paths.len() >= count, "{} of {count} are delivered", paths.len());
            Ok(paths)
        };
        let paths = eventually(DEADLINE * 2, paths).await?;
        self.receiver.forget();
        Ok(paths)
    }
}

fn id_of(number: usize) -> String {
    format!("sub-{number:04}")
}

/// A real agent is sent a thousand resources of which one is bad: it refuses that one, names the field, keeps
/// its last good value and uses the 999 others; a later good change of another arrives, and a good value of
/// the bad one heals it. A restart finds the same.
#[tokio::test]
async fn one_bad_resource_of_a_thousand_is_refused_alone() {
    let mut followed = Followed::start().await.unwrap();
    let first = v1::StreamConfigResponse {
        version: 1,
        snapshot: true,
        upserts: vec![
            raw::route(1, APP_SECRET, VERIFY_TOKEN),
            raw::instance(1),
            followed.subscription(1, BAD, "/last-good"),
        ],
        ..Default::default()
    };
    assert_eq!(followed.push(first).await.unwrap(), []);
    followed.agent.wait_ready().await.unwrap();

    let mut upserts = vec![raw::route(2, APP_SECRET, VERIFY_TOKEN), raw::instance(2)];
    for number in 2..RESOURCES {
        let (id, path) = (id_of(number), format!("/second/{number}"));
        upserts.push(match id == BAD {
            true => raw::subscription(2, BAD, "not a url", SECRET),
            false => followed.subscription(2, &id, &path),
        });
    }
    assert_eq!(upserts.len(), RESOURCES);
    let second = v1::StreamConfigResponse { version: 2, upserts, ..Default::default() };
    let refused = followed.push(second).await.unwrap();
    let [refused] = &refused[..] else { panic!("{} are refused: {refused:?}", refused.len()) };
    assert_eq!((refused.r#type.as_str(), refused.id.as_str()), ("webhook_subscription", BAD));
    assert!(refused.error.contains("destination_url") && refused.version == 2, "{refused:?}");
    let paths = followed.paths_of_a_message(RESOURCES - 2).await.unwrap();
    assert_eq!(paths.len(), RESOURCES - 2);
    assert!(paths.contains("/last-good") && paths.contains("/second/2") && paths.contains("/second/999"));

    let other = followed.subscription(3, &id_of(7), "/third/7");
    let third = v1::StreamConfigResponse { version: 3, upserts: vec![other], ..Default::default() };
    assert_eq!(followed.push(third).await.unwrap(), []);
    let paths = followed.paths_of_a_message(RESOURCES - 2).await.unwrap();
    assert!(paths.contains("/third/7") && !paths.contains("/second/7") && paths.contains("/last-good"));

    // From the disk it is the same: the bad value is not there.
    followed.agent.kill().await.unwrap();
    followed.agent.start_again().await.unwrap();
    followed.link = followed.control_plane.connected().await.unwrap();
    assert_eq!((followed.link.hello.version, followed.link.hello.store_epoch.as_str()), (3, EPOCH));
    // The refused one counts as it was sent.
    assert_eq!(followed.link.hello.digests, followed.said);
    let paths = followed.paths_of_a_message(RESOURCES - 2).await.unwrap();
    assert!(paths.contains("/third/7") && paths.contains("/last-good"));

    let healed = followed.subscription(4, BAD, "/healed");
    let fourth = v1::StreamConfigResponse { version: 4, upserts: vec![healed], ..Default::default() };
    assert_eq!(followed.push(fourth).await.unwrap(), []);
    let paths = followed.paths_of_a_message(RESOURCES - 2).await.unwrap();
    assert!(paths.contains("/healed") && !paths.contains("/last-good"));
}

/// What the fleet shows of an agent, once it is as `expected` says.
async fn shown(
    control_plane: &ControlPlane,
    id: &str,
    expected: impl Fn(&v1::Agent) -> bool,
) -> anyhow::Result<v1::Agent> {
    eventually(DEADLINE, async || {
        let request = v1::GetAgentRequest { id: id.to_owned() };
        let agent = control_plane.client().agents().get_agent(request).await?.into_inner().agent;
        let agent = agent.context("the response has no agent")?;
        ensure!(expected(&agent), "the agent is shown as {agent:?}");
        Ok(agent)
    })
    .await
}

pub async fn version(control_plane: &ControlPlane) -> anyhow::Result<u64> {
    let request = v1::ListAgentsRequest::default();
    Ok(control_plane.client().agents().list_agents(request).await?.into_inner().config_version)
}

/// A control plane with subscriptions `/0`, `/1`, … and a raw agent that has and uses all of them.
async fn with_raw_agent(
    directory: &TempDir,
    subscriptions: usize,
) -> anyhow::Result<(ControlPlane, RawAgent, ConfigSession, Vec<String>)> {
    let control_plane = ControlPlane::start(directory.path()).await?;
    create_instance(control_plane.client()).await?;
    let mut ids = Vec::with_capacity(subscriptions);
    for number in 0..subscriptions {
        let url = format!("http://127.0.0.1:1025/{number}");
        ids.push(subscribe(control_plane.client(), &url, &["message.received"]).await?.id);
    }
    let agent = RawAgent::enroll(&control_plane, "test-region").await?;
    let mut session = agent.open_config(agent.hello()).await?;
    session.follow_to(version(&control_plane).await?).await?;
    Ok((control_plane, agent, session, ids))
}

async fn change(control_plane: &ControlPlane, id: &str) -> anyhow::Result<()> {
    let url = format!("http://127.0.0.1:1025/{}", uuid::Uuid::new_v4());
    let change = v1::WebhookSubscription { destination_url: url, ..Default::default() };
    gateway_tests::world::update(control_plane.client(), id, change, "destination_url").await
}

/// What an agent refuses is shown with its reason, while it has accepted the version; what it accepted and
/// does not use yet is told apart from what its pipeline uses; a good value that it takes ends the refusal, and
/// that of another does not.
#[tokio::test]
async fn accepted_applied_and_refused_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let (control_plane, agent, mut session, ids) = with_raw_agent(&directory, 3).await.unwrap();
    let before = version(&control_plane).await.unwrap();
    shown(&control_plane, &agent.id, |agent| agent.applied_version == before).await.unwrap();

    change(&control_plane, &ids[0]).await.unwrap();
    let response = session.next().await.unwrap();
    let refused = v1::RefusedResource {
        r#type: "webhook_subscription".to_owned(),
        id: ids[0].clone(),
        version: response.version,
        error: "destination_url: is not for me".to_owned(),
    };
    let nack = v1::ConfigNack { nonce: response.nonce.clone(), refused: vec![refused.clone()] };
    session.say(Message::Nack(nack)).await.unwrap();
    let is_accepted = |agent: &v1::Agent| agent.accepted_version == before + 1;
    let agent_shown = shown(&control_plane, &agent.id, is_accepted).await.unwrap();
    assert_eq!(agent_shown.applied_version, before);
    assert_eq!(agent_shown.refused, std::slice::from_ref(&refused));
    session.applied(before + 1).await.unwrap();
    shown(&control_plane, &agent.id, |agent| agent.applied_version == before + 1).await.unwrap();

    change(&control_plane, &ids[1]).await.unwrap();
    session.follow_to(before + 2).await.unwrap();
    let is_applied = |agent: &v1::Agent| agent.applied_version == before + 2;
    let agent_shown = shown(&control_plane, &agent.id, is_applied).await.unwrap();
    assert_eq!(agent_shown.refused, [refused]);

    change(&control_plane, &ids[0]).await.unwrap();
    session.follow_to(before + 3).await.unwrap();
    shown(&control_plane, &agent.id, |agent| agent.refused.is_empty()).await.unwrap();
}

/// An agent that refuses everything it is sent, again and again, is sent nothing because of that: the number
/// of responses is the number of changes, and the control plane does not work meanwhile.
#[tokio::test]
async fn nack_loop_spins_nobody() {
    const CHANGES: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    let (control_plane, agent, mut session, ids) = with_raw_agent(&directory, 1).await.unwrap();
    let before = version(&control_plane).await.unwrap();
    let refuse = |response: &v1::StreamConfigResponse| {
        let refused = v1::RefusedResource {
            r#type: "webhook_subscription".to_owned(),
            id: ids[0].clone(),
            version: response.version,
            error: "never".to_owned(),
        };
        Message::Nack(v1::ConfigNack { nonce: response.nonce.clone(), refused: vec![refused] })
    };
    let cpu_before = control_plane.usage().unwrap().cpu;
    let mut responses = 0;
    for number in 1..=CHANGES {
        change(&control_plane, &ids[0]).await.unwrap();
        loop {
            let response = session.next().await.unwrap();
            responses += 1;
            // The same verdict many times, and on what was never sent: no stranger than a broken agent.
            for _ in 0..10 {
                session.say(refuse(&response)).await.unwrap();
            }
            session.say(Message::Ack(v1::ConfigAck { nonce: "unheard of".to_owned() })).await.unwrap();
            if response.version == before + number {
                break;
            }
        }
    }
    let more = session.message().within(std::time::Duration::from_secs(3)).await;
    assert!(more.is_err(), "the control plane answers refusals: {more:?}");
    assert!(responses <= CHANGES, "{responses} responses to {CHANGES} changes");
    let cpu = control_plane.usage().unwrap().cpu.saturating_sub(cpu_before);
    assert!(cpu < std::time::Duration::from_secs(2), "{CHANGES} changes cost {cpu:?}");
    // It was silent for a while.
    session.say(Message::Health(v1::AgentHealth::default())).await.unwrap();
    let is_there = |agent: &v1::Agent| agent.refused.len() == 1 && agent.state() == v1::AgentState::Online;
    shown(&control_plane, &agent.id, is_there).await.unwrap();
}
