//! Old segments leave: disk use follows what is live, and what is live moves on.

use std::fs;

use super::*;

fn journal_bytes(directory: &Path) -> u64 {
    let journal = config(directory).directory.join("journal");
    // A segment may go while they are listed.
    fs::read_dir(journal)
        .unwrap()
        .filter_map(|entry| entry.unwrap().metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// Events come and go while some stay: disk use stays bounded by what stays, and these and their states are
/// still there after a kill.
#[tokio::test]
async fn disk_use_follows_what_is_live() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry((0..100).map(|number| event(number, &["sub_dead"])))).await.unwrap();
    for delivery in deliveries(&buffer, 100).await {
        attempt(&buffer, delivery, DeliveryState::Pending, Some(4_102_444_800_000)).await;
    }
    let opt_out = v1::OptOut { id: "opt_1".to_owned(), ..v1::OptOut::default() };
    buffer.append(Entry { opt_outs: vec![opt_out.clone()], ..Entry::default() }).await.unwrap();
    for round in 1..40 {
        let numbers = round * 100..round * 100 + 100;
        buffer.append(entry(numbers.map(|number| event(number, &["sub_a"])))).await.unwrap();
        for delivery in deliveries(&buffer, 100).await {
            attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
        }
        let all_reported = || buffer.shared.reports_planned.load(Ordering::Acquire) == 0;
        eventually("all is reported", all_reported).await;
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
    }
    let is_small = || {
        let live = buffer.stats().bytes;
        journal_bytes(directory.path()) <= 2 * live + 2 * (64 << 10)
    };
    eventually("old segments are gone", is_small).await;
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let left = deliveries(&buffer, 100).await;
    assert!(left.iter().all(|delivery| delivery.attempts == 1 && delivery.due_ms == 4_102_444_800_000));
    assert_eq!(buffer.local_opt_outs(), [opt_out]);
    for number in [0, 99, 100, 3_999] {
        let again = buffer.append(entry([event(number, &["sub_a"])])).await.unwrap();
        assert_eq!(again.duplicates, 1, "event {number} is remembered");
    }
}

/// What was seen is remembered also when both its segment and the index are gone.
#[tokio::test]
async fn marks_outlive_segment_and_index() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry((0..600).map(|number| event(number, &[])))).await.unwrap();
    let is_small = || {
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
        buffer.is_drained() && journal_bytes(directory.path()) < 600 * 200
    };
    buffer.append(entry([event(1_000, &[])])).await.unwrap();
    eventually("the segments are gone", is_small).await;
    buffer.close().await;
    fs::remove_dir_all(config(directory.path()).directory.join("index")).unwrap();
    let buffer = open(directory.path()).await;
    eventually("the marks are back", || (0..600).all(|number| buffer.contains(&event_id(number)))).await;
}
