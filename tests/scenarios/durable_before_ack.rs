//! What was answered 200 arrives, whatever happens to the agent afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::TryStreamExt as _;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, MetaProvider, Webhook, Within as _, World, eventually, figure,
    meta::{text_message, unique_wamid},
    random::{Random, seed},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

/// Connections that post at the same time, also while the agent is away.
const CONNECTIONS: usize = 8;
/// How long a poster waits for an agent that is away before it tries again.
const POST_AGAIN: Duration = Duration::from_millis(5);
/// How many times the agent is killed; `just crash` sets more.
const KILLS_ENV: &str = "GATEWAY_TESTS_KILL_CYCLES";
const KILLS_DEFAULT: usize = 10;
/// One kill of so many comes early.
const EARLY_SHARE: usize = 4;
/// An early kill comes within this time after the start of the agent.
const EARLY_MAX: Duration = Duration::from_millis(500);
/// How many events are answered 200 between readiness and a kill that is not early.
const ANSWERED_BEFORE_KILL: std::ops::Range<u64> = 100..400;
/// Under how much load the agent is killed, at least, on a machine that is busy with other tests too.
const EVENTS_PER_SECOND_MIN: f64 = 50.0;
/// Attempts that may come again after a kill: those of one subscription that run, 8 by default, and those that
/// ended so lately that their outcome is not on disk, a few milliseconds' worth, also when the disk is slow.
const IN_FLIGHT_MAX: usize = 4 * 8;
/// One kill of so many may meet a disk that stands still, with more outcomes that are not on it.
const SLOW_DISK_SHARE: usize = 4;

/// Ids of the messages that were answered 200.
#[derive(Clone)]
struct Answered {
    wamids: Arc<Mutex<BTreeSet<String>>>,
    count: watch::Sender<u64>,
}

impl Answered {
    fn new() -> Self {
        Self { wamids: Arc::default(), count: watch::Sender::new(0) }
    }

    fn add(&self, wamid: String) {
        self.wamids.lock().unwrap_or_else(PoisonError::into_inner).insert(wamid);
        self.count.send_modify(|count| *count += 1);
    }

    fn all(&self) -> BTreeSet<String> {
        self.wamids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self) -> u64 {
        *self.count.borrow()
    }

    /// Waits until this many more are answered.
    async fn more(&self, wanted: u64) -> anyhow::Result<()> {
        let target = self.count() + wanted;
        let mut count = self.count.subscribe();
        count.wait_for(|count| *count >= target).within(DEADLINE).await??;
        Ok(())
    }
}

/// Posts one message after the other, whether the agent is there or not.
async fn post_for_ever(provider: MetaProvider, answered: Answered) {
    let mut pause = interval(POST_AGAIN);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0_u64.. {
        let wamid = unique_wamid();
        let message = text_message(&wamid, &format!("9665{:08}", number % 50), "kill me");
        match provider.post(&provider.messages(&[message])).await {
            Ok(answer) if answer.status == 200 => answered.add(wamid),
            _ => {
                pause.tick().await;
            }
        }
    }
}

/// Posts on several connections until the result is dropped.
fn post_on_all(world: &World, answered: &Answered) -> JoinSet<()> {
    let mut posters = JoinSet::new();
    for _ in 0..CONNECTIONS {
        posters.spawn(post_for_ever(world.provider.clone(), answered.clone()));
    }
    posters
}

/// When the agent was killed, and under what load.
#[derive(Default)]
struct Kills {
    times: Vec<Instant>,
    early: usize,
    /// Answered 200 in time that the agent was ready.
    answered: u64,
    ready: Duration,
}

impl Kills {
    /// Lets the agent answer for a while, then kills it.
    async fn late(&mut self, world: &mut World, answered: &Answered, wanted: u64) -> anyhow::Result<()> {
        world.agent.wait_ready().await?;
        let (start, before) = (Instant::now(), answered.count());
        answered.more(wanted).await?;
        self.ready += start.elapsed();
        self.answered += answered.count() - before;
        self.kill(world).await
    }

    /// Kills the agent so long after its start, ready or not.
    async fn early(&mut self, world: &mut World, launched: Instant, after: Duration) -> anyhow::Result<()> {
        // What is awaited is a moment, not a condition.
        let _ = timeout(after, std::future::pending::<()>()).await;
        // Nobody says when a busy machine lets this go on; a kill that came late is just another kill.
        self.early += usize::from(launched.elapsed() < EARLY_MAX);
        self.kill(world).await
    }

    async fn kill(&mut self, world: &mut World) -> anyhow::Result<()> {
        world.agent.kill().await?;
        // What comes from now on comes from the next agent.
        world.receiver.disconnected().within(DEADLINE).await??;
        self.times.push(Instant::now());
        Ok(())
    }

    /// The load in events per second.
    fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.answered).unwrap_or(u32::MAX)) / self.ready.as_secs_f64()
    }
}

/// The real agent is killed with SIGKILL under load again and again, every fourth time within half a second
/// of its start, while the provider goes on posting. Every message that was answered 200 arrives and is in
/// the inbound logs once; what arrives again was in flight when the agent was killed, as a rule, and has the same id
/// and the same bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_nothing_answered_200() {
    let count = std::env::var(KILLS_ENV).map_or(KILLS_DEFAULT, |count| count.parse().unwrap());
    let seed = seed().unwrap();
    let mut random = Random::of_seed(seed);
    let mut world = World::start().await.unwrap();
    let answered = Answered::new();
    let posters = post_on_all(&world, &answered);
    let mut kills = Kills::default();
    let mut launched = Instant::now();
    for number in 0.. {
        if kills.times.len() >= count && kills.early * EARLY_SHARE >= count {
            break;
        }
        assert!(number < count * 2, "the machine is too slow for kills within {EARLY_MAX:?} of a start");
        if number % EARLY_SHARE == EARLY_SHARE - 1 || kills.times.len() >= count {
            let after = Duration::from_millis(random.within(0..450));
            kills.early(&mut world, launched, after).await.unwrap();
        } else {
            let wanted = random.within(ANSWERED_BEFORE_KILL);
            kills.late(&mut world, &answered, wanted).await.unwrap();
        }
        launched = Instant::now();
        world.agent.launch_again().unwrap();
    }
    world.agent.wait_ready().await.unwrap();
    drop(posters);
    assert!(kills.rate() >= EVENTS_PER_SECOND_MIN, "killed under {:.0} events/s only", kills.rate());
    let answered = answered.all();
    assert_arrived(&world, &answered).await.unwrap();
    assert_logged(&world, &answered).await.unwrap();
    let repeated = repeats(&world, &kills.times).unwrap();
    let most = repeated.values().copied().max().unwrap_or_default();
    figure(format_args!(
        "{} kills, {} of them within {EARLY_MAX:?} of a start, under {:.0} events/s (seed {seed}): {} answered 200, \
         0 lost, {} came again, at most {most} after one kill",
        kills.times.len(),
        kills.early,
        kills.rate(),
        answered.len(),
        repeated.values().sum::<usize>(),
    ));
    let beyond: Vec<_> = repeated.iter().filter(|(_, count)| **count > IN_FLIGHT_MAX).collect();
    let is_rare = beyond.len() * SLOW_DISK_SHARE <= kills.times.len();
    assert!(is_rare, "more came again than were in flight, by number of the kill: {beyond:?}");
}

/// The agent is asked to stop under load: it ends with success within its time, and what it had answered 200
/// arrives, whatever it had to leave for its next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing_answered_200() {
    let mut world = World::start().await.unwrap();
    let answered = Answered::new();
    let posters = post_on_all(&world, &answered);
    answered.more(150).await.unwrap();
    let status = world.agent.stop().await.unwrap();
    assert!(status.success(), "the agent ended with {status}");
    drop(posters);
    world.agent.start_again().await.unwrap();
    assert_arrived(&world, &answered.all()).await.unwrap();
    assert_logged(&world, &answered.all()).await.unwrap();
}

/// Every answered message has arrived.
async fn assert_arrived(world: &World, answered: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let arrived: BTreeSet<String> =
            world.receiver.all().iter().map(|webhook| webhook.text("external_message_id")).collect();
        let missing = answered.difference(&arrived).count();
        ensure!(missing == 0, "{missing} of {} answered messages have not arrived", answered.len());
        Ok(())
    })
    .await
}

/// What arrived again has the same id and bytes and is signed, and was sent before a kill. Gives how many came
/// again for each kill, by its number from 0.
fn repeats(world: &World, kills: &[Instant]) -> anyhow::Result<BTreeMap<usize, usize>> {
    let mut before = BTreeMap::<String, Arc<Webhook>>::new();
    let mut repeated = BTreeMap::new();
    for webhook in world.receiver.all() {
        let wamid = webhook.text("external_message_id");
        ensure!(webhook.verify(&world.secret).is_ok(), "{wamid} is not signed");
        let Some(before) = before.insert(wamid, Arc::clone(&webhook)) else { continue };
        ensure!(before.id() == webhook.id(), "{} has another id, {}", before.id(), webhook.id());
        ensure!(before.body == webhook.body, "{} changed its body", webhook.id());
        // It was in flight at the first kill after it had come before.
        let kill = kills.partition_point(|kill| *kill < before.receive_time);
        let is_due_to_kill = kills.get(kill).is_some_and(|kill| *kill < webhook.receive_time);
        ensure!(is_due_to_kill, "{} came again without a kill", webhook.id());
        *repeated.entry(kill).or_default() += 1;
    }
    Ok(repeated)
}

/// Every answered message has exactly one log, and it is delivered.
async fn assert_logged(world: &World, answered: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE * 2, async || {
        let mut logs = BTreeMap::<String, usize>::new();
        let request = v1::ListInboundLogsRequest { page_size: 1_000, ..Default::default() };
        let mut listed = std::pin::pin!(world.client().list(request));
        while let Some(log) = listed.try_next().await? {
            let delivered = log.deliveries.iter().all(|delivery| delivery.last_status_code == 200);
            ensure!(delivered && log.deliveries.len() == 1, "{} is not delivered", log.event_id);
            *logs.entry(log.external_message_id).or_default() += 1;
        }
        let missing = answered.iter().filter(|wamid| !logs.contains_key(*wamid)).count();
        ensure!(missing == 0, "{missing} of {} answered messages have no log", answered.len());
        let repeated = logs.values().filter(|count| **count > 1).count();
        ensure!(repeated == 0, "{repeated} messages have more than one log");
        Ok(())
    })
    .await
}
