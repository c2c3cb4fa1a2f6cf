//! The ordinary drain.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;
use gateway_proto::v1;
use gateway_tests::{DEADLINE, Reply, Within as _, eventually, meta::text_message};

use super::fleet::{FROM, all_delivered, becomes, drain, id_of, join, refusing, retire_first, say, waits};

/// Messages of a test. After ten failures in a row an agent tries a destination every 30 s only.
const MESSAGES: usize = 3;
/// How much two clocks, or a clock and a rounding, may disagree.
const TOLERANCE: Duration = Duration::from_millis(50);

fn timestamp(time: &prost_types::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::new(time.seconds, time.nanos).expect("the control plane gives real times")
}

/// An agent that drains is drained at once although its destination is down, and can go. The other agent of the region
/// goes on with the next attempt of each delivery, not before it is due, with the same id and body. When the
/// destination is well again each event is delivered, once; its log shows one delivery, and the attempts of both
/// agents in order and without a gap.
#[tokio::test]
async fn another_agent_goes_on() {
    let mut world = refusing(&[1, 2]).await.unwrap();
    let (second, _) = join(&world, "second").await.unwrap();
    let wamids = say(&world, &world.provider, MESSAGES).await.unwrap();
    let first_id = id_of(&world.agent);
    retire_first(&mut world).await.unwrap();
    let second_id = id_of(&second);
    let tried = eventually(DEADLINE, async || {
        for log in world.logs().await? {
            let attempts = world.attempts(&log.event_id).await?;
            ensure!(attempts.iter().any(|attempt| attempt.agent_id == second_id), "the second has not tried");
        }
        Ok(())
    });
    tried.await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(200));
    let agents = all_delivered(&world, &wamids).await.unwrap();
    for of_event in agents {
        let handed_over = of_event.iter().take_while(|id| **id == first_id).count();
        assert!(handed_over > 0 && of_event[handed_over..].iter().all(|id| *id == second_id), "{of_event:?}");
    }
    for log in world.logs().await.unwrap() {
        let attempts = world.attempts(&log.event_id).await.unwrap();
        let starts: Vec<_> =
            attempts.iter().map(|attempt| timestamp(attempt.start_time.as_ref().unwrap())).collect();
        for (number, pair) in (1..).zip(starts.windows(2)) {
            let due = Duration::from_secs(if number == 1 { 1 } else { 2 });
            let waited = pair[1].duration_since(pair[0]).unsigned_abs();
            assert!(waited + TOLERANCE >= due, "attempt {} came after {waited:?}", number + 1);
        }
        assert_eq!(log.agent_id, first_id, "the log says who took the callback");
        assert_eq!(attempts.iter().filter(|attempt| attempt.status_code == 200).count(), 1);
    }
    let webhooks = world.receiver.by_id();
    for log in world.logs().await.unwrap() {
        assert_eq!(webhooks[&log.event_id].len(), world.attempts(&log.event_id).await.unwrap().len());
    }
    waits(&world, 0.0).await.unwrap();
}

/// What is held because its subscription is paused is handed over too, and delivered by the other agent after
/// the pause.
#[tokio::test]
async fn held_deliveries_are_handed_over() {
    let mut world = refusing(&[1, 2]).await.unwrap();
    let (second, _) = join(&world, "second").await.unwrap();
    let mut wamids = say(&world, &world.provider, MESSAGES).await.unwrap();
    let pause =
        v1::PauseWebhookSubscriptionRequest { id: world.subscription.id.clone(), ..Default::default() };
    world.client().webhook_subscriptions().pause_webhook_subscription(pause).await.unwrap();
    world.config_applied().await.unwrap();
    for _ in 0..MESSAGES {
        wamids.insert(world.provider.say(FROM, "held").await.unwrap());
    }
    retire_first(&mut world).await.unwrap();
    becomes(&world, &id_of(&second), v1::AgentState::Online, DEADLINE).await.unwrap();
    let held = eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let held = logs.iter().flat_map(|log| &log.deliveries);
        let held = held.filter(|delivery| delivery.state() == v1::DeliveryState::Held).count();
        ensure!(held == wamids.len(), "{held} of {} are held", wamids.len());
        Ok(())
    });
    held.await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(200));
    let resume = v1::ResumeWebhookSubscriptionRequest { id: world.subscription.id.clone() };
    world.client().webhook_subscriptions().resume_webhook_subscription(resume).await.unwrap();
    all_delivered(&world, &wamids).await.unwrap();
    let once: BTreeMap<_, _> =
        world.receiver.by_id().into_iter().map(|(id, webhooks)| (id, webhooks.len())).collect();
    assert_eq!(
        once.values().filter(|count| **count == 1).count(),
        MESSAGES,
        "what was held came once: {once:?}"
    );
}

/// A provider that repeats an event at the agent that took its delivery over gets a duplicate counted, and the customer
/// no second delivery.
#[tokio::test]
async fn a_repeat_after_the_hand_over_is_a_duplicate() {
    let mut world = refusing(&[1, 2]).await.unwrap();
    let (second, at_second) = join(&world, "second").await.unwrap();
    let wamid = gateway_tests::meta::unique_wamid();
    let callback = world.provider.messages(&[text_message(&wamid, FROM, "once")]);
    assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
    let webhook = world.delivered(&wamid).await.unwrap();
    retire_first(&mut world).await.unwrap();
    let second_id = id_of(&second);
    let taken_over = eventually(DEADLINE, async || {
        let attempts = world.attempts(webhook.id()).await?;
        ensure!(attempts.iter().any(|attempt| attempt.agent_id == second_id), "not tried by the second");
        Ok(())
    });
    taken_over.await.unwrap();
    for repeats in 1..=2 {
        assert_eq!(at_second.post(&callback).await.unwrap().status, 200);
        let counted = eventually(DEADLINE, async || {
            let count = world.log(webhook.id()).await?.duplicate_count;
            ensure!(count == repeats, "{count} repeats are counted, not {repeats}");
            Ok(())
        });
        counted.await.unwrap();
    }
    world.receiver.answer_with(|_| Reply::Status(200));
    let wamids = [wamid.clone()].into();
    all_delivered(&world, &wamids).await.unwrap();
    // What comes later is reported later.
    let later = at_second.say(FROM, "later").await.unwrap();
    let later = world.delivered(&later).await.unwrap();
    world.log_in(later.id(), v1::DeliveryState::Delivered).await.unwrap();
    let log = world.log(webhook.id()).await.unwrap();
    assert!(log.duplicate_count == 2 && log.deliveries.len() == 1, "{log:?}");
    let attempts = world.attempts(webhook.id()).await.unwrap();
    assert_eq!(world.receiver.by_id()[webhook.id()].len(), attempts.len());
}

/// The drain of the only agent is undone: it gets its deliveries back and goes on where they stood.
#[tokio::test]
async fn an_undone_drain_gives_them_back() {
    let world = refusing(&[1, 2]).await.unwrap();
    let wamids = say(&world, &world.provider, MESSAGES).await.unwrap();
    let id = id_of(&world.agent);
    drain(&world, &id, false).await.unwrap();
    becomes(&world, &id, v1::AgentState::Drained, DEADLINE).await.unwrap();
    waits(&world, 3.0).await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(200));
    drain(&world, &id, true).await.unwrap();
    becomes(&world, &id, v1::AgentState::Online, DEADLINE).await.unwrap();
    waits(&world, 0.0).await.unwrap();
    all_delivered(&world, &wamids).await.unwrap();
    let webhook = world.provider.say(FROM, "and new ones").await.unwrap();
    world.receiver.message(&webhook).within(DEADLINE).await.unwrap();
}
