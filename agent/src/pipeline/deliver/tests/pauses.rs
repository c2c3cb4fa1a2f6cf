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
    let active = subscription("sub_a", &receiver.url());
    let world = World::with([active.clone()], &["127.0.0.0/8"], retry::next_attempt, &[]).await;
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
    let urgent = world.buffer.next_reports(Lane::Urgent, 0, limits).await.unwrap().reports.remove(0);
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
    let active = subscription("sub_a", &receiver.url());
    let world = World::with([active], &["127.0.0.0/8"], retry::next_attempt, &[]).await;
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
    let slow = |_, _, _| Next::After(Duration::from_millis(300));
    let world = World::with([subscription("sub_a", &receiver.url())], &["127.0.0.0/8"], slow, &[]).await;
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
