//! A disk that fails when asked to: a library in C (`tests/faults/faults.c`), compiled when needed, that is
//! preloaded into a program and stands before its writes and syncs of the files below a directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio::sync::OnceCell;

use crate::preload;

static LIBRARY: OnceCell<PathBuf> = OnceCell::const_new();

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The next sync of a journal file fails, and what was written to it since the last one is gone.
    SyncFailsOnce,
    /// Every sync fails.
    SyncFails,
    /// Every write fails for want of space.
    DiskFull,
}

impl Fault {
    const fn rule(self) -> &'static str {
        match self {
            Self::SyncFailsOnce => "sync EIO once .journal lose\n",
            Self::SyncFails => "sync EIO always * keep\n",
            Self::DiskFull => "write ENOSPC always * keep\n",
        }
    }
}

/// Switches the faults of one agent.
pub struct Faults {
    library: PathBuf,
    control: PathBuf,
}

impl Faults {
    /// Faults with their switch in `directory`.
    ///
    /// # Errors
    /// When the library cannot be compiled.
    pub async fn new(directory: &Path) -> anyhow::Result<Self> {
        let library = LIBRARY.get_or_try_init(|| preload::compile("faults")).await?.clone();
        Ok(Self { library, control: directory.join("faults") })
    }

    /// What an agent is run by ([`crate::agent::AgentOptions::wrapper`]) so that its buffer has these faults.
    pub fn wrapper(&self) -> Vec<String> {
        self.wrapper_below("/buffer")
    }

    /// What a program is run by so that everything in its data directory has these faults.
    pub fn wrapper_of_all(&self) -> Vec<String> {
        self.wrapper_below("")
    }

    /// `$3` is the data directory.
    fn wrapper_below(&self, part: &str) -> Vec<String> {
        let below = format!("\"$3{part}\"");
        let control = format!("'{}'", self.control.display());
        preload::wrapper(&self.library, &[("FAULTS_BELOW", &below), ("FAULTS_CONTROL", &control)])
    }

    /// From now on this goes wrong.
    ///
    /// # Errors
    /// When the switch cannot be written.
    pub fn begin(&self, fault: Fault) -> anyhow::Result<()> {
        drop(fs::remove_file(self.fired()));
        let new = self.control.with_extension("new");
        fs::write(&new, fault.rule())?;
        Ok(fs::rename(&new, &self.control)?)
    }

    /// From now on all is well.
    ///
    /// # Errors
    /// When the switch cannot be removed.
    pub fn end(&self) -> anyhow::Result<()> {
        fs::remove_file(&self.control).context("end the fault")
    }

    /// Whether it has gone wrong since [`Faults::begin`].
    pub fn has_fired(&self) -> bool {
        self.fired().exists()
    }

    fn fired(&self) -> PathBuf {
        self.control.with_extension("fired")
    }
}
