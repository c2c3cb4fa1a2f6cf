//! Where root keys come from: files, the environment, or `root.key` in the data directory, made at the first
//! start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use gateway_runtime::{private, sealing::Key};
use tracing::info;
use zeroize::Zeroizing;

use super::SealingError;

/// Name of the file in the data directory that keeps the root key when none is given.
pub const FILE_NAME: &str = "root.key";

/// The keys that open the data keys of all tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKeys {
    /// These, newest first; at least one.
    Given(Vec<Key>),
    /// The one of this file, which is made when the database has no secret yet.
    File(PathBuf),
}

impl RootKeys {
    /// The key that a data directory keeps itself.
    pub fn of_data_dir(data_dir: &Path) -> Self {
        Self::File(data_dir.join(FILE_NAME))
    }

    /// Reads one key from each file, newest first.
    ///
    /// # Errors
    /// When a file cannot be read or holds no key.
    pub fn read_files(paths: &[PathBuf]) -> Result<Vec<Key>, SealingError> {
        paths.iter().map(|path| read(path)).collect()
    }

    /// The keys themselves. `needed` is the name of a root key that the database is sealed under; without one a
    /// missing file is made.
    ///
    /// # Errors
    /// When a file cannot be read or made, or is missing although it is needed.
    pub fn load(&self, needed: Option<&str>) -> Result<Vec<Key>, SealingError> {
        let path = match self {
            Self::Given(keys) => return Ok(keys.clone()),
            Self::File(path) => path,
        };
        private::warn_if_open(path);
        match (read(path), needed) {
            (Err(SealingError::ReadRootKey { source, .. }), needed)
                if source.kind() == io::ErrorKind::NotFound =>
            {
                match needed {
                    Some(needed) => {
                        Err(SealingError::NoRootKey { needed: needed.to_owned(), path: path.clone() })
                    }
                    None => Ok(vec![make(path)?]),
                }
            }
            (read, _) => Ok(vec![read?]),
        }
    }
}

fn read(path: &Path) -> Result<Key, SealingError> {
    let text = fs::read_to_string(path)
        .map_err(|source| SealingError::ReadRootKey { path: path.to_owned(), source })?;
    Key::parse(&Zeroizing::new(text)).map_err(|_| SealingError::BadRootKey { path: path.to_owned() })
}

fn make(path: &Path) -> Result<Key, SealingError> {
    let key = Key::generate();
    write(path, &key).map_err(|source| SealingError::MakeRootKey { path: path.to_owned(), source })?;
    info!(
        path = %path.display(),
        root_key = %key.id(),
        "made the root key that opens all stored secrets; keep a copy in a safe place apart from the backups of \
         the data directory: without it no stored secret can be read"
    );
    Ok(key)
}

fn write(path: &Path, key: &Key) -> io::Result<()> {
    private::write_file(path, Zeroizing::new(format!("{}\n", *key.to_base64())).as_bytes())
}
