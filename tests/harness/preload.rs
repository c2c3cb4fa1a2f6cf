//! Libraries in C (`tests/faults/`), compiled when needed, that are preloaded into the programs under test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    programs::{target_dir, workspace_root},
    python::run,
};

/// The library made of `tests/faults/<name>.c`.
///
/// # Errors
/// When it cannot be compiled.
pub async fn compile(name: &str) -> anyhow::Result<PathBuf> {
    let source = workspace_root().join(format!("tests/faults/{name}.c"));
    let library = target_dir()?.join(format!("libgateway_{name}.so"));
    // Other test processes may be at it too; the system ends the lock with the process.
    let lock = File::create(target_dir()?.join(format!("{name}.lock")))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let written = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if written(&library) <= written(&source) {
        let [source, library] = [&source, &library].map(|path| path.display().to_string());
        let flags =
            ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", &library, &source, "-ldl"];
        run("cc", flags).await.context(
            "compile a library; a C compiler must be installed (Debian and Ubuntu: apt-get install gcc)",
        )?;
    }
    drop(lock);
    Ok(library)
}

/// What a program is run by so that the library is in it. `variables` are names and shell words.
pub fn wrapper(library: &Path, variables: &[(&str, &str)]) -> Vec<String> {
    let variables: String = variables.iter().map(|(name, word)| format!(" {name}={word}")).collect();
    let script = format!("export{variables} LD_PRELOAD='{}'; exec \"$@\"", library.display());
    ["sh", "-c", &script, "sh"].map(str::to_owned).into()
}
