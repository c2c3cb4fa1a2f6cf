//! Where `gateway dev` keeps its state: a given directory, or a temporary one that goes at the end.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::TempDir;

/// The data directory.
pub enum DataDir {
    /// Given: stays.
    Kept(PathBuf),
    /// Temporary: removed when dropped.
    Temporary(TempDir),
}

impl DataDir {
    /// The given directory, created when missing, or a temporary one.
    pub fn open(given: Option<PathBuf>) -> anyhow::Result<Self> {
        match given {
            Some(path) => {
                let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
                created.with_context(|| {
                    format!(
                        "create data directory `{}`; give another one, where you may write, with --data-dir",
                        path.display()
                    )
                })?;
                Ok(Self::Kept(path))
            }
            None => {
                let made = tempfile::Builder::new().prefix("gateway-dev-").tempdir();
                Ok(Self::Temporary(made.context("create a temporary data directory")?))
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary directory is gone at the end, a given one stays.
    #[test]
    fn only_temporary_directories_go() {
        let parent = tempfile::tempdir().unwrap();
        let given = parent.path().join("a/b");
        let kept = DataDir::open(Some(given.clone())).unwrap();
        let temporary = DataDir::open(None).unwrap();
        let temporary_path = temporary.path().to_owned();
        drop((kept, temporary));
        assert!(given.is_dir() && !temporary_path.exists());
    }
}
