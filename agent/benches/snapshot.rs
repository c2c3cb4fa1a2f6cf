//! What a configuration of many webhook subscriptions costs: a fresh agent that uses and stores all of them, an agent
//! that starts from its disk, and one change among them.
//!
//! `cargo bench -p gateway-agent --bench snapshot`

use std::{path::Path, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use gateway_agent::snapshot::disk::ConfigLog;
use gateway_core::snapshot::Snapshot;
use gateway_proto::v1;
use gateway_runtime::sealing::Key;

#[path = "snapshot/subscriptions.rs"]
mod subscriptions;

/// Subscriptions of one part: about 3 MiB, as the control plane cuts them.
const PER_PART: u64 = 10_000;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made")
}

fn open(directory: &Path, key: &Key) -> ConfigLog {
    ConfigLog::open(directory, key).expect("the log can be opened").0
}

fn store(log: &ConfigLog, parts: &[v1::StreamConfigResponse]) {
    log.append(parts, Vec::new).expect("the disk takes it");
}

/// A delta that changes one subscription.
fn delta(number: u64, version: u64) -> v1::StreamConfigResponse {
    v1::StreamConfigResponse {
        version,
        store_epoch: "epoch".to_owned(),
        upserts: vec![subscriptions::subscription(number, version)],
        ..Default::default()
    }
}

fn measure(criterion: &mut Criterion) {
    let key = Key::generate();
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    for count in [10_000, 100_000] {
        let parts: Vec<_> = subscriptions::parts(count, PER_PART).collect();
        group.bench_with_input(BenchmarkId::new("fresh", count), &parts, |bencher, parts| {
            let fresh = |directory: tempfile::TempDir| {
                let log = open(directory.path(), &key);
                let snapshot = Snapshot::default().apply_parts(parts).0;
                store(&log, parts);
                (directory, log, snapshot)
            };
            bencher.iter_batched(directory, fresh, BatchSize::PerIteration);
        });
        let stored = directory();
        let log = open(stored.path(), &key);
        store(&log, &parts);
        group.bench_function(BenchmarkId::new("restart", count), |bencher| {
            bencher.iter(|| open(stored.path(), &key).snapshot());
        });
        let snapshot = Snapshot::default().apply_parts(&parts).0;
        let mut version = 1;
        group.bench_function(BenchmarkId::new("one change", count), |bencher| {
            bencher.iter(|| {
                version += 1;
                let delta = delta(77, version);
                store(&log, std::slice::from_ref(&delta));
                snapshot.apply(&delta)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
