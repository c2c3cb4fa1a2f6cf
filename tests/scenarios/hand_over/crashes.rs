//! kill -9 while deliveries change hands.

use std::{collections::BTreeSet, time::Duration};

use gateway_proto::v1;
use gateway_tests::{
    Agent, DEADLINE, MetaProvider, Reply, World,
    random::{Random, seed},
};

use super::fleet::{LONG, becomes, drain, id_of, join, refusing, settled, waits};

/// How often each of the three is killed.
const ROUNDS: usize = 3;
/// Messages of a round.
const MESSAGES: usize = 150;
/// Milliseconds after the drain was asked for within which somebody is killed: about as long as it all takes.
const MOMENTS: std::ops::Range<u64> = 0..120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Giving,
    ControlPlane,
    Taking,
}

/// Posts messages to an agent, drains it, kills the victim after `moment` and starts it again. The drain comes
/// to its end, and is undone.
async fn round(
    world: &mut World,
    second: &mut Agent,
    providers: &[MetaProvider; 2],
    first_gives: bool,
    (victim, moment): (Victim, Duration),
) -> anyhow::Result<BTreeSet<String>> {
    let provider = &providers[usize::from(!first_gives)];
    let mut wamids = BTreeSet::new();
    for number in 0..MESSAGES {
        wamids.insert(provider.say("966500000001", &format!("number {number}")).await?);
    }
    let id = if first_gives { id_of(&world.agent) } else { id_of(second) };
    drain(world, &id, false).await?;
    tokio::time::sleep(moment).await;
    match victim {
        Victim::ControlPlane => {
            world.control_plane.kill().await?;
            world.control_plane.start_again().await?;
        }
        _ => {
            let agent = if first_gives == (victim == Victim::Giving) { &mut world.agent } else { second };
            agent.kill().await?;
            agent.launch_again()?;
        }
    }
    becomes(world, &id, v1::AgentState::Drained, LONG).await?;
    drain(world, &id, true).await?;
    becomes(world, &id, v1::AgentState::Online, LONG).await?;
    Ok(wamids)
}

/// The agent that gives deliveries away, the control plane, and the agent that takes them over are killed at moments
/// chosen by chance, several times each. Nothing is lost, nothing stays owed anywhere, and every webhook about an
/// event has the same body.
#[tokio::test]
async fn nothing_is_lost_when_somebody_is_killed() {
    let mut random = Random::of_seed(seed().unwrap());
    gateway_tests::figure(format!("seed {random:?}"));
    // The destination refuses until the end of the last round.
    let mut world = refusing(&[1, 10]).await.unwrap();
    let (mut second, at_second) = join(&world, "second").await.unwrap();
    let providers = [world.provider.clone(), at_second];
    let mut wamids = BTreeSet::new();
    let mut first_gives = true;
    for _ in 0..ROUNDS {
        for victim in [Victim::Giving, Victim::ControlPlane, Victim::Taking] {
            let moment = Duration::from_millis(random.within(MOMENTS));
            let said = round(&mut world, &mut second, &providers, first_gives, (victim, moment)).await;
            wamids.extend(said.unwrap_or_else(|error| panic!("{victim:?} after {moment:?}: {error:#}")));
            first_gives = !first_gives;
        }
    }
    world.receiver.answer_with(|_| Reply::Status(200));
    let logs = settled(&world, &wamids).await.unwrap();
    assert_eq!(logs.len(), 3 * ROUNDS * MESSAGES);
    waits(&world, 0.0).await.unwrap();
    for agent in [&world.agent, &second] {
        let id = id_of(agent);
        drain(&world, &id, false).await.unwrap();
        let drained = becomes(&world, &id, v1::AgentState::Drained, DEADLINE).await.unwrap();
        assert_eq!(drained.buffer_events, 0);
    }
    waits(&world, 0.0).await.unwrap();
    let again: usize = world.receiver.by_id().values().map(Vec::len).sum();
    let recorded = {
        let mut count = 0;
        for log in &logs {
            count += world.attempts(&log.event_id).await.unwrap().len();
        }
        count
    };
    gateway_tests::figure(format!("{} events, {again} webhooks, {recorded} attempts in the log", logs.len()));
}
