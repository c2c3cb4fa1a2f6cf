//! The control plane may be away for a day, and the agent be restarted meanwhile: nobody outside notices.
//!
//! Time is simulated with a library that is preloaded into both programs and moves their clocks, wall and
//! steady, forward by an hour at a time ([`Clock`]): to them it is a day in which they slept a lot. What it
//! does not show is what only real time brings about, such as slow leaks: `just soak` leaves ten real minutes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use gateway_core::signature::{WebhookHeaders, verify_webhook};
use gateway_proto::v1;
use gateway_tests::{
    Clock, DEADLINE, MetaProvider, Reply, Within as _, World,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually, figure,
    world::{APP_SECRET, PHONE_NUMBER_ID, WorldOptions},
};
use tokio::time::Instant;

const FROM: &str = "966500000001";
/// Opted out before the control plane went away.
const OPTED_OUT: &str = "966500000002";
/// Opts out while it is away.
const OPTS_OUT: &str = "966500000003";
const HOUR: Duration = Duration::from_secs(3_600);
const HOURS: usize = 24;
/// The hour at which the agent is killed and started again.
const RESTART_AT: usize = 12;
/// The hours in which the destination answers 503.
const TROUBLE: std::ops::Range<usize> = 3..9;
/// How long to wait for a retry that may be due.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the outage of real time is, in seconds; `just soak` sets 600.
const OUTAGE_ENV: &str = "GATEWAY_TESTS_OUTAGE_SECONDS";
const OUTAGE_DEFAULT: u64 = 5;

/// Every message has exactly one log, with all its deliveries done; each event went out under one id.
async fn logged_once(world: &World, wamids: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE * 2, async || {
        let mut logs = BTreeMap::<String, u32>::new();
        for log in world.logs().await?.into_iter().filter(|log| log.event == "message.received") {
            let states: Vec<_> = log.deliveries.iter().map(v1::Delivery::state).collect();
            let delivered = states.iter().all(|state| *state == v1::DeliveryState::Delivered);
            ensure!(delivered && !states.is_empty(), "{} is {states:?}", log.event_id);
            *logs.entry(log.external_message_id).or_default() += 1;
        }
        let missing = wamids.iter().filter(|wamid| !logs.contains_key(*wamid)).count();
        ensure!(missing == 0, "{missing} of {} messages have no log", wamids.len());
        ensure!(logs.values().all(|count| *count == 1), "logs repeat");
        ensure!(logs.len() == wamids.len(), "{} messages are logged, not {}", logs.len(), wamids.len());
        Ok(())
    })
    .await
}

/// How often customers were told that this contact opted out.
fn told(world: &World, event: &str, phone: &str) -> usize {
    let webhooks = world.receiver.by_id();
    let is_it = |webhook: &gateway_tests::Webhook| {
        webhook.event() == event && webhook.json().to_string().contains(phone)
    };
    webhooks.values().filter(|webhooks| is_it(&webhooks[0])).count()
}

async fn until_told(world: &World, event: &'static str, phone: &'static str) -> anyhow::Result<()> {
    let is_it = move |webhook: &gateway_tests::Webhook| {
        webhook.event() == event && webhook.json().to_string().contains(phone)
    };
    world.receiver.find(is_it).within(DEADLINE).await.with_context(|| format!("{phone}: {event}"))?;
    Ok(())
}

/// A gateway whose two programs live in the time of the clock.
async fn world_with_clock() -> anyhow::Result<(World, Arc<Clock>, tempfile::TempDir)> {
    let directory = tempfile::tempdir()?;
    let clock = Arc::new(Clock::new(directory.path(), "gateway").await?);
    let agent = AgentOptions { wrapper: clock.wrapper(), ..AgentOptions::default() };
    let control_plane = ControlPlaneOptions { wrapper: clock.wrapper(), ..ControlPlaneOptions::default() };
    let world = World::start_with(WorldOptions { agent, control_plane, ..WorldOptions::default() }).await?;
    Ok((world, clock, directory))
}

/// Waits for the webhook about a message that was answered 200, and verifies it by the programs' time.
async fn delivered(world: &World, clock: &Clock, wamid: &str) -> anyhow::Result<()> {
    let found = world.receiver.message(wamid).within(DEADLINE).await;
    let webhook = found.with_context(|| format!("wait for the webhook about {wamid}"))?;
    let headers = WebhookHeaders {
        id: webhook.id(),
        timestamp: webhook.header("webhook-timestamp"),
        signature: webhook.header("webhook-signature"),
    };
    verify_webhook(std::slice::from_ref(&world.secret), headers, &webhook.body, clock.now().as_second())?;
    Ok(())
}

/// The provider with connections of its own: to the programs, those from an hour ago are about to be closed.
fn connect_anew(provider: &MetaProvider) -> anyhow::Result<MetaProvider> {
    MetaProvider::new(provider.callback_url().to_owned(), APP_SECRET, PHONE_NUMBER_ID)
}

/// A change of configuration is in use.
async fn changes_arrive(world: &World) -> anyhow::Result<()> {
    world.config_applied().await?;
    world.subscribe("/later", &["message.received"]).await?;
    let wamid = world.provider.say(FROM, "after").await?;
    let is_it = |webhook: &gateway_tests::Webhook| {
        webhook.path == "/later" && webhook.text("external_message_id") == wamid
    };
    world.receiver.find(is_it).within(DEADLINE).await?;
    Ok(())
}

/// A day passes without the control plane, an hour at a time; at noon the agent is killed and starts from its
/// disk. No callback is refused; everything is delivered, with right signatures and times, also what a
/// destination refused for six hours; who had opted out stays so, who opts out is so at once; and when the
/// control plane is back, everything is logged once, and opt-outs and changes arrive.
#[tokio::test]
async fn a_day_without_control_plane_is_not_noticed() {
    let (mut world, clock, _directory) = world_with_clock().await.unwrap();
    world.provider.say(OPTED_OUT, "STOP").await.unwrap();
    until_told(&world, "recipient.opted_out", OPTED_OUT).await.unwrap();
    let mut wamids = BTreeSet::new();
    wamids.insert(world.provider.say(FROM, "before").await.unwrap());
    eventually(DEADLINE, async || {
        ensure!(!world.is_allowed(OPTED_OUT).await?, "the opt-out is not known");
        Ok(())
    })
    .await
    .unwrap();
    world.control_plane.stop().await.unwrap();
    let (mut troubled, mut trouble_end) = (Vec::new(), std::time::Instant::now());
    for hour in 0..HOURS {
        if hour == TROUBLE.end {
            // Before anything that is due again in this hour is attempted: another failure would be half a minute more.
            world.receiver.answer_with(|_| Reply::Status(200));
            trouble_end = std::time::Instant::now();
        }
        clock.leap(HOUR).unwrap();
        if hour == RESTART_AT {
            world.agent.kill().await.unwrap();
            world.agent.start_again().await.unwrap();
        }
        if hour == TROUBLE.start {
            world.receiver.answer_with(|_| Reply::Status(503));
        }
        world.provider = connect_anew(&world.provider).unwrap();
        let wamid = world.provider.say(FROM, "what time is it?").await.unwrap();
        if TROUBLE.contains(&hour) {
            troubled.push(wamid.clone());
        } else {
            delivered(&world, &clock, &wamid).await.with_context(|| format!("hour {hour}")).unwrap();
        }
        wamids.insert(wamid);
        if hour == HOURS / 4 || hour == HOURS - 1 {
            // Known from before: nobody is told again, also not by the agent that was started again.
            wamids.insert(world.provider.say(OPTED_OUT, "STOP").await.unwrap());
            wamids.insert(world.provider.say(OPTS_OUT, "STOP").await.unwrap());
        }
    }
    until_told(&world, "recipient.opted_out", OPTS_OUT).await.unwrap();
    // The last delays of the retries of what was refused are hours long.
    for wamid in &troubled {
        eventually(DEADLINE * 2, async || {
            let taken = world.receiver.find(|webhook| {
                webhook.receive_time > trouble_end && webhook.text("external_message_id") == *wamid
            });
            if taken.within(PATIENCE).await.is_err() {
                clock.leap(HOUR)?;
                anyhow::bail!("{wamid} was not delivered after the trouble");
            }
            Ok(())
        })
        .await
        .unwrap();
    }
    world.provider = connect_anew(&world.provider).unwrap();
    world.control_plane.start_again().await.unwrap();
    // The first STOP is a message too.
    let first_stop = world.receiver.find(|webhook| {
        webhook.event() == "message.received" && webhook.json().to_string().contains(OPTED_OUT)
    });
    wamids.insert(first_stop.await.text("external_message_id"));
    logged_once(&world, &wamids).await.unwrap();
    for phone in [OPTED_OUT, OPTS_OUT] {
        assert!(!world.is_allowed(phone).await.unwrap(), "{phone}");
        assert_eq!(told(&world, "recipient.opted_out", phone), 1, "{phone}");
    }
    changes_arrive(&world).await.unwrap();
}

/// The same in real time, as long as is asked for, under a steady load: ten minutes by `just soak`. The agent
/// is killed and started again in the middle, and uses no more memory at the end than is explained by what
/// waits to be reported.
#[tokio::test]
async fn outage_of_real_time_is_not_noticed() {
    let seconds = std::env::var(OUTAGE_ENV).map_or(OUTAGE_DEFAULT, |seconds| seconds.parse().unwrap());
    let mut world = World::start().await.unwrap();
    let mut wamids = BTreeSet::from([world.provider.say(FROM, "before").await.unwrap()]);
    world.control_plane.kill().await.unwrap();
    let half = Duration::from_secs(seconds) / 2;
    let mut peaks = Vec::new();
    for _ in 0..2 {
        let end = Instant::now() + half;
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while Instant::now() < end {
            ticks.tick().await;
            let wamid = world.provider.say(FROM, "is anybody in control?").await.unwrap();
            world.delivered(&wamid).await.unwrap();
            wamids.insert(wamid);
        }
        peaks.push(world.agent.usage().unwrap().rss_bytes_max);
        world.agent.kill().await.unwrap();
        world.agent.start_again().await.unwrap();
    }
    let (first, second) = (peaks[0], peaks[1]);
    figure(format_args!(
        "{seconds} s without control plane: {} messages, peak of memory {} MiB, then {} MiB",
        wamids.len(),
        first >> 20,
        second >> 20
    ));
    assert!(second < first + (64 << 20), "memory grows: {first}, then {second}");
    world.control_plane.start_again().await.unwrap();
    logged_once(&world, &wamids).await.unwrap();
    assert_eq!(world.receiver.by_id().len(), wamids.len());
}

/// The files in which the agent keeps its configuration, the newest last.
fn config_files(world: &World) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(world.agent.data_dir())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let metadata = entry.metadata()?;
        if metadata.is_file() && name.starts_with("config") && !name.contains("key") {
            files.push((metadata.modified()?, entry.path()));
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "no file of the configuration is in {}", world.agent.data_dir().display());
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// A byte of the agent's configuration on disk is flipped while it is off and the control plane is away, at
/// one place after the other: it starts with the last good configuration before the damage, says so in a
/// warning, serves, and catches up when the control plane is back.
#[tokio::test]
async fn flipped_byte_of_the_configuration_costs_only_what_follows_it() {
    let mut world = World::start().await.unwrap();
    for number in 0..3 {
        world.subscribe(&format!("/further-{number}"), &["message.received"]).await.unwrap();
    }
    world.agent.stop().await.unwrap();
    let newest = config_files(&world).unwrap().pop().unwrap();
    let good = fs::read(&newest).unwrap();
    // The last record is the newest change: without it the agent knows the first subscription.
    let place = good.len() - 5;
    let mut bad = good.clone();
    bad[place] ^= 0x40;
    fs::write(&newest, &bad).unwrap();
    world.control_plane.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    let log = world.agent.log_text().unwrap();
    let is_warning =
        |line: &&str| line.contains("WARN") && line.contains("config") && line.contains("damaged");
    assert!(log.lines().any(|line| is_warning(&line)), "{log}");
    let wamid = world.provider.say(FROM, "after the damage").await.unwrap();
    world.receiver.message(&wamid).within(DEADLINE).await.unwrap();
    world.control_plane.start_again().await.unwrap();
    world.config_applied().await.unwrap();
    let wamid = world.provider.say(FROM, "all of you").await.unwrap();
    for number in 0..3 {
        let path = format!("/further-{number}");
        let found = world
            .receiver
            .find(|webhook| webhook.path == path && webhook.text("external_message_id") == wamid);
        found.within(DEADLINE).await.with_context(|| path.clone()).unwrap();
    }
}
