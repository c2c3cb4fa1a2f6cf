//! A damaged buffer stops nobody: the agent serves, what can be read is delivered, and the rest is counted,
//! set aside and reported.
//!
//! A backlog is made once ([`backlog`]); for every case its data is copied, hurt ([`injury`]), and the agent
//! is started on it ([`case`]).

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use gateway_tests::{
    figure,
    random::{Random, seed},
};

mod backlog;
mod injury;
mod case;

use backlog::Backlog;
use case::{Outcome, run};
use injury::Injury;

/// Cases that run at the same time.
const LANES: usize = 2;
/// How many random places are damaged; `just soak` sets more.
const PLACES_ENV: &str = "GATEWAY_TESTS_DAMAGES";
const PLACES_DEFAULT: u64 = 50;

/// Runs cases that `injury` makes of their numbers, a lane with a backlog of its own for each part of them. All
/// of them are run, also when some fail.
async fn run_cases(
    count: u64,
    injury: impl Fn(u64, &Backlog) -> anyhow::Result<Injury>,
) -> anyhow::Result<Vec<Outcome>> {
    let lanes = (0..LANES).map(async |lane| {
        let backlog = Backlog::make().await.context("make the backlog")?;
        let (mut outcomes, mut failures) = (Vec::new(), Vec::new());
        for number in (0..count).skip(lane).step_by(LANES) {
            let injury = injury(number, &backlog)?;
            let description = injury.to_string();
            match run(&backlog, injury).await {
                Ok(outcome) => outcomes.push(outcome),
                Err(failure) => failures.push(format!("case {number}: {description}: {failure:?}\n")),
            }
        }
        anyhow::Ok((outcomes, failures))
    });
    let (outcomes, failures): (Vec<_>, Vec<_>) = try_join_all(lanes).await?.into_iter().unzip();
    let failures = failures.concat();
    ensure!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.concat());
    Ok(outcomes.concat())
}

fn show(what: &str, outcomes: &[Outcome]) {
    let longest = |of: fn(&Outcome) -> Duration| outcomes.iter().map(of).max().unwrap_or_default();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    figure(format_args!(
        "{what}: {} cases, serving after at most {:?}, delivered after at most {:?}; {} of {} events lost in {} cases, \
         {} reported as perhaps lost, {} things set aside",
        outcomes.len(),
        longest(|outcome| outcome.serving),
        longest(|outcome| outcome.delivered),
        sum(|outcome| outcome.lost),
        sum(|outcome| outcome.events),
        outcomes.iter().filter(|outcome| outcome.lost > 0).count(),
        sum(|outcome| outcome.reported_lost_max),
        sum(|outcome| outcome.set_aside),
    ));
}

/// At random places of journal, marks and index, bytes are flipped, overwritten, cut out, or everything
/// behind them is gone. Each time the agent serves within 30 seconds, and every event arrives but those whose
/// bytes were touched, which are reported to the control plane. `GATEWAY_TESTS_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_at_random_places_stops_nobody() {
    let places = std::env::var(PLACES_ENV).map_or(PLACES_DEFAULT, |places| places.parse().unwrap());
    let seed = seed().unwrap();
    let outcomes = run_cases(places, move |number, backlog| {
        let mut random = Random::of_seed(seed.wrapping_add(number));
        Injury::at_random(&mut random, backlog)
    });
    let outcomes = outcomes.await.with_context(|| format!("seed {seed}")).unwrap();
    show(&format!("random damage (seed {seed})"), &outcomes);
}

/// Whole files are gone, grown or full of zeros: the oldest, a middle and the newest segment, the index, the
/// marks, the journal, all of it. The agent serves and delivers what is left; zeros behind the newest record
/// are what a crash leaves, and no damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_and_strange_files_stop_nobody() {
    let count = u64::try_from(Injury::NAMED.len()).unwrap();
    let outcomes = run_cases(count, |number, backlog| Injury::NAMED[usize::try_from(number)?](backlog));
    show("lost and strange files", &outcomes.await.unwrap());
}
