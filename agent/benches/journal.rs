//! What a durable append costs: records of 1 kB in batches of 1, 16 and 256, with one `fdatasync` per batch, beside the
//! bare write and `fdatasync` of as many bytes.
//!
//! The disk is that of the target directory. Its speed moves from second to second, so the last lines compare both
//! in turns: `journal 1.10 x raw` says that the journal takes a tenth more.
//!
//! `cargo bench -p gateway-agent --bench journal`

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput};
use gateway_agent::pipeline::buffer::bench::{BenchJournal, SEGMENT_BYTES, event_records};

/// Bytes of a record, about.
const RECORD_BYTES: usize = 1_000;
/// Records of a commit.
const BATCHES: [u64; 3] = [1, 16, 256];
/// Turns of the comparison.
const TURNS: usize = 200;

/// Write and `fdatasync`, in files as long as the journal's.
struct Raw {
    directory: PathBuf,
    file: File,
    number: u32,
    end: u64,
}

impl Raw {
    fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), file: Self::begin(directory, 0), number: 0, end: 0 }
    }

    fn begin(directory: &Path, number: u32) -> File {
        File::create_new(directory.join(number.to_string())).expect("a file can be made")
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.end >= SEGMENT_BYTES {
            fs::remove_file(self.directory.join(self.number.to_string())).expect("it is there");
            self.number += 1;
            self.file = Self::begin(&self.directory, self.number);
            self.end = 0;
        }
        self.file.write_all_at(bytes, self.end).expect("the disk takes it");
        self.file.sync_data().expect("the disk takes it");
        self.end += bytes.len() as u64;
    }
}

struct Disk {
    _directory: tempfile::TempDir,
    journal: BenchJournal,
    raw: Raw,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made");
        let part = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).expect("a directory can be made");
            path
        };
        let (journal, raw) = (BenchJournal::new(&part("journal")), Raw::new(&part("raw")));
        Self { _directory: directory, journal, raw }
    }
}

fn measure(criterion: &mut Criterion) {
    let mut disk = Disk::new();
    let mut group = criterion.benchmark_group("append");
    for count in BATCHES {
        let records = event_records(count, RECORD_BYTES);
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("journal", count), |bench| {
            bench.iter(|| disk.journal.append(&records).expect("the disk takes it"));
        });
        group.bench_function(BenchmarkId::new("raw", count), |bench| {
            bench.iter(|| disk.raw.append(&records));
        });
    }
    group.finish();
}

/// Both in turns.
fn compare() {
    let mut disk = Disk::new();
    let mut out = std::io::stdout().lock();
    for count in BATCHES {
        let records = event_records(count, RECORD_BYTES);
        let (mut journal, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            journal.push(timed(|| disk.journal.append(&records).expect("the disk takes it")));
            raw.push(timed(|| disk.raw.append(&records)));
        }
        let (journal, raw) = (median(journal), median(raw));
        let ratio = journal.as_secs_f64() / raw.as_secs_f64();
        // Nothing is lost when nobody reads it.
        drop(writeln!(out, "append/{count}: journal {ratio:.2} x raw ({journal:?} and {raw:?}, medians)"));
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    measure(&mut criterion);
    criterion.final_summary();
    compare();
}
