//! The engine under the buffer: ordered keys, atomic and durable commits. The only file that names sled.
//!
//! What a commit needs so that it survives a power loss: `apply_batch` on one tree is atomic, but sled's
//! `flush` is `sync_file_range` on Linux, which syncs neither metadata nor the disk's cache. So every commit
//! ends with `sync_data` on a descriptor of our own, opened once: a write-back error is delivered once per
//! open descriptor, and sled swallows the error on its own.

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, warn};

/// Page cache of sled. Real use is several times as much.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// sled compacts only in its flusher, so the flusher must run.
const FLUSH_EVERY_MS: u64 = 500;

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// Writes a value, over the one before.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key, if it is there.
    Delete(Vec<u8>),
}

/// Why a store cannot be used. After any of them on a commit the store takes no more commits and must be
/// opened again: after a failed sync a second one proves nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// No space is left.
    #[error("write the store: the disk is full")]
    DiskFull(#[source] io::Error),
    /// The disk refused.
    #[error("access the store")]
    Io(#[source] io::Error),
    /// What is on disk is not a store, or a damaged one.
    #[error("read the store: it is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// sled panicked, which it does where others return errors.
    #[error("access the store: it panicked")]
    Panicked,
    /// The store is closed until it can be opened again.
    #[error("access the store: it is closed until the disk recovers")]
    Closed,
}

impl StoreError {
    /// Whether another try on the same files is hopeless.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) | Self::Panicked => true,
            Self::Io(error) => {
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
            }
            Self::DiskFull(_) | Self::Closed => false,
        }
    }

    /// By what the disk said.
    pub(super) fn of_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(error),
            _ => Self::Io(error),
        }
    }
}

/// Ordered keys with atomic and durable commits.
pub(super) trait Store: Send + Sync + 'static {
    /// Makes all changes or none; they are on disk when it returns. Blocks for a disk sync. Of several
    /// changes of one key the last counts.
    fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError>;

    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits entries from `from` (included) to `to` (excluded) in the order of their keys, until `visit`
    /// returns false.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError>;
}

/// How much room a disk has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
}

/// Opens the store again and again, and looks after its disk.
pub(super) trait Disk: Send + 'static {
    /// Opens the store, making it when there is none.
    fn open(&self) -> Result<Arc<dyn Store>, StoreError>;

    /// How much room there is.
    fn space(&self) -> io::Result<Space>;

    /// Keeps a copy of the store's files, then removes what can be made again from the rest. Returns where
    /// the copy is.
    fn reduce(&self) -> io::Result<PathBuf>;

    /// Moves the store's files out of the way and returns where they are now.
    fn set_aside(&self, reason: &str) -> io::Result<PathBuf>;
}

/// sled in `<directory>/store`; damaged ones go to `<directory>/quarantine`.
pub(super) struct SledDisk {
    directory: PathBuf,
}

/// How long files that were just closed are waited for.
const FILES_FREE_WAIT: Duration = Duration::from_secs(5);
/// How often they are tried.
const FILES_FREE_POLL: Duration = Duration::from_millis(20);
const STORE: &str = "store";
const QUARANTINE: &str = "quarantine";

impl SledDisk {
    /// In this directory, which is there.
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }
}

impl Disk for SledDisk {
    fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        let directory = self.directory.join(STORE);
        let is_new = !directory.join("conf").exists();
        fs::create_dir_all(&directory).map_err(StoreError::of_io)?;
        // One that a kill left half written would be taken for the newest, and opening would fail. The
        // finished one before it is still there.
        remove_snapshots(&directory, ".generating").map_err(StoreError::of_io)?;
        let db = open_when_free(&directory)?;
        let file = File::open(directory.join("db")).map_err(StoreError::of_io)?;
        if is_new {
            guarded(|| db.flush())?;
            for path in [directory.join("conf"), directory.join("db"), directory, self.directory.clone()] {
                File::open(path).and_then(|opened| opened.sync_all()).map_err(StoreError::of_io)?;
            }
        }
        Ok(Arc::new(SledStore { db, file }))
    }

    fn space(&self) -> io::Result<Space> {
        let space = rustix::fs::statvfs(&self.directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        Ok(Space { free_bytes: bytes(space.f_bavail), total_bytes: bytes(space.f_blocks) })
    }

    fn reduce(&self) -> io::Result<PathBuf> {
        let (store, copy) = (self.directory.join(STORE), self.quarantine("before-repair")?);
        copy_files(&store, &copy)?;
        // Without a snapshot sled reads its whole log.
        remove_snapshots(&store, "")?;
        Ok(copy)
    }

    fn set_aside(&self, reason: &str) -> io::Result<PathBuf> {
        let target = self.quarantine(reason)?;
        fs::rename(self.directory.join(STORE), &target)?;
        File::open(self.directory.join(QUARANTINE))?.sync_all()?;
        File::open(&self.directory)?.sync_all()?;
        Ok(target)
    }
}

impl SledDisk {
    /// A place for a store that cannot be used.
    fn quarantine(&self, reason: &str) -> io::Result<PathBuf> {
        let quarantine = self.directory.join(QUARANTINE);
        fs::create_dir_all(&quarantine)?;
        let time = gateway_runtime::clock::now().strftime("%Y%m%dT%H%M%S%.6f");
        Ok(quarantine.join(format!("store.{time}.{reason}")))
    }
}

/// Opens sled. Its threads may hold the files for a moment after the last handle is gone; that another agent
/// holds them is ruled out by our own lock.
fn open_when_free(directory: &Path) -> Result<sled::Db, StoreError> {
    let give_up = Instant::now() + FILES_FREE_WAIT;
    loop {
        let opened = guarded(|| {
            sled::Config::new()
                .path(directory)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(FLUSH_EVERY_MS))
                .open()
        });
        match opened {
            Err(StoreError::Io(error)) if is_locked(&error) && Instant::now() < give_up => {
                std::thread::park_timeout(FILES_FREE_POLL);
            }
            opened => return opened,
        }
    }
}

/// sled 0.34 says it in words only.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

/// Removes snapshots whose name ends like this.
fn remove_snapshots(directory: &Path, ending: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(ending) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

struct SledStore {
    db: sled::Db,
    file: File,
}

impl Store for SledStore {
    fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        guarded(|| {
            let mut batch = sled::Batch::default();
            for op in ops {
                match op {
                    Op::Put(key, value) => batch.insert(key, value),
                    Op::Delete(key) => batch.remove(key),
                }
            }
            self.db.apply_batch(batch)?;
            self.db.flush()
        })?;
        self.file.sync_data().map_err(StoreError::of_io)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        guarded(|| Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        guarded(|| {
            let range = (Bound::Included(from), Bound::Excluded(to));
            for entry in self.db.range::<&[u8], _>(range) {
                let (key, value) = entry?;
                if !visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Runs a call into sled, which panics in many places where it could return an error.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(StoreError::of_io(error)),
        Ok(Err(damage)) => Err(StoreError::Damaged(Box::new(damage))),
        Err(_panic) => Err(StoreError::Panicked),
    }
}

/// Opens the store. One that is damaged is tried once more from its log alone. If that does not help, it is
/// set aside, reported, and a fresh one made: a damaged buffer never keeps the agent from serving. The flag
/// says whether that happened.
pub(super) fn open_or_replace(disk: &dyn Disk) -> Result<(Arc<dyn Store>, bool), StoreError> {
    let damage = match disk.open() {
        Ok(store) => return Ok((store, false)),
        Err(failure) if failure.is_damage() => failure,
        Err(failure) => return Err(failure),
    };
    match disk.reduce() {
        Ok(copy) => {
            if let Ok(store) = disk.open() {
                warn!(
                    error = &damage as &dyn std::error::Error,
                    copy = %copy.display(),
                    "the buffer was damaged and could be opened from its log alone"
                );
                return Ok((store, false));
            }
        }
        Err(failure) => {
            warn!(error = &failure as &dyn std::error::Error, "failed to copy the damaged buffer");
        }
    }
    let path = disk.set_aside("damaged").map_err(StoreError::of_io)?;
    error!(
        error = &damage as &dyn std::error::Error,
        path = %path.display(),
        "failed to open the buffer; it was set aside and a fresh one is used, \
         events in it that were not delivered yet are not delivered"
    );
    Ok((disk.open()?, true))
}
