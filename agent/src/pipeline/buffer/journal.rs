//! The journal: append-only segments, the truth for everything that the buffer holds.
//!
//! One commit is one write and one `fdatasync`. A segment that failed is never written again: the next one
//! begins and says in its header up to where the one before is good. Segments leave in the order of their
//! numbers, so that a record that ends something never goes before what it ends.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

pub(super) mod format;
pub(super) mod files;
pub(super) mod read;

use files::{Files, Space, Writable, sync_directory};
use format::{HEADER_BYTES, Header};
use read::JournalReader;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// The number of its segment; 0 is nowhere.
    pub(super) segment: u32,
    /// Where it begins in the segment.
    pub(super) offset: u32,
    /// Its length, frame included.
    pub(super) bytes: u32,
}

/// Why the journal takes nothing now.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// No space is left.
    #[error("write the journal: the disk is full")]
    DiskFull(#[source] io::Error),
    /// The disk refused.
    #[error("write the journal")]
    Io(#[source] io::Error),
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(error),
            _ => Self::Io(error),
        }
    }
}

/// Numbers that must never repeat themselves; every segment begins with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counters {
    /// The number that the next event gets.
    pub(super) event: u64,
    /// The sequences that the next reports get, by lane.
    pub(super) reports: [u64; 2],
    /// The ids that these are scoped to.
    pub(super) buffer_ids: [Uuid; 2],
}

impl Counters {
    /// Of a fresh buffer.
    pub(super) fn fresh() -> Self {
        Self { event: 1, reports: [1, 1], buffer_ids: [Uuid::now_v7(), Uuid::now_v7()] }
    }
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Segment {
    /// Its length.
    pub(super) bytes: u64,
    /// Records in it that are still needed.
    pub(super) live: u64,
    /// The number that the next event got when it began; 0 when that is not known.
    pub(super) first_event: u64,
    /// Whether some of it cannot be read; it is set aside instead of removed.
    pub(super) is_damaged: bool,
}

struct Active {
    number: u32,
    version: u8,
    file: Box<dyn Writable>,
    end: u64,
}

/// The journal, as its only writer sees it.
pub(super) struct Journal {
    directory: PathBuf,
    segment_bytes: u64,
    id: Uuid,
    files: Box<dyn Files>,
    reader: Arc<JournalReader>,
    segments: BTreeMap<u32, Segment>,
    active: Option<Active>,
    /// Number and good end of the newest segment that is not written any more.
    last: (u32, u64),
}

impl Journal {
    /// Goes on after `segments`, of which the newest is good up to `last_end`.
    pub(super) fn new(
        directory: &Path,
        segment_bytes: u64,
        id: Uuid,
        files: Box<dyn Files>,
        segments: BTreeMap<u32, Segment>,
        last: (u32, u64),
    ) -> Self {
        let reader = Arc::new(JournalReader::new(directory));
        segments.iter().for_each(|(number, segment)| reader.set_end(*number, segment.bytes));
        Self {
            directory: directory.to_owned(),
            segment_bytes,
            id,
            files,
            reader,
            segments,
            active: None,
            last,
        }
    }

    /// Which journal it is.
    pub(super) const fn id(&self) -> Uuid {
        self.id
    }

    pub(super) fn reader(&self) -> Arc<JournalReader> {
        Arc::clone(&self.reader)
    }

    /// How much room the disk has.
    pub(super) fn space(&self) -> io::Result<Space> {
        self.files.space(&self.directory)
    }

    /// Makes sure that there is a segment to write to, of this version or a later one, and returns the place where
    /// the next bytes go.
    ///
    /// # Errors
    /// When a new segment is needed and cannot be made.
    pub(super) fn prepare(&mut self, counters: &Counters, version: u8) -> Result<(u32, u32), JournalError> {
        let is_over = |active: &mut Active| active.end >= self.segment_bytes || active.version < version;
        if let Some(active) = self.active.take_if(is_over) {
            self.last = (active.number, active.end);
        }
        if self.active.is_none() {
            self.active = Some(self.begin(counters, version)?);
        }
        let active = self.active.as_ref().expect("it was just made");
        Ok((active.number, u32::try_from(active.end).expect("a segment is below 4 GiB")))
    }

    fn begin(&mut self, counters: &Counters, version: u8) -> Result<Active, JournalError> {
        let (last, last_end) = self.last;
        let number = last + 1;
        let path = segment_path(&self.directory, number);
        // What an attempt to begin it left behind was never used.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let header = Header {
            version,
            number,
            journal: self.id.into_bytes(),
            previous_end: u32::try_from(last_end).ok().filter(|end| *end > 0),
            next_event: counters.event,
            next_report: counters.reports,
            buffer_ids: counters.buffer_ids.map(Uuid::into_bytes),
        };
        let file = self.files.create(&path)?;
        file.write_at(&header.encode(), 0)?;
        file.sync_data()?;
        sync_directory(&self.directory)?;
        let end = HEADER_BYTES as u64;
        let first_event = counters.event;
        self.segments.insert(number, Segment { bytes: end, first_event, ..Segment::default() });
        self.reader.set_end(number, end);
        Ok(Active { number, version, file, end })
    }

    /// Appends where [`Self::prepare`] said; it is on disk when it returns. Blocks for a disk sync. After a
    /// failure nothing of it counts.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn append(&mut self, records: &[u8]) -> Result<(), JournalError> {
        let active = self.active.as_mut().expect("an append is prepared");
        let written = active.file.write_at(records, active.end);
        if let Err(error) = written {
            // What did get there must go, or the segment is over.
            if active.file.set_len(active.end).is_err() {
                self.abandon();
            }
            return Err(error.into());
        }
        if let Err(error) = active.file.sync_data() {
            // A second sync of the same file would prove nothing.
            self.abandon();
            return Err(error.into());
        }
        active.end += records.len() as u64;
        let (number, end) = (active.number, active.end);
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.bytes = end;
        }
        self.reader.set_end(number, end);
        Ok(())
    }

    /// Writes no more to the newest segment.
    fn abandon(&mut self) {
        if let Some(active) = self.active.take() {
            self.last = (active.number, active.end);
        }
    }

    /// A record is needed.
    pub(super) fn hold(&mut self, segment: u32) {
        self.segments.entry(segment).or_default().live += 1;
    }

    /// A record is not needed any more.
    pub(super) fn release(&mut self, segment: u32) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// The newest segment that has damage.
    pub(super) fn newest_damaged(&self) -> Option<u32> {
        self.segments.iter().rev().find(|(_, segment)| segment.is_damaged).map(|(number, _)| *number)
    }

    /// The oldest segment, if it is not the one that is written.
    pub(super) fn oldest(&self) -> Option<(u32, Segment)> {
        let active = self.active.as_ref().map(|active| active.number);
        let (number, segment) = self.segments.first_key_value()?;
        (active.is_some_and(|active| *number < active)).then_some((*number, *segment))
    }

    /// The number that the first event behind a segment got; 0 when that is not known.
    pub(super) fn first_event_after(&self, segment: u32) -> u64 {
        self.segments.range(segment + 1..).next().map_or(0, |(_, next)| next.first_event)
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Removes the oldest segment, or sets it aside when it is damaged; then its name in quarantine is
    /// returned.
    ///
    /// # Errors
    /// When the disk refuses; it can be tried again.
    pub(super) fn remove_oldest(&mut self) -> io::Result<Option<String>> {
        let Some((number, segment)) = self.oldest() else { return Ok(None) };
        let path = segment_path(&self.directory, number);
        let set_aside = if segment.is_damaged && path.exists() {
            let buffer = self.directory.parent().unwrap_or(&self.directory);
            Some(files::quarantine(buffer, &path, "damaged")?)
        } else {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => None,
            }
        };
        self.segments.remove(&number);
        self.reader.forget(number);
        Ok(set_aside)
    }
}

const SUFFIX: &str = ".journal";

/// The file of a segment.
pub(super) fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:016}{SUFFIX}"))
}

fn segment_number(name: &str) -> Option<u32> {
    name.strip_suffix(SUFFIX)?.parse().ok().filter(|number| *number > 0)
}
