//! Pages of logs and attempts: everything that matches, once, newest first or oldest first.

use gateway_core::filter::EventFilter;

use super::*;

/// Which numbers a filter should let through.
type Wanted = Box<dyn Fn(&u32) -> bool>;

/// Every filter, and several together.
fn filters() -> Vec<(LogFilter, Wanted)> {
    let time = |seconds: i64| jiff::Timestamp::from_second(1_000 + seconds).ok();
    vec![
        (LogFilter::default(), Box::new(|_| true)),
        (LogFilter { tenant_id: "default".parse().ok(), ..Default::default() }, Box::new(|_| true)),
        (
            LogFilter { instance_id: Some("inst_1".into()), ..Default::default() },
            Box::new(|number| number % 3 == 1),
        ),
        (
            LogFilter { from_phone: Some("+966500000003".into()), ..Default::default() },
            Box::new(|number| number % 7 == 3),
        ),
        (
            LogFilter { external_message_id: Some("wamid.42".into()), ..Default::default() },
            Box::new(|number| *number == 42),
        ),
        (
            LogFilter { events: EventFilter::parse(&["message.delivered"]).ok(), ..Default::default() },
            Box::new(|number| number % 2 == 1),
        ),
        (LogFilter { start_time: time(60), ..Default::default() }, Box::new(|number| *number >= 60)),
        (LogFilter { end_time: time(60), ..Default::default() }, Box::new(|number| *number < 60)),
        (
            LogFilter {
                events: EventFilter::parse(&["message.received"]).ok(),
                start_time: time(10),
                end_time: time(50),
                ..Default::default()
            },
            Box::new(|number| number % 2 == 0 && (10..50).contains(number)),
        ),
        (
            LogFilter { instance_id: Some("inst_2".into()), start_time: time(95), ..Default::default() },
            Box::new(|number| number % 3 == 2 && *number >= 95),
        ),
        (LogFilter { tenant_id: "other".parse().ok(), ..Default::default() }, Box::new(|_| false)),
    ]
}

/// Filters narrow the list, among old and new, whatever the size of a page.
pub(in super::super) async fn filters_narrow_the_list<E: Engine>() {
    let world = World::<E>::new().await;
    for start in (0..100).step_by(5) {
        world.append(batch("agt_1", u64::from(start) + 1, (start..start + 5).map(event).collect())).await;
    }
    for (filter, wanted) in filters() {
        let expected: Vec<_> = (0..100).filter(|number| wanted(number)).collect();
        for page_size in [1, 7, 1_000] {
            let found = world.all(&filter, page_size).await;
            assert_eq!(found, newest_first(expected.iter().copied()), "{filter:?}");
        }
    }
    let last = world.logs.last_event_time("inst_0").await.unwrap();
    assert_eq!(last, jiff::Timestamp::from_second(1_099).ok());
    assert_eq!(world.logs.last_event_time("inst_9").await.unwrap(), None);
    world.close().await;
}

/// Pages do not move when logs are recorded, changed and sealed between them, whatever the filter: what was there
/// at the first page comes once.
pub(in super::super) async fn pages_do_not_move_under_writes<E: Engine>() {
    for (filter, wanted) in filters() {
        let world = World::<E>::new().await;
        world.append(batch("agt_1", 1, (0..100).map(event).collect())).await;
        let (mut ids, mut before, mut number) = (Vec::new(), None, 200_u32);
        loop {
            let page = world.logs.list(&filter, before, 9).await.unwrap();
            ids.extend(page.logs.into_iter().map(|log| log.event_id));
            assert!(ids.len() < 1_000, "pages go round in circles");
            before = page.next;
            if before.is_none() {
                break;
            }
            // New ones that match as well, and a change of an old one.
            let new = v1::InboundLog { external_message_id: "wamid.42".into(), ..log(number) };
            let new = (0..4).map(|more| {
                let new = v1::InboundLog { event_id: event_id(number + more), ..new.clone() };
                Record::Event(Box::new(new), vec![])
            });
            let mut records: Vec<_> = new.collect();
            records.push(attempted(number % 100, 2, v1::DeliveryState::Delivered));
            world.append(batch("agt_1", u64::from(number), records)).await;
            number += 10;
        }
        let expected: Vec<_> = (0..100).filter(|number| wanted(number)).collect();
        assert_eq!(ids, newest_first(expected.into_iter()), "{filter:?}");
        world.close().await;
    }
}

/// A page of large logs ends before it is too large for a gRPC message, and nothing is left out.
pub(in super::super) async fn pages_are_bounded_in_bytes<E: Engine>() {
    let world = World::<E>::new().await;
    let large = |number| {
        let log = v1::InboundLog { payload_json: "x".repeat(250 << 10), ..log(number) };
        let attempts = (1..=60).map(|attempt_number| v1::DeliveryAttempt {
            error: "x".repeat(60 << 10),
            ..attempt(number, attempt_number, "sub_1")
        });
        Record::Event(Box::new(log), if number == 4 { attempts.collect() } else { Vec::new() })
    };
    world.append(batch("agt_1", 1, (0..20).map(large).collect())).await;
    let first = world.logs.list(&LogFilter::default(), None, 20).await.unwrap();
    assert_eq!(first.logs.len(), 12);
    assert_eq!(world.all(&LogFilter::default(), 20).await, newest_first(0..20));
    let page = world.logs.list_attempts(None, &event_id(4), None, None, 100).await.unwrap().unwrap();
    assert_eq!(page.attempts.len(), 51);
    let page = world.logs.list_attempts(None, &event_id(4), None, page.next, 100).await.unwrap().unwrap();
    assert_eq!((page.attempts.len(), page.next), (9, None));
    world.close().await;
}

/// A log that is too large for an answer is listed without its body, also from sealed segments and by instance, and
/// hides no other; asked for alone it is whole.
pub(in super::super) async fn large_logs_hide_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    let body = "x".repeat(5 << 20);
    let of = |number| {
        let payload_json = if number == 4 { body.clone() } else { "{}".into() };
        Record::Event(Box::new(v1::InboundLog { payload_json, ..log(number) }), Vec::new())
    };
    world.append(batch("agt_1", 1, (0..9).map(of).collect())).await;
    for _ in ["new", "old"] {
        let of_instance = LogFilter { instance_id: Some("inst_1".into()), ..Default::default() };
        for (filter, step) in [(LogFilter::default(), 1), (of_instance, 3)] {
            let found = world.all(&filter, 2).await;
            let numbers = (0..9).filter(|number| step == 1 || number % 3 == 1).collect::<Vec<_>>();
            assert!(found.ends_with(&newest_first(numbers.into_iter())), "{filter:?}");
            let page = world.logs.list(&filter, None, 1_000).await.unwrap();
            let large: Vec<_> = page.logs.iter().filter(|log| log.payload_omitted).collect();
            assert_eq!(large.len(), 1, "{filter:?}");
            assert_eq!((&large[0].event_id, large[0].payload_json.len()), (&event_id(4), 0));
        }
        assert_eq!(world.get(4).await.payload_json, body);
        assert!(!world.get(4).await.payload_omitted);
        world.age(100).await;
    }
    world.close().await;
}

/// Attempts are listed oldest first, though one is reported late, of all webhook subscriptions or one; pages do not
/// move when attempts are added between them.
pub(in super::super) async fn attempts_are_paged_oldest_first<E: Engine>() {
    let world = World::<E>::new().await;
    let report = |numbers: Vec<u32>, subscription_id: &str| {
        Record::Attempts(v1::AttemptsReport {
            event_id: event_id(1),
            deliveries: vec![],
            attempts: numbers.into_iter().map(|number| attempt(1, number, subscription_id)).collect(),
        })
    };
    let first = vec![
        owed(1),
        report(vec![5, 6], "sub_1"),
        report(vec![2, 3], "sub_2"),
        report(vec![2, 3, 4], "sub_1"),
    ];
    world.append(batch("agt_1", 1, first)).await;
    world.append(batch("agt_1", 10, vec![report((7..90).collect(), "sub_1")])).await;
    for (subscription_id, page_size, expected) in [
        (Some("sub_1"), 4, (1..90).map(|number| ("sub_1", number)).collect::<Vec<_>>()),
        (Some("sub_2"), 1, vec![("sub_2", 2), ("sub_2", 3)]),
        (Some("sub_3"), 1, vec![]),
    ] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = world.logs.list_attempts(None, &event_id(1), subscription_id, after, page_size).await;
            let page = page.unwrap().unwrap();
            assert!(page.attempts.len() <= page_size);
            found.extend(
                page.attempts.into_iter().map(|attempt| (attempt.subscription_id, attempt.attempt_number)),
            );
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let found: Vec<_> = found.iter().map(|(id, number)| (id.as_str(), *number)).collect();
        assert_eq!(found, expected);
    }
    // Of all subscriptions, while more come in.
    let (mut found, mut after, mut number) = (Vec::new(), None, 100_u32);
    loop {
        let page = world.logs.list_attempts(None, &event_id(1), None, after, 10).await.unwrap().unwrap();
        found.extend(page.attempts.iter().map(|attempt| attempt.start_time.unwrap().seconds - 2_000));
        after = page.next;
        if after.is_none() || number > 110 {
            break;
        }
        world.append(batch("agt_1", number.into(), vec![report(vec![number], "sub_1")])).await;
        number += 1;
    }
    let expected: Vec<_> = [1, 2, 2, 3, 3].into_iter().chain(4..90).chain(100..i64::from(number)).collect();
    assert_eq!(found, expected);
    assert!(world.logs.list_attempts(None, &event_id(7), None, None, 1).await.unwrap().is_none());
    world.close().await;
}

/// A tenant finds its own logs and attempts only, also by ids that it knows; the platform finds all.
pub(in super::super) async fn tenants_see_their_own_only<E: Engine>() {
    let world = World::<E>::new().await;
    let of = |number: u32| {
        let tenant_id = ["acme", "default"][usize::from(number.is_multiple_of(2))].into();
        Record::Event(
            Box::new(v1::InboundLog { tenant_id, ..log(number) }),
            vec![attempt(number, 1, "sub_1")],
        )
    };
    world.append(batch("agt_1", 1, (0..40).map(of).collect())).await;
    for (tenant, remainder) in [("acme", 1), ("default", 0), ("other", 2)] {
        let tenant_id = tenant.parse().ok();
        let mine = |number: &u32| number % 2 == remainder;
        for instance_id in [None, Some("inst_1")] {
            let filter = LogFilter {
                tenant_id: tenant_id.clone(),
                instance_id: instance_id.map(str::to_owned),
                ..Default::default()
            };
            let wanted = |number: &u32| mine(number) && instance_id.is_none_or(|_| number % 3 == 1);
            let expected: Vec<_> = (0..40).filter(wanted).collect();
            assert_eq!(world.all(&filter, 7).await, newest_first(expected.into_iter()), "{tenant}");
        }
        for number in 0..40 {
            let log = world.logs.get(tenant_id.as_ref(), &event_id(number)).await.unwrap();
            assert_eq!(log.is_some(), mine(&number), "{tenant} {number}");
            let attempts =
                world.logs.list_attempts(tenant_id.as_ref(), &event_id(number), None, None, 9).await.unwrap();
            assert_eq!(attempts.is_some(), mine(&number), "{tenant} {number}");
        }
    }
    assert_eq!(world.all(&LogFilter::default(), 100).await, newest_first(0..40));
    world.close().await;
}
