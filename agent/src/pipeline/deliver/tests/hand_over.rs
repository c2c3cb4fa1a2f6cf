//! What a draining agent gives away, and when; and what becomes of deliveries that it takes over.

use std::collections::BTreeSet;

use super::*;
use crate::pipeline::buffer::{AppendError, Entry, TakenOver};

/// So long nothing comes by itself in these tests.
const LATER_MS: u32 = 3_600_000;

fn failing(_before: usize) -> Reply {
    Reply::Status(500, "", "broken")
}

impl World {
    /// The control plane asks the agent to drain, or not to any more.
    fn drain(&self, on: bool) {
        self.snapshot.drain().set(on).unwrap();
    }

    /// In which the control plane takes hand-overs.
    async fn taking(
        subscriptions: impl IntoIterator<Item = v1::WebhookSubscription>,
        tuning: Tuning,
    ) -> Self {
        let world = Self::with(subscriptions, clock::now, tuning).await;
        world.snapshot.drain().set_takes_hand_overs(true);
        world
    }

    async fn handed_over(&self, count: usize) -> Reported {
        self.reported_when("deliveries are handed over", |reported| reported.hand_overs.len() >= count).await
    }

    /// Makes webhooks to a destination that works, until so much time is over.
    async fn busy_for(&self, subscription: &str, time: Duration, first: u32) {
        let begun = Instant::now();
        for number in first.. {
            self.append(number, &[subscription]).await;
            self.delivery(number, subscription, v1::DeliveryState::Delivered).await;
            if begun.elapsed() > time {
                return;
            }
        }
    }

    /// Another agent takes all of this over.
    async fn take_over(&self, hand_overs: Vec<v1::DeliveryHandOver>) -> Result<(), AppendError> {
        let taken_over = hand_overs.into_iter().map(|given| TakenOver::try_from(given).unwrap()).collect();
        self.buffer.append(Entry { taken_over, ..Entry::default() }).await.map(drop)
    }
}

fn impatient() -> Tuning {
    Tuning { give_patience: Duration::from_millis(300), ..Tuning::default() }
}

/// A delivery that another agent tried once, due in the year 2100.
fn hand_over(number: u32, subscription: &str) -> v1::DeliveryHandOver {
    let delivery = v1::Delivery {
        subscription_id: subscription.to_owned(),
        attempt_count: 1,
        next_attempt_time: Some(ProtoTimestamp { seconds: 4_102_444_800, nanos: 0 }),
        ..v1::Delivery::default()
    };
    v1::DeliveryHandOver {
        id: number.to_string(),
        inbound_log: Some(event(number, &[]).log),
        delivery: Some(delivery),
        had_quick_retry: false,
    }
}

/// The event and how often it was tried.
fn given(hand_over: &v1::DeliveryHandOver) -> (String, u32) {
    let attempts = hand_over.delivery.as_ref().unwrap().attempt_count;
    (hand_over.inbound_log.as_ref().unwrap().event_id.clone(), attempts)
}

/// What waits for its retry is given away when the drain begins, and what fails meanwhile right after its attempt.
/// Neither is attempted here again.
#[tokio::test]
async fn failed_deliveries_are_given_away() {
    let receiver = Receiver::start(failing).await;
    let good = Receiver::start(ok).await;
    let sub_a = after(&[3_000, 3_000, 3_000], subscription("sub_a", &receiver.url()));
    let world = World::taking([sub_a, subscription("sub_b", &good.url())], Tuning::default()).await;
    world.append(1, &["sub_a"]).await;
    world.reported_when("the attempt is made", |reported| !reported.attempts.is_empty()).await;
    world.drain(true);
    world.append(2, &["sub_a"]).await;
    let reported = world.handed_over(2).await;
    let both: BTreeSet<(String, u32)> = reported.hand_overs.iter().map(given).collect();
    assert_eq!(both, [1, 2].map(|number| (event_id(number).to_string(), 1)).into());
    assert_eq!(reported.attempts.len(), 2, "each was attempted, and its attempt is in the log");
    for hand_over in &reported.hand_overs {
        let delivery = hand_over.delivery.as_ref().unwrap();
        let key = (given(hand_over).0, "sub_a".to_owned());
        assert_eq!(reported.deliveries[&key].next_attempt_time, delivery.next_attempt_time);
        assert!(delivery.next_attempt_time.is_some() && delivery.state() == v1::DeliveryState::Pending);
    }
    world.busy_for("sub_b", Duration::from_millis(3_800), 100).await;
    assert_eq!(receiver.requests().len(), 2);
    world.stop().await;
}

/// An agent that is not asked to drain, or not by a control plane that takes hand-overs, keeps everything.
#[tokio::test]
async fn nothing_is_given_to_who_does_not_take_it() {
    let receiver = Receiver::start(|before| match before {
        0 | 1 => Reply::Status(500, "", ""),
        _ => Reply::Status(200, "", ""),
    })
    .await;
    let world = World::new([after(&[3_000], subscription("sub_a", &receiver.url()))]).await;
    world.snapshot.drain().set_takes_hand_overs(true);
    world.append(1, &["sub_a"]).await;
    receiver.wait_for(1).await;
    world.snapshot.drain().set_takes_hand_overs(false);
    world.drain(true);
    world.append(2, &["sub_a"]).await;
    for number in [1, 2] {
        world.delivery(number, "sub_a", v1::DeliveryState::Delivered).await;
    }
    assert_eq!(world.reported().await.hand_overs.len(), 0);
    world.stop().await;
}

/// What is held because its subscription is paused, or because no configuration knows it, is given away as held.
#[tokio::test]
async fn held_deliveries_are_given_away() {
    let receiver = Receiver::start(ok).await;
    let paused = v1::WebhookSubscription {
        state: v1::WebhookSubscriptionState::Paused.into(),
        ..subscription("sub_a", &receiver.url())
    };
    let world = World::taking([paused], Tuning::default()).await;
    world.append(1, &["sub_a"]).await;
    world.append(2, &["sub_unknown"]).await;
    world.delivery(1, "sub_a", v1::DeliveryState::Held).await;
    world.drain(true);
    world.append(3, &["sub_a"]).await;
    let reported = world.handed_over(3).await;
    for hand_over in &reported.hand_overs {
        assert_eq!(hand_over.delivery.as_ref().unwrap().state(), v1::DeliveryState::Held);
    }
    assert!(reported.deliveries.values().all(|delivery| delivery.state() == v1::DeliveryState::Held));
    assert_eq!(receiver.requests().len(), 0);
    world.stop().await;
}

/// What is due goes to its destination as far as that may be called; what does not get its turn for a while is given away,
/// and nothing is done twice.
#[tokio::test]
async fn what_does_not_get_its_turn_is_given_away() {
    let receiver = Receiver::start(ok).await;
    let slow = v1::WebhookSubscription { rate_per_second_max: 5, ..subscription("sub_a", &receiver.url()) };
    let tuning = Tuning { give_patience: Duration::from_secs(1), ..Tuning::default() };
    let world = World::taking([slow], tuning).await;
    world.buffer.append(entry((0..100).map(|number| event(number, &["sub_a"])))).await.unwrap();
    receiver.wait_for(1).await;
    world.drain(true);
    receiver.wait_for(3).await;
    let is_all = |reported: &Reported| reported.hand_overs.len() + reported.attempts.len() >= 100;
    let reported = world.reported_when("all have left", is_all).await;
    let given: BTreeSet<String> = reported.hand_overs.iter().map(|hand_over| given(hand_over).0).collect();
    let made: BTreeSet<String> = reported.attempts.iter().map(|attempt| attempt.event_id.clone()).collect();
    assert_eq!((given.len() + made.len(), given.intersection(&made).count()), (100, 0));
    assert!(made.len() < 90, "{} were made", made.len());
    assert_eq!(receiver.requests().len(), made.len());
    world.stop().await;
}

/// A destination whose breaker is open keeps nothing here.
#[tokio::test]
async fn dead_destination_keeps_nothing_here() {
    let receiver = Receiver::start(failing).await;
    let dead = by_default(subscription("sub_a", &receiver.url()));
    let world = World::taking([dead], impatient()).await;
    world.buffer.append(entry((0..200).map(|number| event(number, &["sub_a"])))).await.unwrap();
    receiver.wait_for(10).await;
    world.drain(true);
    let reported = world.handed_over(200).await;
    let numbers: BTreeSet<String> = reported.hand_overs.iter().map(|hand_over| given(hand_over).0).collect();
    assert_eq!((reported.hand_overs.len(), numbers.len()), (200, 200));
    let tried: u32 = reported.hand_overs.iter().map(|hand_over| given(hand_over).1).sum();
    assert_eq!((tried as usize, receiver.requests().len()), (reported.attempts.len(), tried as usize));
    world.stop().await;
}

/// In the order of a contact, the later deliveries get their turn here when the first is given away.
#[tokio::test]
async fn contacts_go_on_behind_what_is_given_away() {
    let receiver = Receiver::start(failing).await;
    let ordered = v1::WebhookSubscription {
        ordering: v1::DeliveryOrdering::Contact.into(),
        ..by_default(subscription("sub_a", &receiver.url()))
    };
    let world = World::taking([ordered], Tuning::default()).await;
    let of_contact = |number| {
        let mut event = event(number, &["sub_a"]);
        (event.log.event, event.log.from_phone) = ("message.received".to_owned(), "+1".to_owned());
        event
    };
    world.buffer.append(entry([1, 2, 3].map(of_contact))).await.unwrap();
    world.reported_when("the first is tried", |reported| !reported.attempts.is_empty()).await;
    world.drain(true);
    let reported = world.handed_over(3).await;
    let order: Vec<(String, u32)> = reported.hand_overs.iter().map(given).collect();
    assert_eq!(order, [1, 2, 3].map(|number| (event_id(number).to_string(), 1)));
    let ids: Vec<String> =
        receiver.requests().iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(ids, [1, 2, 3].map(|number| event_id(number).to_string()));
    world.stop().await;
}

/// An attempt that runs when the drain begins is not cut off: its delivery is given away once it has failed, with the
/// attempt, and the delivery of one that succeeds is made.
#[tokio::test]
async fn running_attempts_end_first() {
    let silent = Receiver::start(|_| Reply::Silence).await;
    let timeout = Some(prost_types::Duration { seconds: 6, nanos: 0 });
    let sub_a = v1::WebhookSubscription {
        attempt_timeout: timeout,
        ..by_default(subscription("sub_a", &silent.url()))
    };
    let good = Receiver::start(ok).await;
    let world = World::taking([sub_a, subscription("sub_b", &good.url())], impatient()).await;
    world.append(1, &["sub_a", "sub_b"]).await;
    silent.wait_for(1).await;
    world.drain(true);
    // Longer than it takes to look for what is to be given away.
    world.busy_for("sub_b", Duration::from_millis(1_200), 100).await;
    assert_eq!(world.reported().await.hand_overs.len(), 0, "it still runs");
    let reported = world.handed_over(1).await;
    assert_eq!(given(&reported.hand_overs[0]), (event_id(1).to_string(), 1));
    let failed: Vec<_> = reported.attempts.iter().filter(|attempt| attempt.status_code == 0).collect();
    assert_eq!(failed.len(), 1, "the attempt is in the log");
    assert_eq!(silent.requests().len(), 1);
    world.delivery(1, "sub_b", v1::DeliveryState::Delivered).await;
    world.stop().await;
}

/// A drain that is undone ends it: what fails from then on is retried here. What was given away may come back, to this
/// agent or to another one, which makes the next attempt with the same body and gives up when the schedule ends.
#[tokio::test]
async fn undone_drain_keeps_what_is_left() {
    let receiver = Receiver::start(|before| match before {
        0 | 1 | 2 | 4.. => Reply::Status(500, "", ""),
        3 => Reply::Status(200, "", ""),
    })
    .await;
    let sub_a = after(&[200, 10], subscription("sub_a", &receiver.url()));
    let world = World::taking([sub_a], Tuning::default()).await;
    world.drain(true);
    world.append(1, &["sub_a"]).await;
    let away = world.handed_over(1).await.hand_overs.remove(0);
    world.drain(false);
    world.append(2, &["sub_a"]).await;
    let made = world.delivery(2, "sub_a", v1::DeliveryState::Delivered).await;
    assert_eq!((made.attempt_count, receiver.requests().len()), (3, 4));
    assert_eq!(world.reported().await.hand_overs.len(), 1);

    world.take_over(vec![away.clone()]).await.unwrap();
    let ended = world.delivery(1, "sub_a", v1::DeliveryState::Exhausted).await;
    assert_eq!(ended.attempt_count, 3, "the schedule went on where it was");
    let attempts = world.reported().await.attempts;
    let of_first = attempts.iter().filter(|attempt| attempt.event_id == event_id(1).to_string());
    assert_eq!(of_first.map(|attempt| attempt.attempt_number).collect::<Vec<_>>(), [1, 2, 3]);
    let bodies: BTreeSet<Vec<u8>> = receiver
        .requests()
        .into_iter()
        .filter(|request| request.header("webhook-id") == Some(&event_id(1).to_string()))
        .map(|request| request.body)
        .collect();
    assert_eq!(bodies, [away.inbound_log.unwrap().payload_json.into_bytes()].into());
    world.stop().await;
}

/// What is taken over for a subscription that was deleted is cancelled, for a paused one it is held, and an agent that
/// drains itself gives it away again.
#[tokio::test]
async fn taken_deliveries_stand_as_their_subscription_does() {
    let receiver = Receiver::start(failing).await;
    let sub_a = after(&[LATER_MS, LATER_MS], subscription("sub_a", &receiver.url()));
    let paused = v1::WebhookSubscription {
        state: v1::WebhookSubscriptionState::Paused.into(),
        ..subscription("sub_b", &receiver.url())
    };
    let gone = subscription("sub_c", &receiver.url());
    let world = World::taking([sub_a, paused, gone], Tuning::default()).await;
    world.snapshot.replace(without(&world.snapshot.load(), "sub_c", true));
    let due = |hand_over: v1::DeliveryHandOver| {
        let delivery = hand_over.delivery.map(|it| v1::Delivery { next_attempt_time: None, ..it });
        v1::DeliveryHandOver { delivery, ..hand_over }
    };
    let all = [hand_over(1, "sub_a"), hand_over(2, "sub_b"), hand_over(3, "sub_c")];
    world.take_over(all.map(due).into()).await.unwrap();
    world.delivery(2, "sub_b", v1::DeliveryState::Held).await;
    world.delivery(3, "sub_c", v1::DeliveryState::Cancelled).await;
    assert_eq!(world.delivery(1, "sub_a", v1::DeliveryState::Pending).await.attempt_count, 2);
    world.drain(true);
    let away: BTreeSet<(String, u32)> = world.handed_over(2).await.hand_overs.iter().map(given).collect();
    assert_eq!(away, [(event_id(1).to_string(), 2), (event_id(2).to_string(), 1)].into());
    world.take_over(vec![hand_over(4, "sub_a")]).await.unwrap();
    assert!(
        world.handed_over(3).await.hand_overs.iter().map(given).any(|it| it.0 == event_id(4).to_string())
    );
    world.stop().await;
}

/// A restart in the middle changes nothing: what is left is given away after it, and the buffer becomes empty.
#[tokio::test]
async fn goes_on_giving_after_a_restart() {
    let receiver = Receiver::start(failing).await;
    let sub_a = after(&[LATER_MS, LATER_MS], subscription("sub_a", &receiver.url()));
    let world = World::taking([sub_a], Tuning::default()).await;
    world.append(1, &["sub_a"]).await;
    world.reported_when("the attempt is made", |reported| !reported.attempts.is_empty()).await;
    let mut world = world;
    world.stop.cancel();
    world.tasks.join_next().await.unwrap().unwrap().unwrap();
    world.drain(true);
    world.append(2, &["sub_a"]).await;
    let world = world.restart_stopped().await;
    let reported = world.handed_over(2).await;
    assert_eq!(reported.attempts.len(), 2);
    let limits = ReportLimits { bytes: usize::MAX, count: usize::MAX };
    let last = world.buffer.next_reports(Lane::Logs, 0, limits).await.unwrap().last;
    assert!(!world.buffer.is_drained());
    world.buffer.acked(Lane::Logs, last);
    buffer::tests::eventually("nothing is left", || world.buffer.is_drained()).await;
    world.stop().await;
}

impl World {
    async fn restart_stopped(self) -> Self {
        self.buffer.close().await;
        let Self { directory, snapshot, .. } = self;
        Self::start(directory, snapshot, clock::now, Tuning::default()).await
    }
}

/// Very many that wait are given away in portions, as their reports are acked: unless the control plane takes them,
/// few are on their way, and what is due is delivered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_leaves_in_portions() {
    const COUNT: usize = 10_000;
    /// The limit, what may wait for the disk, and what may be decided before it is looked again.
    const WAITING_MAX: usize = 4_096 + 4_096 + 512;
    let receiver = Receiver::start(ok).await;
    let later = after(&[LATER_MS, LATER_MS], subscription("sub_a", "http://127.0.0.1:9/"));
    let world = World::taking([later, subscription("sub_b", &receiver.url())], Tuning::default()).await;
    world.drain(true);
    let limits = ReportLimits { bytes: usize::MAX, count: usize::MAX };
    let mut seen = BTreeSet::new();
    for first in (0..COUNT).step_by(500) {
        let numbers = u32::try_from(first).unwrap()..u32::try_from(first + 500).unwrap();
        // They were tried elsewhere, and wait for long.
        world.take_over(numbers.map(|number| hand_over(number, "sub_a")).collect()).await.unwrap();
    }
    buffer::tests::eventually("as many as may be are on their way", || !world.buffer.may_hand_over()).await;
    let mut acked = 0;
    while seen.len() < COUNT {
        let batch = world.buffer.next_reports(Lane::Logs, acked, limits).await.unwrap();
        let reports = batch.reports();
        assert!(reports.len() <= WAITING_MAX, "{} are on their way", reports.len());
        for report in reports {
            if let Some(v1::report::Report::DeliveryHandOver(hand_over)) = report.report {
                assert!(seen.insert(given(&hand_over).0), "none is given away twice");
            }
        }
        if acked == 0 {
            // Nobody acks: the buffer keeps the rest, and makes what it can.
            assert!(seen.len() < COUNT);
            world.append(20_000, &["sub_b"]).await;
            receiver.wait_for(1).await;
        }
        acked = batch.last;
        world.buffer.acked(Lane::Logs, acked);
        buffer::tests::eventually("there is more, or nothing left", || {
            world.buffer.has_reports() || world.buffer.is_drained()
        })
        .await;
    }
    buffer::tests::eventually("nothing is left", || {
        world.buffer.acked(Lane::Logs, u64::MAX);
        world.buffer.is_drained()
    })
    .await;
    world.stop().await;
}
