//! Looking into the buffer of an agent that is stopped, and getting out of it what can be read. Everything here
//! leaves that buffer as it is.
//!
//! | | |
//! |---|---|
//! | [`verify`](fn@verify) | reads everything and says what is live, what waits and what is damaged |
//! | [`check_index`] | opens a copy of the index and says how far it is |
//! | [`export`](fn@export) | writes the events as JSON lines |
//! | [`salvage`](fn@salvage) | writes what can be read and is live into a fresh buffer |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    OpenError,
    journal::{
        Journal,
        files::RealFiles,
        read::{JournalReader, ReadRecordError},
    },
    lock::DirectoryLock,
    recover::{RecoverError, Recovered},
};

mod verify;
mod index;
mod export;
mod salvage;

pub use export::{Exported, export};
pub use index::{CheckedIndex, check_index};
pub use salvage::{Salvaged, Source, salvage};
pub use verify::{Found, Stretch, Verified, VerifiedMarks, VerifiedSegment, verify};

/// Length of a new segment of a salvaged journal.
const SEGMENT_BYTES: u64 = 32 << 20;

/// What a tool is about to do, for people who wait: what, how much of it is done, and how much there is.
pub type Progress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// A tool cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no buffer.
    #[error("find a buffer in `{}`: there is no `{}`; name the --data-dir of an agent", .data_dir.display(), .missing.display())]
    NoBuffer {
        /// The directory that was named.
        data_dir: PathBuf,
        /// What it should have.
        missing: PathBuf,
    },
    /// The agent runs.
    #[error("look into buffer `{}`: it is in use by {}; stop the agent first", .directory.display(), .owner)]
    InUse {
        /// The directory of the buffer.
        directory: PathBuf,
        /// `process 123`, or words when its number is not known.
        owner: String,
    },
    /// The directory cannot be locked.
    #[error("lock the buffer")]
    Lock(#[source] OpenError),
    /// The journal cannot be read at all.
    #[error("read the buffer in `{}`", .directory.display())]
    Journal {
        /// The directory of the buffer, or the segment.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk refused to read.
    #[error("read `{}`", .path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The place for what is salvaged is taken.
    #[error("salvage into `{}`: it is there and is not empty", .directory.display())]
    TargetNotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// What is found cannot be written.
    #[error("write `{}`", .path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ToolError {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    fn journal(directory: &Path) -> impl FnOnce(RecoverError) -> Self {
        move |source| Self::Journal { directory: directory.to_owned(), source: Box::new(source) }
    }

    fn write<E: Into<Box<dyn std::error::Error + Send + Sync>>>(path: &Path) -> impl Fn(E) -> Self {
        move |source| Self::Write { path: path.to_owned(), source: source.into() }
    }
}

/// The buffer of an agent that does not run. No agent can start on it while this is there.
pub struct Stopped {
    directory: PathBuf,
    /// None on a disk that cannot be written, where no agent can run.
    _lock: Option<DirectoryLock>,
}

impl Stopped {
    /// The buffer in the data directory of an agent.
    ///
    /// # Errors
    /// When there is none, or the agent runs: then the message names its process.
    pub fn open(data_dir: &Path) -> Result<Self, ToolError> {
        let directory = data_dir.join("buffer");
        let journal = directory.join("journal");
        if !journal.is_dir() {
            return Err(ToolError::NoBuffer { data_dir: data_dir.to_owned(), missing: journal });
        }
        let lock = match DirectoryLock::take(&directory) {
            Ok(lock) => Some(lock),
            Err(OpenError::Directory { source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                None
            }
            Err(OpenError::InUse { directory, owner }) => return Err(ToolError::InUse { directory, owner }),
            Err(refusal) => return Err(ToolError::Lock(refusal)),
        };
        Ok(Self { directory, _lock: lock })
    }

    /// The buffer's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn journal(&self) -> PathBuf {
        self.directory.join("journal")
    }
}

/// Reads the records of what was recovered.
fn reader(journal: &Path, recovered: &Recovered) -> std::sync::Arc<JournalReader> {
    let (segments, last) = (recovered.segments.clone(), recovered.last);
    Journal::new(journal, SEGMENT_BYTES, recovered.journal_id, Box::new(RealFiles), segments, last).reader()
}

/// What cannot be read is counted; a disk that refuses ends the tool.
fn readable<T>(read: Result<T, ReadRecordError>, path: &Path) -> Result<Option<T>, ToolError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(ReadRecordError::Damaged) => Ok(None),
        Err(ReadRecordError::Io(source)) => Err(ToolError::read(path)(source)),
    }
}

/// Copies a directory and what is in it, for this user only.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    crate::private::create_directory(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
