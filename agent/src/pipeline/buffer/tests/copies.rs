//! A buffer id belongs to one directory: copies of a buffer report under ids of their own.

use std::fs;

use super::{
    faults::{Faults, open_with},
    *,
};

fn ids(buffer: &Buffer) -> [String; 2] {
    Lane::ALL.map(|lane| buffer.buffer_id(lane))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn reported(buffer: &Buffer, count: usize) -> Vec<String> {
    let (mut after, mut events) = (buffer.acked_sequence(Lane::Logs), Vec::new());
    while events.len() < count {
        let batch = reports_after(buffer, Lane::Logs, after).await;
        after = batch.last;
        events.extend(batch.reports().into_iter().map(|report| match report.report {
            Some(v1::report::Report::Event(event)) => event.inbound_log.unwrap().event_id,
            other => panic!("unexpected report {other:?}"),
        }));
    }
    events
}

fn names(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| event_id(number).to_string()).collect()
}

/// Makes a buffer with three events that are reported, of which the first is acked, and stops it. Returns its
/// ids.
async fn with_backlog(directory: &Path) -> [String; 2] {
    let buffer = open(directory).await;
    buffer.append(entry([1, 2, 3].map(|number| event(number, &[])))).await.unwrap();
    assert_eq!(reported(&buffer, 3).await, names(1..4));
    let first = buffer.acked_sequence(Lane::Logs) + 1;
    buffer.acked(Lane::Logs, first);
    eventually("the ack is taken", || buffer.acked_sequence(Lane::Logs) == first).await;
    let ids = ids(&buffer);
    buffer.close().await;
    ids
}

/// A copied buffer gets ids of its own at once and keeps them, also after a kill before anything was written;
/// everything that was not acked comes again under them, then what is new, and nothing that was acked. The one
/// it was copied from keeps its ids.
#[tokio::test]
async fn copy_reports_under_its_own_id() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let before = with_backlog(&first).await;
    copy(&first, &second);

    let twin = open(&second).await;
    let fresh = ids(&twin);
    assert!(fresh.iter().all(|id| !before.contains(id)), "{fresh:?} are other than {before:?}");
    kill(twin).await;
    let twin = open(&second).await;
    assert_eq!(ids(&twin), fresh);
    assert_eq!(reported(&twin, 2).await, names(2..4));
    twin.append(entry([event(20, &[])])).await.unwrap();
    assert_eq!(reported(&twin, 3).await, names([2, 3, 20]));

    let origin = open(&first).await;
    assert_eq!(ids(&origin), before);
    origin.append(entry([event(10, &[])])).await.unwrap();
    assert_eq!(reported(&origin, 3).await, names([2, 3, 10]));
}

/// A buffer of a program that did not note the directory keeps its ids at the first opening, and is bound from
/// then on.
#[tokio::test]
async fn older_buffer_is_bound_when_opened() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let before = with_backlog(&first).await;
    fs::remove_file(first.join("buffer/home")).unwrap();

    let buffer = open(&first).await;
    assert_eq!(ids(&buffer), before);
    buffer.close().await;
    copy(&first, &second);
    assert_ne!(ids(&open(&second).await), before);
    assert_eq!(ids(&open(&first).await), before);
}

/// A note that a crash or a person made unreadable costs the ids, not the reports.
#[tokio::test]
async fn unreadable_note_counts_as_another_directory() {
    let directory = tempfile::tempdir().unwrap();
    let before = with_backlog(directory.path()).await;
    fs::write(directory.path().join("buffer/home"), b"1 2").unwrap();
    let buffer = open(directory.path()).await;
    assert_ne!(ids(&buffer), before);
    assert_eq!(reported(&buffer, 2).await, names(2..4));
}

/// On a full disk a copy opens all the same, under another id each time until the id can be written: never
/// under that of the buffer it was copied from.
#[tokio::test]
async fn copy_on_a_full_disk_does_not_fall_back() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let before = with_backlog(&first).await;
    copy(&first, &second);
    let faults = Arc::new(Faults::default());
    faults.is_full.store(true, Ordering::SeqCst);
    let twin = open_with(config(&second), &faults).await;
    let on_full_disk = ids(&twin);
    assert_eq!(reported(&twin, 2).await, names(2..4));
    kill(twin).await;

    let twin = open(&second).await;
    let written = ids(&twin);
    assert!(![&before, &on_full_disk].contains(&&written));
    assert_ne!(before, on_full_disk);
    kill(twin).await;
    assert_eq!(ids(&open(&second).await), written);
}
