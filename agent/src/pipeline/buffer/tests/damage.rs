//! What is damaged costs what is in it and nothing else: the rest is delivered, the damage is counted,
//! reported and set aside, and the buffer serves.

use std::{fs, path::PathBuf};

use super::*;

fn segments(directory: &Path) -> Vec<PathBuf> {
    let journal = config(directory).directory.join("journal");
    let mut paths: Vec<PathBuf> = fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A buffer with so many events, for one subscription, that was killed.
async fn backlog(directory: &Path, count: u32) {
    let buffer = open(directory).await;
    for first in (0..count).step_by(10) {
        buffer
            .append(entry((first..count.min(first + 10)).map(|number| event(number, &["sub_a"]))))
            .await
            .unwrap();
    }
    eventually("the index has the marks", || buffer.shared.marks.is_applied()).await;
    kill(buffer).await;
}

async fn damages(buffer: &Buffer) -> Vec<v1::BufferDamage> {
    let after = buffer.acked_sequence(Lane::Urgent);
    let reports = reports_after(buffer, Lane::Urgent, after).await.reports();
    let damages = reports.into_iter().filter_map(|report| match report.report {
        Some(v1::report::Report::BufferDamage(damage)) => Some(damage),
        _ => None,
    });
    damages.collect()
}

fn quarantined(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(config(directory).directory.join("quarantine")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// One changed byte in the middle costs the event it hits. The others are delivered, new ones are taken, the
/// damage is told with its size, and the segment is set aside.
#[tokio::test]
async fn flipped_byte_costs_one_event() {
    let directory = tempfile::tempdir().unwrap();
    backlog(directory.path(), 300).await;
    let path = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();

    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 299).await.len(), 299);
    let damage = damages(&buffer).await.remove(0);
    assert_eq!(damage.events_lost_max, 1);
    assert!((1..1_000).contains(&damage.unreadable_bytes), "{damage:?}");
    buffer.append(entry([event(10_000, &["sub_a"])])).await.unwrap();
    eventually("the segment is set aside", || !quarantined(directory.path()).is_empty()).await;
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 300).await.len(), 300, "nothing of it was needed");
    // That the segment was set aside is told too, unless the kill came before.
    let lost: u64 = damages(&buffer).await.iter().map(|damage| damage.events_lost_max).sum();
    assert_eq!(lost, 1, "damage is told once");
}

/// A journal that ends in the middle of a record, as after a crash, is whole up to there. Where the index knows
/// of more, that counts as lost.
#[tokio::test]
async fn truncated_journal_is_read_up_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    backlog(directory.path(), 100).await;
    let path = segments(directory.path()).pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1_000]).unwrap();
    let buffer = open(directory.path()).await;
    let left = buffer.take_new_deliveries().len() as u64;
    let damage = damages(&buffer).await.remove(0);
    assert!(left < 100 && damage.events_lost_max >= 100 - left, "{left} left, {damage:?}");
    assert!(damage.cause.contains("end of the journal"), "{damage:?}");
}

/// The rest of a write that a crash cut off is no damage: nothing of it was answered.
#[tokio::test]
async fn torn_write_is_no_damage() {
    for rest in [&[0xB7, 1, 1, 0, 0, 0, 9, 0, 1, 2, 3, 4, 5][..], &[0; 4_096]] {
        let directory = tempfile::tempdir().unwrap();
        backlog(directory.path(), 20).await;
        let path = segments(directory.path()).pop().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(rest);
        fs::write(&path, bytes).unwrap();
        let buffer = open(directory.path()).await;
        assert_eq!(deliveries(&buffer, 20).await.len(), 20);
        assert_eq!(buffer.shared.lane(Lane::Urgent).durable, 0, "nothing to tell");
    }
}

/// An index that is lost, damaged or of another agent is built again from the journal: nothing is lost, and
/// repeats are recognized.
#[tokio::test]
async fn index_is_built_again() {
    let other = tempfile::tempdir().unwrap();
    backlog(other.path(), 10).await;
    let other_index = config(other.path()).directory.join("index");
    for case in ["lost", "damaged", "other"] {
        let directory = tempfile::tempdir().unwrap();
        backlog(directory.path(), 50).await;
        let index = config(directory.path()).directory.join("index");
        match case {
            "lost" => fs::remove_dir_all(&index).unwrap(),
            "damaged" => fs::write(index.join("conf"), b"this is not what sled wrote").unwrap(),
            _ => {
                fs::remove_dir_all(&index).unwrap();
                fs::rename(&other_index, &index).unwrap();
            }
        }
        let buffer = open(directory.path()).await;
        assert_eq!(deliveries(&buffer, 50).await.len(), 50, "{case}");
        eventually("the marks are back", || buffer.contains(&event_id(0)) && buffer.contains(&event_id(49)))
            .await;
        assert_eq!(buffer.append(entry([event(7, &["sub_a"])])).await.unwrap().duplicates, 1, "{case}");
        assert_eq!(quarantined(directory.path()).is_empty(), case == "lost", "{case}");
    }
}

/// A journal that a newer program wrote is refused with a message that says what to do, and is not touched.
#[tokio::test]
async fn newer_journal_is_refused_and_untouched() {
    let directory = tempfile::tempdir().unwrap();
    backlog(directory.path(), 20).await;
    let path = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = crate::pipeline::buffer::journal::format::VERSION + 1;
    let crc = crc32c::crc32c(&bytes[..12]).to_be_bytes();
    bytes[12..16].copy_from_slice(&crc);
    fs::write(&path, &bytes).unwrap();
    let before = segments(directory.path());
    let refusal = Buffer::open(config(directory.path()), Metrics::new()).await.err().expect("it is refused");
    let text = format!("{:#}", anyhow::Error::from(refusal));
    assert!(text.contains("format 3") && text.contains("newer program"), "{text}");
    assert_eq!(segments(directory.path()), before);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// A segment, or the whole journal, that was taken away does not keep the buffer from opening, and is told.
#[tokio::test]
async fn missing_files_are_told() {
    for all in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        backlog(directory.path(), 2_000).await;
        let paths = segments(directory.path());
        assert!(paths.len() > 3, "there are several segments");
        let gone = if all { &paths[..] } else { &paths[1..2] };
        gone.iter().for_each(|path| fs::remove_file(path).unwrap());
        let buffer = open(directory.path()).await;
        let left = buffer.take_new_deliveries().len() as u64;
        assert_eq!(left == 0, all);
        let damage = damages(&buffer).await.remove(0);
        assert!(damage.events_lost_max >= 2_000 - left, "{left} left, {damage:?}");
        buffer.append(entry([event(10_000, &["sub_a"])])).await.unwrap();
        assert_eq!(deliveries(&buffer, 1).await.len(), 1);
    }
}

/// Bytes damaged at random places, one or many, never keep the buffer from opening or an undamaged event from
/// being delivered.
#[test]
fn random_damage_costs_what_it_hits() {
    use proptest::prelude::*;
    let config = ProptestConfig { cases: 40, max_shrink_iters: 0, ..ProptestConfig::default() };
    let damage = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..2_000_usize, 0..3_u8);
    proptest!(config, |(damage in damage)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(damaged_somewhere(damage));
    });
}

async fn damaged_somewhere(
    (file, at, length, how): (proptest::sample::Index, proptest::sample::Index, usize, u8),
) {
    let directory = tempfile::tempdir().unwrap();
    backlog(directory.path(), 400).await;
    let paths = segments(directory.path());
    let path = file.get(&paths);
    let mut bytes = fs::read(path).unwrap();
    let at = at.index(bytes.len());
    let end = bytes.len().min(at + length);
    match how {
        0 => bytes[at] ^= 0x81,
        1 => bytes[at..end].fill(0xB7),
        _ => drop(bytes.drain(at..end)),
    }
    let hit = if how == 0 { 1 } else { end - at };
    fs::write(path, bytes).unwrap();
    let buffer = open(directory.path()).await;
    let left = buffer.take_new_deliveries().len();
    // An event takes more than 130 bytes; those at both ends are hit in part.
    assert!(left >= 400 - (hit / 130 + 2), "{left} left after {hit} bytes of {path:?} were hit");
    if left < 400 {
        let told: u64 = damages(&buffer).await.iter().map(|damage| damage.events_lost_max).sum();
        assert!(told >= 400 - left as u64, "{left} left, {told} told");
    }
    buffer.append(entry([event(10_000, &["sub_a"])])).await.unwrap();
    kill(buffer).await;
}

/// An index that stopped at a segment that is gone meanwhile lacks marks: it is built again, and repeats are
/// recognized.
#[tokio::test]
async fn index_behind_the_journal_is_built_again() {
    let directory = tempfile::tempdir().unwrap();
    backlog(directory.path(), 50).await;
    let index = config(directory.path()).directory.join("index");
    let old = directory.path().join("old");
    fs::rename(&index, &old).unwrap();
    let buffer = open(directory.path()).await;
    for delivery in deliveries(&buffer, 50).await {
        attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    }
    for first in (100..2_000).step_by(100) {
        buffer.append(entry((first..first + 100).map(|number| event(number, &[])))).await.unwrap();
    }
    let is_first_gone = || {
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
        !segments(directory.path())[0].ends_with("0000000000000001.journal")
    };
    eventually("the first segment is gone", is_first_gone).await;
    buffer.close().await;
    fs::remove_dir_all(&index).unwrap();
    fs::rename(&old, &index).unwrap();
    let buffer = open(directory.path()).await;
    let numbers = (0..50).chain(100..2_000);
    eventually("the marks are back", || numbers.clone().all(|number| buffer.contains(&event_id(number))))
        .await;
}

/// A byte that changed in the index costs no mark: what is missing is noticed, and the index is built again.
#[tokio::test]
async fn damaged_index_loses_no_mark() {
    for at in [1_000, 3_000, 6_000, 12_000, 25_000, 50_000] {
        let directory = tempfile::tempdir().unwrap();
        backlog(directory.path(), 2_000).await;
        let path = config(directory.path()).directory.join("index").join("db");
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 0x04;
        fs::write(&path, bytes).unwrap();
        let buffer = open(directory.path()).await;
        eventually("the marks are there", || (0..2_000).all(|number| buffer.contains(&event_id(number))))
            .await;
        buffer.close().await;
    }
}
