//! What is acknowledged is there once, and nothing else is.

use super::*;
use crate::inbound_log::{LogStoreError, WatchFrom};

/// A repeated report changes nothing, also after a restart, and the answer is the same.
pub(in super::super) async fn reports_are_taken_once<E: Engine>() {
    let world = World::<E>::new().await;
    let reports = || batch("agt_1", 5, (0..10).map(event).collect());
    assert_eq!(world.append(reports()).await, 14);
    assert_eq!(world.append(reports()).await, 14);
    let world = world.reopen().await;
    assert_eq!(world.append(reports()).await, 14);
    // An empty batch asks for the position.
    assert_eq!(world.append(batch("agt_1", 0, vec![])).await, 14);
    assert_eq!(world.append(of_buffer("buf_2", batch("agt_1", 0, vec![]))).await, 0);
    assert_eq!(world.append(batch("agt_2", 0, vec![])).await, 0);
    assert_eq!(world.all(&LogFilter::default(), 4).await, newest_first(0..10));
    assert_eq!(world.attempt_numbers(3, "sub_1").await, [1]);
    // Half of it is new: only that half is recorded.
    assert_eq!(world.append(batch("agt_1", 10, (5..15).map(event).collect())).await, 19);
    assert_eq!(world.all(&LogFilter::default(), 100).await, newest_first(0..15));
    world.close().await;
}

/// Sequences may leave something out; what is at or below the highest one is a repeat, whatever it is. Records that
/// were taken out of a message are acknowledged with it.
pub(in super::super) async fn gaps_in_the_sequence_are_taken<E: Engine>() {
    let world = World::<E>::new().await;
    assert_eq!(world.append(batch("agt_1", 1, (0..3).map(event).collect())).await, 3);
    let gap = batch("agt_1", 10, (3..5).map(event).collect());
    assert_eq!(world.append(ReportBatch { last_sequence: 20, ..gap }).await, 20);
    assert_eq!(world.append(batch("agt_1", 5, vec![event(7)])).await, 20);
    assert_eq!(world.append(batch("agt_1", 15, vec![event(8)])).await, 20);
    assert_eq!(world.append(batch("agt_1", 20, vec![event(9), event(5)])).await, 21);
    assert_eq!(world.all(&LogFilter::default(), 100).await, newest_first(0..6));
    world.close().await;
}

/// A transaction that fails leaves nothing: no log, no attempt, no unrouted callback, no position, no step of a
/// watch. The same reports are then taken, once.
pub(in super::super) async fn failed_transactions_store_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    world.append(batch("agt_1", 1, vec![owed(1)])).await;
    let before = world.get(1).await;
    let mut watch = world.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    let reports = || {
        let callback = v1::UnroutedCallback {
            id: "unrouted_a".into(),
            inbound_route_id: "route_1".into(),
            ..Default::default()
        };
        let attempts = attempted(1, 2, v1::DeliveryState::Delivered);
        batch("agt_1", 2, vec![attempts, event(2), duplicate(1, 3), Record::Unrouted(callback)])
    };
    world.engine.fail_writes(true).await;
    for _ in 0..2 {
        assert!(matches!(world.logs.append(reports()).await, Err(LogStoreError::Write(_))));
    }
    world.engine.fail_writes(false).await;
    assert_eq!(world.append(batch("agt_1", 0, vec![])).await, 1);
    assert_eq!(world.get(1).await, before);
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1]);
    assert_eq!(world.all(&LogFilter::default(), 10).await, newest_first(1..2));
    assert!(world.logs.get(None, &event_id(2)).await.unwrap().is_none());
    assert!(world.logs.list_unrouted(None, None, 10).await.unwrap().0.is_empty());
    assert_eq!(world.append(reports()).await, 5);
    assert_eq!(world.append(of_buffer("buf_2", reports())).await, 5);
    assert_eq!(world.get(1).await.duplicate_count, 3);
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1, 2]);
    assert_eq!(world.logs.list_unrouted(None, None, 10).await.unwrap().0.len(), 1);
    let delivered = Some("sub_1".to_owned());
    for expected in [(1, delivered.clone()), (2, None), (2, delivered)] {
        let (id, subscription, _) = step(&mut watch).await;
        assert_eq!((id, subscription), (event_id(expected.0), expected.1));
    }
    world.close().await;
}

/// What is acknowledged survives a crash at the moment of the acknowledgement, with its position, though many
/// batches are committed together.
pub(in super::super) async fn what_is_acknowledged_survives_a_crash<E: Engine>() {
    let world = World::<E>::new().await;
    for round in 0..4_u32 {
        let agents: Vec<_> = (0..6).map(|agent| format!("agt_{agent}")).collect();
        let sequence = u64::from(round) * 3 + 1;
        let mut submitted = Vec::new();
        for (agent, place) in agents.iter().zip(0..) {
            let first = round * 100 + place * 3;
            let events = (first..first + 3).map(event).collect();
            submitted.push(world.logs.submit(batch(agent, sequence, events)).await.unwrap());
        }
        for (submitted, place) in submitted.into_iter().zip(0_u32..) {
            assert_eq!(submitted.committed().await.unwrap(), sequence + 2);
            // The first one is answered first, when the others may be anywhere.
            if place % 5 == 0 {
                let left = World::of(world.engine.crashed().await).await;
                let agent = &agents[usize::try_from(place).unwrap()];
                assert_eq!(left.append(batch(agent, 0, vec![])).await, sequence + 2);
                let first = round * 100 + place * 3;
                for number in first..first + 3 {
                    assert_eq!(left.get(number).await.event_id, event_id(number));
                    assert_eq!(left.attempt_numbers(number, "sub_1").await, [1]);
                }
                left.close().await;
            }
        }
    }
    world.close().await;
}

/// Attempts and repeats reported later change their log, in the same group as the event or long after;
/// reports about unknown events hold up nothing.
pub(in super::super) async fn later_reports_change_their_log<E: Engine>() {
    let world = World::<E>::new().await;
    let first = vec![
        owed(1),
        attempted(1, 2, v1::DeliveryState::Pending),
        attempted(999, 1, v1::DeliveryState::Delivered),
        duplicate(998, 7),
    ];
    world.append(batch("agt_1", 1, first)).await;
    world.age(100).await;
    let later = vec![attempted(1, 3, v1::DeliveryState::Delivered), duplicate(1, 4)];
    world.append(batch("agt_1", 1_000, later)).await;
    let changed = world.get(1).await;
    assert_eq!((changed.duplicate_count, changed.deliveries[0].attempt_count), (4, 3));
    assert_eq!(changed.deliveries[0].state(), v1::DeliveryState::Delivered);
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1, 2, 3]);
    assert!(world.logs.get(None, &event_id(999)).await.unwrap().is_none());
    world.close().await;
}

/// Every event is found by its id, new or old, also after a restart, and only then.
pub(in super::super) async fn events_are_found_by_id<E: Engine>() {
    let world = World::<E>::new().await;
    for start in (0..200).step_by(10) {
        let events = (start..start + 10).map(event).collect();
        world.append(batch("agt_1", u64::from(start) + 1, events)).await;
    }
    let world = world.reopen().await;
    world.append(batch("agt_1", 201, (200..205).map(event).collect())).await;
    for number in 0..205 {
        assert_eq!(world.get(number).await.external_message_id, format!("wamid.{number}"));
    }
    assert!(world.logs.get(None, &event_id(999)).await.unwrap().is_none());
    assert!(world.logs.get(None, "evt_of_another_form").await.unwrap().is_none());
    // A repeat is recognized after the restart.
    world.append(batch("agt_2", 1, vec![event(199)])).await;
    assert_eq!(world.all(&LogFilter::default(), 1_000).await.len(), 205);
    world.close().await;
}

/// An agent bound to a tenant changes nothing of another tenant's events, new or old, whatever it reports. Should
/// it have reported another tenant's event first as its own, nothing of the other tenant gets into that log.
pub(in super::super) async fn agents_of_a_tenant_change_their_own_only<E: Engine>() {
    let world = World::<E>::new().await;
    let of = |number, tenant_id: &str, agent_id: &str, subscription_id: &str| {
        let log = v1::InboundLog {
            tenant_id: tenant_id.into(),
            agent_id: agent_id.into(),
            deliveries: vec![delivery(subscription_id, v1::DeliveryState::Pending)],
            ..log(number)
        };
        Record::Event(Box::new(log), vec![attempt(number, 1, subscription_id)])
    };
    world.append(batch("agt_1", 1, vec![owed(1)])).await;
    let before = world.get(1).await;
    let all = |number| {
        vec![
            of(number, "acme", "agt_acme", "sub_acme"),
            attempted(number, 2, v1::DeliveryState::Delivered),
            duplicate(number, 9),
        ]
    };
    world.append(of_tenant("acme", batch("agt_acme", 1, all(1)))).await;
    world.age(100).await;
    world.append(of_tenant("acme", batch("agt_acme", 10, all(1)))).await;
    assert_eq!(world.get(1).await, before);
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1]);
    // Nor does it hide an old one from its tenant by claiming its id anew.
    let claimed = v1::InboundLog { tenant_id: "acme".into(), receive_time: None, ..log(1) };
    let claimed = Record::Event(Box::new(claimed), vec![]);
    world.append(of_tenant("acme", batch("agt_acme", 15, vec![claimed]))).await;
    world.age(200).await;
    let own = world.logs.get("default".parse().ok().as_ref(), &event_id(1)).await.unwrap();
    assert_eq!(own.as_ref(), Some(&before));
    // An event of `default` that an agent of `acme` reports first.
    world.append(of_tenant("acme", batch("agt_acme", 20, vec![of(2, "acme", "agt_acme", "sub_acme")]))).await;
    let taken = world.get(2).await;
    world.append(batch("agt_1", 2, vec![owed(2), attempted(2, 2, v1::DeliveryState::Delivered)])).await;
    assert_eq!(world.get(2).await, taken);
    assert_eq!(world.attempt_numbers(2, "sub_1").await, [0_u32; 0]);
    // Its own it changes.
    let delivered = v1::AttemptsReport {
        event_id: event_id(2),
        deliveries: vec![delivery("sub_acme", v1::DeliveryState::Delivered)],
        attempts: vec![attempt(2, 2, "sub_acme")],
    };
    world.append(of_tenant("acme", batch("agt_other", 1, vec![Record::Attempts(delivered)]))).await;
    assert_eq!(world.attempt_numbers(2, "sub_acme").await, [1, 2]);
    world.close().await;
}
