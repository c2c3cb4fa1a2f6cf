//! The control plane may be away: agents accept, deliver and enforce from what they have, and logs catch up
//! without gap or repeat.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use gateway_proto::v1;
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, Receiver, World,
    agent::AgentOptions,
    eventually, http,
    world::{APP_SECRET, PATH, PHONE_NUMBER_ID, create_instance, subscribe},
};
use tokio::task::JoinSet;

const FROM: &str = "966500000001";
const CONNECTIONS: usize = 3;
const MESSAGES_PER_CONNECTION: usize = 40;

/// Posts messages one after the other; gives the ids of what was answered 200.
async fn post_many(provider: gateway_tests::MetaProvider) -> anyhow::Result<Vec<String>> {
    let mut wamids = Vec::new();
    for _ in 0..MESSAGES_PER_CONNECTION {
        wamids.push(provider.say(FROM, "is anybody in control?").await?);
    }
    Ok(wamids)
}

/// Every message is logged exactly once, as delivered, and each was delivered under one id.
async fn all_logged_once(world: &World, wamids: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let mut logs = BTreeMap::<String, u32>::new();
        for log in world.logs().await? {
            let delivered =
                log.deliveries.iter().all(|delivery| delivery.state() == v1::DeliveryState::Delivered);
            ensure!(delivered, "{} is not delivered", log.event_id);
            *logs.entry(log.external_message_id).or_default() += 1;
        }
        let missing = wamids.iter().filter(|wamid| !logs.contains_key(*wamid)).count();
        ensure!(missing == 0, "{missing} of {} have no log", wamids.len());
        ensure!(logs.values().all(|count| *count == 1) && logs.len() == wamids.len(), "logs repeat");
        Ok(())
    })
    .await?;
    let delivered = world.receiver.by_id();
    ensure!(
        delivered.len() == wamids.len(),
        "{} events were delivered, not {}",
        delivered.len(),
        wamids.len()
    );
    Ok(())
}

/// The control plane is killed while callbacks are posted, and started again later: every callback is
/// answered 200, every webhook is delivered meanwhile, and the logs are complete afterwards, each once.
#[tokio::test]
async fn outage_mid_stream_is_not_noticed_outside() {
    let mut world = World::start().await.unwrap();
    let mut posters = JoinSet::new();
    for _ in 0..CONNECTIONS {
        posters.spawn(post_many(world.provider.clone()));
    }
    world.receiver.recorded(MESSAGES_PER_CONNECTION / 2).await;
    world.control_plane.kill().await.unwrap();
    let mut wamids = BTreeSet::new();
    while let Some(posted) = posters.join_next().await {
        wamids.extend(posted.unwrap().unwrap());
    }
    assert_eq!(wamids.len(), CONNECTIONS * MESSAGES_PER_CONNECTION);
    for wamid in &wamids {
        world.delivered(wamid).await.unwrap();
    }
    world.control_plane.start_again().await.unwrap();
    all_logged_once(&world, &wamids).await.unwrap();
    assert_eq!(world.receiver.count(), wamids.len(), "something was delivered again");
}

/// An enrolled agent starts while the control plane is away: it serves from its last good configuration,
/// enforces what it knew, and is crashed once more; afterwards the logs are complete, each once, and changes
/// reach it again.
#[tokio::test]
async fn agent_starts_and_serves_without_control_plane() {
    let mut world = World::start().await.unwrap();
    let mut wamids = BTreeSet::from([world.provider.say(FROM, "before").await.unwrap()]);
    for wamid in &wamids {
        world.delivered(wamid).await.unwrap();
    }
    world.control_plane.stop().await.unwrap();
    for _ in 0..2 {
        world.agent.kill().await.unwrap();
        world.agent.start_again().await.unwrap();
        let wamid = world.provider.say(FROM, "from the disk").await.unwrap();
        let webhook = world.delivered(&wamid).await.unwrap();
        assert_eq!(webhook.text("instance_name"), "Test Line");
        wamids.insert(wamid);
    }
    world.control_plane.start_again().await.unwrap();
    all_logged_once(&world, &wamids).await.unwrap();
    world.config_applied().await.unwrap();
    world.subscribe("/later", &["message.received"]).await.unwrap();
    let wamid = world.provider.say(FROM, "after").await.unwrap();
    let later = world
        .receiver
        .find(|webhook| webhook.path == "/later" && webhook.text("external_message_id") == wamid);
    gateway_tests::Within::within(later, DEADLINE).await.unwrap();
}

/// An opt-out seen while the control plane is away is told at once, survives a crash, and is answered by
/// the control plane when it is back.
#[tokio::test]
async fn opt_out_during_an_outage_is_kept() {
    let mut world = World::start().await.unwrap();
    world.control_plane.kill().await.unwrap();
    world.provider.say(FROM, "STOP").await.unwrap();
    let told = world.receiver.find(|webhook| webhook.event() == "recipient.opted_out");
    gateway_tests::Within::within(told, DEADLINE).await.unwrap();
    world.agent.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    let again = world.provider.say(FROM, "STOP").await.unwrap();
    world.delivered(&again).await.unwrap();
    world.control_plane.start_again().await.unwrap();
    eventually(DEADLINE, async || {
        let request = v1::CheckSuppressionRequest {
            instance_id: world.subscription.instance_id.clone(),
            phone: FROM.to_owned(),
            purpose: v1::Purpose::Marketing.into(),
            ..Default::default()
        };
        let answer = world.client().opt_outs().check_suppression(request).await?.into_inner();
        ensure!(!answer.allowed, "marketing is allowed");
        Ok(())
    })
    .await
    .unwrap();
    let events = world.receiver.by_id();
    let told = events.values().filter(|webhooks| webhooks[0].event() == "recipient.opted_out").count();
    assert_eq!(told, 1);
}

/// A control plane that has nothing yet: the agent is ready, refuses strangers, and serves as soon as there
/// is something to serve.
#[tokio::test]
async fn agent_is_ready_with_an_empty_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await.unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let agent = Agent::start(directory.path(), &control_plane, AgentOptions::default()).await.unwrap();
    let url = |path: &str| agent.callback_url(path);
    let stranger =
        gateway_tests::MetaProvider::new(url("/callbacks/meta/unknown"), APP_SECRET, PHONE_NUMBER_ID)
            .unwrap();
    let body = stranger.messages(&[]);
    assert_eq!(stranger.post(&body).await.unwrap().status, 401);
    let route = create_instance(control_plane.client()).await.unwrap();
    subscribe(control_plane.client(), &receiver.url(PATH), &["*"]).await.unwrap();
    let provider = stranger.with_url(url(&route.callback_path));
    let wamid = eventually(DEADLINE, async || provider.say(FROM, "first customer").await);
    wamid.await.unwrap();
    eventually(DEADLINE, async || {
        provider.say(FROM, "delivered?").await?;
        ensure!(receiver.count() > 0, "nothing is delivered");
        Ok(())
    })
    .await
    .unwrap();
}

/// A new agent whose control plane is not there yet lives and waits, not ready; it enrolls as soon as there
/// is one. A join token that was used ends a second agent with a message that says what to do.
#[tokio::test]
async fn new_agent_waits_for_its_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let token = control_plane.join_token("test-region").await.unwrap();
    control_plane.stop().await.unwrap();
    let options = AgentOptions { join_token: Some(token.clone()), ..AgentOptions::default() };
    let mut agent = Agent::launch(directory.path(), &control_plane, options.clone()).await.unwrap();
    let client = http::client().unwrap();
    let live = async || http::expect_ok(&client, &agent.admin_url("/livez")).await;
    eventually(DEADLINE, live).await.unwrap();
    let not_ready = http::expect_ok(&client, &agent.admin_url("/readyz")).await.unwrap_err();
    assert!(not_ready.to_string().contains("503"), "{not_ready}");
    control_plane.start_again().await.unwrap();
    agent.wait_ready().await.unwrap();

    let second = directory.path().join("second");
    let mut second = Agent::launch(&second, &control_plane, options).await.unwrap();
    assert!(!second.process().ended().await.unwrap().success());
    let text = second.log_text().unwrap();
    assert!(text.contains("join token") && !text.contains(&token) && !text.contains("panicked"), "{text}");
}
