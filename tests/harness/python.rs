//! A Python virtual environment under `target/` with what customers, operators and providers use: the official
//! `standardwebhooks` package, PyNaCl and `grpcurl`, and the providers' own libraries. Made once, by whichever
//! test comes first.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context as _, ensure};
use tokio::{process::Command, sync::OnceCell};

use crate::programs::{target_dir, workspace_root};

/// Directories below `tests/` with scripts, each with the `requirements.txt` of its scripts.
const SCRIPTS: [&str; 2] = ["webhook_verify", "provider_signatures"];

static ENVIRONMENT: OnceCell<PathBuf> = OnceCell::const_new();

/// The directory of the environment's programs.
///
/// # Errors
/// When python3 is missing or the packages cannot be installed; the error says what to do.
pub async fn python_env() -> anyhow::Result<&'static PathBuf> {
    ENVIRONMENT.get_or_try_init(make).await
}

/// A script that runs in it, by its path below `tests/`.
pub fn script(path: &str) -> PathBuf {
    workspace_root().join("tests").join(path)
}

async fn make() -> anyhow::Result<PathBuf> {
    let directory = target_dir()?.join("python-env");
    let programs = directory.join("bin");
    // Other test processes may be at it too; the system ends the lock with the process.
    let lock = File::create(target_dir()?.join("python-env.lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let requirements = SCRIPTS.map(|name| script(name).join("requirements.txt"));
    let wanted = requirements.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?.concat();
    let installed = directory.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(programs);
    }
    run("python3", ["-m", "venv", "--clear"].map(OsStr::new).into_iter().chain([directory.as_os_str()]))
        .await
        .context(
            "make a Python virtual environment for official libraries; install python3 with its venv module \
             (Debian and Ubuntu: apt-get install python3 python3-venv)",
        )?;
    let pip = programs.join("pip");
    let arguments = ["install", "--quiet", "--disable-pip-version-check"].map(OsStr::new);
    let files = requirements.iter().flat_map(|file| [OsStr::new("--requirement"), file.as_os_str()]);
    run(&pip, arguments.into_iter().chain(files))
        .await
        .context("install Python packages; a package index must be reachable (see pip's --index-url)")?;
    fs::write(&installed, wanted)?;
    drop(lock);
    Ok(programs)
}

/// Runs a program to its end and gives what it printed.
///
/// # Errors
/// When it cannot be started or fails; with what it printed.
pub async fn run<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> anyhow::Result<String> {
    let name = program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("start `{name}`"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "run `{name}`: {}: {printed}{complaint}", output.status);
    Ok(printed)
}
