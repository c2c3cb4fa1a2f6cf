//! Backups of a running control plane, and starting from one.
//!
//! A backup is a directory: a consistent copy of each database, and `manifest.json` with sizes, SHA-256 and schema
//! versions, which is written last: without it a directory is no backup. The logs are copied before the
//! configuration. So the opt-outs and the work that belong to the logs are in it, and what was done in between
//! is at worst done again, which every part of the gateway bears.
//!
//! [`verify`] looks through a backup that was written: a copy of what is damaged is whole, and of no use.
//!
//! Not in a backup: the root key, without which its secrets cannot be read, the key of the certificate authority,
//! and the admin key. Keep copies of `root.key` and `ca.key` elsewhere, or give the root key from outside.
//!
//! [`restore`] gives the store a new epoch. Agents see that their versions and cursors mean nothing to it, take
//! everything anew, and report the opt-outs that it has forgotten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gateway_runtime::clock;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    audit::commands,
    inbound_log,
    store::{
        self, Cause, StoreError,
        sqlite::{files, schema},
    },
};

mod restore;
mod revocations;
mod verify;
#[cfg(test)]
mod tests;

pub use restore::{Restored, refuse_unfinished, restore};
pub use revocations::{Credential, CredentialKind, Credentials};
pub use verify::{Verified, verify};

/// The description of a backup, in its directory.
pub const MANIFEST: &str = "manifest.json";
/// The form of backups that this program writes.
const FORMAT: u32 = 1;
/// Databases in the order in which they are copied, with the newest schema that this program knows.
const DATABASES: [(&str, i64); 2] =
    [(inbound_log::FILE_NAME, inbound_log::SCHEMA_VERSION), (store::FILE_NAME, schema::SCHEMA_VERSION)];
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a copy waits for a lock on the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes read at once while a file is copied or its checksum is made.
const CHUNK_BYTES: usize = 1 << 20;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A directory that must be empty is not.
    #[error("use directory `{0}`: it is not empty")]
    NotEmpty(PathBuf),
    /// A file or directory cannot be used.
    #[error("use `{path}`")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path cannot be given to SQLite.
    #[error("use `{0}`: the path is not UTF-8")]
    Path(PathBuf),
    /// A database cannot be copied or changed.
    #[error("use database `{path}`")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The epoch of the store cannot be renewed.
    #[error("give the restored store a new epoch")]
    Epoch(#[source] StoreError),
    /// There is no database in the data directory that is said to have been in use.
    #[error(
        "look for what was revoked after the backup: there is no {file} in `{0}`; give the data directory that was in use \
         until now, or leave --previous-data-dir out, and what was revoked is restored unseen",
        file = store::FILE_NAME
    )]
    NoPrevious(PathBuf),
    /// The database that was in use until now cannot be read.
    #[error(
        "read `{path}` for what was revoked after the backup; without --previous-data-dir it is restored unseen"
    )]
    Previous {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The audit log cannot say that the databases were restored.
    #[error("note the restore in the audit log")]
    Audit(#[source] StoreError),
    /// What was revoked after the backup cannot be revoked again.
    #[error("revoke again what was revoked after the backup")]
    Revoke(#[source] StoreError),
    /// The manifest cannot be read.
    #[error("read `{path}`: it is damaged, or not of a backup")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The backup was never finished, or is none.
    #[error("read `{0}`: it is missing, so this is no whole backup")]
    NoManifest(PathBuf),
    /// A newer program wrote the backup.
    #[error(
        "restore `{name}` of version {found}: this program knows versions up to {known}; use a newer one"
    )]
    Newer {
        /// What is newer.
        name: String,
        /// Its version.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// A file is not what was backed up.
    #[error("restore `{0}`: it is damaged, its size or checksum is not that of the manifest")]
    Damaged(PathBuf),
    /// A restore was interrupted.
    #[error("use data directory `{0}`: a restore was interrupted in it; empty it and restore again")]
    Unfinished(PathBuf),
    /// A thread that read or wrote a file ended early.
    #[error("read or write a file in the background")]
    Background(#[from] tokio::task::JoinError),
}

impl BackupError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    fn database<E: Into<Cause>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Database { path, source: source.into() }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The form of the backup, 1.
    pub format: u32,
    /// When it was begun, RFC 3339.
    pub create_time: String,
    /// The program that wrote it.
    pub build: String,
    /// The store it was taken from.
    pub store_epoch: String,
    /// The configuration version in it.
    pub config_version: u64,
    /// The databases.
    pub files: Vec<ManifestFile>,
}

/// A database in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
    /// The version of its tables.
    pub schema_version: i64,
}

/// How far a backup or a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done: `copying`, `checking`.
    pub doing: &'static str,
    /// The database.
    pub name: &'static str,
    /// What `done` and `total` count.
    pub unit: Unit,
    /// How much is done.
    pub done: u64,
    /// How much there is in all, about; 0 when nobody knows.
    pub total: u64,
}

/// What progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Rows of tables.
    Rows,
    /// Seconds that went by.
    Seconds,
}

/// Writes a backup of the databases in `data_dir` to the directory `to`, which is made and must be empty. The
/// control plane may run meanwhile; what it commits while a database is copied is not in it. Nothing is left behind
/// when it fails.
///
/// # Errors
/// When a file cannot be read or written, or `to` is not empty.
pub async fn backup(
    data_dir: &Path,
    to: &Path,
    mut progress: impl FnMut(Progress),
) -> Result<Manifest, BackupError> {
    make_empty(to)?;
    commands::backing_up(data_dir).await;
    let written = write(data_dir, to, &mut progress).await;
    if written.is_err() {
        for name in DATABASES.map(|(name, _)| name).into_iter().chain([MANIFEST]) {
            // The error that is returned says what is wrong.
            drop(fs::remove_file(to.join(name)));
        }
    }
    written
}

async fn write(
    data_dir: &Path,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, BackupError> {
    let create_time = clock::now().to_string();
    let mut files = Vec::new();
    for (name, _) in DATABASES {
        files.push(copy_database(name, &data_dir.join(name), &to.join(name), progress).await?);
    }
    let path = to.join(store::FILE_NAME);
    let mut copy = files::open_copy(&path).await.map_err(BackupError::database(&path))?;
    let state = files::epoch_and_version(&mut copy).await.map_err(BackupError::database(&path))?;
    files::close(copy).await.map_err(BackupError::database(&path))?;
    let manifest = Manifest {
        format: FORMAT,
        create_time,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        store_epoch: state.0,
        config_version: state.1,
        files,
    };
    let path = to.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).expect("texts and numbers are JSON");
    let mut file = new_file(&path).map_err(BackupError::file(&path))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(BackupError::file(&path))?;
    sync_directory(to)?;
    Ok(manifest)
}

/// A consistent copy.
async fn copy_database(
    name: &'static str,
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<ManifestFile, BackupError> {
    let target = to.to_str().ok_or_else(|| BackupError::Path(to.to_owned()))?;
    let mut source = files::open_source(from, BUSY_TIMEOUT).await.map_err(BackupError::database(from))?;
    let total = files::size(&mut source).await.map_err(BackupError::database(from))?;
    // SQLite writes into an empty file; made here, only its owner can read it.
    new_file(to).map_err(BackupError::file(to))?;
    let unit = Unit::Bytes;
    let mut tell = |done| progress(Progress { doing: "copying", name, unit, done, total });
    let copying = files::copy_into(&mut source, target);
    let size = || fs::metadata(to).map_or(0, |metadata| metadata.len());
    watched(copying, size, &mut tell).await.map_err(BackupError::database(from))?;
    files::close(source).await.map_err(BackupError::database(from))?;
    let file = File::open(to).map_err(BackupError::file(to))?;
    file.sync_all().map_err(BackupError::file(to))?;
    let mut copy = files::open_copy(to).await.map_err(BackupError::database(to))?;
    let is_config = name == store::FILE_NAME;
    let schema_version =
        files::schema_version(&mut copy, is_config).await.map_err(BackupError::database(to))?;
    files::close(copy).await.map_err(BackupError::database(to))?;
    let (bytes, sha256) = checksum(name, to, None, progress).await?;
    Ok(ManifestFile { name: name.to_owned(), bytes, sha256, schema_version })
}

/// Size and SHA-256 of a file, which is also copied to `to` if that is given.
async fn checksum(
    name: &'static str,
    path: &Path,
    to: Option<&Path>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(u64, String), BackupError> {
    let doing = if to.is_some() { "copying" } else { "checking" };
    let total = fs::metadata(path).map_err(BackupError::file(path))?.len();
    let done = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&done);
    let (source, target) = (path.to_owned(), to.map(Path::to_owned));
    let reading = tokio::task::spawn_blocking(move || read_through(&source, target.as_deref(), &counter));
    let mut tell = |done| progress(Progress { doing, name, unit: Unit::Bytes, done, total });
    let sha256 = watched(reading, || done.load(Ordering::Relaxed), &mut tell).await??;
    Ok((done.load(Ordering::Relaxed), sha256))
}

fn read_through(path: &Path, to: Option<&Path>, done: &AtomicU64) -> Result<String, BackupError> {
    let mut file = File::open(path).map_err(BackupError::file(path))?;
    let mut copy = match to {
        Some(to) => Some((to, new_file(to).map_err(BackupError::file(to))?)),
        None => None,
    };
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let count = file.read(&mut chunk).map_err(BackupError::file(path))?;
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
        hash.update(read);
        if let Some((to, copy)) = &mut copy {
            copy.write_all(read).map_err(BackupError::file(to))?;
        }
        done.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
    }
    if let Some((to, copy)) = copy {
        copy.sync_all().map_err(BackupError::file(to))?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits for `work`, and tells meanwhile how far it is.
async fn watched<T>(work: impl Future<Output = T>, done: impl Fn() -> u64, tell: &mut dyn FnMut(u64)) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = ticks.tick() => tell(done()),
        }
    };
    tell(done());
    outcome
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a directory for the owner alone, or takes one that is empty.
fn make_empty(directory: &Path) -> Result<(), BackupError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory).map_err(BackupError::file(directory))?;
    for entry in fs::read_dir(directory).map_err(BackupError::file(directory))? {
        let name = entry.map_err(BackupError::file(directory))?.file_name();
        // The root of a file system of its own has this.
        if name != "lost+found" {
            return Err(BackupError::NotEmpty(directory.to_owned()));
        }
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> Result<(), BackupError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(BackupError::file(directory))
}
