//! The clocks of programs under test: a library in C (`tests/faults/clock.c`) that is preloaded into them and
//! adds to what they read. Programs that share a [`Clock`] live in the same time.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::OnceCell;

use crate::preload;

static LIBRARY: OnceCell<PathBuf> = OnceCell::const_new();
/// Where the two numbers are in the file.
const WALL_AT: u64 = 0;
const STEADY_AT: u64 = 8;

/// A clock that a test sets.
pub struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
    wall_nanoseconds: AtomicI64,
    steady_nanoseconds: AtomicI64,
}

impl Clock {
    /// A clock that is right, with its file in `directory`.
    ///
    /// # Errors
    /// When the library cannot be compiled, or the file not be made.
    pub async fn new(directory: &Path, name: &str) -> anyhow::Result<Self> {
        let library = LIBRARY.get_or_try_init(|| preload::compile("clock")).await?.clone();
        let path = directory.join(format!("{name}.clock"));
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.write_all_at(&[0; 16], WALL_AT)?;
        Ok(Self { library, path, file, wall_nanoseconds: 0.into(), steady_nanoseconds: 0.into() })
    }

    /// What a program is run by so that it lives in this time.
    pub fn wrapper(&self) -> Vec<String> {
        preload::wrapper(&self.library, &[("CLOCK_FILE", &format!("'{}'", self.path.display()))])
    }

    /// Time passes, as for a machine that was asleep: both clocks go forward.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn leap(&self, by: Duration) -> anyhow::Result<()> {
        let by = i64::try_from(by.as_nanos()).context("leap less than 292 years")?;
        self.add(&self.steady_nanoseconds, by, STEADY_AT)?;
        self.add(&self.wall_nanoseconds, by, WALL_AT)
    }

    /// Somebody sets the wall clock forward or back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_wall(&self, by: SignedDuration) -> anyhow::Result<()> {
        let by = i64::try_from(by.as_nanos()).context("set by less than 292 years")?;
        self.add(&self.wall_nanoseconds, by, WALL_AT)
    }

    /// The wall clock as the programs read it.
    pub fn now(&self) -> Timestamp {
        let shift = SignedDuration::from_nanos(self.wall_nanoseconds.load(Ordering::Relaxed));
        Timestamp::now().checked_add(shift).expect("tests stay far from the end of time")
    }

    fn add(&self, sum: &AtomicI64, by: i64, at: u64) -> anyhow::Result<()> {
        let sum = sum.fetch_add(by, Ordering::Relaxed) + by;
        // Eight bytes at a multiple of eight: programs read all of them or none.
        Ok(self.file.write_all_at(&sum.to_ne_bytes(), at)?)
    }
}
