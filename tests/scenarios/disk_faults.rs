//! A disk that fails under the running agent: nobody is told a lie, and service comes back by itself.
//!
//! The faults come from a library that is preloaded into the real agent (`tests/faults/faults.c`).

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Reply, World,
    agent::AgentOptions,
    eventually,
    faults::{Fault, Faults},
    figure,
    meta::{Answer, text_message, unique_wamid},
    world::WorldOptions,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

const FROM: &str = "966500000001";
/// Callbacks that are posted at once.
const AT_ONCE: usize = 32;
/// Events that are in the buffer before the disk fails.
const BEFORE: usize = 40;
/// A new segment set serves within this time after a failed sync.
const SERVING_AGAIN_MAX: Duration = Duration::from_secs(10);
/// How often a sync is made to fail until one with callbacks does: others are synced too.
const FAILURES: usize = 5;
/// A callback is refused within this time when the disk is full, as a rule: a busy machine may stand still once.
const REFUSED_MAX: Duration = Duration::from_secs(1);
/// Callbacks are taken again within this time after space has come back.
const TAKING_AGAIN_MAX: Duration = Duration::from_secs(10);

/// A gateway whose agent has faults, and the directory of their switch.
async fn world_with_faults() -> anyhow::Result<(World, Faults, TempDir)> {
    let directory = tempfile::tempdir()?;
    let faults = Faults::new(directory.path()).await?;
    let agent = AgentOptions { wrapper: faults.wrapper(), ..AgentOptions::default() };
    let world = World::start_with(WorldOptions { agent, ..WorldOptions::default() }).await?;
    Ok((world, faults, directory))
}

/// Posts one message; gives its id and the answer.
async fn post(world: &World) -> anyhow::Result<(String, Answer)> {
    let wamid = unique_wamid();
    let message = text_message(&wamid, FROM, "is the disk well?");
    let answer = world.provider.post(&world.provider.messages(&[message])).await?;
    Ok((wamid, answer))
}

/// Posts messages that are taken, one after the other.
async fn post_many(world: &World, count: usize) -> anyhow::Result<BTreeSet<String>> {
    let mut taken = BTreeSet::new();
    for _ in 0..count {
        taken.insert(world.provider.say(FROM, "before").await?);
    }
    Ok(taken)
}

/// Posts many messages at the same time; gives those that were taken, and how many were refused. Every
/// refusal says when to come again.
async fn post_at_once(world: &World) -> anyhow::Result<(BTreeSet<String>, usize)> {
    let mut posts = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (provider, wamid) = (world.provider.clone(), unique_wamid());
        posts.spawn(async move {
            let message = text_message(&wamid, FROM, "at once");
            anyhow::Ok((wamid, provider.post(&provider.messages(&[message])).await?))
        });
    }
    let (mut taken, mut refused) = (BTreeSet::new(), 0);
    while let Some(posted) = posts.join_next().await {
        let (wamid, answer) = posted??;
        if answer.status == 200 {
            taken.insert(wamid);
        } else {
            ensure_refused(&answer)?;
            refused += 1;
        }
    }
    Ok((taken, refused))
}

/// The answer is 503 and says when to come again.
fn ensure_refused(answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.status == 503, "answered {}", answer.status);
    let retry_after = answer.headers.get("retry-after").context("503 without Retry-After")?;
    ensure!(retry_after.to_str()?.parse::<u32>()? >= 1, "Retry-After {retry_after:?}");
    Ok(())
}

/// Posts until a message is taken again; gives its id.
async fn post_until_taken(world: &World) -> anyhow::Result<String> {
    eventually(DEADLINE, async || {
        let (wamid, answer) = post(world).await?;
        ensure!(answer.status == 200, "still answered {}", answer.status);
        Ok(wamid)
    })
    .await
}

/// All of these have arrived, each under one id and with one body.
async fn assert_arrived(world: &World, wamids: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE * 2, async || {
        let arrived: BTreeSet<String> =
            world.receiver.all().iter().map(|webhook| webhook.text("external_message_id")).collect();
        let missing = wamids.difference(&arrived).count();
        ensure!(missing == 0, "{missing} of {} have not arrived", wamids.len());
        Ok(())
    })
    .await?;
    for (id, webhooks) in world.receiver.by_id() {
        ensure!(webhooks.iter().all(|webhook| webhook.body == webhooks[0].body), "{id} changed its body");
    }
    Ok(())
}

/// All of these are in the inbound logs, each once.
async fn assert_logged(world: &World, wamids: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let logged: BTreeSet<&String> = logs.iter().map(|log| &log.external_message_id).collect();
        let missing = wamids.iter().filter(|wamid| !logged.contains(wamid)).count();
        ensure!(missing == 0, "{missing} of {} have no log", wamids.len());
        ensure!(logged.len() == logs.len(), "{} logs of {} messages", logs.len(), logged.len());
        Ok(())
    })
    .await
}

/// A sync fails, and the disk drops what it was to keep, as Linux does. Nobody whose event was in that round
/// is told 200; the agent serves again within seconds; and after a crash everything that was answered 200
/// arrives, from before the failure, from during it and from after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_is_not_answered_200() {
    let (mut world, faults, _directory) = world_with_faults().await.unwrap();
    // Nothing is settled, so that what arrives in the end comes from the disk.
    world.receiver.answer_with(|_| Reply::Hang);
    let mut taken = post_many(&world, BEFORE).await.unwrap();
    let (mut start, mut refused) = (Instant::now(), 0);
    for _ in 0..FAILURES {
        faults.begin(Fault::SyncFailsOnce).unwrap();
        start = Instant::now();
        let at_once;
        (at_once, refused) = post_at_once(&world).await.unwrap();
        assert!(faults.has_fired(), "no sync failed");
        taken.extend(at_once);
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "syncs failed, and all callbacks were answered 200");
    taken.insert(post_until_taken(&world).await.unwrap());
    let serving = start.elapsed();
    figure(format_args!("a failed sync: {refused} of {AT_ONCE} refused, serving again after {serving:?}"));
    assert!(serving < SERVING_AGAIN_MAX, "serving again after {serving:?}");
    taken.extend(post_many(&world, BEFORE).await.unwrap());

    world.agent.kill().await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(200));
    world.agent.start_again().await.unwrap();
    taken.insert(post_until_taken(&world).await.unwrap());
    assert_arrived(&world, &taken).await.unwrap();
    assert_logged(&world, &taken).await.unwrap();
}

/// Every sync fails: every callback gets 503 with `Retry-After`, as long as it lasts; then callbacks are
/// taken within seconds, and nothing that was taken is lost, also after a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_while_syncs_fail() {
    let (mut world, faults, _directory) = world_with_faults().await.unwrap();
    world.receiver.answer_with(|_| Reply::Hang);
    let mut taken = post_many(&world, BEFORE).await.unwrap();
    faults.begin(Fault::SyncFails).unwrap();
    for _ in 0..3 {
        let (at_once, refused) = post_at_once(&world).await.unwrap();
        assert_eq!((at_once.len(), refused), (0, AT_ONCE));
    }
    faults.end().unwrap();
    let end = Instant::now();
    taken.insert(post_until_taken(&world).await.unwrap());
    let serving = end.elapsed();
    figure(format_args!("syncs work again: taking again after {serving:?}"));
    assert!(serving < SERVING_AGAIN_MAX, "taking again after {serving:?}");

    world.agent.kill().await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(200));
    world.agent.start_again().await.unwrap();
    assert_arrived(&world, &taken).await.unwrap();
    assert_logged(&world, &taken).await.unwrap();
}

/// The disk is full: callbacks get 503 with `Retry-After` within a second, what is in the buffer is delivered
/// all the same, and when space comes back callbacks are taken within seconds by the same process. Nothing is
/// lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_and_goes_on_delivering() {
    let (mut world, faults, _directory) = world_with_faults().await.unwrap();
    let mut subscriptions = world.client().webhook_subscriptions();
    let id = world.subscription.id.clone();
    let pause = v1::PauseWebhookSubscriptionRequest { id: id.clone(), reason: String::new() };
    subscriptions.pause_webhook_subscription(pause).await.unwrap();
    world.config_applied().await.unwrap();
    let mut taken = post_many(&world, BEFORE).await.unwrap();
    assert_eq!(world.receiver.count(), 0);

    faults.begin(Fault::DiskFull).unwrap();
    let mut durations = Vec::with_capacity(AT_ONCE);
    for _ in 0..AT_ONCE {
        let (_, answer) = post(&world).await.unwrap();
        ensure_refused(&answer).unwrap();
        durations.push(answer.duration);
    }
    let refusing = figure::Spread::of(durations);
    assert!(faults.has_fired(), "no write failed");
    assert!(refusing.median < REFUSED_MAX, "refused after: {refusing}");
    let resume = v1::ResumeWebhookSubscriptionRequest { id };
    subscriptions.resume_webhook_subscription(resume).await.unwrap();
    assert_arrived(&world, &taken).await.unwrap();
    let (_, answer) = post(&world).await.unwrap();
    ensure_refused(&answer).unwrap();

    faults.end().unwrap();
    let end = Instant::now();
    taken.insert(post_until_taken(&world).await.unwrap());
    let taking = end.elapsed();
    figure(format_args!("a full disk: refused after: {refusing}; taking again after {taking:?}"));
    assert!(taking < TAKING_AGAIN_MAX, "taking again after {taking:?}");
    assert!(world.agent.process().is_running().unwrap(), "the agent has ended");
    assert_arrived(&world, &taken).await.unwrap();
    assert_logged(&world, &taken).await.unwrap();

    world.agent.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    taken.insert(post_until_taken(&world).await.unwrap());
    assert_arrived(&world, &taken).await.unwrap();
}
