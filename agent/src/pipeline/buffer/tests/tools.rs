//! The tools for the buffer of a stopped agent: what they say is so, what they carry over is all that can be
//! read, and the buffer itself stays as it is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::pipeline::buffer::tool::{
    CheckedIndex, Salvaged, Source, Stopped, Stretch, ToolError, Verified, check_index, export, salvage,
    verify,
};

const DUE_MS: i64 = 4_102_444_800_000;

fn quiet() -> impl FnMut(&'static str, u64, u64) {
    |_, _, _| {}
}

fn buffer_of(directory: &Path) -> PathBuf {
    config(directory).directory
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(buffer_of(directory).join("journal")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// All files below a directory, with what is in them, but the lock, which names the process.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.append(&mut contents(&path));
        } else if path.file_name().unwrap() != "lock" {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

fn chain(failure: ToolError) -> String {
    format!("{:#}", anyhow::Error::from(failure))
}

/// So many events, of which the first five were tried once, the next five delivered and acked, and one opt-out; several
/// segments, and marks of the one that left.
async fn busy(directory: &Path, count: u32) {
    let buffer = open(directory).await;
    buffer.append(entry((5..10).map(|number| event(number, &["sub_a"])))).await.unwrap();
    for delivery in deliveries(&buffer, 5).await {
        attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    }
    let last = attempts_reported(&buffer, 5).await;
    buffer.append(entry((0..5).map(|number| event(number, &["sub_a", "sub_b"])))).await.unwrap();
    for delivery in deliveries(&buffer, 10).await.into_iter().step_by(2) {
        attempt(&buffer, delivery, DeliveryState::Pending, Some(DUE_MS)).await;
    }
    attempts_reported(&buffer, 10).await;
    buffer.acked(Lane::Logs, last);
    for first in (10..count).step_by(50) {
        let end = count.min(first + 50);
        buffer.append(entry((first..end).map(|number| event(number, &["sub_a"])))).await.unwrap();
    }
    let opt_out = v1::OptOut { id: "opt_1".to_owned(), ..v1::OptOut::default() };
    buffer.append(Entry { opt_outs: vec![opt_out], ..Entry::default() }).await.unwrap();
    eventually("the acked events are freed", || buffer.stats().events == u64::from(count) - 5).await;
    eventually("the index has the marks", || buffer.shared.marks.is_applied()).await;
    let all_reported = || buffer.shared.reports_planned.load(Ordering::Acquire) == 0;
    eventually("all is reported", all_reported).await;
    buffer.close().await;
}

fn verified(directory: &Path) -> (Verified, CheckedIndex) {
    let buffer = Stopped::open(directory).unwrap();
    let verified = verify(&buffer, &mut quiet()).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let index = check_index(&buffer, &verified, temporary.path());
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the copy is gone");
    (verified, index)
}

fn exported(directory: &Path, all: bool) -> Vec<serde_json::Value> {
    let buffer = Stopped::open(directory).unwrap();
    let mut out = Vec::new();
    let exported = export(&buffer, all, &mut out, &mut quiet()).unwrap();
    let lines: Vec<serde_json::Value> =
        out.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(exported.events, lines.len() as u64);
    lines
}

fn salvaged(directory: &Path, to: &Path) -> Salvaged {
    let buffer = Stopped::open(directory).unwrap();
    salvage(Source::Buffer(&buffer), to, &mut quiet()).unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// A sound buffer is called sound, with what is open in it, and nothing in it changes.
#[tokio::test]
async fn sound_buffer_is_called_sound() {
    let directory = tempfile::tempdir().unwrap();
    busy(directory.path(), 600).await;
    let before = contents(&buffer_of(directory.path()));
    let (verified, index) = verified(directory.path());
    assert!(verified.is_sound() && index.is_sound(), "{verified:?} {index:?}");
    let found = &verified.found;
    assert_eq!((found.events_open, found.deliveries_open, found.opt_outs), (595, 600, 1));
    assert!(found.reports_waiting >= 595, "{found:?}");
    assert!(verified.segments.len() > 2, "there are several segments");
    assert!(verified.segments.iter().all(|segment| segment.damaged.is_empty() && segment.unused_bytes == 0));
    let live: u64 = verified.segments.iter().map(|segment| segment.live).sum();
    assert!(live >= found.events_open + found.reports_waiting);
    assert!(matches!(index, CheckedIndex::Behind { .. } | CheckedIndex::UpToDate), "{index:?}");
    assert_eq!(exported(directory.path(), false).len(), 595);
    assert_eq!(contents(&buffer_of(directory.path())), before);
}

/// A changed byte is found at its place, a segment without a header and a lost end are named, and so is an index
/// that is damaged, missing or of another journal.
#[tokio::test]
async fn damage_is_found_at_its_place() {
    let directory = tempfile::tempdir().unwrap();
    busy(directory.path(), 600).await;
    let paths = segments(directory.path());
    flip(&paths[1], 20_000);
    let (broken, _) = verified(directory.path());
    assert!(!broken.is_sound());
    let damaged: Vec<Stretch> =
        broken.segments.iter().flat_map(|segment| segment.damaged.iter().copied()).collect();
    let [stretch] = damaged[..] else { panic!("{damaged:?}") };
    assert!((stretch.offset..stretch.offset + stretch.bytes).contains(&20_000), "{stretch:?}");
    assert_eq!(broken.segments[1].damaged, damaged);
    flip(&paths[1], 20_000);
    assert!(verified(directory.path()).0.is_sound(), "it is as it was");

    flip(&paths[0], 100);
    assert!(!verified(directory.path()).0.segments[0].is_header_good);
    flip(&paths[0], 100);

    let index = buffer_of(directory.path()).join("index");
    let aside = tempfile::tempdir().unwrap();
    let away = |path: &PathBuf| aside.path().join(path.file_name().unwrap());
    paths[1..].iter().for_each(|path| fs::rename(path, away(path)).unwrap());
    assert!(matches!(verified(directory.path()).1, CheckedIndex::Ahead { .. }));
    paths[1..].iter().for_each(|path| fs::rename(away(path), path).unwrap());

    let other = tempfile::tempdir().unwrap();
    busy(other.path(), 20).await;
    fs::rename(&index, other.path().join("aside")).unwrap();
    assert_eq!(verified(directory.path()).1, CheckedIndex::Empty);
    fs::rename(buffer_of(other.path()).join("index"), &index).unwrap();
    assert_eq!(verified(directory.path()).1, CheckedIndex::OfAnotherJournal);
    fs::write(index.join("conf"), b"this is not what sled wrote").unwrap();
    assert!(matches!(verified(directory.path()).1, CheckedIndex::Damaged { .. }));
}

/// A damaged file of marks is named.
#[tokio::test]
async fn damaged_marks_are_found() {
    let directory = tempfile::tempdir().unwrap();
    busy(directory.path(), 20).await;
    let files = crate::pipeline::buffer::mark_files::MarkFiles::open(&buffer_of(directory.path())).unwrap();
    files.add(&[(event_id(1), crate::pipeline::buffer::record::Mark::new(0, 1))]).unwrap();
    let (sound, _) = verified(directory.path());
    assert!(sound.is_sound() && sound.marks[0].marks == 1, "{sound:?}");
    flip(&buffer_of(directory.path()).join("marks").join(&sound.marks[0].file), 30);
    assert!(!verified(directory.path()).0.is_sound());
}

/// The tools refuse a buffer whose agent runs and name its process; where there is no buffer they make none; one of a newer
/// program they do not read.
#[tokio::test]
async fn tools_refuse_what_they_must_not_touch() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Stopped::open(directory.path()).err().expect("there is none");
    assert!(chain(missing).contains("--data-dir"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let refusal = chain(Stopped::open(directory.path()).err().expect("it is in use"));
    assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
    buffer.close().await;

    let stopped = Stopped::open(directory.path()).unwrap();
    let refused = Buffer::open(config(directory.path()), Metrics::new()).await;
    assert!(matches!(refused, Err(OpenError::InUse { .. })), "no agent starts meanwhile");
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("something"), b"").unwrap();
    let refusal = salvage(Source::Buffer(&stopped), target.path(), &mut quiet());
    assert!(matches!(refusal, Err(ToolError::TargetNotEmpty { .. })));

    let path = segments(directory.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = crate::pipeline::buffer::journal::format::VERSION + 1;
    let crc = crc32c::crc32c(&bytes[..12]).to_be_bytes();
    bytes[12..16].copy_from_slice(&crc);
    fs::write(&path, &bytes).unwrap();
    let refusal = chain(verify(&stopped, &mut quiet()).unwrap_err());
    assert!(refusal.contains("newer program"), "{refusal}");
    let target = tempfile::tempdir().unwrap();
    assert!(salvage(Source::Buffer(&stopped), target.path(), &mut quiet()).is_err());
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0, "nothing is left of it");
}

/// An exported event says where it stands, and carries the webhook's body.
#[tokio::test]
async fn exported_events_say_where_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    busy(directory.path(), 12).await;
    let lines = exported(directory.path(), false);
    assert_eq!(lines.len(), 7);
    let of = |lines: &[serde_json::Value], number: u32| {
        let id = event_id(number).to_string();
        lines.iter().find(|line| line["event_id"] == id.as_str()).cloned()
    };
    let tried = of(&lines, 3).expect("it is open");
    assert_eq!((&tried["instance_id"], &tried["report"]), (&"inst_1".into(), &"waiting".into()));
    assert_eq!(tried["payload"]["number"], 3);
    assert!(tried["receive_time"].as_str().unwrap().ends_with('Z'));
    let [first, second] = tried["subscriptions"].as_array().unwrap().as_slice() else { panic!("{tried}") };
    assert_eq!((&first["subscription_id"], &first["attempts"]), (&"sub_a".into(), &1.into()));
    assert_eq!(
        (&first["state"], &first["next_attempt_time"]),
        (&"pending".into(), &"2100-01-01T00:00:00Z".into())
    );
    assert_eq!((&second["subscription_id"], &second["attempts"]), (&"sub_b".into(), &0.into()));
    assert_eq!(of(&lines, 7), None, "it is done");

    let lines = exported(directory.path(), true);
    assert_eq!(lines.len(), 12);
    let done = of(&lines, 7).expect("it is still in the journal");
    assert_eq!((&done["report"], &done["subscriptions"][0]["state"]), (&"acked".into(), &"delivered".into()));
}

/// What is salvaged starts as a buffer of its own: deliveries with their attempts and times, reports, opt-outs and
/// marks are there, the control plane is told what was lost, and the old buffer is as it was.
#[tokio::test]
async fn salvaged_buffer_goes_on() {
    let (directory, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = to.path().join("new");
    busy(directory.path(), 600).await;
    flip(&segments(directory.path())[1], 20_000);
    let before = contents(&buffer_of(directory.path()));
    let salvaged = salvaged(directory.path(), &to);
    assert_eq!(contents(&buffer_of(directory.path())), before);
    assert!(!salvaged.is_complete() && (1..5).contains(&salvaged.events_lost_max), "{salvaged:?}");
    assert!(salvaged.events >= 590 && salvaged.marks >= 590 && salvaged.opt_outs == 1, "{salvaged:?}");
    assert_eq!(fs::read_dir(buffer_of(&to)).unwrap().count(), 3, "journal, marks, lock");
    let (sound, index) = verified(&to);
    assert!(sound.is_sound() && index == CheckedIndex::Empty, "{sound:?}");
    assert_eq!(sound.found.events_open, salvaged.events);

    let buffer = open(&to).await;
    let count = usize::try_from(salvaged.deliveries).unwrap();
    let open_deliveries = deliveries(&buffer, count).await;
    let tried: Vec<&OpenDelivery> = open_deliveries
        .iter()
        .filter(|delivery| delivery.attempts == 1 && delivery.due_ms == DUE_MS)
        .collect();
    assert_eq!(tried.len(), 5);
    let owed = buffer.load(tried[4].event, tried[4].subscription).await.unwrap().unwrap();
    assert_eq!((owed.attempts, &owed.log.payload_json), (1, &event(4, &[]).log.payload_json));
    let told = reports_after(&buffer, Lane::Urgent, buffer.acked_sequence(Lane::Urgent)).await.reports();
    let kinds = told.iter().filter_map(|report| report.report.as_ref());
    let damages = kinds.filter(|kind| matches!(kind, v1::report::Report::BufferDamage(_)));
    assert_eq!(damages.count(), 1);
    eventually("the marks are in", || (10..300).any(|number| buffer.contains(&event_id(number)))).await;
    eventually("those of done events, too", || buffer.contains(&event_id(7))).await;
    let receipt = buffer.append(entry([event(7, &["sub_a"]), event(10_000, &["sub_a"])])).await.unwrap();
    assert_eq!(receipt, Receipt { stored: 1, duplicates: 1 });
    assert_eq!(buffer.local_opt_outs().len(), 1);
    assert_eq!(reports_after(&buffer, Lane::Logs, 0).await.count, LIMITS.count);
}

/// Attempts that no report has yet are in the report of the salvaged buffer.
#[tokio::test]
async fn salvaged_attempts_are_reported() {
    let (directory, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a", "sub_b"])])).await.unwrap();
    let first = deliveries(&buffer, 2).await[0];
    attempt(&buffer, first, DeliveryState::Pending, Some(DUE_MS)).await;
    // The second append is behind the outcome in the journal.
    buffer.append(entry([event(2, &["sub_a"])])).await.unwrap();
    kill(buffer).await;
    let salvaged = salvaged(directory.path(), to.path());
    assert_eq!((salvaged.events, salvaged.deliveries, salvaged.is_complete()), (2, 3, true));
    let buffer = open(to.path()).await;
    let again = deliveries(&buffer, 3).await;
    assert_eq!((again[0].attempts, again[0].due_ms), (1, DUE_MS));
    attempts_reported(&buffer, 1).await;
}

/// What is readable of a callback's events is carried over also where their last one is cut off.
#[tokio::test]
async fn cut_off_events_are_carried_over() {
    let (directory, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = open(directory.path()).await;
    buffer.append(entry((0..10).map(|number| event(number, &["sub_a"])))).await.unwrap();
    kill(buffer).await;
    let path = segments(directory.path()).remove(0);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    assert_eq!(salvaged(directory.path(), to.path()).deliveries, 9);
}

/// A segment alone gives what is not settled as far as it tells, whatever its file is called.
#[tokio::test]
async fn segment_alone_is_salvaged() {
    let (directory, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    busy(directory.path(), 600).await;
    let segment = segments(directory.path()).remove(1);
    let aside = directory.path().join("0000000000000002.journal.20260101T000000.000000.damaged");
    fs::copy(&segment, &aside).unwrap();
    let whole = tempfile::tempdir().unwrap();
    let of_whole = salvage(Source::Segment(&aside), whole.path(), &mut quiet()).unwrap();
    assert!(of_whole.is_complete(), "{of_whole:?}");
    flip(&aside, 20_000);
    let before = fs::read(&aside).unwrap();
    let salvaged = salvage(Source::Segment(&aside), to.path(), &mut quiet()).unwrap();
    assert!(salvaged.events > 50 && !salvaged.is_complete(), "{salvaged:?}");
    assert_eq!(fs::read(&aside).unwrap(), before);
    assert_eq!(fs::read_dir(buffer_of(to.path())).unwrap().count(), 3, "journal, marks, lock");
    let buffer = open(to.path()).await;
    deliveries(&buffer, usize::try_from(salvaged.deliveries).unwrap()).await;
}

/// Wherever bytes are damaged, what is salvaged is what an agent would find, and verifying says that something is wrong
/// whenever something is lost.
#[test]
fn salvage_finds_what_an_agent_finds() {
    use proptest::prelude::*;
    let damage = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..3_000_usize);
    let config = ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() };
    proptest!(config, |((file, at, length) in damage)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (directory, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            busy(directory.path(), 300).await;
            let path = file.get(&segments(directory.path())).clone();
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + length);
            bytes[at..end].fill(0xB7);
            fs::write(&path, bytes).unwrap();
            let (verified, index) = verified(directory.path());
            let salvaged = salvaged(directory.path(), to.path());
            assert_eq!(verified.found.events_open, salvaged.events);
            let is_sound = verified.is_sound() && index.is_sound();
            assert!(salvaged.events == 295 || !is_sound, "{verified:?} {index:?}");
            for directory in [directory.path(), to.path()] {
                let buffer = open(directory).await;
                assert_eq!(buffer.stats().events, salvaged.events);
                assert_eq!(buffer.take_new_deliveries().len() as u64, salvaged.deliveries);
                kill(buffer).await;
            }
        });
    });
}
