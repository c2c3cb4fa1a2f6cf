//! Builds the programs once per test process, with the profile of the test itself.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use tokio::{process::Command, sync::OnceCell};

/// The built programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `gateway-control-plane`.
    pub control_plane: PathBuf,
    /// `gateway-agent`.
    pub agent: PathBuf,
    /// `gateway`.
    pub cli: PathBuf,
}

static PROGRAMS: OnceCell<Programs> = OnceCell::const_new();

/// A directory with programs to test as they are, such as those of a release; unset builds them.
const PROGRAMS_ENV: &str = "GATEWAY_TESTS_PROGRAMS";

/// The programs, built when they are not fresh.
///
/// # Errors
/// When the build fails, or they are not where the environment says.
pub async fn programs() -> anyhow::Result<&'static Programs> {
    PROGRAMS.get_or_try_init(build).await
}

/// The root of the workspace.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a directory of the workspace")
}

/// The directory of build artifacts, `target/`.
///
/// # Errors
/// When the running program is not in one.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    Ok(profile_dir()?.parent().context("find the target directory")?.to_owned())
}

/// `target/<profile>`: where this program was built.
fn profile_dir() -> anyhow::Result<PathBuf> {
    let executable = env::current_exe().context("find the running program")?;
    let directory = executable.parent().context("find the running program's directory")?;
    // Tests are in `deps/`, programs beside it.
    let is_deps = directory.file_name().is_some_and(|name| name == "deps");
    let directory = if is_deps { directory.parent() } else { Some(directory) };
    Ok(directory.context("find the profile's directory")?.to_owned())
}

async fn build() -> anyhow::Result<Programs> {
    if let Some(directory) = env::var_os(PROGRAMS_ENV) {
        return programs_in(Path::new(&directory));
    }
    let profile_dir = profile_dir()?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()).context("name the profile")? {
        "debug" => "dev",
        name => name,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace_root())
        .args(["build", "--quiet", "--bins", "--profile", profile])
        .args(["-p", "gateway-control-plane", "-p", "gateway-agent", "-p", "gateway-cli"])
        .arg("--target-dir")
        .arg(target_dir()?)
        .status()
        .await
        .context("run cargo to build the programs")?;
    ensure!(status.success(), "build the programs: cargo ended with {status}");
    programs_in(&profile_dir)
}

fn programs_in(directory: &Path) -> anyhow::Result<Programs> {
    let programs = Programs {
        control_plane: directory.join("gateway-control-plane"),
        agent: directory.join("gateway-agent"),
        cli: directory.join("gateway"),
    };
    for program in [&programs.control_plane, &programs.agent, &programs.cli] {
        ensure!(program.exists(), "find program `{}`", program.display());
    }
    Ok(programs)
}
