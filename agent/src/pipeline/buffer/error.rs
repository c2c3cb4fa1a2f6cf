//! Why the buffer refuses, cannot be opened or cannot be read.

use std::{io, path::PathBuf, time::Duration};

use super::journal::read::ReadRecordError;

/// What providers and callers are asked to wait when the buffer is over its budget.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(10);
/// The same for what passes quickly.
const RETRY_AFTER_SHORT: Duration = Duration::from_secs(1);

/// Nothing of the entry is accepted. Trying again can help, see [`AppendError::retry_after`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The budget is used up.
    #[error("append to the buffer: it holds {bytes} bytes and may hold {bytes_max}")]
    Full {
        /// Bytes held.
        bytes: u64,
        /// Bytes it may hold.
        bytes_max: u64,
    },
    /// The destination of an event is owed its whole share of the budget.
    #[error("append to the buffer: a destination is owed its whole share of it")]
    DestinationFull,
    /// More callbacks wait for the disk than are worth waiting for.
    #[error("append to the buffer: too many callbacks wait for the disk")]
    Busy,
    /// The disk has too little space.
    #[error("append to the buffer: the disk is full")]
    DiskFull,
    /// The disk failed; the buffer opens again when it can. Details are in the log.
    #[error("append to the buffer: its disk failed")]
    Broken,
    /// The agent is shutting down.
    #[error("append to the buffer: it is closed")]
    Stopped,
}

impl AppendError {
    /// What to tell the caller to wait.
    pub const fn retry_after(&self) -> Duration {
        match self {
            Self::Full { .. } | Self::DestinationFull | Self::DiskFull => RETRY_AFTER_FULL,
            Self::Busy | Self::Broken | Self::Stopped => RETRY_AFTER_SHORT,
        }
    }
}

/// The buffer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent uses the directory.
    #[error("open buffer `{}`: it is in use by {}; every agent needs a --data-dir of its own", .directory.display(), .owner)]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// `process 123`, or words when its number is not known.
        owner: String,
    },
    /// The directory cannot be made or locked.
    #[error("prepare buffer directory `{}`", .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The journal cannot be used.
    #[error("open buffer `{}`", .directory.display())]
    Journal {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Opening failed in a way that only a bug can make.
    #[error("open buffer `{}`: it panicked", .directory.display())]
    Panicked {
        /// The directory.
        directory: PathBuf,
    },
    /// The buffer's thread cannot be started.
    #[error("start the buffer's thread")]
    Thread(#[source] std::io::Error),
}

/// The buffer's thread ended, which only a bug can make it do.
#[derive(Debug, thiserror::Error)]
#[error("keep the buffer's thread running: it ended")]
pub struct Ended;

/// What is in the buffer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk refused; later it can be read.
    #[error("read from the buffer")]
    Disk(#[source] std::io::Error),
    /// It is damaged.
    #[error("read from the buffer: it is damaged")]
    Damaged,
    /// Reading panicked, which only a bug can make it do.
    #[error("read from the buffer: it panicked")]
    Panicked,
}

impl From<ReadRecordError> for ReadError {
    fn from(error: ReadRecordError) -> Self {
        match error {
            // A segment that somebody took away does not come back.
            ReadRecordError::Io(error) if error.kind() == io::ErrorKind::NotFound => Self::Damaged,
            ReadRecordError::Io(error) => Self::Disk(error),
            ReadRecordError::Damaged => Self::Damaged,
        }
    }
}
