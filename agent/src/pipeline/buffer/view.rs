//! The index: marks by id and the retry state of what is open, in sled. A view of the journal that can be
//! thrown away and is rebuilt from it. The only file that names sled.
//!
//! sled's own durability is not relied on: what it holds is always a prefix of what was written, and
//! [`View::position`] says up to where in the journal that prefix reaches.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gateway_core::id::EventId;
use tracing::warn;

use super::{journal::format::Reader, record::Mark};

/// Page cache of sled. Real use is several times as much.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// sled compacts only in its flusher, so the flusher must run.
const FLUSH_EVERY_MS: u64 = 500;
/// How long files that were just closed are waited for.
const FILES_FREE_WAIT: Duration = Duration::from_secs(5);
/// How often they are tried.
const FILES_FREE_POLL: Duration = Duration::from_millis(20);

const MARK: u8 = b'm';
const POSITION: &[u8] = b"p";

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    /// The disk refused.
    #[error("use the index")]
    Io(#[source] io::Error),
    /// What is on disk is not an index, or a damaged one.
    #[error("read the index: it is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// sled panicked, which it does where others return errors.
    #[error("use the index: it panicked")]
    Panicked,
}

impl ViewError {
    /// Whether the disk has no space.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Io(error) if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }
}

/// Up to where an index reflects a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// The journal.
    pub(super) journal: [u8; 16],
    /// The segment.
    pub(super) segment: u32,
    /// The end of what is reflected of it.
    pub(super) offset: u32,
    /// The number that the next event got there.
    pub(super) next_event: u64,
}

impl Position {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.journal.to_vec();
        bytes.extend_from_slice(&self.segment.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.next_event.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        Some(Self {
            journal: rest.array()?,
            segment: u32::from_be_bytes(rest.array()?),
            offset: u32::from_be_bytes(rest.array()?),
            next_event: u64::from_be_bytes(rest.array()?),
        })
    }
}

/// An open index.
pub(super) struct View {
    /// There until it is dropped.
    db: Option<sled::Db>,
}

impl Drop for View {
    fn drop(&mut self) {
        // The last handle syncs, and panics when the disk refuses.
        let db = self.db.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            warn!("failed to write the buffer's index while closing it");
        }
    }
}

/// The directory of the index in the buffer's.
pub(super) fn directory(buffer: &Path) -> PathBuf {
    buffer.join("index")
}

impl View {
    /// Opens the index of a buffer, making it when there is none.
    pub(super) fn open(buffer: &Path) -> Result<Self, ViewError> {
        let directory = directory(buffer);
        crate::private::create_directory(&directory).map_err(ViewError::Io)?;
        // One that a kill left half written would be taken for the newest, and opening would fail. The
        // finished one before it is still there.
        remove_unfinished_snapshots(&directory).map_err(ViewError::Io)?;
        Ok(Self { db: Some(open_when_free(&directory)?) })
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("it is there until it is dropped")
    }

    /// Up to where it reflects which journal; none for a fresh one.
    pub(super) fn position(&self) -> Result<Option<Position>, ViewError> {
        let stored = guarded(|| self.db().get(POSITION))?;
        Ok(stored.and_then(|bytes| Position::decode(&bytes)))
    }

    /// The mark of an id. An error counts as none: it costs a repeated webhook, not a lost one.
    pub(super) fn get(&self, id: &EventId) -> Option<Mark> {
        let stored = guarded(|| self.db().get(mark_key(id))).ok()??;
        Mark::decode(&stored)
    }

    /// Takes marks, and then the position up to which everything was taken.
    pub(super) fn apply(
        &self,
        marks: impl Iterator<Item = (EventId, Mark)>,
        position: Option<Position>,
    ) -> Result<(), ViewError> {
        guarded(|| {
            for (id, mark) in marks {
                self.db().insert(mark_key(&id), &mark.encode()[..])?;
            }
            if let Some(position) = position {
                self.db().insert(POSITION, position.encode())?;
            }
            Ok(())
        })
    }

    /// Looks at up to `count` marks after a key, and forgets those that expired before `today`. Returns the
    /// last key, none at the end.
    pub(super) fn sweep(
        &self,
        after: Option<&[u8]>,
        count: usize,
        today: u32,
    ) -> Result<Option<Vec<u8>>, ViewError> {
        guarded(|| {
            let mut from = after.map_or_else(|| vec![MARK], <[u8]>::to_vec);
            from.push(0);
            let mut last = None;
            let mut expired = Vec::new();
            for entry in self.db().range(from..vec![MARK + 1]).take(count) {
                let (key, value) = entry?;
                if Mark::decode(&value).is_none_or(|mark| mark.expire_day < today) {
                    expired.push(key.clone());
                }
                last = Some(key.to_vec());
            }
            for key in expired {
                self.db().remove(key)?;
            }
            Ok(last)
        })
    }

    /// Writes what is in memory.
    pub(super) fn flush(&self) -> Result<(), ViewError> {
        guarded(|| self.db().flush().map(drop))
    }
}

fn mark_key(id: &EventId) -> [u8; 17] {
    let mut key = [MARK; 17];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

/// Opens sled. Its threads may hold the files for a moment after the last handle is gone; that another agent
/// holds them is ruled out by our own lock.
fn open_when_free(directory: &Path) -> Result<sled::Db, ViewError> {
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
            Err(ViewError::Io(error)) if is_locked(&error) && Instant::now() < give_up => {
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

fn remove_unfinished_snapshots(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Runs a call into sled, which panics in many places where it could return an error.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, ViewError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(ViewError::Io(error)),
        Ok(Err(damage)) => Err(ViewError::Damaged(Box::new(damage))),
        Err(_panic) => Err(ViewError::Panicked),
    }
}
