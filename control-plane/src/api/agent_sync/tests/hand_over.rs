//! Deliveries that agents give away, from the report to the work stream of another agent.

use gateway_proto::v1::{report::Report as Reported, work::Work as Task};

use super::*;
use crate::store::sqlite::testing;

/// A delivery of the event `number` of `inst-1` to `sub-1`, to be given away.
fn hand_over(id: u128, number: u32) -> v1::DeliveryHandOver {
    let Reported::Event(report) = event("inst-1", number) else { panic!("not an event") };
    let log = v1::InboundLog {
        deliveries: Vec::new(),
        payload_json: format!("{{\"number\":{number}}}"),
        ..report.inbound_log.unwrap()
    };
    v1::DeliveryHandOver {
        id: uuid::Uuid::from_u128(id).to_string(),
        inbound_log: Some(log),
        delivery: Some(owed()),
        had_quick_retry: true,
    }
}

fn owed() -> v1::Delivery {
    v1::Delivery {
        subscription_id: "sub-1".into(),
        state: v1::DeliveryState::Pending.into(),
        attempt_count: 2,
        next_attempt_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
        ..Default::default()
    }
}

/// The event `number` with its delivery as it stands; of some it goes to another subscription.
fn pending(number: u32) -> Reported {
    let Reported::Event(mut report) = event("inst-1", number) else { panic!("not an event") };
    let subscription_id = match number {
        4 => "sub-gone",
        6 => "sub-2",
        _ => "sub-1",
    };
    let delivery = v1::Delivery { subscription_id: subscription_id.into(), ..owed() };
    report.inbound_log.as_mut().unwrap().deliveries = vec![delivery];
    report.attempts.clear();
    Reported::Event(report)
}

fn given(hand_over: v1::DeliveryHandOver) -> Reported {
    Reported::DeliveryHandOver(hand_over)
}

/// The config stream of an agent that has applied what it was sent.
async fn current(agent: &mut TestAgent) -> Call<v1::StreamConfigRequest, v1::StreamConfigResponse> {
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let first = config.response().await;
    assert!(first.takes_hand_overs);
    config
        .send(message(Message::Applied(v1::ConfigApplied { version: first.version, ..Default::default() })))
        .await;
    config
}

/// A work stream whose first request says whether the agent takes over deliveries.
async fn work_of(
    agent: &mut TestAgent,
    takes_hand_overs: bool,
) -> Call<v1::StreamWorkRequest, v1::StreamWorkResponse> {
    let (requests, receiver) = mpsc::channel(16);
    requests.send(v1::StreamWorkRequest { takes_hand_overs, ..Default::default() }).await.unwrap();
    let responses = agent.client.stream_work(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    Call { requests, responses }
}

fn taken(response: v1::StreamWorkResponse) -> Vec<(String, v1::DeliveryHandOver)> {
    let of = |work: v1::Work| match work.work {
        Some(Task::DeliveryHandOver(hand_over)) => (work.id, hand_over),
        other => panic!("{other:?}"),
    };
    response.work.into_iter().map(of).collect()
}

async fn test_event(plane: &ControlPlane, id: &str) {
    let request = v1::SendTestEventRequest { id: id.into() };
    WebhookSubscriptionServiceClient::new(plane.admin()).send_test_event(request).await.unwrap();
}

async fn is_test_event(work: &mut Call<v1::StreamWorkRequest, v1::StreamWorkResponse>) {
    let response = work.response().await;
    assert!(response.work.iter().all(|work| matches!(work.work, Some(Task::TestEvent(_)))), "{response:?}");
}

async fn log_of(plane: &ControlPlane, event_id: &str) -> v1::InboundLog {
    let request = v1::GetInboundLogRequest { event_id: event_id.into() };
    let log = InboundLogServiceClient::new(plane.admin()).get_inbound_log(request).await.unwrap();
    log.into_inner().inbound_log.unwrap()
}

fn event_id(number: u32) -> String {
    hand_over(0, number).inbound_log.unwrap().event_id
}

/// Waits until the log of an event shows its delivery to this webhook subscription as cancelled.
async fn is_cancelled(plane: &ControlPlane, event_id: &str, subscription_id: &str) {
    let is_it = |one: &v1::Delivery| {
        one.subscription_id == subscription_id && one.state() == v1::DeliveryState::Cancelled
    };
    let becomes_so = async {
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while !log_of(plane, event_id).await.deliveries.iter().any(is_it) {
            look.tick().await;
        }
    };
    tokio::time::timeout(6 * DEADLINE, becomes_so).await.expect("it is cancelled");
}

async fn delete_subscription(plane: &ControlPlane, id: &str) {
    let request = v1::DeleteWebhookSubscriptionRequest { id: id.into(), ..Default::default() };
    WebhookSubscriptionServiceClient::new(plane.admin()).delete_webhook_subscription(request).await.unwrap();
}

async fn drain(plane: &ControlPlane, id: &str, undo: bool) {
    let request = v1::DrainAgentRequest { id: id.into(), undo };
    AgentServiceClient::new(plane.admin()).drain_agent(request).await.unwrap();
}

async fn plane() -> ControlPlane {
    let plane = ControlPlane::start().await;
    for (region, instance_id, number, id) in
        [("eu", "inst-1", "111", "sub-1"), ("us", "inst-us", "222", "sub-us")]
    {
        plane.create_instance(instance_id, number, None, &[region]).await;
        plane.create_subscription(id, instance_id).await;
    }
    plane
}

/// A delivery that was given away goes, whole and once, to an agent of the region that takes such work over: not to one
/// of an earlier program, which gets everything else; not to another region; not to one that drains, but to it again
/// when that is undone.
#[tokio::test]
async fn deliveries_go_to_agents_that_take_them() {
    let plane = plane().await;
    let [mut giving, mut earlier, mut far, mut taking] =
        [plane.agent("eu").await, plane.agent("eu").await, plane.agent("us").await, plane.agent("eu").await];
    let mut configs = Vec::new();
    for agent in [&mut giving, &mut earlier, &mut far] {
        configs.push(current(agent).await);
    }
    drain(&plane, &giving.id, false).await;
    assert_eq!(configs[0].response().await.drain, Some(true));
    let mut own_work = work_of(&mut giving, true).await;
    let mut earlier_work = work_of(&mut earlier, false).await;
    let mut far_work = work_of(&mut far, true).await;
    let mut stream = giving.reports().await;
    let message = reports(vec![report(1, pending(1)), report(2, given(hand_over(1, 1)))]);
    stream.send(message.clone()).await;
    assert_eq!(stream.response().await.acked_sequence, 2);
    for (work, id) in [(&mut earlier_work, "sub-1"), (&mut far_work, "sub-us")] {
        test_event(&plane, id).await;
        is_test_event(work).await;
    }
    let _config = current(&mut taking).await;
    let mut taking_work = work_of(&mut taking, true).await;
    let got = taken(taking_work.response().await);
    let sent = hand_over(1, 1);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].0, format!("work_{}", uuid::Uuid::from_u128(1).simple()));
    assert_eq!((&got[0].1.delivery, &got[0].1.id), (&sent.delivery, &sent.id));
    let (log, of) = (got[0].1.inbound_log.clone().unwrap(), sent.inbound_log.unwrap());
    assert_eq!(
        (log.payload_json, log.event_id, log.tenant_id),
        (of.payload_json, of.event_id.clone(), "default".into())
    );
    assert!(got[0].1.had_quick_retry && log.deliveries.is_empty());
    assert_eq!(log_of(&plane, &of.event_id).await.deliveries, [owed()], "the log goes on showing it");
    // Not acknowledged, it is free again; and the agent that gave it away may have it when it drains no more.
    drop(taking_work);
    drain(&plane, &giving.id, true).await;
    let again = taken(own_work.response().await);
    assert_eq!(again[0].0, got[0].0);
    own_work
        .send(v1::StreamWorkRequest { acked_work_ids: vec![again[0].0.clone()], ..Default::default() })
        .await;
    // A report that comes again brings nothing back.
    let mut stream = giving.reports().await;
    stream.send(message).await;
    assert_eq!(stream.response().await.acked_sequence, 2);
    let mut taking_work = work_of(&mut taking, true).await;
    test_event(&plane, "sub-1").await;
    // Whichever agent of the region is asked.
    let response = tokio::select! {
        response = own_work.response() => response,
        response = taking_work.response() => response,
        response = earlier_work.response() => response,
    };
    taken_none(&response);
    plane.stop().await;
}

fn taken_none(response: &v1::StreamWorkResponse) {
    assert!(response.work.iter().all(|work| matches!(work.work, Some(Task::TestEvent(_)))), "{response:?}");
}

/// A delivery that nobody can make blocks nothing: the log shows it as exhausted, and as cancelled when its webhook
/// subscription is gone, also when that happens while it waits for an agent.
#[tokio::test]
async fn deliveries_that_nobody_can_make_are_settled() {
    let plane = plane().await;
    plane.create_subscription("sub-2", "inst-1").await;
    let mut giving = plane.agent("eu").await;
    let mut stream = giving.reports().await;
    let spoiled = |number: u32, spoil: fn(&mut v1::DeliveryHandOver)| {
        let mut spoiled = hand_over(u128::from(number), number);
        spoil(&mut spoiled);
        given(spoiled)
    };
    let to = |hand_over: &mut v1::DeliveryHandOver, id: &str| {
        hand_over.delivery.as_mut().unwrap().subscription_id = id.into();
    };
    let mut waiting = hand_over(6, 6);
    to(&mut waiting, "sub-2");
    let all = [
        spoiled(1, |one| one.id = "7".into()),
        spoiled(2, |one| one.inbound_log.as_mut().unwrap().payload_json.clear()),
        spoiled(3, |one| one.inbound_log = None),
        spoiled(4, |one| one.delivery.as_mut().unwrap().subscription_id = "sub-gone".into()),
        given(hand_over(5, 5)),
        given(waiting),
    ];
    let events = (1..7).map(|number| report(u64::from(number), pending(number)));
    let hand_overs = (7..).zip(all).map(|(sequence, one)| report(sequence, one));
    stream.send(reports(events.chain(hand_overs).collect())).await;
    assert_eq!(stream.response().await.acked_sequence, 12);
    for (number, state) in [
        (1, v1::DeliveryState::Exhausted),
        (2, v1::DeliveryState::Exhausted),
        (3, v1::DeliveryState::Pending),
        (5, v1::DeliveryState::Pending),
    ] {
        assert_eq!(log_of(&plane, &event_id(number)).await.deliveries[0].state(), state, "{number}");
    }
    is_cancelled(&plane, &event_id(4), "sub-gone").await;
    delete_subscription(&plane, "sub-2").await;
    is_cancelled(&plane, &event_id(6), "sub-2").await;
    let mut taking = plane.agent("eu").await;
    let _config = current(&mut taking).await;
    let mut work = work_of(&mut taking, true).await;
    let got = taken(work.response().await);
    assert_eq!(got.iter().map(|(_, one)| one.id.clone()).collect::<Vec<_>>(), [hand_over(5, 5).id]);
    plane.stop().await;
}

/// An acknowledgement reaches as far as its message and no further. The log may have had later messages over an earlier
/// stream, whose deliveries are not queued: an agent that is told otherwise forgets them.
#[tokio::test]
async fn an_acknowledgement_ends_with_its_message() {
    let plane = plane().await;
    let mut agent = plane.agent("eu").await;
    let mut stream = agent.reports().await;
    stream.send(reports(vec![report(1, pending(1)), report(2, given(hand_over(1, 1)))])).await;
    assert_eq!(stream.response().await.acked_sequence, 2);
    drop(stream);
    let mut stream = agent.reports().await;
    stream.send(reports(vec![report(1, pending(1))])).await;
    assert_eq!(stream.response().await.acked_sequence, 1);
    stream.send(reports(vec![report(2, given(hand_over(1, 1)))])).await;
    assert_eq!(stream.response().await.acked_sequence, 2);
    plane.stop().await;
}

/// A report stream says with its opening that hand-overs are taken. Earlier control planes, which do not say it, would
/// ack them unseen.
#[tokio::test]
async fn report_streams_say_that_hand_overs_are_taken() {
    let plane = plane().await;
    let mut agent = plane.agent("eu").await;
    let (_requests, receiver) = mpsc::channel(1);
    let opened = agent.client.report_logs(ReceiverStream::new(receiver)).await.unwrap();
    assert_eq!(opened.metadata().get("gateway-takes-hand-overs").unwrap(), "true");
    plane.stop().await;
}

/// A message whose deliveries cannot be queued, though the log has it, is not acked, as when the control plane ends in
/// between. The agent says it again, and by then the webhook subscription may be gone: the log does not go on showing
/// its delivery as pending, though it knows the message.
#[tokio::test]
async fn what_was_logged_and_not_queued_is_settled() {
    let plane = plane().await;
    plane.create_subscription("sub-2", "inst-1").await;
    let mut giving = plane.agent("eu").await;
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON queued_work BEGIN SELECT RAISE(ABORT, 'no'); END";
    testing::execute(plane.data_dir(), refuse).await;
    let mut stream = giving.reports().await;
    let mut gone = hand_over(6, 6);
    gone.delivery.as_mut().unwrap().subscription_id = "sub-2".into();
    let said = [pending(5), given(hand_over(5, 5)), pending(6), given(gone)];
    let message = reports((1..).zip(said).map(|(sequence, one)| report(sequence, one)).collect());
    stream.send(message.clone()).await;
    assert!(stream.next().await.is_err(), "it is acked");
    assert_eq!(log_of(&plane, &event_id(6)).await.deliveries[0].state(), v1::DeliveryState::Pending);
    testing::execute(plane.data_dir(), "DROP TRIGGER refuse").await;
    delete_subscription(&plane, "sub-2").await;
    for _ in 0..2 {
        let mut stream = giving.reports().await;
        stream.send(message.clone()).await;
        assert_eq!(stream.response().await.acked_sequence, 4);
        is_cancelled(&plane, &event_id(6), "sub-2").await;
    }
    // The other one is there, once.
    let mut taking = plane.agent("eu").await;
    let _config = current(&mut taking).await;
    let mut work = work_of(&mut taking, true).await;
    let got = taken(work.response().await);
    assert_eq!(got.iter().map(|(_, one)| one.id.clone()).collect::<Vec<_>>(), [hand_over(5, 5).id]);
    plane.stop().await;
}
