//! At-least-once: what a destination refuses is tried again, on a schedule that outlives the agent.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use gateway_core::id::EventId;
use gateway_proto::v1::{self, AttemptFailure, DeliveryState};
use gateway_tests::{
    DEADLINE, Reply, Webhook, Within as _, World,
    agent::AgentOptions,
    eventually,
    world::{INSTANCE_ID, PATH, WorldOptions},
};

const FROM: &str = "966500000001";
/// Wait before the second attempt by the default schedule, and the jitter on top of it.
const SECOND_ATTEMPT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// What a busy destination asks for.
const RETRY_AFTER: Duration = Duration::from_secs(600);
/// How often a message is refused anew when a busy machine stands still for the whole wait.
const TRIES: usize = 5;
/// How much two clocks, or a clock and a rounding, may disagree.
const TOLERANCE: Duration = Duration::from_millis(50);
/// No body may be read further than this, so the excerpt is at most this long.
const EXCERPT_BYTES_MAX: usize = 16 * 1024;

fn event_id(wamid: &str) -> String {
    EventId::derive(&["message.received", "meta", INSTANCE_ID, wamid, "", "", ""]).to_string()
}

fn timestamp(time: &prost_types::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::new(time.seconds, time.nanos).expect("the control plane gives real times")
}

/// The log of an event once its only delivery has had `count` attempts.
async fn log_after(world: &World, id: &str, count: u32) -> anyhow::Result<v1::InboundLog> {
    eventually(DEADLINE, async || {
        let log = world.log(id).await?;
        let attempts = log.deliveries.first().context("it has no delivery")?.attempt_count;
        ensure!(attempts >= count, "{attempts} of {count} attempts");
        Ok(log)
    })
    .await
}

/// A destination answers 500 and then 200. The first failure and its next attempt are in the log; the
/// second attempt comes by the schedule, with the same id and body, also when the agent is killed and
/// started again in between.
#[tokio::test]
async fn retries_after_500_by_the_schedule_also_after_a_crash() {
    let mut world = World::start().await.unwrap();
    let (first, log) = fail_once_and_kill(&mut world).await.unwrap();
    let delivery = &log.deliveries[0];
    assert_eq!(delivery.state(), DeliveryState::Pending);
    assert_eq!(delivery.last_status_code, 500);
    assert!(!delivery.last_error.is_empty());
    let next = timestamp(delivery.next_attempt_time.as_ref().unwrap());

    world.receiver.answer_with(|_| Reply::Status(200));
    world.agent.start_again().await.unwrap();
    let is_second = |webhook: &Webhook| webhook.id() == first.id() && webhook.nth == 2;
    let second = world.receiver.find(is_second).within(DEADLINE).await.unwrap();
    assert_eq!(second.body, first.body);
    second.verify(&world.secret).unwrap();
    let wait = second.receive_timestamp.duration_since(first.receive_timestamp).unsigned_abs();
    assert!(wait + TOLERANCE >= SECOND_ATTEMPT.0, "the second attempt came after {wait:?}");
    assert!(second.receive_timestamp + TOLERANCE >= next, "the second attempt came before {next}");

    world.log_in(first.id(), DeliveryState::Delivered).await.unwrap();
    let attempts = world.attempts(first.id()).await.unwrap();
    let seen: Vec<_> = attempts.iter().map(|attempt| (attempt.attempt_number, attempt.status_code)).collect();
    assert_eq!(seen, [(1, 500), (2, 200)]);
    assert_eq!(attempts[0].failure(), AttemptFailure::Status);
    assert_eq!(attempts[1].failure(), AttemptFailure::Unspecified);
    assert!(attempts.iter().all(|attempt| attempt.duration.is_some() && !attempt.agent_id.is_empty()));
    let ended = timestamp(attempts[0].start_time.as_ref().unwrap()) + SECOND_ATTEMPT.0;
    assert!(next + TOLERANCE >= ended && next <= ended + SECOND_ATTEMPT.1 + DEADLINE, "{next} after {ended}");
    assert_eq!(world.receiver.by_id()[first.id()].len(), 2);
}

/// A message is refused once; when the log shows it the agent is killed, before its second attempt.
async fn fail_once_and_kill(world: &mut World) -> anyhow::Result<(Arc<Webhook>, v1::InboundLog)> {
    world.receiver.answer_with(|_| Reply::Status(500));
    for _ in 0..TRIES {
        let wamid = world.provider.say(FROM, "try again").await?;
        let first = world.delivered(&wamid).await?;
        let log = log_after(world, first.id(), 1).await?;
        world.agent.kill().await?;
        world.receiver.disconnected().within(DEADLINE).await??;
        if log.deliveries[0].attempt_count == 1 && world.receiver.by_id()[first.id()].len() == 1 {
            return Ok((first, log));
        }
        // The machine stood still until the second attempt had been made.
        world.agent.start_again().await?;
    }
    anyhow::bail!("the log shows a failure only when the next attempt is made")
}

/// Answers that are no success: a redirect is not followed, a closed connection, a busy destination
/// and one where nobody listens are told apart, and each is due again, the busy one when it asked for it.
#[tokio::test]
async fn failures_are_told_apart_and_redirects_not_followed() {
    let world = World::start().await.unwrap();
    let target = world.receiver.url("/redirected");
    world.receiver.answer_with(move |webhook| match webhook.path.as_str() {
        "/redirects" => Reply::Header(302, "location", target.clone()),
        "/closes" => Reply::Close,
        "/busy" => Reply::Header(503, "retry-after", RETRY_AFTER.as_secs().to_string()),
        _ => Reply::Status(200),
    });
    let busy = world.subscribe("/busy", &["message.received"]).await.unwrap();
    let redirects = world.subscribe("/redirects", &["message.received"]).await.unwrap();
    let closes = world.subscribe("/closes", &["message.received"]).await.unwrap();
    let dead = format!("http://127.0.0.1:{}/dead", gateway_tests::process::free_port().unwrap());
    let dead = gateway_tests::world::subscribe(world.client(), &dead, &["message.received"]).await.unwrap();
    world.config_applied().await.unwrap();
    let wamid = world.provider.say(FROM, "anybody?").await.unwrap();
    let id = event_id(&wamid);
    eventually(DEADLINE, async || {
        let attempts = world.attempts(&id).await?;
        let failure_of = |subscription: &v1::WebhookSubscription| {
            let attempt = attempts.iter().find(|attempt| attempt.subscription_id == subscription.id);
            attempt.map(|attempt| (attempt.failure(), attempt.status_code)).context("no attempt yet")
        };
        ensure!(failure_of(&redirects)? == (AttemptFailure::Status, 302), "{:?}", failure_of(&redirects));
        ensure!(failure_of(&closes)? == (AttemptFailure::Protocol, 0), "{:?}", failure_of(&closes));
        ensure!(failure_of(&busy)? == (AttemptFailure::Status, 503), "{:?}", failure_of(&busy));
        ensure!(failure_of(&dead)? == (AttemptFailure::Connect, 0), "{:?}", failure_of(&dead));
        ensure!(failure_of(&world.subscription)?.1 == 200);
        Ok(())
    })
    .await
    .unwrap();
    let log = world.log(&id).await.unwrap();
    for delivery in log.deliveries.iter().filter(|delivery| delivery.subscription_id != world.subscription.id)
    {
        assert_eq!(delivery.state(), DeliveryState::Pending, "{delivery:?}");
        assert!(delivery.next_attempt_time.is_some() && !delivery.last_error.is_empty(), "{delivery:?}");
        assert!(!delivery.last_error.contains("127.0.0.1"), "{delivery:?}");
        let next = timestamp(delivery.next_attempt_time.as_ref().unwrap());
        let asked_for = delivery.subscription_id == busy.id;
        let wait = next.duration_since(jiff::Timestamp::now()).unsigned_abs();
        assert_eq!(wait > RETRY_AFTER / 2, asked_for, "{delivery:?}");
    }
    assert!(world.receiver.all().iter().all(|webhook| webhook.path != "/redirected"));
}

/// 410 pauses the subscription and holds its deliveries, those that come later too; resuming delivers them.
#[tokio::test]
async fn gone_pauses_and_resuming_delivers_what_was_held() {
    let world = World::start().await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(410));
    let first = world.provider.say(FROM, "are you gone?").await.unwrap();
    let paused = eventually(DEADLINE, async || {
        let request = v1::GetWebhookSubscriptionRequest { id: world.subscription.id.clone() };
        let response = world.client().webhook_subscriptions().get_webhook_subscription(request).await?;
        let subscription = response.into_inner().webhook_subscription.context("no subscription")?;
        ensure!(subscription.state() == v1::WebhookSubscriptionState::Paused, "{:?}", subscription.state());
        Ok(subscription)
    });
    assert!(!paused.await.unwrap().pause_reason.is_empty());
    world.config_applied().await.unwrap();
    world.log_in(&event_id(&first), DeliveryState::Held).await.unwrap();
    let second = world.provider.say(FROM, "still there?").await.unwrap();
    world.log_in(&event_id(&second), DeliveryState::Held).await.unwrap();
    assert_eq!(world.receiver.count(), 1);

    world.receiver.answer_with(|_| Reply::Status(200));
    let request = v1::ResumeWebhookSubscriptionRequest { id: world.subscription.id.clone() };
    world.client().webhook_subscriptions().resume_webhook_subscription(request).await.unwrap();
    for wamid in [&first, &second] {
        world.log_in(&event_id(wamid), DeliveryState::Delivered).await.unwrap();
    }
    assert_eq!(world.receiver.count(), 3);
}

/// The answer's body is part of the attempt: one that drips for ever runs into the timeout, one that floods
/// is cut, and neither keeps the agent from serving others.
#[tokio::test]
async fn endless_answers_are_bounded() {
    let world = World::start().await.unwrap();
    world.receiver.answer_with(|webhook| match webhook.path.as_str() {
        "/drips" => Reply::Drip,
        "/floods" => Reply::Flood,
        "/hangs" => Reply::Hang,
        _ => Reply::Status(200),
    });
    for (id, path) in [("sub-drips", "/drips"), ("sub-floods", "/floods"), ("sub-hangs", "/hangs")] {
        let request = v1::CreateWebhookSubscriptionRequest {
            webhook_subscription: Some(v1::WebhookSubscription {
                id: id.to_owned(),
                instance_id: INSTANCE_ID.to_owned(),
                destination_url: world.receiver.url(path),
                events: vec!["message.received".to_owned()],
                attempt_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        world.client().webhook_subscriptions().create_webhook_subscription(request).await.unwrap();
    }
    world.config_applied().await.unwrap();
    let wamid = world.provider.say(FROM, "talk to me").await.unwrap();
    let delivered = world.receiver.find(|webhook| webhook.path == PATH).within(DEADLINE).await.unwrap();
    assert_eq!(delivered.text("external_message_id"), wamid);
    let attempts = eventually(DEADLINE, async || {
        let attempts = world.attempts(&event_id(&wamid)).await?;
        ensure!(attempts.len() >= 4, "{} of 4 attempts", attempts.len());
        Ok(attempts)
    });
    for attempt in attempts.await.unwrap() {
        assert!(attempt.response_excerpt.len() <= EXCERPT_BYTES_MAX, "{}", attempt.subscription_id);
        let seconds = attempt.duration.map(|duration| duration.seconds);
        assert!(
            seconds.is_some_and(|seconds| seconds < 10),
            "{} took {seconds:?} s",
            attempt.subscription_id
        );
        if matches!(attempt.subscription_id.as_str(), "sub-drips" | "sub-hangs") {
            assert_eq!(attempt.failure(), AttemptFailure::Timeout, "{}", attempt.subscription_id);
        }
    }
}

/// The address is checked again when it is dialled: a name that leads to an address which this agent may
/// not reach is not called, and the log does not say where it leads.
#[tokio::test]
async fn blocked_addresses_are_not_dialled() {
    let agent = AgentOptions { destinations: Some("10.0.0.0/8".to_owned()), ..AgentOptions::default() };
    let options = WorldOptions { agent, ..WorldOptions::default() };
    let world = World::start_with(options).await.unwrap();
    let wamid = world.provider.say(FROM, "let me in").await.unwrap();
    let id = event_id(&wamid);
    let attempts = eventually(DEADLINE, async || {
        // The event may be reported before its first attempt is.
        let attempts = world.attempts(&id).await?;
        ensure!(!attempts.is_empty(), "no attempt is logged yet");
        Ok(attempts)
    });
    let attempts = attempts.await.unwrap();
    assert!(
        attempts.iter().all(|attempt| attempt.failure() == AttemptFailure::BlockedAddress),
        "{attempts:?}"
    );
    assert!(attempts.iter().all(|attempt| !attempt.error.contains("127.")), "{attempts:?}");
    assert_eq!(world.receiver.count(), 0);
}
