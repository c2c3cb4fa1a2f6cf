//! What the control plane gets to know, and in which order.

use std::collections::HashSet;

use prost::Message as _;

use super::*;

fn event_report(report: v1::Report) -> v1::EventReport {
    match report.report {
        Some(v1::report::Report::Event(event)) => event,
        other => panic!("unexpected report {other:?}"),
    }
}

/// An event that is delivered at once is one report, with its attempts and its deliveries as they stand. On
/// a machine that stands still for a moment it may be two, so the test tries some events.
#[tokio::test]
async fn quick_delivery_is_one_report() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let mut after = 0;
    for number in 0..20 {
        buffer.append(entry([event(number, &["sub_a", "sub_b"])])).await.unwrap();
        for delivery in deliveries(&buffer, 2).await {
            attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
        }
        let report = event_report(reports_after(&buffer, Lane::Logs, after).await.reports().remove(0));
        if report.attempts.len() < 2 {
            after = attempts_reported(&buffer, 2 * (number as usize + 1)).await;
            continue;
        }
        let log = report.inbound_log.unwrap();
        assert_eq!(log.payload_json, event(number, &[]).log.payload_json);
        assert_eq!(log.deliveries.len(), 2);
        for delivery in &log.deliveries {
            assert_eq!((delivery.state(), delivery.attempt_count), (v1::DeliveryState::Delivered, 1));
            assert_eq!(delivery.next_attempt_time, None);
        }
        return;
    }
    panic!("no quick delivery was one report");
}

/// An event with many attempts that carry long answers is reported in parts, none of which is too large to be sent, the
/// event first and every attempt once; they are freed like any other.
#[tokio::test]
async fn many_long_answers_are_reported_in_parts() {
    const SUBSCRIPTIONS: usize = 200;
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let ids: Vec<_> = (0..SUBSCRIPTIONS).map(|number| format!("sub_{number}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    buffer.append(entry([event(1, &ids)])).await.unwrap();
    let log = event(1, &[]).log;
    for delivery in deliveries(&buffer, SUBSCRIPTIONS).await {
        let mut outcome = outcome(delivery, 1, &log, DeliveryState::Delivered);
        outcome.attempt.as_mut().unwrap().response_excerpt = vec![b'x'; 16 * 1024].into();
        buffer.settle(outcome).await;
    }
    let (mut after, mut attempt_ids) = (0, HashSet::new());
    while attempt_ids.len() < SUBSCRIPTIONS {
        let batch = reports_after(&buffer, Lane::Logs, after).await;
        for report in batch.reports() {
            assert!(report.encoded_len() < 2 << 20, "{}", report.encoded_len());
            let attempts = match report.report {
                Some(v1::report::Report::Event(event)) if after == 0 => event.attempts,
                Some(v1::report::Report::Attempts(report)) => report.attempts,
                other => panic!("unexpected report {other:?}"),
            };
            for attempt in attempts {
                assert_eq!(attempt.event_id, log.event_id);
                assert!(attempt_ids.insert(attempt.attempt_id), "an attempt came twice");
            }
        }
        after = batch.last;
    }
    buffer.acked(Lane::Logs, after);
    eventually("all is freed", || buffer.is_drained()).await;
}

/// An event whose delivery takes long is reported as pending, and the attempt follows.
#[tokio::test]
async fn slow_delivery_is_reported_while_pending() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let delivery = deliveries(&buffer, 1).await[0];
    let batch = reports_after(&buffer, Lane::Logs, 0).await;
    let log = event_report(batch.reports()[0].clone()).inbound_log.unwrap();
    assert_eq!(log.deliveries[0].state(), v1::DeliveryState::Pending);
    assert!(log.deliveries[0].next_attempt_time.is_some());

    attempt(&buffer, delivery, DeliveryState::Pending, Some(4_102_444_800_000)).await;
    let second = reports_after(&buffer, Lane::Logs, batch.last).await;
    let Some(v1::report::Report::Attempts(attempts)) = &second.reports()[0].report else {
        panic!("unexpected report {second:?}");
    };
    assert_eq!(attempts.event_id, event_id(1).to_string());
    assert_eq!(attempts.deliveries[0].next_attempt_time.as_ref().unwrap().seconds, 4_102_444_800);
    assert_eq!(attempts.deliveries[0].subscription_id, "sub_a");

    let held = Outcome {
        event: delivery.event,
        subscription: delivery.subscription,
        state: DeliveryState::Held,
        due_ms: None,
        attempt: None,
        gone: None,
    };
    buffer.settle(held).await;
    let third = reports_after(&buffer, Lane::Logs, second.last).await;
    let Some(v1::report::Report::Attempts(attempts)) = &third.reports()[0].report else {
        panic!("unexpected report {third:?}");
    };
    assert_eq!(attempts.event_id, event_id(1).to_string());
    assert_eq!((attempts.deliveries[0].state(), attempts.attempts.len()), (v1::DeliveryState::Held, 0));
    buffer.close().await;
    let buffer = open(directory.path()).await;
    assert!(deliveries(&buffer, 1).await[0].held);
}

/// An event that nobody subscribed to, and a callback that nobody claims, are reported all the same.
#[tokio::test]
async fn unowned_events_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let callback = v1::UnroutedCallback { id: "unrouted_1".to_owned(), ..v1::UnroutedCallback::default() };
    let unrouted = NewUnrouted { mark: event_id(9), callback };
    let both = Entry { unrouted: vec![unrouted.clone()], ..entry([event(1, &[])]) };
    assert_eq!(buffer.append(both).await.unwrap(), Receipt { stored: 2, duplicates: 0 });
    let repeated = Entry { unrouted: vec![unrouted], ..Entry::default() };
    assert_eq!(buffer.append(repeated).await.unwrap(), Receipt { stored: 0, duplicates: 1 });
    let batch = reports_after(&buffer, Lane::Logs, 0).await;
    assert_eq!(batch.reports().len(), 2);
    assert!(batch.reports().iter().any(|report| {
        matches!(&report.report, Some(v1::report::Report::UnroutedCallback(callback)) if callback.id == "unrouted_1")
    }));
    buffer.acked(Lane::Logs, batch.last);
    eventually("all is freed", || buffer.is_drained()).await;
    assert_eq!(buffer.stats().bytes, 0);
}

/// Decisions of contacts have a lane of their own, the newest of an id is kept, and the destination that is
/// gone goes the same way.
#[tokio::test]
async fn opt_outs_go_first_and_stay() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let opt_out =
        |change_number| v1::OptOut { id: "opt_1".to_owned(), change_number, ..v1::OptOut::default() };
    for change_number in [1, 2] {
        let entry = Entry { opt_outs: vec![opt_out(change_number)], ..entry([event(1, &["sub_a"])]) };
        buffer.append(entry).await.unwrap();
    }
    let delivery = deliveries(&buffer, 1).await[0];
    let gone = v1::DestinationGone { subscription_id: "sub_a".to_owned(), ..v1::DestinationGone::default() };
    let log = event(1, &[]).log;
    buffer.settle(Outcome { gone: Some(gone), ..outcome(delivery, 1, &log, DeliveryState::Held) }).await;
    eventually("the notice is there", || buffer.shared.lane(Lane::Urgent).durable >= 3).await;
    let batch = reports_after(&buffer, Lane::Urgent, 0).await;
    let kinds: Vec<_> = batch.reports().iter().map(|report| report.report.clone().unwrap()).collect();
    assert_eq!(kinds[0], v1::report::Report::OptOut(opt_out(1)));
    assert_eq!(kinds[1], v1::report::Report::OptOut(opt_out(2)));
    assert!(matches!(kinds[2], v1::report::Report::DestinationGone(_)));
    assert_ne!(buffer.buffer_id(Lane::Urgent), buffer.buffer_id(Lane::Logs));
    let ids = Lane::ALL.map(|lane| buffer.buffer_id(lane));
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    assert_eq!(buffer.local_opt_outs(), [opt_out(2)]);
    assert_eq!(Lane::ALL.map(|lane| buffer.buffer_id(lane)), ids);
}

/// A backlog that is larger than what is kept in memory is read from disk, in order and without a gap, and
/// can be acked in any portions.
#[tokio::test]
async fn backlog_is_read_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let count = 1_500;
    buffer.append(entry((0..count).map(|number| event(number, &[])))).await.unwrap();
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(count, &[])])).await.unwrap();

    let mut after = buffer.acked_sequence(Lane::Logs);
    let mut seen = Vec::new();
    while seen.len() <= count as usize {
        let batch = reports_after(&buffer, Lane::Logs, after).await;
        assert!(batch.reports().len() <= LIMITS.count);
        assert!(batch.reports().iter().all(|report| report.sequence > after));
        after = batch.last;
        seen.extend(
            batch.reports().into_iter().map(|report| event_report(report).inbound_log.unwrap().event_id),
        );
        if seen.len() % 200 == 0 {
            buffer.acked(Lane::Logs, after);
        }
    }
    let expected: Vec<String> = (0..=count).map(|number| event_id(number).to_string()).collect();
    assert_eq!(seen, expected);
    assert!(buffer.stats().report_lag.is_some());
    buffer.acked(Lane::Logs, after);
    eventually("all is freed", || buffer.is_drained()).await;
    assert_eq!(buffer.stats(), BufferStats::default());
}
