//! Reading records: one by its place, or all of a segment.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Place,
    format::{self, BadHeader, HEADER_BYTES, Header, Kind, Parsed, Record},
};

/// A record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ReadRecordError {
    /// The disk refused, or the segment is gone.
    #[error("read the journal")]
    Io(#[from] io::Error),
    /// What is there is not the record.
    #[error("read the journal: a record is damaged")]
    Damaged,
}

/// Reads records by their place, from any thread.
pub(in super::super) struct JournalReader {
    directory: PathBuf,
    files: Mutex<HashMap<u32, Arc<File>>>,
    /// Up to where each segment is good and on disk.
    ends: Mutex<BTreeMap<u32, u64>>,
}

impl JournalReader {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), files: Mutex::default(), ends: Mutex::default() }
    }

    pub(super) fn set_end(&self, segment: u32, end: u64) {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(segment, end);
    }

    /// The segments, and up to where each is good and on disk.
    pub(in super::super) fn ends(&self) -> BTreeMap<u32, u64> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All good bytes of a segment. Blocks for the disk.
    pub(in super::super) fn read_segment(&self, segment: u32) -> io::Result<Vec<u8>> {
        let end = self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(&segment).copied();
        let mut bytes = std::fs::read(super::segment_path(&self.directory, segment))?;
        bytes.truncate(end.and_then(|end| usize::try_from(end).ok()).unwrap_or(0));
        Ok(bytes)
    }

    fn file(&self, segment: u32) -> io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(super::segment_path(&self.directory, segment))?);
        files.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn forget(&self, segment: u32) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
    }

    /// The payload of a record. Blocks for the disk.
    pub(in super::super) fn read(&self, place: Place, kind: Kind) -> Result<Vec<u8>, ReadRecordError> {
        let mut bytes = vec![0; place.bytes as usize];
        let read = self.file(place.segment)?.read_exact_at(&mut bytes, u64::from(place.offset));
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || is_bad_sector(&error) => {
                return Err(ReadRecordError::Damaged);
            }
            Err(error) => return Err(error.into()),
        }
        match format::parse(&bytes) {
            Parsed::Whole(record) if record.kind == kind && record.bytes() == bytes.len() => {
                bytes.drain(..format::FRAME_BYTES);
                Ok(bytes)
            }
            _ => Err(ReadRecordError::Damaged),
        }
    }
}

/// Whether the disk cannot give back what was written: another try is hopeless.
pub(in super::super) fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// A stretch of a segment that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Gap {
    /// Where it begins.
    pub(in super::super) offset: u64,
    /// Its length.
    pub(in super::super) bytes: u64,
}

/// What [`scan`] comes across.
#[derive(Debug)]
pub(in super::super) enum Found<'a> {
    /// A whole record and where it is.
    Record(u64, Record<'a>),
    /// What lies between is not readable.
    Gap(Gap),
    /// The end: what comes now is the rest of a write that a crash interrupted.
    Torn,
}

/// Visits what is in a segment, up to `end` if that is known.
pub(in super::super) fn scan<'a>(segment: &'a [u8], end: Option<u64>, visit: &mut dyn FnMut(Found<'a>)) {
    let length = segment.len() as u64;
    let readable = end.map_or(length, |end| end.min(length));
    let bytes = &segment[..usize::try_from(readable).unwrap_or(segment.len())];
    let mut at = HEADER_BYTES.min(bytes.len());
    while at < bytes.len() {
        match format::parse(&bytes[at..]) {
            Parsed::Whole(record) => {
                visit(Found::Record(at as u64, record));
                at += record.bytes();
            }
            parsed => {
                let next = format::find(&bytes[at + 1..]).map(|found| at + 1 + found);
                let gap = Gap { offset: at as u64, bytes: (next.unwrap_or(bytes.len()) - at) as u64 };
                // Zeros are what some file systems leave after a power loss.
                let is_torn = parsed == Parsed::Short || bytes[at..].iter().all(|byte| *byte == 0);
                if next.is_none() && end.is_none() && is_torn {
                    return visit(Found::Torn);
                }
                visit(Found::Gap(gap));
                at += usize::try_from(gap.bytes).unwrap_or(bytes.len());
            }
        }
    }
    if let Some(end) = end.filter(|end| *end > length) {
        visit(Found::Gap(Gap { offset: length, bytes: end - length }));
    }
}

/// A segment as it is on disk.
pub(in super::super) struct Stored {
    pub(in super::super) number: u32,
    pub(in super::super) header: Result<Header, BadHeader>,
    pub(in super::super) bytes: u64,
}

/// The segments of a directory in the order of their numbers, without their records.
pub(in super::super) fn list(directory: &Path) -> io::Result<Vec<Stored>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = super::segment_number(&name.to_string_lossy()) else { continue };
        let bytes = entry.metadata()?.len();
        let mut head = [0; HEADER_BYTES];
        let header = match File::open(entry.path())?.read_exact_at(&mut head, 0) {
            Ok(()) => Header::decode(&head).and_then(|header| {
                if header.number == number { Ok(header) } else { Err(BadHeader::Damaged) }
            }),
            Err(_short) => Err(BadHeader::Damaged),
        };
        found.push(Stored { number, header, bytes });
    }
    found.sort_by_key(|stored| stored.number);
    Ok(found)
}
