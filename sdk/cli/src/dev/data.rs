//! Where `gateway dev` keeps its state: a given directory, or a temporary one that goes at the end.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::session::write_private;

const SECRETS_FILE: &str = "dev.json";
/// Hex digits of a Meta app secret.
const APP_SECRET_DIGITS: usize = 32;
const VERIFY_TOKEN_CHARS: usize = 24;

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
                created.with_context(|| format!("create data directory `{}`", path.display()))?;
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

/// Secrets of the demo route. The control plane never reads them back, so they are kept here.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Signs callbacks.
    pub app_secret: String,
    /// Proves the handshake.
    pub verify_token: String,
}

impl Secrets {
    /// Those of `<data-dir>/dev.json`, made at the first start.
    pub fn ensure(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(SECRETS_FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("read `{}`; remove the file to get new secrets for the demo route", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secrets = Self::random();
                write_private(&path, &serde_json::to_vec_pretty(&secrets)?)
                    .with_context(|| format!("write `{}`", path.display()))?;
                Ok(secrets)
            }
            Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
        }
    }

    fn random() -> Self {
        let mut random = rand::rng();
        let digits =
            (0..APP_SECRET_DIGITS).map(|_| char::from(b"0123456789abcdef"[random.random_range(0..16)]));
        let app_secret = digits.collect();
        let letters = random.sample_iter(rand::distr::Alphanumeric).take(VERIFY_TOKEN_CHARS);
        Self { app_secret, verify_token: letters.map(char::from).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// The second start finds the secrets of the first, in a file for the owner only.
    #[test]
    fn secrets_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = Secrets::ensure(directory.path()).unwrap();
        let second = Secrets::ensure(directory.path()).unwrap();
        assert_eq!((&first.app_secret, &first.verify_token), (&second.app_secret, &second.verify_token));
        assert_eq!(first.app_secret.len(), APP_SECRET_DIGITS);
        let mode = fs::metadata(directory.path().join(SECRETS_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

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
