//! While everything is being changed, every attempt is signed with what its subscription has, and goes where
//! it says.

mod slot;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gateway_core::signature::{WebhookHeaders, verify_webhook};
use gateway_tests::{
    DEADLINE, MetaProvider, Webhook, World, eventually, figure,
    random::{Random, seed},
    world::{WorldOptions, add_instance},
};
use tokio::task::JoinSet;

use super::digests::{Comparisons, none_differs};
use slot::{Life, Slot};

/// How many edits there are; `just soak` sets 10,000.
const EDITS_ENV: &str = "GATEWAY_TESTS_EDITS";
const EDITS_DEFAULT: usize = 2_000;
/// Editors at the same time, each with instances and subscriptions of its own.
const EDITORS: usize = 4;
/// Subscriptions of one editor; the first has an instance to itself.
const SLOTS: usize = 5;
/// Providers' connections.
const POSTERS: usize = 2;
const FROM: &str = "966500000001";
/// How long after an edit was answered attempts may still go by what was before: the agent has to hear of it,
/// and an attempt to end. Generous, because a shared machine can stall for seconds.
const WINDOW: Duration = Duration::from_secs(10);

fn number_of(editor: usize, place: usize) -> String {
    format!("2000{editor}{place}")
}

/// One editor: edits its slots, one after the other, at random.
async fn edit(
    world: Arc<World>,
    editor: usize,
    mut random: Random,
    edits: usize,
) -> anyhow::Result<Vec<Life>> {
    let client = world.client();
    let mut slots = Vec::new();
    for place in 0..SLOTS {
        // The last slots share an instance.
        let place_of_instance = place.min(2);
        let instance_id = format!("inst-{editor}-{place_of_instance}");
        slots.push(Slot::create(&world, &instance_id, &format!("/{editor}/{place}")).await?);
    }
    for _ in 0..edits {
        let place = usize::try_from(random.within(0..u64::try_from(SLOTS)?))?;
        let slot = &mut slots[place];
        match random.within(0..100) {
            0..35 => slot.move_destination(&world).await,
            35..60 => slot.rotate(&world, Duration::from_secs(random.within(0..2))).await,
            60..75 => slot.pause_or_resume(&world).await,
            75..85 => slot.replace(&world).await,
            85..90 => slot.rename_instance(&world).await,
            90..97 => slot.rotate_route(&world).await,
            _ if place == 0 => {
                let number = number_of(editor, 0);
                slot.replace_with_instance(&world, &number).await
            }
            _ => slot.rotate(&world, Duration::ZERO).await,
        }
        .with_context(|| format!("edit slot {place} of editor {editor}"))?;
    }
    for slot in &mut slots {
        slot.resume(client).await?;
    }
    Ok(slots.into_iter().flat_map(Slot::into_lives).collect())
}

/// Posts messages for random numbers until told to stop; gives how many.
async fn post(
    provider: MetaProvider,
    mut random: Random,
    stop: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<usize> {
    let mut count = 0;
    while !*stop.borrow() {
        let editor = usize::try_from(random.within(0..u64::try_from(EDITORS)?))?;
        let place = usize::try_from(random.within(0..3))?;
        provider.with_number(&number_of(editor, place)).say(FROM, "in the middle of it").await?;
        count += 1;
    }
    Ok(count)
}

/// The webhook went where its subscription said at that time, and each of its signatures is by a secret that
/// the subscription had then.
fn check(webhook: &Webhook, lives: &[Life], by_path: &HashMap<&str, usize>) -> anyhow::Result<()> {
    let life = by_path.get(webhook.path.as_str()).map(|index| &lives[*index]);
    let life = life.with_context(|| format!("{} was never configured", webhook.path))?;
    let at = webhook.receive_time;
    let destination = life.destinations.iter().find(|destination| destination.value == webhook.path);
    let destination = destination.context("find the destination of the path")?;
    ensure!(destination.covers(at, WINDOW), "{} was not configured at that time", webhook.path);
    let signatures = webhook.header("webhook-signature");
    ensure!(!signatures.is_empty(), "an attempt to {} is unsigned", webhook.path);
    let secrets: Vec<_> = life.secrets.iter().filter(|secret| secret.covers(at, WINDOW)).collect();
    let secrets: Vec<_> = secrets.into_iter().map(|secret| secret.value.clone()).collect();
    for signature in signatures.split(' ') {
        let headers =
            WebhookHeaders { id: webhook.id(), timestamp: webhook.header("webhook-timestamp"), signature };
        let verified =
            verify_webhook(&secrets, headers, &webhook.body, webhook.receive_timestamp.as_second());
        verified.with_context(|| format!("a signature of an attempt to {} is of nobody", webhook.path))?;
    }
    Ok(())
}

/// The agent has what it should have, on its disk too: it is started again, and a new connection is compared at once.
async fn has_what_it_should_have(mut world: World) -> anyhow::Result<()> {
    let before = Comparisons::of(&world.control_plane).await?;
    world.agent.stop().await?;
    world.agent.start_again().await?;
    none_differs(&world.control_plane, before).await
}

/// Thousands of random edits of subscriptions, secrets, destinations, instances and routes while callbacks
/// flow: no attempt is ever unsigned, or signed with a secret that its subscription did not have around that
/// time, or sent to a destination that was not configured around that time; and in the end everything goes by
/// the last edit. `GATEWAY_TESTS_SEED` repeats the choices of a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_edits_never_send_unsigned_or_astray() {
    let edits: usize = std::env::var(EDITS_ENV).map_or(EDITS_DEFAULT, |edits| edits.parse().unwrap());
    let seed = seed().unwrap();
    let random = |number: u64| Random::of_seed(seed.wrapping_add(number));
    let world = Arc::new(World::start_with(WorldOptions::default()).await.unwrap());
    for editor in 0..EDITORS {
        for place in 0..3 {
            let id = format!("inst-{editor}-{place}");
            add_instance(world.client(), &id, "route-test", &number_of(editor, place)).await.unwrap();
        }
    }
    world.config_applied().await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut posters = JoinSet::new();
    for number in 0..POSTERS {
        posters.spawn(post(
            world.provider.clone(),
            random(100 + u64::try_from(number).unwrap()),
            stopped.clone(),
        ));
    }
    let began = Instant::now();
    let mut editors = JoinSet::new();
    for editor in 0..EDITORS {
        let random = random(u64::try_from(editor).unwrap());
        editors.spawn(edit(Arc::clone(&world), editor, random, edits / EDITORS));
    }
    let mut lives = Vec::new();
    while let Some(edited) = editors.join_next().await {
        lives.extend(edited.unwrap().with_context(|| format!("seed {seed}")).unwrap());
    }
    let took = began.elapsed();
    stop.send_replace(true);
    let mut posted = 0;
    while let Some(count) = posters.join_next().await {
        posted += count.unwrap().unwrap();
    }
    world.config_applied().await.unwrap();
    let last: Vec<String> = lives.iter().filter_map(|life| Some(life.current_path()?.to_owned())).collect();
    assert_eq!(last.len(), EDITORS * SLOTS);
    for (editor, place) in (0..EDITORS).flat_map(|editor| (0..3).map(move |place| (editor, place))) {
        world.provider.with_number(&number_of(editor, place)).say(FROM, "the last word").await.unwrap();
    }
    eventually(DEADLINE * 4, async || {
        let all = world.receiver.all();
        let missing = last.iter().filter(|path| {
            !all.iter()
                .any(|webhook| webhook.path == **path && webhook.json().to_string().contains("the last word"))
        });
        let missing: Vec<_> = missing.collect();
        ensure!(missing.is_empty(), "the last word has not reached {missing:?}");
        Ok(())
    })
    .await
    .with_context(|| format!("seed {seed}"))
    .unwrap();
    let by_path: HashMap<&str, usize> = lives
        .iter()
        .enumerate()
        .flat_map(|(index, life)| life.destinations.iter().map(move |known| (known.value.as_str(), index)))
        .collect();
    let webhooks = world.receiver.all();
    for webhook in webhooks.iter().filter(|webhook| webhook.path != gateway_tests::world::PATH) {
        check(webhook, &lives, &by_path).with_context(|| format!("seed {seed}")).unwrap();
    }
    let world = Arc::into_inner(world).unwrap();
    has_what_it_should_have(world).await.with_context(|| format!("seed {seed}")).unwrap();
    figure(format_args!(
        "{edits} edits in {took:?}, {posted} callbacks meanwhile, {} attempts, all signed and where they belong",
        webhooks.len()
    ));
}
