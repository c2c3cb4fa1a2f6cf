//! What marks cost in the index, with 100,000 and with 1,000,000 of them: finding none, finding one, and taking a batch
//! of 256 new ones.
//!
//! `cargo bench -p gateway-agent --bench index`

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_agent::pipeline::buffer::bench::{BenchIndex, event_id};
use gateway_core::id::EventId;

/// Marks of one batch.
const BATCH: u64 = 256;
/// Ids that are looked up in turn.
const LOOKED_UP: u64 = 10_000;

fn ids(numbers: std::ops::Range<u64>) -> Vec<EventId> {
    let mut ids: Vec<EventId> = numbers.map(event_id).collect();
    // As the keeper of the buffer hands them over.
    ids.sort_unstable_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
    ids
}

fn measure(criterion: &mut Criterion) {
    for marks in [100_000, 1_000_000] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made");
        let index = BenchIndex::open(directory.path()).expect("an index can be made");
        for first in (0..marks).step_by(10_000) {
            index.apply(&ids(first..first + 10_000)).expect("the disk takes it");
        }
        look_up(criterion, &index, marks, "hit", (0..LOOKED_UP).map(|at| at * (marks / LOOKED_UP)));
        look_up(criterion, &index, marks, "miss", 1 << 40..(1 << 40) + LOOKED_UP);
        apply(criterion, &index, marks);
    }
}

fn look_up(
    criterion: &mut Criterion,
    index: &BenchIndex,
    marks: u64,
    outcome: &str,
    numbers: impl Iterator<Item = u64>,
) {
    let ids: Vec<EventId> = numbers.map(event_id).collect();
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new(outcome, marks), |bench| {
        let mut ids = ids.iter().cycle();
        bench.iter(|| index.contains(ids.next().expect("it has no end")));
    });
    group.finish();
}

fn apply(criterion: &mut Criterion, index: &BenchIndex, marks: u64) {
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(BATCH));
    let mut next = 1 << 32;
    group.bench_function(BenchmarkId::new("apply_256", marks), |bench| {
        bench.iter_custom(|iterations| {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let ids = ids(next..next + BATCH);
                next += BATCH;
                let started = Instant::now();
                index.apply(&ids).expect("the disk takes it");
                taken += started.elapsed();
            }
            taken
        });
    });
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
