//! Subscriptions that are paused, gone, deleted or not known yet.

use super::*;

fn paused(subscription: v1::WebhookSubscription) -> v1::WebhookSubscription {
    v1::WebhookSubscription { state: v1::WebhookSubscriptionState::Paused.into(), ..subscription }
}

/// While a subscription is paused its deliveries are held and said to be held, those that wait for a retry
/// included; once it is resumed they go on at once.
#[tokio::test]
async fn paused_deliveries_are_held_and_resumed() {
    let receiver = Receiver::start(|before| match before {
        0 => Reply::Status(500, "", ""),
        _ => Reply::Status(200, "", ""),
    })
    .await;
    let active = by_default(subscription("sub_a", &receiver.url()));
    let world = World::new([active.clone()]).await;
    world.append(1, &["sub_a"]).await;
    receiver.wait_for(1).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    world.reported_when("the attempt is made", is_made).await;

    world.snapshot.replace(snapshot([paused(active.clone())]));
    let delivery = world.delivery(1, "sub_a", v1::DeliveryState::Held).await;
    assert_eq!((delivery.attempt_count, delivery.next_attempt_time), (1, None));
    world.append(2, &["sub_a"]).await;
    world.delivery(2, "sub_a", v1::DeliveryState::Held).await;
    assert_eq!(receiver.requests().len(), 1);

    world.snapshot.replace(snapshot([active]));
    assert_eq!(world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await.attempt_count, 2);
    assert_eq!(world.delivery(2, "sub_a", v1::DeliveryState::Delivered).await.attempt_count, 1);
    world.stop().await;
}

/// 410 is reported, holds the subscription at once, and ends when somebody changed it.
#[tokio::test]
async fn gone_destination_is_left_alone() {
    let gone = Receiver::start(|_| Reply::Status(410, "", "")).await;
    let other = Receiver::start(ok).await;
    let world = World::new([subscription("sub_a", &gone.url())]).await;
    world.append(1, &["sub_a"]).await;
    let delivery = world.delivery(1, "sub_a", v1::DeliveryState::Held).await;
    assert_eq!((delivery.attempt_count, delivery.last_status_code), (1, 410));
    world.append(2, &["sub_a"]).await;
    world.delivery(2, "sub_a", v1::DeliveryState::Held).await;
    assert_eq!(gone.requests().len(), 1);

    let limits = ReportLimits { bytes: 1 << 20, count: 10 };
    let urgent = world.buffer.next_reports(Lane::Urgent, 0, limits).await.unwrap().reports().remove(0);
    let Some(v1::report::Report::DestinationGone(notice)) = urgent.report else { panic!("{urgent:?}") };
    assert_eq!((notice.subscription_id.as_str(), notice.destination_url), ("sub_a", gone.url()));

    world.snapshot.replace(snapshot([subscription("sub_a", &other.url())]));
    world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await;
    world.delivery(2, "sub_a", v1::DeliveryState::Delivered).await;
    assert_eq!((gone.requests().len(), other.requests().len()), (1, 2));
    world.stop().await;
}

/// What is owed to a subscription that is deleted is cancelled, and nothing is left in the buffer.
#[tokio::test]
async fn deleted_subscription_cancels() {
    let receiver = Receiver::start(|_| Reply::Status(500, "", "")).await;
    let active = by_default(subscription("sub_a", &receiver.url()));
    let world = World::new([active]).await;
    world.append(1, &["sub_a"]).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    world.reported_when("the attempt is made", is_made).await;
    world.snapshot.replace(without(&world.snapshot.load(), "sub_a", true));
    let delivery = world.delivery(1, "sub_a", v1::DeliveryState::Cancelled).await;
    assert_eq!(delivery.next_attempt_time, None);
    world.stop().await;
}

/// What is owed to a subscription that is only not for this agent any more is still delivered.
#[tokio::test]
async fn departed_subscription_is_delivered() {
    let receiver = Receiver::start(|before| match before {
        0 => Reply::Status(500, "", ""),
        _ => Reply::Status(200, "", ""),
    })
    .await;
    let world = World::new([after(&[300], subscription("sub_a", &receiver.url()))]).await;
    world.append(1, &["sub_a"]).await;
    receiver.wait_for(1).await;
    world.snapshot.replace(without(&world.snapshot.load(), "sub_a", false));
    world.append(2, &["sub_a"]).await;
    world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await;
    world.delivery(2, "sub_a", v1::DeliveryState::Delivered).await;
    world.stop().await;
}

/// Deliveries of a subscription that the configuration does not know are held, however long: they are made
/// once a configuration knows it.
#[tokio::test]
async fn unknown_subscription_is_waited_for() {
    let receiver = Receiver::start(ok).await;
    let world = World::new([]).await;
    world.append(1, &["sub_a"]).await;
    world.delivery(1, "sub_a", v1::DeliveryState::Held).await;
    world.snapshot.replace(snapshot([subscription("sub_a", &receiver.url())]));
    world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await;
    world.stop().await;
}

/// Only a configuration that says that an unknown subscription was deleted ends the wait.
#[tokio::test]
async fn unknown_subscription_is_cancelled_when_deleted() {
    let world = World::new([]).await;
    world.append(1, &["sub_a"]).await;
    world.delivery(1, "sub_a", v1::DeliveryState::Held).await;
    world.snapshot.replace(without(&world.snapshot.load(), "sub_a", true));
    world.delivery(1, "sub_a", v1::DeliveryState::Cancelled).await;
    world.stop().await;
}

/// What was held drains at a limited rate, and a new event does not wait for it.
#[tokio::test]
async fn held_deliveries_drain_beside_new_ones() {
    let receiver = Receiver::start(ok).await;
    let active = subscription("sub_a", &receiver.url());
    let world = World::new([paused(active.clone())]).await;
    world.buffer.append(entry((0..100).map(|number| event(number, &["sub_a"])))).await.unwrap();
    world.delivery(99, "sub_a", v1::DeliveryState::Held).await;

    let resumed = Instant::now();
    world.snapshot.replace(snapshot([active]));
    receiver.wait_for(1).await;
    world.append(200, &["sub_a"]).await;
    world.delivery(200, "sub_a", v1::DeliveryState::Delivered).await;
    let of_new = event_id(200).to_string();
    let before = receiver.requests();
    let place = before.iter().position(|request| request.header("webhook-id") == Some(&of_new)).unwrap();
    assert!(place < 50, "it was number {place}");
    receiver.wait_for(101).await;
    assert!(
        resumed.elapsed() > Duration::from_millis(1_800),
        "100 at 50 per second: {:?}",
        resumed.elapsed()
    );
    world.stop().await;
}

/// Pausing, resuming and other settings count from the next attempt on, within 200 ms, also for deliveries that
/// were due before.
#[tokio::test]
async fn settings_take_effect_at_once() {
    let first = Receiver::start(ok).await;
    let second = Receiver::start(ok).await;
    let at = |receiver: &Receiver| v1::WebhookSubscription {
        rate_per_second_max: 20,
        ..subscription("sub_a", &receiver.url())
    };
    let world = World::new([at(&first)]).await;
    world.buffer.append(entry((0..200).map(|number| event(number, &["sub_a"])))).await.unwrap();
    first.wait_for(2).await;

    world.snapshot.replace(snapshot([at(&second)]));
    second.wait_for(1).await;
    let before = first.requests().len();
    second.wait_for(4).await;
    assert_eq!(first.requests().len(), before, "an old setting was used");

    world.snapshot.replace(snapshot([paused(at(&second))]));
    world.delivery(199, "sub_a", v1::DeliveryState::Held).await;
    let at_pause = second.requests().len();
    // The next would be due long before the states of these are recorded one after the other.
    for number in 300..320 {
        world.append(number, &["sub_a"]).await;
        world.delivery(number, "sub_a", v1::DeliveryState::Held).await;
    }
    assert_eq!(second.requests().len(), at_pause);

    let mut took = Vec::new();
    for number in 400.. {
        let before = first.requests().len();
        world.snapshot.replace(snapshot([at(&first)]));
        let resumed = Instant::now();
        first.wait_for(before + 1).await;
        took.push(resumed.elapsed());
        // A busy machine may stand still at any one change, not at each of so many.
        if took.last().is_some_and(|took| *took < Duration::from_millis(200)) {
            break;
        }
        assert!(took.len() < 8, "{took:?}");
        world.snapshot.replace(snapshot([paused(at(&second))]));
        world.append(number, &["sub_a"]).await;
        world.delivery(number, "sub_a", v1::DeliveryState::Held).await;
    }
    world.stop().await;
}

/// Whoever mends a destination whose breaker is open need not wait for a probe: other settings are tried at
/// once.
#[tokio::test]
async fn other_settings_are_tried_at_once() {
    let broken = Receiver::start(|_| Reply::Status(500, "", "")).await;
    let mended = Receiver::start(ok).await;
    let world = World::new([by_default(subscription("sub_a", &broken.url()))]).await;
    world.buffer.append(entry((0..40).map(|number| event(number, &["sub_a"])))).await.unwrap();
    broken.wait_for(10).await;
    let changed = Instant::now();
    world.snapshot.replace(snapshot([subscription("sub_a", &mended.url())]));
    mended.wait_for(20).await;
    // A probe would have come after 30 s.
    assert!(changed.elapsed() < Duration::from_secs(20), "{:?}", changed.elapsed());
    world.stop().await;
}
