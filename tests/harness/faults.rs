//! A disk that fails when asked to: a library in C (`tests/faults/faults.c`), compiled when needed, that is
//! preloaded into the agent and stands before its writes and syncs of the buffer's files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio::sync::OnceCell;

use crate::{
    programs::{target_dir, workspace_root},
    python::run,
};

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
        let library = LIBRARY.get_or_try_init(compile).await?.clone();
        Ok(Self { library, control: directory.join("faults") })
    }

    /// What an agent is run by ([`crate::agent::AgentOptions::wrapper`]) so that its buffer has these faults:
    /// `$3` is its data directory.
    pub fn wrapper(&self) -> Vec<String> {
        let (library, control) = (self.library.display(), self.control.display());
        let script = format!(
            "export FAULTS_BELOW=\"$3/buffer\" FAULTS_CONTROL='{control}' LD_PRELOAD='{library}'; exec \"$@\""
        );
        ["sh", "-c", &script, "sh"].map(str::to_owned).into()
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

async fn compile() -> anyhow::Result<PathBuf> {
    let source = workspace_root().join("tests/faults/faults.c");
    let library = target_dir()?.join("libgateway_faults.so");
    // Other test processes may be at it too; the system ends the lock with the process.
    let lock = File::create(target_dir()?.join("faults.lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let written = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if written(&library) <= written(&source) {
        let [source, library] = [&source, &library].map(|path| path.display().to_string());
        let flags =
            ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", &library, &source, "-ldl"];
        run("cc", flags).await.context(
            "compile the disk that fails; a C compiler must be installed (Debian and Ubuntu: apt-get install gcc)",
        )?;
    }
    drop(lock);
    Ok(library)
}
