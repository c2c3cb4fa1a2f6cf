//! What was answered 200 arrives, whatever happens to the agent afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::ensure;
use gateway_tests::{
    DEADLINE, MetaProvider, Within as _, World, eventually,
    meta::{text_message, unique_wamid},
};
use tokio::{sync::watch, task::JoinSet};

/// Connections that post at the same time.
const CONNECTIONS: usize = 6;
/// How many events are answered in a cycle before the agent is killed, in turn; some cycles kill at once.
const ANSWERED_BEFORE_KILL: [usize; 3] = [150, 60, 1];
/// Sets how many cycles there are, for long runs by hand.
const CYCLES_ENV: &str = "GATEWAY_TESTS_KILL_CYCLES";
const CYCLES_DEFAULT: usize = 3;

/// Ids of the messages that were answered 200, over all cycles.
#[derive(Clone)]
struct Answered {
    wamids: Arc<Mutex<BTreeSet<String>>>,
    count: watch::Sender<usize>,
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
}

/// Posts one message after the other until the agent is gone.
async fn post_until_killed(provider: MetaProvider, answered: Answered, posted: Arc<AtomicUsize>) {
    loop {
        let wamid = unique_wamid();
        let number = posted.fetch_add(1, Ordering::Relaxed);
        let message = text_message(&wamid, &format!("9665{:08}", number % 50), "kill me");
        match provider.post(&provider.messages(&[message])).await {
            Ok(answer) if answer.status == 200 => answered.add(wamid),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Posts on several connections; returns once this many more were answered, while posting goes on.
async fn post_until_answered(
    world: &World,
    answered: &Answered,
    wanted: usize,
) -> anyhow::Result<JoinSet<()>> {
    let target = *answered.count.borrow() + wanted;
    let numbers = Arc::new(AtomicUsize::new(0));
    let mut posters = JoinSet::new();
    for _ in 0..CONNECTIONS {
        posters.spawn(post_until_killed(world.provider.clone(), answered.clone(), Arc::clone(&numbers)));
    }
    let mut count = answered.count.subscribe();
    count.wait_for(|count| *count >= target).within(DEADLINE).await??;
    Ok(posters)
}

/// The agent is killed with SIGKILL three times under load from several connections. Every message that
/// was answered 200 arrives at the receiver and in the logs; what arrives twice has the same id and body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_nothing_answered_200() {
    let mut world = World::start().await.unwrap();
    let answered = Answered::new();
    let cycles = std::env::var(CYCLES_ENV).map_or(CYCLES_DEFAULT, |cycles| cycles.parse().unwrap());
    for wanted in ANSWERED_BEFORE_KILL.into_iter().cycle().take(cycles) {
        let posters = post_until_answered(&world, &answered, wanted).await.unwrap();
        world.agent.kill().await.unwrap();
        posters.join_all().await;
        world.agent.start_again().await.unwrap();
    }
    assert_arrived(&world, &answered.all()).await.unwrap();
    assert_logged(&world, &answered.all()).await.unwrap();
}

/// The agent is asked to stop under load: it ends with success within its time, and what it had answered 200
/// arrives, whatever it had to leave for its next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing_answered_200() {
    let mut world = World::start().await.unwrap();
    let answered = Answered::new();
    let posters = post_until_answered(&world, &answered, 150).await.unwrap();
    let status = world.agent.stop().await.unwrap();
    assert!(status.success(), "the agent ended with {status}");
    posters.join_all().await;
    world.agent.start_again().await.unwrap();
    assert_arrived(&world, &answered.all()).await.unwrap();
    assert_logged(&world, &answered.all()).await.unwrap();
}

/// Every answered message has arrived, signed, and what arrived twice is the same twice.
async fn assert_arrived(world: &World, answered: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let arrived: BTreeSet<String> =
            world.receiver.all().iter().map(|webhook| webhook.text("external_message_id")).collect();
        let missing = answered.difference(&arrived).count();
        ensure!(missing == 0, "{missing} of {} answered messages have not arrived", answered.len());
        Ok(())
    })
    .await?;
    for (id, webhooks) in world.receiver.by_id() {
        ensure!(webhooks.iter().all(|webhook| webhook.body == webhooks[0].body), "{id} changed its body");
        ensure!(webhooks.iter().all(|webhook| webhook.verify(&world.secret).is_ok()), "{id} is not signed");
    }
    Ok(())
}

/// Every answered message has exactly one log, and it is delivered.
async fn assert_logged(world: &World, answered: &BTreeSet<String>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let mut logs = BTreeMap::<String, usize>::new();
        for log in world.logs().await? {
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
