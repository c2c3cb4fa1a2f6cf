//! Old segments leave although the disk refuses in between, and without taking along what is needed. And what
//! changes on the disk while the buffer is open costs only what it hits.

use std::{fs, path::PathBuf};

use super::*;
use faults::{Faults, open_with};

fn journal(directory: &Path) -> PathBuf {
    config(directory).directory.join("journal")
}

fn first_segment(directory: &Path) -> PathBuf {
    journal(directory).join(format!("{:016}.journal", 1))
}

/// Changes one byte of a file where this text is.
fn damage(path: &Path, text: &str) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Waits until it was looked for old segments, and what was found was dealt with.
async fn looked_after(buffer: &Buffer) {
    let ticks = || buffer.shared.ticks.load(Ordering::Acquire);
    let before = ticks();
    eventually("old segments were looked for", || ticks() >= before + 2).await;
}

/// An old segment whose marks could not be kept is tried again: it leaves once they can be.
#[tokio::test]
async fn cleaning_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    eventually("the index is built", || buffer.shared.marks.is_applied()).await;
    let marks = config(directory.path()).directory.join("marks");
    let aside = marks.with_extension("aside");
    fs::rename(&marks, &aside).unwrap();
    buffer.append(entry((0..600).map(|number| event(number, &[])))).await.unwrap();
    // The first segment is full: this goes to the next.
    buffer.append(entry([event(1_000, &[])])).await.unwrap();
    eventually("all is acked", || {
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
        buffer.is_drained()
    })
    .await;
    looked_after(&buffer).await;
    assert!(first_segment(directory.path()).exists(), "its marks are nowhere else");
    fs::rename(&aside, &marks).unwrap();
    eventually("the segment leaves", || !first_segment(directory.path()).exists()).await;
}

/// A commit that fails while a damaged segment is read makes what was read before be read again: what is live in
/// the segment moves on before it is set aside.
#[tokio::test]
async fn failure_while_cleaning_loses_nothing() {
    for syncs_left in 2..6 {
        let directory = tempfile::tempdir().unwrap();
        let large = Config { segment_bytes: 4 << 20, ..config(directory.path()) };
        let buffer = Buffer::open(large.clone(), Metrics::new()).await.unwrap();
        for number in 0..84 {
            let mut event = event(number, &["sub_a"]);
            event.log.message_text = "x".repeat(50_000);
            buffer.append(entry([event])).await.unwrap();
        }
        kill(buffer).await;
        damage(&first_segment(directory.path()), &event_id(40).to_string());

        let faults = Arc::new(Faults::default());
        faults.syncs_left.store(syncs_left, Ordering::SeqCst);
        let buffer = open_with(large, &faults).await;
        eventually("the damaged segment leaves", || !first_segment(directory.path()).exists()).await;
        for delivery in deliveries(&buffer, 83).await {
            let owed = buffer.load(delivery.event, delivery.subscription).await.unwrap();
            assert!(owed.is_some(), "event {} of failure {syncs_left}", delivery.event);
        }
        let reports = reports_after(&buffer, Lane::Urgent, 0).await.reports();
        let is_damage = |report: &v1::Report| matches!(&report.report, Some(v1::report::Report::BufferDamage(damage)) if damage.events_lost_max == 1);
        assert_eq!(reports.iter().filter(|report| is_damage(report)).count(), 1, "the damage is told once");
    }
}

/// Decisions of contacts stay for good: that there are many is no reason to write them again and again.
#[tokio::test]
async fn opt_outs_are_not_written_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    for number in 0..20 {
        let opt_outs = (0..100).map(|contact| v1::OptOut {
            id: format!("opt_{number}_{contact:0>60}"),
            ..v1::OptOut::default()
        });
        buffer.append(Entry { opt_outs: opt_outs.collect(), ..Entry::default() }).await.unwrap();
    }
    let newest = || {
        let segments = fs::read_dir(journal(directory.path())).unwrap();
        segments.map(|segment| segment.unwrap().file_name()).max().unwrap()
    };
    let durable = buffer.shared.lane(Lane::Urgent).durable;
    buffer.acked(Lane::Urgent, durable);
    eventually("the reports are freed", || buffer.is_drained()).await;
    looked_after(&buffer).await;
    let before = newest();
    looked_after(&buffer).await;
    assert_eq!(newest(), before, "nothing is written");
    assert_eq!(buffer.local_opt_outs().len(), 2_000);
}

/// An event that is damaged while the buffer is open holds up neither the reports of others nor their deliveries.
#[tokio::test]
async fn damage_while_open_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry((0..3).map(|number| event(number, &["sub_a"])))).await.unwrap();
    eventually("all is reported", || buffer.shared.reports_planned.load(Ordering::Acquire) == 0).await;
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let open_deliveries = deliveries(&buffer, 3).await;
    damage(&first_segment(directory.path()), &event_id(1).to_string());
    let first = buffer.acked_sequence(Lane::Logs);
    let mut reported = Vec::new();
    for report in reports_after(&buffer, Lane::Logs, first).await.reports() {
        if let Some(v1::report::Report::Event(report)) = report.report {
            reported.push(report.inbound_log.unwrap().event_id);
        }
    }
    assert_eq!(reported, [event_id(0).to_string(), event_id(2).to_string()]);
    for (number, delivery) in open_deliveries.into_iter().enumerate() {
        let owed = buffer.load(delivery.event, delivery.subscription).await.unwrap();
        assert_eq!(owed.is_some(), number != 1);
    }
    let batch = reports_after(&buffer, Lane::Urgent, buffer.acked_sequence(Lane::Urgent)).await;
    assert!(matches!(batch.reports()[0].report, Some(v1::report::Report::BufferDamage(_))), "it is told");
}

/// What leaves with an old segment is in the index, which says so: the next start does not take it for incomplete and
/// build it again, while which repeats would not be known.
#[tokio::test]
async fn index_is_not_behind_what_left() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry((0..600).map(|number| event(number, &[])))).await.unwrap();
    eventually("the first segment leaves", || {
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
        buffer.is_drained() && !first_segment(directory.path()).exists()
    })
    .await;
    buffer.close().await;
    let position =
        view::View::open(&config(directory.path()).directory).unwrap().position().unwrap().unwrap();
    assert!(position.segment > 1, "{position:?}");
    let buffer = open(directory.path()).await;
    assert!((0..600).all(|number| buffer.contains(&event_id(number))));
    assert!(buffer.is_drained(), "no damage is told");
}
