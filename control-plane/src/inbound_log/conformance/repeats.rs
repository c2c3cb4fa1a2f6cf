//! What is reported again, under another buffer or by another agent, is recognized.

use super::*;
use crate::inbound_log::WatchFrom;

/// What `agt_1` reported of an event, up to its delivery.
fn history(number: u32) -> Vec<Record> {
    vec![
        owed(number),
        duplicate(number, 2),
        attempted(number, 2, v1::DeliveryState::Pending),
        moved(number, 2, v1::DeliveryState::Held),
        attempted(number, 3, v1::DeliveryState::Delivered),
    ]
}

/// A copied, moved or restored data directory reports everything again under another buffer: no log, attempt or
/// figure changes, and no watch hears of it; soon after, after a restart, and when the events are old.
pub(in super::super) async fn other_buffers_repeat_nothing<E: Engine>() {
    let mut world = World::<E>::new().await;
    let both =
        || history(1).into_iter().chain([owed(2), attempted(2, 2, v1::DeliveryState::Exhausted)]).collect();
    world.append(batch("agt_1", 1, both())).await;
    let before = [world.get(1).await, world.get(2).await];
    assert_eq!((before[0].duplicate_count, before[0].deliveries[0].attempt_count), (2, 3));
    for (place, buffer_id) in (0_u32..).zip(["buf_2", "buf_3", "buf_4"]) {
        match place {
            0 => {}
            1 => world = world.reopen().await,
            _ => world.age(100).await,
        }
        let mut watch = world.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
        // Whole, then cut into batches of their own.
        world.append(of_buffer(buffer_id, batch("agt_1", 1, both()))).await;
        for (sequence, record) in (1..).zip(both()) {
            let buffer_id = format!("{buffer_id}_cut");
            world.append(of_buffer(&buffer_id, batch("agt_1", sequence, vec![record]))).await;
        }
        assert_eq!([world.get(1).await, world.get(2).await], before, "{buffer_id}");
        assert_eq!(world.attempt_numbers(1, "sub_1").await, [1, 2, 3], "{buffer_id}");
        assert_eq!(world.attempt_numbers(2, "sub_1").await, [1, 2], "{buffer_id}");
        world.append(batch("agt_9", u64::from(place) + 1, vec![event(200 + place)])).await;
        assert_eq!(step(&mut watch).await.0, event_id(200 + place), "{buffer_id}");
    }
    world.close().await;
}

/// The same reports under several buffers and of two agents, committed together, are taken once; the other agent
/// counts as one that saw the event once more.
pub(in super::super) async fn repeats_of_one_group_are_taken_once<E: Engine>() {
    let world = World::<E>::new().await;
    // Holds the writer up, so that what comes next goes together.
    world.append(batch("agt_9", 1, vec![event(9)])).await;
    let mut submitted = Vec::new();
    for (agent_id, buffer_id) in [("agt_1", "buf_1"), ("agt_1", "buf_2"), ("agt_2", "buf_3")] {
        let reports = of_buffer(buffer_id, batch(agent_id, 1, history(1)));
        submitted.push(world.logs.submit(reports).await.unwrap());
    }
    for submitted in submitted {
        submitted.committed().await.unwrap();
    }
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1, 2, 3]);
    let log = world.get(1).await;
    // Twice more at the one, and the first sight and twice more at the other.
    assert_eq!((log.deliveries[0].attempt_count, log.duplicate_count), (3, 5));
    world.close().await;
}

/// A report that repeats some attempts and brings others is taken for what is new, also when two agents made attempts
/// with the same numbers.
pub(in super::super) async fn new_attempts_of_repeats_are_taken<E: Engine>() {
    let world = World::<E>::new().await;
    world.append(batch("agt_1", 1, vec![owed(1), attempted(1, 2, v1::DeliveryState::Pending)])).await;
    let theirs = |attempt_number| v1::DeliveryAttempt {
        attempt_id: format!("theirs-{attempt_number}"),
        ..attempt(1, attempt_number, "sub_1")
    };
    let mixed = |attempts| {
        let deliveries = vec![delivery("sub_1", v1::DeliveryState::Pending)];
        Record::Attempts(v1::AttemptsReport { event_id: event_id(1), deliveries, attempts })
    };
    let all =
        || vec![attempt(1, 1, "sub_1"), theirs(1), attempt(1, 2, "sub_1"), attempt(1, 3, "sub_1"), theirs(2)];
    world.append(of_buffer("buf_2", batch("agt_1", 1, vec![mixed(all())]))).await;
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1, 1, 2, 2, 3]);
    assert_eq!(world.get(1).await.deliveries[0].attempt_count, 3);
    world.append(of_buffer("buf_3", batch("agt_1", 1, vec![mixed(all())]))).await;
    assert_eq!(world.attempt_numbers(1, "sub_1").await, [1, 1, 2, 2, 3]);
    world.close().await;
}

/// Repeats add up over agents: what each counts, and one for each agent that did not take the event first;
/// also after a restart, and in one group with the event.
pub(in super::super) async fn repeats_add_up_over_agents<E: Engine>() {
    let world = World::<E>::new().await;
    world.append(batch("agt_1", 1, vec![event(1), event(2), duplicate(2, 5)])).await;
    let three = vec![event(1), duplicate(1, 1), duplicate(1, 2)];
    world.append(batch("agt_2", 1, three)).await;
    assert_eq!(world.get(1).await.duplicate_count, 3);
    world.append(batch("agt_2", 4, vec![event(2), duplicate(2, 1)])).await;
    assert_eq!(world.get(2).await.duplicate_count, 7);
    let world = world.reopen().await;
    world.append(batch("agt_1", 4, vec![duplicate(2, 6), duplicate(2, 6)])).await;
    world.append(batch("agt_2", 6, vec![duplicate(2, 1), duplicate(2, 2)])).await;
    world.append(batch("agt_3", 1, vec![event(2)])).await;
    assert_eq!(world.get(2).await.duplicate_count, 10);
    // The figures are absolute: none goes down, and none counts twice under another buffer.
    world.append(of_buffer("buf_2", batch("agt_2", 1, vec![duplicate(2, 2), duplicate(2, 1)]))).await;
    assert_eq!(world.get(2).await.duplicate_count, 10);
    world.close().await;
}

/// Failures that are reported twice count once: they do not pause a webhook subscription.
pub(in super::super) async fn repeated_failures_count_once<E: Engine>() {
    let mut world = World::<E>::new().await;
    let start = gateway_runtime::clock::now().as_second() - 7 * 24 * 3_600;
    let failed = |number: u32| {
        let seconds = start + i64::from(number) * 12 * 3_600;
        let attempt = v1::DeliveryAttempt {
            start_time: Some(ProtoTimestamp { seconds, nanos: 0 }),
            failure: v1::AttemptFailure::Status.into(),
            ..attempt(number, 1, "sub_1")
        };
        let deliveries = vec![delivery("sub_1", v1::DeliveryState::Pending)];
        Record::Event(Box::new(v1::InboundLog { deliveries, ..log(number) }), vec![attempt])
    };
    for buffer_id in ["buf_1", "buf_2", "buf_3"] {
        world.append(of_buffer(buffer_id, batch("agt_1", 1, (0..11).map(failed).collect()))).await;
    }
    assert!(world.failing.try_recv().is_err());
    world.append(batch("agt_1", 12, vec![failed(11)])).await;
    let failing = tokio::time::timeout(DEADLINE, world.failing.recv()).await.unwrap().unwrap();
    assert_eq!((&*failing.subscription_id, failing.attempt_count), ("sub_1", 12));
    world.close().await;
}
