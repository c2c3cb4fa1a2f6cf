//! A delivery that several agents speak of, and what it comes to.

use v1::DeliveryState::{Cancelled, Delivered, Exhausted, Held, Pending};

use super::*;

/// An event that two agents report is one log: deliveries merge, what one delivered stays delivered, and
/// the repeat is counted.
pub(in super::super) async fn an_event_of_two_agents_is_one_log<E: Engine>() {
    let world = World::<E>::new().await;
    world.append(batch("agt_1", 1, vec![event(1)])).await;
    let mut second = log(1);
    second.agent_id = "agt_2".into();
    second.deliveries = vec![delivery("sub_1", Pending), delivery("sub_2", Exhausted)];
    let second = Record::Event(Box::new(second), vec![attempt(1, 1, "sub_2")]);
    world.append(batch("agt_2", 1, vec![second])).await;
    assert_eq!(world.all(&LogFilter::default(), 10).await, newest_first(1..2));
    let merged = world.get(1).await;
    assert_eq!((merged.agent_id.as_str(), merged.duplicate_count), ("agt_1", 1));
    let states: Vec<_> = merged
        .deliveries
        .iter()
        .map(|delivery| (delivery.subscription_id.as_str(), delivery.state()))
        .collect();
    assert_eq!(states, [("sub_1", Delivered), ("sub_2", Exhausted)]);
    assert_eq!(world.attempt_numbers(1, "sub_2").await, [1]);
    world.close().await;
}

/// A change of state without an attempt keeps what the last attempt came to.
pub(in super::super) async fn held_deliveries_keep_the_last_outcome<E: Engine>() {
    let world = World::<E>::new().await;
    let failed = v1::Delivery {
        attempt_count: 2,
        last_status_code: 503,
        last_error: "answered 503".into(),
        ..delivery("sub_1", Pending)
    };
    let failed = v1::InboundLog { deliveries: vec![failed], ..log(1) };
    let failed = Record::Event(Box::new(failed), vec![attempt(1, 2, "sub_1")]);
    world.append(batch("agt_1", 1, vec![failed, moved(1, 1, Cancelled)])).await;
    let kept = world.get(1).await.deliveries.remove(0);
    assert_eq!(kept.state(), Cancelled);
    assert_eq!(
        (kept.attempt_count, kept.last_status_code, kept.last_error.as_str()),
        (2, 503, "answered 503")
    );
    world.close().await;
}

/// A delivery that one agent handed over and another finished is one delivery of one log, with all attempts in
/// their order, however late the first one's reports come, in one group or in several, and when they come again.
pub(in super::super) async fn handed_over_deliveries_go_on<E: Engine>() {
    let world = World::<E>::new().await;
    let first = [attempted(1, 2, Pending), moved(1, 2, Held)];
    let second = [attempted(1, 3, Pending), moved(1, 3, Held), attempted(1, 4, Delivered)];
    // Of which agent the next record is taken.
    let orders: [&[usize]; 5] =
        [&[0, 0, 1, 1, 1], &[1, 1, 1, 0, 0], &[1, 0, 1, 0, 1], &[0, 1, 1, 1, 0], &[1, 1, 0, 0, 1]];
    for (place, order) in (0_u32..).zip(orders) {
        let number = 10 + place;
        let rename = |record: &Record| match record {
            Record::Attempts(report) => {
                let mut report = report.clone();
                report.event_id = event_id(number);
                Record::Attempts(report)
            }
            other => other.clone(),
        };
        let base = u64::from(place) * 100;
        world.append(batch("agt_1", base + 1, vec![owed(number)])).await;
        for repeat in 0..2 {
            let mut of = [first.iter(), second.iter()];
            let mut submitted = Vec::new();
            for (step, agent) in (0_u64..).zip(order) {
                let record = rename(of[*agent].next().unwrap());
                let agent_id = ["agt_1", "agt_2"][*agent];
                let reports = batch(agent_id, base + 10 + step, vec![record]);
                let reports = of_buffer(["buf_1", "buf_2"][repeat], reports);
                submitted.push(world.logs.submit(reports).await.unwrap());
            }
            for submitted in submitted {
                submitted.committed().await.unwrap();
            }
            let log = world.get(number).await;
            assert_eq!((log.agent_id.as_str(), log.deliveries.len()), ("agt_1", 1), "{order:?}");
            assert_eq!(
                (log.deliveries[0].state(), log.deliveries[0].attempt_count),
                (Delivered, 4),
                "{order:?}"
            );
            assert_eq!(world.attempt_numbers(number, "sub_1").await, [1, 2, 3, 4], "{order:?}");
        }
    }
    assert_eq!(world.all(&LogFilter::default(), 10).await.len(), 5);
    world.close().await;
}

/// What is delivered, exhausted or cancelled is never owed again, whoever says so, and its count of attempts never
/// goes down.
pub(in super::super) async fn settled_deliveries_stay_settled<E: Engine>() {
    let world = World::<E>::new().await;
    for (number, settled) in (1..).zip([Delivered, Exhausted, Cancelled]) {
        let sequence = u64::from(number) * 100;
        world.append(batch("agt_1", sequence, vec![owed(number), attempted(number, 3, settled)])).await;
        for (step, late) in (1..).zip([
            moved(number, 2, Held),
            moved(number, 5, Pending),
            attempted(number, 2, Pending),
            attempted(number, 4, Pending),
            moved(number, 1, Held),
        ]) {
            world.append(batch("agt_2", sequence + step, vec![late])).await;
            let kept = world.get(number).await.deliveries.remove(0);
            assert_eq!(kept.state(), settled);
            assert_eq!(kept.attempt_count, if step == 1 { 3 } else { 5 });
        }
        assert_eq!(world.attempt_numbers(number, "sub_1").await, [1, 2, 3, 4]);
    }
    world.close().await;
}
