//! Hand-overs in a journal that a crash cut off, that is damaged, or that only the tools look at.

use super::*;
use crate::pipeline::buffer::{
    record::LogIn,
    recover::{Recovered, recover},
    tool::{Source, Stopped, export, salvage, verify},
};

/// A buffer with hand-overs in both directions, stopped by a kill. Returns the newest segment.
async fn with_hand_overs(directory: &Path) -> std::path::PathBuf {
    let buffer = open(directory).await;
    buffer.append(entry([event(1, &["sub_a", "sub_b"]), event(2, &["sub_a"])])).await.unwrap();
    let own = deliveries(&buffer, 3).await;
    let failed = outcome(own[0], 1, &event(1, &[]).log, DeliveryState::Pending.given_away());
    buffer.settle(Outcome { due_ms: Some(DUE_MS), ..failed }).await;
    give(&buffer, own[2], DeliveryState::Held).await;
    until_handed_over(&buffer, 2).await;
    assert_eq!(take(&buffer, foreign("h1", 3, "sub_a", 3)).await, TAKEN);
    kill(buffer).await;
    let mut segments = read::list(&config(directory).directory.join("journal")).unwrap();
    let newest = segments.pop().unwrap().number;
    config(directory).directory.join("journal").join(format!("{newest:016}.journal"))
}

/// Deliveries, by event and place.
type Keys = BTreeSet<(u64, u16)>;

/// Deliveries that are owed here, and those that are in reports.
fn owed_and_given(recovered: &Recovered) -> (Keys, Keys) {
    let mut owed = BTreeSet::new();
    for (event, slot) in recovered.index.iter() {
        let deliveries = (0_u16..).zip(slot.deliveries.as_slice());
        owed.extend(
            deliveries.filter(|(_, delivery)| !delivery.state.is_settled()).map(|(at, _)| (event, at)),
        );
    }
    let reports = recovered.lanes[Lane::Logs as usize].up_to(u64::MAX);
    let given = reports.filter_map(|report| match report.log {
        LogIn::HandOver(place) => Some((report.event, place)),
        _ => None,
    });
    (owed, given.collect())
}

/// Wherever a crash cuts the journal off, each delivery is either owed here or on its way, and one that was being taken
/// over is here whole or not at all.
#[tokio::test]
async fn nothing_is_between_the_agents() {
    let directory = tempfile::tempdir().unwrap();
    let newest = with_hand_overs(directory.path()).await;
    let journal = newest.parent().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    let own = BTreeSet::from([(1, 0), (1, 1), (2, 0)]);
    let mut seen = BTreeSet::new();
    for length in (0..=bytes.len()).rev() {
        std::fs::write(&newest, &bytes[..length]).unwrap();
        let recovered = recover(journal, None).unwrap();
        assert_eq!(recovered.damage, Default::default(), "cut at {length}");
        let (owed, given) = owed_and_given(&recovered);
        let taken = owed.contains(&(3, 0));
        let ours: BTreeSet<_> = owed.iter().copied().filter(|key| key.0 < 3).collect();
        assert_eq!(&ours | &given, own, "cut at {length}");
        assert!(ours.is_disjoint(&given), "cut at {length}");
        assert_eq!(recovered.index.get(3).is_some(), taken);
        if let Some(slot) = recovered.index.get(3) {
            let delivery = slot.deliveries.as_slice()[0];
            assert_eq!((delivery.attempts, delivery.due_ms), (3, DUE_MS | 1), "cut at {length}");
            assert_eq!(slot.reported, crate::pipeline::buffer::index::Reported::Acked);
        }
        seen.insert((given.len(), taken));
    }
    assert_eq!(seen, BTreeSet::from([(0, false), (1, false), (2, false), (2, true)]));
}

/// Whatever byte is damaged, no delivery is lost but those of an event that cannot be read; one may be made by both
/// agents.
#[tokio::test]
async fn damage_keeps_deliveries_here() {
    let directory = tempfile::tempdir().unwrap();
    let newest = with_hand_overs(directory.path()).await;
    let journal = newest.parent().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    let mut came_back = 0;
    for at in format::HEADER_BYTES..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        std::fs::write(&newest, damaged).unwrap();
        let recovered = recover(journal, None).unwrap();
        let (owed, given) = owed_and_given(&recovered);
        for key in [(1, 0), (1, 1), (2, 0)] {
            assert!(owed.contains(&key) || given.contains(&key), "byte {at} loses {key:?}");
        }
        came_back += usize::from(given.len() < 2);
    }
    assert!(came_back > 0, "damage to a hand-over keeps the delivery here");
}

/// The tools count what was given away, name its state, and carry it over.
#[tokio::test]
async fn tools_know_hand_overs() {
    let (directory, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    with_hand_overs(directory.path()).await;
    let mut quiet = |_: &'static str, _: u64, _: u64| {};
    let stopped = Stopped::open(directory.path()).unwrap();
    let verified = verify(&stopped, &mut quiet).unwrap();
    assert!(verified.is_sound());
    assert_eq!((verified.found.deliveries_open, verified.found.deliveries_handing_over), (2, 2));
    let mut out = Vec::new();
    export(&stopped, false, &mut out, &mut quiet).unwrap();
    let lines = String::from_utf8(out).unwrap();
    assert_eq!(lines.matches("\"handing_over\"").count(), 2, "{lines}");
    let salvaged = salvage(Source::Buffer(&stopped), to.path(), &mut quiet).unwrap();
    assert!(salvaged.is_complete() && salvaged.deliveries == 2);
    assert_eq!(version(to.path(), 1), format::HAND_OVERS);
    let buffer = open(to.path()).await;
    assert_eq!(deliveries(&buffer, 2).await.len(), 2);
    let (reports, last) = until_handed_over(&buffer, 2).await;
    let bodies: BTreeSet<String> = hand_overs(&reports)
        .into_iter()
        .map(|hand_over| hand_over.inbound_log.unwrap().payload_json)
        .collect();
    assert_eq!(bodies, [1, 2].map(|number| event(number, &[]).log.payload_json).into());
    buffer.acked(Lane::Logs, last);
    eventually("what was given away is freed", || buffer.stats().events == 2).await;
}
