//! An agent that does not have what it should have is found out and sent everything, once.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use gateway_core::snapshot::digest::{Digests, name_of};
use gateway_proto::v1::{self, stream_config_request::Message};
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, Proxy, World,
    agent::AgentOptions,
    eventually, figure,
    proxy::Way,
    random::{Random, seed},
    raw::{ConfigSession, RawAgent},
    world::{WorldOptions, create_instance, subscribe, update},
};

use super::verdicts::version;

/// Changes between restarts, and how many restarts there are.
const CHANGES: u64 = 8;
const RESTARTS: usize = 6;
/// Webhook subscriptions that there are when one changes.
const SUBSCRIPTIONS: usize = 50;
/// How often a raw agent that waits is heard; after 13 s of silence its stream ends.
const HEALTH_INTERVAL: Duration = Duration::from_secs(3);
/// What one change may cost with a real agent, both ways, all bytes of the connection counted.
const CHANGE_BYTES_MAX: u64 = 5_000;

/// What came of the comparisons that a control plane has made since it started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparisons {
    pub same: f64,
    pub resent: f64,
    pub persists: f64,
    pub known: f64,
}

impl Comparisons {
    pub async fn of(control_plane: &ControlPlane) -> anyhow::Result<Self> {
        let count = async |outcome| {
            let name = format!("gateway_config_comparisons_total{{outcome=\"{outcome}\"}}");
            control_plane.metric(&name).await
        };
        let (same, resent) = (count("same").await?, count("resent").await?);
        Ok(Self { same, resent, persists: count("persists").await?, known: count("known").await? })
    }

    /// Waits until they are as expected, while a raw agent goes on to be heard on its stream.
    async fn become_so_with(
        session: &ConfigSession,
        control_plane: &ControlPlane,
        expected: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<Self> {
        let be_heard = async {
            let mut health = tokio::time::interval(HEALTH_INTERVAL);
            loop {
                health.tick().await;
                session.say(Message::Health(v1::AgentHealth::default())).await?;
            }
        };
        tokio::select! {
            found = Self::become_so(control_plane, expected) => found,
            ended = be_heard => ended,
        }
    }

    /// Waits until they are as expected.
    async fn become_so(
        control_plane: &ControlPlane,
        expected: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<Self> {
        eventually(DEADLINE, async || {
            let comparisons = Self::of(control_plane).await?;
            ensure!(expected(&comparisons), "{comparisons:?}");
            Ok(comparisons)
        })
        .await
    }
}

/// Waits until one more comparison was made than there were, and none found a difference. An agent that connects is compared
/// at once.
pub async fn none_differs(control_plane: &ControlPlane, before: Comparisons) -> anyhow::Result<()> {
    let found = Comparisons::become_so(control_plane, |found| {
        found.same > before.same || found.resent + found.persists > 0.0
    });
    let found = found.await?;
    ensure!((found.resent, found.persists, found.known) == (0.0, 0.0, 0.0), "an agent differs: {found:?}");
    Ok(())
}

/// What whoever takes these responses has.
pub fn digests_of(responses: &[v1::StreamConfigResponse]) -> Vec<v1::ConfigDigest> {
    let mut has: BTreeMap<(String, String), u64> = BTreeMap::new();
    for response in responses {
        if response.snapshot {
            has.clear();
        }
        for upsert in &response.upserts {
            let (resource_type, id) = name_of(upsert).expect("it is of a known type");
            has.insert((resource_type.to_owned(), id.to_owned()), upsert.version);
        }
        for removal in &response.removals {
            has.remove(&(removal.r#type.clone(), removal.id.clone()));
        }
    }
    let mut digests = Digests::default();
    has.iter().for_each(|((resource_type, id), version)| digests.add(resource_type, id, *version));
    digests.to_proto()
}

/// What an agent says that has lost a webhook subscription.
fn without_one(digests: &[v1::ConfigDigest]) -> Vec<v1::ConfigDigest> {
    let mut digests = digests.to_vec();
    let subscriptions = digests.iter_mut().find(|digest| digest.r#type == "webhook_subscription");
    let subscriptions = subscriptions.expect("every type is said");
    subscriptions.count -= 1;
    subscriptions.digest[0] ^= 1;
    digests
}

fn log_lines(control_plane: &ControlPlane, level: &str) -> anyhow::Result<usize> {
    let text = control_plane.log_text()?;
    let lines = text.lines().filter(|line| line.contains("does not have the configuration"));
    Ok(lines.filter(|line| line.contains(level)).count())
}

async fn applied(session: &ConfigSession, version: u64, digests: &[v1::ConfigDigest]) -> anyhow::Result<()> {
    session.say(Message::Applied(v1::ConfigApplied { version, digests: digests.to_vec() })).await
}

/// An agent that was sent three webhook subscriptions.
struct Sent {
    control_plane: ControlPlane,
    agent: RawAgent,
    /// What it has.
    digests: Vec<v1::ConfigDigest>,
    /// Says so.
    hello: v1::ConfigHello,
    subscription_id: String,
    _directory: tempfile::TempDir,
}

impl Sent {
    async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let control_plane = ControlPlane::start(directory.path()).await?;
        create_instance(control_plane.client()).await?;
        let mut subscription_id = String::new();
        for number in 0..3 {
            let url = format!("http://127.0.0.1:1025/{number}");
            subscription_id = subscribe(control_plane.client(), &url, &["message.received"]).await?.id;
        }
        let agent = RawAgent::enroll(&control_plane, "test-region").await?;
        let mut session = agent.open_config(agent.hello()).await?;
        let responses = session.follow_to(version(&control_plane).await?).await?;
        let digests = digests_of(&responses);
        let last = responses.last().context("there was a response")?;
        let hello = v1::ConfigHello {
            version: last.version,
            store_epoch: last.store_epoch.clone(),
            opt_out_cursor: last.opt_out_cursor,
            digests: digests.clone(),
            ..agent.hello()
        };
        Ok(Self { control_plane, agent, digests, hello, subscription_id, _directory: directory })
    }

    /// A stream on which the agent says that it has something else at the newest version.
    async fn lie(&self) -> anyhow::Result<ConfigSession> {
        let hello = v1::ConfigHello { digests: without_one(&self.digests), ..self.hello.clone() };
        self.agent.open_config(hello).await
    }

    /// Takes responses to the end of a snapshot, which has to come; gives its parts.
    async fn snapshot(&self, session: &mut ConfigSession) -> anyhow::Result<Vec<v1::StreamConfigResponse>> {
        let first = session.next().await?;
        ensure!(!first.snapshot && first.upserts.is_empty(), "the agent was sent {first:?}");
        session.ack(&first).await?;
        // The same again, while the snapshot is on its way: it does not count.
        applied(session, first.version, &without_one(&self.digests)).await?;
        let responses = session.follow_to(self.hello.version).await?;
        ensure!(responses[0].snapshot, "no snapshot but {responses:?}");
        ensure!(digests_of(&responses) == self.digests, "the snapshot lacks something");
        Ok(responses)
    }

    /// Changes something, and checks that it comes as a delta and nothing before it.
    async fn sends_a_delta(&self, session: &mut ConfigSession) -> anyhow::Result<u64> {
        // So that the stream is not silent for too long.
        session.say(Message::Health(v1::AgentHealth::default())).await?;
        let change = v1::WebhookSubscription { display_name: "changed".to_owned(), ..Default::default() };
        update(self.control_plane.client(), &self.subscription_id, change, "display_name").await?;
        let responses = session.follow_to(version(&self.control_plane).await?).await?;
        ensure!(responses.iter().all(|response| !response.snapshot), "a snapshot: {responses:?}");
        Ok(responses.last().context("there was a response")?.version)
    }
}

/// An agent that says the right thing is sent what is new. One that says it has something else at the version that
/// it has is sent everything, on the same stream; that is warned of and counted once; and then it has what it should have.
#[tokio::test]
async fn an_agent_that_differs_is_sent_everything_once() {
    let sent = Sent::start().await.unwrap();
    let mut session = sent.agent.open_config(sent.hello.clone()).await.unwrap();
    Comparisons::become_so_with(&session, &sent.control_plane, |found| found.same > 0.0).await.unwrap();
    session.follow_to(sent.hello.version).await.unwrap();
    drop(session);

    let mut session = sent.lie().await.unwrap();
    sent.snapshot(&mut session).await.unwrap();
    applied(&session, sent.hello.version, &sent.digests).await.unwrap();
    let found =
        Comparisons::become_so_with(&session, &sent.control_plane, |found| found.same > 1.0).await.unwrap();
    assert_eq!(found, Comparisons { same: 2.0, resent: 1.0, persists: 0.0, known: 0.0 });
    assert_eq!(log_lines(&sent.control_plane, "WARN").unwrap(), 1);
    assert_eq!(log_lines(&sent.control_plane, "ERROR").unwrap(), 0);
    sent.sends_a_delta(&mut session).await.unwrap();
}

/// An agent that goes on to say something else, on that stream and on others, is not sent everything again and again: an
/// error says so once, and it is sent changes like any other.
#[tokio::test]
async fn a_lasting_difference_is_no_loop() {
    let mut sent = Sent::start().await.unwrap();
    let mut session = sent.lie().await.unwrap();
    sent.snapshot(&mut session).await.unwrap();
    let lie = without_one(&sent.digests);
    applied(&session, sent.hello.version, &lie).await.unwrap();
    let found = Comparisons::become_so_with(&session, &sent.control_plane, |found| found.persists > 0.0)
        .await
        .unwrap();
    assert_eq!(found, Comparisons { same: 0.0, resent: 1.0, persists: 1.0, known: 0.0 });
    sent.hello.version = sent.sends_a_delta(&mut session).await.unwrap();
    drop(session);
    for round in 1..=3 {
        let mut session = sent.lie().await.unwrap();
        let known = f64::from(round);
        let found = Comparisons::become_so_with(&session, &sent.control_plane, |found| found.known >= known)
            .await
            .unwrap();
        assert_eq!(found, Comparisons { same: 0.0, resent: 1.0, persists: 1.0, known });
        sent.hello.version = sent.sends_a_delta(&mut session).await.unwrap();
    }
    assert_eq!(log_lines(&sent.control_plane, "WARN").unwrap(), 1);
    assert_eq!(log_lines(&sent.control_plane, "ERROR").unwrap(), 1);
}

/// An agent that says nothing of what it has, as earlier ones, or speaks of an older version, is compared with nothing.
#[tokio::test]
async fn what_cannot_be_compared_is_not() {
    let sent = Sent::start().await.unwrap();
    let silent = v1::ConfigHello { digests: Vec::new(), ..sent.hello.clone() };
    let mut session = sent.agent.open_config(silent).await.unwrap();
    session.follow_to(sent.hello.version).await.unwrap();
    let newest = sent.sends_a_delta(&mut session).await.unwrap();
    drop(session);
    let mut session = sent.lie().await.unwrap();
    let responses = session.follow_to(newest).await.unwrap();
    assert!(responses.iter().all(|response| !response.snapshot), "{responses:?}");
    let nothing = Comparisons { same: 0.0, resent: 0.0, persists: 0.0, known: 0.0 };
    assert_eq!(Comparisons::of(&sent.control_plane).await.unwrap(), nothing);
    let mut all = sent.digests.clone();
    all.retain(|digest| digest.r#type != "webhook_subscription");
    applied(&session, newest, &all).await.unwrap();
    let found =
        Comparisons::become_so_with(&session, &sent.control_plane, |found| *found != nothing).await.unwrap();
    assert_eq!(found, Comparisons { same: 1.0, ..nothing });
}

/// One random change of what a world has.
async fn change(world: &World, random: &mut Random, ids: &mut Vec<String>) -> anyhow::Result<()> {
    let client = world.client();
    let place = usize::try_from(random.within(0..u64::try_from(ids.len())?))?;
    match random.within(0..6) {
        0 | 1 => {
            let url = world.receiver.url(&format!("/{}", random.within(0..1_000)));
            ids.push(subscribe(client, &url, &["message.received"]).await?.id);
        }
        2 if ids.len() > 1 => {
            let request =
                v1::DeleteWebhookSubscriptionRequest { id: ids.swap_remove(place), ..Default::default() };
            client.webhook_subscriptions().delete_webhook_subscription(request).await?;
        }
        3 => {
            // Away from the agent's region, or back.
            let away = random.within(0..2) == 0;
            let instance = v1::Instance {
                id: world.subscription.instance_id.clone(),
                regions: if away { vec!["elsewhere".to_owned()] } else { Vec::new() },
                ..Default::default()
            };
            let request = v1::UpdateInstanceRequest {
                instance: Some(instance),
                update_mask: Some(prost_types::FieldMask { paths: vec!["regions".to_owned()] }),
            };
            client.instances().update_instance(request).await?;
        }
        _ => {
            let display_name = random.within(0..1_000).to_string();
            let change = v1::WebhookSubscription { display_name, ..Default::default() };
            update(client, &ids[place], change, "display_name").await?;
        }
    }
    Ok(())
}

/// However the configuration changes, and however often the agent and the control plane are stopped or killed in between, the
/// agent has what it should have: each connection is compared, and none differs. `GATEWAY_TESTS_SEED` repeats the choices.
#[tokio::test]
async fn restarts_among_changes_make_no_difference() {
    let seed = seed().unwrap();
    let mut random = Random::of_seed(seed);
    let mut world = World::start_with(WorldOptions::default()).await.unwrap();
    let mut ids = vec![world.subscription.id.clone()];
    let nothing = Comparisons { same: 0.0, resent: 0.0, persists: 0.0, known: 0.0 };
    none_differs(&world.control_plane, nothing).await.unwrap();
    for restart in 0..RESTARTS {
        for _ in 0..random.within(1..CHANGES) {
            change(&world, &mut random, &mut ids).await.with_context(|| format!("seed {seed}")).unwrap();
        }
        // Half of the changes the agent hears of as they come, half when it is back.
        let before = if restart % 3 == 2 {
            world.control_plane.stop().await.unwrap();
            world.control_plane.start_again().await.unwrap();
            nothing
        } else {
            let before = Comparisons::of(&world.control_plane).await.unwrap();
            if restart % 3 == 0 {
                world.agent.kill().await.unwrap()
            } else {
                world.agent.stop().await.unwrap();
            }
            for _ in 0..random.within(0..CHANGES) {
                change(&world, &mut random, &mut ids).await.with_context(|| format!("seed {seed}")).unwrap();
            }
            world.agent.start_again().await.unwrap();
            before
        };
        world.config_applied().await.with_context(|| format!("seed {seed}")).unwrap();
        let none = none_differs(&world.control_plane, before).await;
        none.with_context(|| format!("seed {seed}, restart {restart}")).unwrap();
    }
}

/// A real agent says what it has with every version, and one change still costs it less than 5 KB, both ways together.
#[tokio::test]
async fn saying_what_it_has_costs_little() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    let mut id = String::new();
    for number in 0..SUBSCRIPTIONS {
        let url = format!("http://127.0.0.1:1025/{number}");
        id = subscribe(control_plane.client(), &url, &["message.received"]).await.unwrap().id;
    }
    let proxy = Proxy::start(control_plane.grpc_addr()).await.unwrap();
    let options = AgentOptions { control_plane_url: Some(proxy.url()), ..AgentOptions::default() };
    let _agent = Agent::start(directory.path(), &control_plane, options).await.unwrap();
    let nothing = Comparisons { same: 0.0, resent: 0.0, persists: 0.0, known: 0.0 };
    none_differs(&control_plane, nothing).await.unwrap();
    let bytes = || proxy.bytes(Way::Down) + proxy.bytes(Way::Up);
    let mut cost = u64::MAX;
    // What else goes over the connection meanwhile only adds to it: the least counts.
    for number in 0..5 {
        let before = bytes();
        let change =
            v1::WebhookSubscription { display_name: format!("changed {number}"), ..Default::default() };
        update(control_plane.client(), &id, change, "display_name").await.unwrap();
        let newest = version(&control_plane).await.unwrap();
        eventually(DEADLINE, async || {
            let request = v1::ListAgentsRequest::default();
            let agents = control_plane.client().agents().list_agents(request).await?.into_inner().agents;
            ensure!(agents[0].applied_version == newest, "{agents:?}");
            Ok(())
        })
        .await
        .unwrap();
        cost = cost.min(bytes() - before);
    }
    figure(format_args!("one change of {SUBSCRIPTIONS}, with digests: {cost} bytes both ways"));
    assert!(cost < CHANGE_BYTES_MAX, "{cost} bytes");
}
