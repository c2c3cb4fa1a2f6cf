//! Hand-overs and a control plane that does not take them, or of which that is not known yet.

use super::*;

/// An earlier control plane skips reports that it does not know and acks them. What waits for its ack when such a one
/// comes back is never reported to it: it is owed here again, as it was, also after a kill, and given away once more
/// when the control plane takes it.
#[tokio::test]
async fn what_was_given_away_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let events = [event(1, &["sub_a", "sub_b"]), event(2, &["sub_a"]), event(3, &["sub_a"])];
    buffer.append(entry(events)).await.unwrap();
    let own = deliveries(&buffer, 4).await;
    attempt(&buffer, own[0], DeliveryState::Pending, Some(DUE_MS | 1)).await;
    give(&buffer, own[0], DeliveryState::Pending).await;
    give(&buffer, own[2], DeliveryState::Held).await;
    let (reports, _) = until_handed_over(&buffer, 2).await;
    // The first of the hand-overs is acked.
    let hand_over =
        |report: &&v1::Report| matches!(report.report, Some(v1::report::Report::DeliveryHandOver(_)));
    let first = reports.iter().find(hand_over).unwrap().sequence;
    buffer.acked(Lane::Logs, first);
    eventually("it is acked", || buffer.acked_sequence(Lane::Logs) == first).await;
    buffer.control_plane_takes_hand_overs(false);
    let back = deliveries(&buffer, 1).await[0];
    assert_eq!(back, OpenDelivery { held: true, ..own[2] });
    // One that was decided before comes back as well, with the attempt that was made.
    let failed = outcome(own[3], 1, &event(3, &[]).log, DeliveryState::Pending.given_away());
    buffer.settle(Outcome { due_ms: Some(DUE_MS), ..failed }).await;
    let late = deliveries(&buffer, 1).await[0];
    assert_eq!((late.event, late.attempts, late.due_ms), (own[3].event, 1, DUE_MS));
    buffer.append(entry([event(4, &[])])).await.unwrap();
    let sent = reports_after(&buffer, Lane::Logs, first).await.reports();
    assert!(hand_overs(&sent).is_empty(), "{sent:?}");
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let mut owed = deliveries(&buffer, 3).await;
    owed.sort_unstable_by_key(|delivery| delivery.event);
    assert_eq!(owed, [own[1], back, late]);
    let sent = reports_after(&buffer, Lane::Logs, first).await;
    assert!(hand_overs(&sent.reports()).is_empty(), "what was taken back stays so");
    give(&buffer, back, DeliveryState::Held).await;
    let (reports, last) = until_handed_over(&buffer, 1).await;
    assert_eq!(hand_overs(&reports).len(), 1, "only the new one");
    // The ack of the old report says nothing of the new one.
    buffer.acked(Lane::Logs, last - 1);
    eventually("all before it is acked", || buffer.acked_sequence(Lane::Logs) == last - 1).await;
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let (again, _) = until_handed_over(&buffer, 1).await;
    assert_eq!(hand_overs(&again), hand_overs(&reports));
    for delivery in deliveries(&buffer, 2).await {
        attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    }
    buffer.acked(Lane::Logs, last);
    eventually("all is freed", || {
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
        buffer.is_drained()
    })
    .await;
    assert_eq!(buffer.stats(), BufferStats::default());
}

/// Until the control plane is heard, hand-overs and what is behind them wait, from memory and from disk.
#[tokio::test]
async fn hand_overs_wait_for_the_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let mut buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let delivery = deliveries(&buffer, 1).await[0];
    give(&buffer, delivery, DeliveryState::Held).await;
    until_handed_over(&buffer, 1).await;
    for _ in 0..2 {
        buffer.hold_hand_overs();
        let batch = buffer.next_reports(Lane::Logs, 0, LIMITS).await.unwrap();
        let before: Vec<_> = kinds(&batch.reports());
        assert!(!before.is_empty() && !before.contains(&"hand-over"), "{before:?}");
        let nothing = buffer.next_reports(Lane::Logs, batch.last, LIMITS).await.unwrap();
        assert_eq!((nothing.count, nothing.last), (0, batch.last));
        buffer.control_plane_takes_hand_overs(true);
        let behind = buffer.next_reports(Lane::Logs, batch.last, LIMITS).await.unwrap();
        assert_eq!(kinds(&behind.reports()), ["hand-over"]);
        kill(buffer).await;
        buffer = open(directory.path()).await;
        assert_eq!(buffer.take_new_deliveries(), []);
    }
}

/// What comes back while the backlog of the start is handed out is handed out once.
#[tokio::test]
async fn comes_back_once() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"]), event(2, &["sub_a"])])).await.unwrap();
    let own = deliveries(&buffer, 2).await;
    give(&buffer, own[0], DeliveryState::Pending).await;
    until_handed_over(&buffer, 1).await;
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    buffer.control_plane_takes_hand_overs(false);
    eventually("it is taken back", || {
        !buffer
            .shared
            .lane(Lane::Logs)
            .up_to(u64::MAX)
            .any(|report| matches!(report.log, crate::pipeline::buffer::record::LogIn::HandOver(_)))
    })
    .await;
    buffer.append(entry([event(3, &[])])).await.unwrap();
    assert_eq!(deliveries(&buffer, 2).await, own);
    assert_eq!(buffer.take_new_deliveries(), []);
}
