//! The index: marks by id, in sled. A view of the journal that can be thrown away and is rebuilt from it. The only
//! file that names sled.
//!
//! | key | value |
//! |---|---|
//! | `r` number, part | marks of a [`Run`], sorted by id |
//! | `d` number | what is in memory of a run |
//! | `n` | how many runs there are at least |
//! | `p` | [`Position`] |
//!
//! sled's own durability is not relied on: what it holds is always a prefix of what was written, and
//! [`View::position`] says up to where in the journal that prefix reaches.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use gateway_core::id::EventId;
use tracing::warn;

use super::{journal::format::Reader, mark_files::Visit, record::Mark};

mod run;

use run::{RUN_MARKS_MAX, Run};

/// Page cache of sled. Real use is several times as much.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
/// sled compacts only in its flusher, so the flusher must run.
const FLUSH_EVERY_MS: u64 = 500;
/// How long files that were just closed are waited for.
const FILES_FREE_WAIT: Duration = Duration::from_secs(5);
/// How often they are tried.
const FILES_FREE_POLL: Duration = Duration::from_millis(20);

const PART: u8 = b'r';
const DIRECTORY: u8 = b'd';
const COUNT: &[u8] = b"n";
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
    /// Segment and offset of the newest end of the journal that is known, which may be ahead.
    pub(super) end: (u32, u32),
    /// The number that the next event got there.
    pub(super) next_event: u64,
}

impl Position {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.journal.to_vec();
        bytes.extend_from_slice(&self.segment.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.end.0.to_be_bytes());
        bytes.extend_from_slice(&self.end.1.to_be_bytes());
        bytes.extend_from_slice(&self.next_event.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        Some(Self {
            journal: rest.array()?,
            segment: u32::from_be_bytes(rest.array()?),
            offset: u32::from_be_bytes(rest.array()?),
            end: (u32::from_be_bytes(rest.array()?), u32::from_be_bytes(rest.array()?)),
            next_event: u64::from_be_bytes(rest.array()?),
        })
    }
}

/// An open index.
pub(super) struct View {
    /// There until it is dropped.
    db: Option<sled::Db>,
    /// All runs, in the order in which they were taken.
    runs: RwLock<Vec<Run>>,
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
        let view = Self { db: Some(open_when_free(&directory)?), runs: RwLock::default() };
        *view.runs.write().unwrap_or_else(PoisonError::into_inner) = view.read_runs()?;
        Ok(view)
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("it is there until it is dropped")
    }

    /// Up to where it reflects which journal; none for a fresh one.
    pub(super) fn position(&self) -> Result<Option<Position>, ViewError> {
        let stored = guarded(|| self.db().get(POSITION))?;
        Ok(stored.and_then(|bytes| Position::decode(&bytes)))
    }

    fn read_runs(&self) -> Result<Vec<Run>, ViewError> {
        let mut runs = Vec::new();
        let mut bad = false;
        guarded(|| {
            for entry in self.db().range([DIRECTORY]..[DIRECTORY + 1]) {
                let (key, value) = entry?;
                let number = key[1..].try_into().ok().map(u64::from_be_bytes);
                match number.and_then(|number| Run::decode(number, &value)) {
                    Some(run) => runs.push(run),
                    None => bad = true,
                }
            }
            Ok(())
        })?;
        // sled can open a damaged file and leave out what it cannot read.
        let count = guarded(|| self.db().get(COUNT))?.and_then(|bytes| bytes.as_ref().try_into().ok());
        let is_short = (runs.len() as u64) < count.map_or(0, u64::from_be_bytes);
        if bad || is_short {
            return Err(ViewError::Damaged("runs of marks are missing or make no sense".into()));
        }
        Ok(runs)
    }

    /// The mark of an id. An error counts as none: it costs a repeated webhook, not a lost one.
    pub(super) fn get(&self, id: &EventId) -> Option<Mark> {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        // The newest mark of an id counts.
        runs.iter().rev().find_map(|run| {
            let part = run.part_of(id)?;
            let stored = guarded(|| self.db().get(part_key(run.number, part))).ok()??;
            run::find_in_part(&stored, id)
        })
    }

    /// Takes marks, of which the last with an id counts, and then the position up to which everything was taken.
    pub(super) fn apply(
        &self,
        mut marks: Vec<(EventId, Mark)>,
        position: Option<Position>,
    ) -> Result<(), ViewError> {
        // Backwards and stable, so that the last of an id comes first and stays.
        marks.reverse();
        marks.sort_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
        marks.dedup_by(|(one, _), (other, _)| one == other);
        for marks in marks.chunks(RUN_MARKS_MAX) {
            self.take_run(marks)?;
        }
        guarded(|| {
            if let Some(position) = position {
                self.db().insert(POSITION, position.encode())?;
            }
            Ok(())
        })
    }

    fn take_run(&self, marks: &[(EventId, Mark)]) -> Result<(), ViewError> {
        let last = self.runs.read().unwrap_or_else(PoisonError::into_inner).last().map(|run| run.number);
        let run = Run::of(last.map_or(1, |last| last + 1), marks);
        guarded(|| {
            for (part, bytes) in (0..).zip(run::encode_parts(marks)) {
                self.db().insert(part_key(run.number, part), bytes)?;
            }
            // sled keeps a prefix of what was written: a run that is known is whole.
            self.db().insert(directory_key(run.number), run.encode())?;
            Ok(())
        })?;
        let count = {
            let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
            runs.push(run);
            runs.len() as u64
        };
        self.put_count(count)
    }

    /// What is stored is never more than there are.
    fn put_count(&self, count: u64) -> Result<(), ViewError> {
        guarded(|| self.db().insert(COUNT, &count.to_be_bytes()[..]).map(drop))
    }

    /// Visits all marks, and makes sure that all are there.
    pub(super) fn visit(&self, visit: Visit<'_>) -> Result<(), ViewError> {
        let runs: Vec<(u64, u16)> = {
            let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
            runs.iter().map(|run| (run.number, run.parts())).collect()
        };
        for (number, parts) in runs {
            for part in 0..parts {
                let stored = guarded(|| self.db().get(part_key(number, part)))?;
                let marks = stored.as_deref().and_then(run::decode_part);
                visit(&marks.ok_or_else(|| ViewError::Damaged("marks of a run are missing".into()))?);
            }
        }
        Ok(())
    }

    /// Notes how far the journal is, without what it holds.
    pub(super) fn note_end(&self, newest: Position) -> Result<(), ViewError> {
        let Some(position) = self.position()?.filter(|position| position.journal == newest.journal) else {
            return Ok(());
        };
        let noted = Position { end: newest.end, next_event: newest.next_event, ..position };
        guarded(|| self.db().insert(POSITION, noted.encode()).map(drop))
    }

    /// Notes that all marks of the journal before this segment are in it.
    pub(super) fn reaches(&self, segment: u32) -> Result<(), ViewError> {
        let Some(position) = self.position()?.filter(|position| position.segment < segment) else {
            return Ok(());
        };
        let reached = Position { segment, offset: 0, end: position.end.max((segment, 0)), ..position };
        guarded(|| self.db().insert(POSITION, reached.encode()).map(drop))
    }

    /// Forgets the marks that were taken together and have all expired before `today`.
    pub(super) fn forget(&self, today: u32) -> Result<(), ViewError> {
        let expired = |run: &Run| run.expire_day < today;
        let runs: Vec<(u64, u16)> = {
            let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
            runs.iter().filter(|run| expired(run)).map(|run| (run.number, run.parts())).collect()
        };
        let left = {
            let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
            runs.retain(|run| !expired(run));
            runs.len() as u64
        };
        self.put_count(left)?;
        guarded(|| {
            for (number, parts) in runs {
                self.db().remove(directory_key(number))?;
                for part in 0..parts {
                    self.db().remove(part_key(number, part))?;
                }
            }
            Ok(())
        })
    }

    /// Writes what is in memory.
    pub(super) fn flush(&self) -> Result<(), ViewError> {
        guarded(|| self.db().flush().map(drop))
    }
}

fn part_key(run: u64, part: u16) -> [u8; 11] {
    let mut key = [PART; 11];
    key[1..9].copy_from_slice(&run.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

fn directory_key(run: u64) -> [u8; 9] {
    let mut key = [DIRECTORY; 9];
    key[1..].copy_from_slice(&run.to_be_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u32, expire_day: u32) -> (EventId, Mark) {
        let id = EventId::derive(&[&number.to_string()]);
        (id, Mark { expire_day, ..Mark::new(0, u64::from(number)) })
    }

    /// Marks are found, the newest of an id, also after opening again; what was never taken is not, and what has
    /// expired is forgotten.
    #[test]
    fn marks_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let view = View::open(directory.path()).unwrap();
        view.apply((0..5_000).map(|number| mark(number, 100)).collect(), None).unwrap();
        let mut repeated = mark(7, 101);
        view.apply(vec![mark(6_000, 101), mark(7, 101), repeated], None).unwrap();
        repeated.1.duplicates = 3;
        view.apply(vec![mark(7, 101), repeated], None).unwrap();
        drop(view);

        let view = View::open(directory.path()).unwrap();
        for number in (0..5_000).filter(|number| *number != 7) {
            assert_eq!(view.get(&mark(number, 100).0), Some(mark(number, 100).1));
        }
        assert_eq!(view.get(&repeated.0), Some(repeated.1));
        assert!((10_000..20_000).all(|number| view.get(&mark(number, 0).0).is_none()));
        let mut visited = 0;
        view.visit(&mut |marks| visited += marks.len()).unwrap();
        assert_eq!(visited, 5_003);
        view.forget(101).unwrap();
        assert_eq!(view.get(&mark(8, 100).0), None);
        assert_eq!(view.get(&repeated.0), Some(repeated.1));
    }

    /// An index from which something is missing is not taken for a whole one.
    #[test]
    fn missing_runs_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let view = View::open(directory.path()).unwrap();
        view.apply((0..3_000).map(|number| mark(number, 100)).collect(), None).unwrap();
        view.db().remove(part_key(2, 3)).unwrap();
        assert!(matches!(view.visit(&mut |_| {}), Err(ViewError::Damaged(_))));
        view.db().remove(directory_key(1)).unwrap();
        drop(view);
        assert!(matches!(View::open(directory.path()).map(drop), Err(ViewError::Damaged(_))));
    }
}
