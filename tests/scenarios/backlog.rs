//! A backlog to a dead destination costs little memory, harms nobody else, and is due when it was due before
//! a restart.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, MetaProvider, Reply, Within as _, World,
    agent::AgentOptions,
    eventually, figure,
    figure::Spread,
    process::free_port,
    world::{INSTANCE_ID, PATH, PHONE_NUMBER_ID, WorldOptions, add_instance, subscribe_instance, update},
};

/// How many events wait; `just soak` sets two million.
const BACKLOG_ENV: &str = "GATEWAY_TESTS_BACKLOG";
const BACKLOG_DEFAULT: usize = 50_000;
/// What an agent may take with two million events in its backlog.
const RSS_BYTES_MAX: u64 = 300 << 20;
const BACKLOG_OF_RSS_MAX: u64 = 2_000_000;
/// What an agent takes without any, its caches included, of those bytes.
const RSS_BYTES_BASE: u64 = 140 << 20;
/// Messages to the healthy destination that are timed.
const TIMED: usize = 300;
/// How long a refusing destination asks to wait at least: longer than the restart.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(20);
/// How many times longer than this machine seems to need it waits for the backlog to be made.
const PATIENCE: u32 = 2;
/// Deliveries that are asked to wait: fewer than open a breaker.
const WAITING: usize = 5;
/// How much later than due an attempt may be on a busy machine.
const LATE_MAX: Duration = Duration::from_secs(5);
const FROM: &str = "966500000001";
const HEALTHY_NUMBER: &str = "106540352242931";
const REFUSING_NUMBER: &str = "106540352242932";

/// The gateway with three instances: the first one's destination is dead, the second one's is healthy, the
/// third one's will ask to come back later.
async fn world() -> anyhow::Result<World> {
    let arguments = ["--buffer-destination-share", "100", "--buffer-bytes-max", "32GiB"];
    let agent = AgentOptions { arguments: arguments.map(str::to_owned).into(), ..AgentOptions::default() };
    let world = World::start_with(WorldOptions { agent, ..WorldOptions::default() }).await?;
    let dead = format!("http://127.0.0.1:{}/dead", free_port()?);
    let change = v1::WebhookSubscription { destination_url: dead, ..Default::default() };
    update(world.client(), &world.subscription.id, change, "destination_url").await?;
    for (instance, number, path) in
        [("inst-healthy", HEALTHY_NUMBER, PATH), ("inst-refusing", REFUSING_NUMBER, "/refusing")]
    {
        add_instance(world.client(), instance, &world.inbound_route.id, number).await?;
        let url = world.receiver.url(path);
        subscribe_instance(world.client(), instance, &url, &["message.received"]).await?;
    }
    world.config_applied().await?;
    Ok(world)
}

/// Posts messages to the healthy destination one after the other; gives how long each took from post to
/// webhook.
async fn time(world: &World, provider: &MetaProvider) -> anyhow::Result<Spread> {
    let mut durations = Vec::with_capacity(TIMED);
    for _ in 0..TIMED {
        let start = Instant::now();
        let wamid = provider.say(FROM, "timed").await?;
        let webhook = world.receiver.message(&wamid).within(DEADLINE).await?;
        durations.push(webhook.receive_time - start);
    }
    Ok(Spread::of(durations))
}

/// Has a few deliveries refused with a time to come back; gives that time for each by the control plane's
/// log.
async fn refuse(world: &World, retry_after: Duration) -> anyhow::Result<Vec<(String, jiff::Timestamp)>> {
    world.receiver.answer_with(move |webhook| match (webhook.path.as_str(), webhook.nth) {
        ("/refusing", 1) => Reply::Header(500, "retry-after", retry_after.as_secs().to_string()),
        _ => Reply::Status(200),
    });
    let provider = world.provider.with_number(REFUSING_NUMBER);
    let mut due = Vec::new();
    for _ in 0..WAITING {
        let wamid = provider.say(FROM, "not now").await?;
        let webhook = world.receiver.message(&wamid).within(DEADLINE).await?;
        let next = eventually(DEADLINE, async || {
            let log = world.log(webhook.id()).await?;
            let next = log.deliveries.first().and_then(|delivery| delivery.next_attempt_time);
            let next = next.context("it has no next attempt")?;
            ensure!(log.deliveries[0].attempt_count == 1, "{} attempts", log.deliveries[0].attempt_count);
            Ok(jiff::Timestamp::new(next.seconds, next.nanos)?)
        });
        due.push((webhook.id().to_owned(), next.await?));
    }
    Ok(due)
}

/// Each of them is attempted again when it was due and the agent was there, and not before.
async fn assert_due(
    world: &World,
    due: &[(String, jiff::Timestamp)],
    ready: jiff::Timestamp,
    wait_max: Duration,
) -> anyhow::Result<Duration> {
    let mut latest = Duration::ZERO;
    for (id, due) in due {
        let again = world.receiver.find(|webhook| webhook.id() == id && webhook.nth == 2);
        let again = again.within(wait_max + DEADLINE).await.with_context(|| format!("attempt {id} again"))?;
        // The log's times are in whole milliseconds.
        let late = again.receive_timestamp.duration_since(*due) + jiff::SignedDuration::from_millis(1);
        let late = Duration::try_from(late).with_context(|| format!("{id} was attempted {late:?} before"))?;
        let away = Duration::try_from(ready.duration_since(*due)).unwrap_or_default();
        let late = late.saturating_sub(away);
        ensure!(late < LATE_MAX, "{id} was attempted {late:?} after it was due");
        latest = latest.max(late);
    }
    Ok(latest)
}

/// The most memory that an agent may take with so many events waiting.
fn rss_bytes_max(backlog: usize) -> u64 {
    let events = u64::try_from(backlog).expect("a count is a u64");
    RSS_BYTES_BASE + (RSS_BYTES_MAX - RSS_BYTES_BASE) * events / BACKLOG_OF_RSS_MAX
}

/// Many events wait for a destination that is dead. The agent stays within its memory, before and after a
/// crash; events to a healthy destination arrive meanwhile, how soon is printed, without the backlog and with
/// it; and deliveries that were to wait are attempted when they were due before the crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_costs_little_and_harms_nobody() {
    let backlog = std::env::var(BACKLOG_ENV).map_or(BACKLOG_DEFAULT, |count| count.parse().unwrap());
    let mut world = world().await.unwrap();
    assert_eq!(world.subscription.instance_id, INSTANCE_ID);
    assert_eq!(world.provider.phone_number_id(), PHONE_NUMBER_ID);
    let healthy = world.provider.with_number(HEALTHY_NUMBER);
    let start = Instant::now();
    let without = time(&world, &healthy).await.unwrap();
    let timed = start.elapsed();
    let idle = world.agent.usage().unwrap().rss_bytes_max;
    // The first tenth shows how long the others will take.
    let start = Instant::now();
    world.provider.say_many(backlog / 10).await.unwrap();
    let tenth = start.elapsed();
    let retry_after = RETRY_AFTER_MIN + (timed + tenth * 10) * PATIENCE;
    let due = refuse(&world, retry_after).await.unwrap();
    let start = Instant::now();
    world.provider.say_many(backlog - backlog / 10).await.unwrap();
    let filled = tenth + start.elapsed();
    let with = time(&world, &healthy).await.unwrap();
    let full = world.agent.usage().unwrap().rss_bytes_max;
    let disk = disk_bytes(&world.agent.data_dir().join("buffer")).unwrap();

    assert!(due.iter().all(|(_, due)| jiff::Timestamp::now() < *due), "the backlog took too long to make");
    world.agent.kill().await.unwrap();
    let start = Instant::now();
    world.agent.start_again().await.unwrap();
    let (ready, ready_at) = (start.elapsed(), jiff::Timestamp::now());
    let after = time(&world, &healthy).await.unwrap();
    let late = assert_due(&world, &due, ready_at, retry_after).await.unwrap();
    let restarted = world.agent.usage().unwrap().rss_bytes_max;

    let mebibytes = |bytes: u64| bytes >> 20;
    figure(format_args!("{backlog} events of backlog, made in {filled:?}, {} MiB on disk", mebibytes(disk)));
    figure(format_args!(
        "memory: {} MiB without, {} MiB with the backlog, {} MiB after a restart that took {ready:?}",
        mebibytes(idle),
        mebibytes(full),
        mebibytes(restarted)
    ));
    figure(format_args!("another destination without the backlog: {without}"));
    figure(format_args!("another destination with the backlog: {with}"));
    figure(format_args!("another destination after the restart: {after}"));
    figure(format_args!("deliveries due before the restart were attempted at most {late:?} late"));
    let max = rss_bytes_max(backlog);
    assert!(full <= max && restarted <= max, "{full} and {restarted} bytes of memory, of {max}");
}

/// The bytes of a file; none when it has gone meanwhile.
fn size(file: &std::fs::DirEntry) -> u64 {
    file.metadata().map_or(0, |found| found.len())
}

/// The bytes of all files below a directory.
fn disk_bytes(directory: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let is_directory = entry.file_type()?.is_dir();
        bytes += if is_directory { disk_bytes(&entry.path())? } else { size(&entry) };
    }
    Ok(bytes)
}
