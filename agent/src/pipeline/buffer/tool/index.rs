//! How far the index is. sled writes when it is opened, so a copy of it is opened.

use std::{fs, path::Path};

use serde::Serialize;

use super::{
    super::{
        keeper::open_in_time,
        view::{Position, directory},
    },
    Stopped, Verified, copy_directory,
};

/// What was found of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CheckedIndex {
    /// There is none, or nothing in it. The agent builds it from the journal.
    Empty,
    /// It is as far as the journal.
    UpToDate,
    /// The journal goes on behind it, which the agent makes up for.
    Behind {
        /// The segment up to which it is.
        segment: u32,
        /// The place in the segment.
        offset: u64,
        /// Bytes of the journal that it lacks.
        bytes: u64,
    },
    /// It knows of more than there is: the end of the journal is missing.
    Ahead {
        /// The segment up to which it is.
        segment: u32,
        /// The place in the segment.
        offset: u64,
    },
    /// It belongs to another journal. The agent sets it aside and builds another.
    OfAnotherJournal,
    /// It cannot be opened. The agent sets it aside and builds another.
    Damaged {
        /// Why.
        cause: String,
    },
    /// It could not be copied, so it is not known.
    NotChecked {
        /// Why.
        cause: String,
    },
}

impl CheckedIndex {
    /// Whether it is not damaged.
    pub const fn is_sound(&self) -> bool {
        matches!(self, Self::Empty | Self::UpToDate | Self::Behind { .. } | Self::NotChecked { .. })
    }
}

/// Opens a copy of the index, made below `temporary`, which is removed again.
pub fn check_index(buffer: &Stopped, verified: &Verified, temporary: &Path) -> CheckedIndex {
    let original = directory(buffer.directory());
    if !original.is_dir() {
        return CheckedIndex::Empty;
    }
    let copy = temporary.join(format!("gateway-agent-index-{}", uuid::Uuid::now_v7()));
    let checked = match copy_directory(&original, &directory(&copy)) {
        Ok(()) => open(&copy, verified),
        Err(error) => CheckedIndex::NotChecked { cause: format!("copy it to `{}`: {error}", copy.display()) },
    };
    // It holds no personal data; what is left of it is the system's to clean up.
    drop(fs::remove_dir_all(&copy));
    checked
}

fn open(copy: &Path, verified: &Verified) -> CheckedIndex {
    let position = match open_in_time(copy) {
        None => return CheckedIndex::Damaged { cause: "opening it did not end".to_owned() },
        Some(opened) => opened.and_then(|view| view.position()),
    };
    match position {
        Err(failure) => CheckedIndex::Damaged { cause: chain(&failure) },
        Ok(None) => CheckedIndex::Empty,
        Ok(Some(position)) => compare(position, verified),
    }
}

fn compare(position: Position, verified: &Verified) -> CheckedIndex {
    let (segment, offset) = (position.segment, u64::from(position.offset));
    let journal = uuid::Uuid::from_bytes(position.journal).to_string();
    // A journal without a segment has no id yet.
    if journal != verified.found.journal_id && verified.last.0 != 0 {
        return CheckedIndex::OfAnotherJournal;
    }
    match (segment, offset).cmp(&verified.last) {
        std::cmp::Ordering::Equal => CheckedIndex::UpToDate,
        std::cmp::Ordering::Greater => CheckedIndex::Ahead { segment, offset },
        std::cmp::Ordering::Less => {
            let newer = verified.segments.iter().filter(|newer| newer.number >= segment);
            let bytes: u64 = newer.map(|newer| newer.bytes - newer.unused_bytes).sum();
            CheckedIndex::Behind { segment, offset, bytes: bytes.saturating_sub(offset) }
        }
    }
}

fn chain(failure: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(failure), |failure| failure.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
