//! Watches hear of everything that matches, once and in order, from any place of the past.

use super::*;
use crate::inbound_log::{LogStoreError, WatchFrom};

/// A watch gives every record and every settled delivery once and in order, resumes from any cursor
/// without gap or repeat, also after a restart, and can begin in the past.
pub(in super::super) async fn watches_resume_from_any_cursor<E: Engine>() {
    let world = World::<E>::new().await;
    let mut live = world.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    for number in 0..10 {
        world.append(batch("agt_1", u64::from(number) + 1, vec![event(number)])).await;
    }
    let mut steps = Vec::new();
    for _ in 0..20 {
        steps.push(step(&mut live).await);
    }
    let expected: Vec<_> = (0..10)
        .flat_map(|number| [(event_id(number), None), (event_id(number), Some("sub_1".to_owned()))])
        .collect();
    let seen: Vec<_> = steps.iter().map(|(id, subscription, _)| (id.clone(), subscription.clone())).collect();
    assert_eq!(seen, expected);
    let world = world.reopen().await;
    for (place, (_, _, cursor)) in steps.iter().enumerate().take(19) {
        let mut resumed = world.logs.watch(LogFilter::default(), WatchFrom::Cursor(cursor)).await.unwrap();
        assert_eq!(step(&mut resumed).await, steps[place + 1]);
    }
    let since = WatchFrom::Time(jiff::Timestamp::from_second(1_006).unwrap());
    let filter = LogFilter { instance_id: Some("inst_1".into()), ..Default::default() };
    let mut past = world.logs.watch(filter, since).await.unwrap();
    assert_eq!(step(&mut past).await.0, event_id(7));
    assert_eq!(step(&mut past).await.1.as_deref(), Some("sub_1"));
    world.append(batch("agt_1", 100, vec![event(13)])).await;
    assert_eq!(step(&mut past).await.0, event_id(13));
    world.close().await;
    // Closing ends a watch, after what it had read.
    assert!(step(&mut past).await.1.is_some());
    assert!(past.next().await.is_none());
}

/// While several agents report, a watch that breaks off and resumes every few steps hears of every record and every
/// delivery once, in the order of each agent's reports.
pub(in super::super) async fn watches_meet_concurrent_writes<E: Engine>() {
    const AGENTS: u32 = 4;
    const BATCHES: u32 = 25;
    const EVENTS: u32 = 8;
    let world = World::<E>::new().await;
    let mut watch = world.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    let mut agents = tokio::task::JoinSet::new();
    for agent in 0..AGENTS {
        let logs = Arc::clone(&world.logs);
        agents.spawn(async move {
            for number in 0..BATCHES {
                let first = agent * 10_000 + number * EVENTS;
                let events = (first..first + EVENTS).map(event).collect();
                let sequence = u64::from(number * EVENTS) + 1;
                let submitted = logs.submit(batch(&format!("agt_{agent}"), sequence, events)).await.unwrap();
                if number % 3 == 0 {
                    submitted.committed().await.unwrap();
                }
            }
        });
    }
    let mut seen: Vec<(String, Option<String>)> = Vec::new();
    let total = AGENTS * BATCHES * EVENTS * 2;
    for place in 0..total {
        let (id, subscription_id, cursor) = step(&mut watch).await;
        seen.push((id, subscription_id));
        if place % 7 == 0 {
            watch = world.logs.watch(LogFilter::default(), WatchFrom::Cursor(&cursor)).await.unwrap();
        }
    }
    while let Some(ended) = agents.join_next().await {
        ended.unwrap();
    }
    for agent in 0..AGENTS {
        let numbers = agent * 10_000..agent * 10_000 + BATCHES * EVENTS;
        let expected: Vec<_> = numbers
            .flat_map(|number| [(event_id(number), None), (event_id(number), Some("sub_1".to_owned()))])
            .collect();
        let own: std::collections::HashSet<_> = expected.iter().map(|(id, _)| id.clone()).collect();
        let of_agent: Vec<_> = seen.iter().filter(|(id, _)| own.contains(id)).cloned().collect();
        assert_eq!(of_agent, expected);
    }
    // There is nothing after it.
    world.append(batch("agt_9", 1, vec![event(99_999)])).await;
    assert_eq!(step(&mut watch).await.0, event_id(99_999));
    world.close().await;
}

/// A cursor of another database, or of none, is refused.
pub(in super::super) async fn foreign_cursors_are_refused<E: Engine>() {
    let (world, foreign) = (World::<E>::new().await, World::<E>::new().await);
    let mut watch = foreign.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    foreign.append(batch("agt_1", 1, vec![event(1)])).await;
    let cursor = step(&mut watch).await.2;
    world.append(batch("agt_1", 1, vec![event(1), event(2)])).await;
    for bad in [cursor.as_str(), "", "x", "1-2-3", "-1"] {
        let refused = world.logs.watch(LogFilter::default(), WatchFrom::Cursor(bad)).await;
        assert!(matches!(refused, Err(LogStoreError::UnknownCursor)), "{bad}");
    }
    assert!(foreign.logs.watch(LogFilter::default(), WatchFrom::Cursor(&cursor)).await.is_ok());
    // After a crash the state of which is older, what it has not got is of the future.
    let left = World::of(world.engine.crashed().await).await;
    let mut watch = world.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    world.append(batch("agt_1", 3, vec![event(3)])).await;
    let future = step(&mut watch).await.2;
    let refused = left.logs.watch(LogFilter::default(), WatchFrom::Cursor(&future)).await;
    assert!(matches!(refused, Err(LogStoreError::UnknownCursor)));
    for world in [world, foreign, left] {
        world.close().await;
    }
}

/// A tenant's watch hears of its own logs only, and of all of them.
pub(in super::super) async fn tenants_watch_their_own_only<E: Engine>() {
    let world = World::<E>::new().await;
    let filter = LogFilter { tenant_id: "acme".parse().ok(), ..Default::default() };
    let mut now = world.logs.watch(filter.clone(), WatchFrom::Now).await.unwrap();
    let of = |number: u32| {
        let tenant_id = ["acme", "default"][usize::from(number.is_multiple_of(2))].into();
        Record::Event(
            Box::new(v1::InboundLog { tenant_id, ..log(number) }),
            vec![attempt(number, 1, "sub_1")],
        )
    };
    // In one group, and more than a watch reads at once.
    world.append(batch("agt_1", 1, (0..600).map(of).collect())).await;
    let mut past = world.logs.watch(filter, WatchFrom::Time(jiff::Timestamp::UNIX_EPOCH)).await.unwrap();
    for watch in [&mut now, &mut past] {
        for number in (0..600).filter(|number| number % 2 == 1) {
            assert_eq!(step(watch).await.0, event_id(number));
            assert_eq!(step(watch).await.1.as_deref(), Some("sub_1"));
        }
    }
    world.close().await;
}

/// A log that is too large for an answer comes without its body, and what is behind it comes as well.
pub(in super::super) async fn watches_go_on_past_large_logs<E: Engine>() {
    let world = World::<E>::new().await;
    let mut live = world.logs.watch(LogFilter::default(), WatchFrom::Now).await.unwrap();
    let of = |number| {
        let payload_json = if number % 4 == 1 { "x".repeat(5 << 20) } else { "{}".into() };
        Record::Event(
            Box::new(v1::InboundLog { payload_json, ..log(number) }),
            vec![attempt(number, 1, "sub_1")],
        )
    };
    world.append(batch("agt_1", 1, (0..10).map(of).collect())).await;
    let mut past =
        world.logs.watch(LogFilter::default(), WatchFrom::Time(jiff::Timestamp::UNIX_EPOCH)).await.unwrap();
    for watch in [&mut live, &mut past] {
        for number in 0..10 {
            for subscription_id in [None, Some("sub_1")] {
                let change = tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
                assert_eq!(change.log.event_id, event_id(number));
                assert_eq!(change.subscription_id.as_deref(), subscription_id);
                let is_large = number % 4 == 1;
                assert_eq!(
                    (change.log.payload_omitted, change.log.payload_json.is_empty()),
                    (is_large, is_large)
                );
            }
        }
    }
    world.close().await;
}
