//! What a configuration of many webhook subscriptions costs an agent in memory.

use allocation_counter::measure;
use gateway_agent::snapshot::disk::ConfigLog;
use gateway_core::snapshot::Snapshot;
use gateway_proto::v1::StreamConfigResponse;
use gateway_runtime::sealing::Key;
use prost::Message as _;

#[path = "../benches/snapshot/subscriptions.rs"]
mod subscriptions;

/// A fifth of the largest configuration that is promised, so that an unoptimized test is quick; in parts of a fifth of
/// what the control plane sends at once.
const SUBSCRIPTIONS: u64 = 20_000;
const PER_PART: u64 = 2_000;
/// A fifth of 200 MiB, less the 40 MiB that all else of an agent may take.
const BYTES_MAX: u64 = (200 - 40) * 1_024 * 1_024 / 5;

fn read(part: &[u8]) -> StreamConfigResponse {
    StreamConfigResponse::decode(part).expect("it was encoded here")
}

/// An agent that takes 100,000 webhook subscriptions from its control plane, uses and stores them, and one that starts
/// from its disk with them, stay under 200 MiB. Parts that wait are encoded, as in the agent.
#[test]
fn many_subscriptions_fit_into_memory() {
    let directory = tempfile::tempdir().unwrap();
    let key = Key::generate();
    let mut kept = None;
    let fresh = measure(|| {
        let parts = subscriptions::parts(SUBSCRIPTIONS, PER_PART);
        let staged: Vec<_> = parts.map(|part| part.encode_to_vec()).collect();
        let (log, _) = ConfigLog::open(directory.path(), &key).unwrap();
        let (snapshot, refused) = Snapshot::default().apply_parts(staged.iter().map(|part| read(part)));
        assert!(refused.is_empty());
        log.append(staged.into_iter().map(|part| read(&part)), Vec::new).unwrap();
        kept = Some((log, snapshot));
    });
    assert_eq!(kept.take().unwrap().1.subscriptions().count() as u64, SUBSCRIPTIONS);
    let restored = measure(|| {
        let (log, _) = ConfigLog::open(directory.path(), &key).unwrap();
        let snapshot = log.snapshot().unwrap();
        kept = Some((log, snapshot));
    });
    assert_eq!(kept.take().unwrap().1.subscriptions().count() as u64, SUBSCRIPTIONS);
    for (what, peak) in [("fresh", fresh.bytes_max), ("restored", restored.bytes_max)] {
        let each = peak / SUBSCRIPTIONS;
        assert!(peak < BYTES_MAX, "{what}: {peak} bytes, {each} for each webhook subscription");
    }
}
