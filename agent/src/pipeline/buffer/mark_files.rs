//! Marks of segments that left the journal: one file per day on which they expire, removed whole on that day.
//!
//! A file is a row of blocks: marker, count, CRC32C, and then so many marks with their ids. A block that cannot
//! be read is passed over: a mark that is lost costs a repeated webhook with the same id.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use gateway_core::id::EventId;

use super::{
    journal::{files::sync_directory, read::Gap},
    record::{self, MARK_BYTES, Mark},
};

const BLOCK: [u8; 4] = *b"MRK1";
const HEAD_BYTES: usize = 12;
const ENTRY_BYTES: usize = 16 + MARK_BYTES;
/// Most marks of one block.
const BLOCK_MARKS_MAX: usize = 65_536;

/// Longest block.
const BLOCK_BYTES_MAX: usize = HEAD_BYTES + BLOCK_MARKS_MAX * ENTRY_BYTES;
/// Bytes read at once.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// Takes the marks of a block.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[(EventId, Mark)]);

/// What is in one file.
#[derive(Debug, Default)]
pub(super) struct CheckedFile {
    /// The day since 1970 on which it goes.
    pub(super) day: u32,
    pub(super) bytes: u64,
    /// Marks that can be read.
    pub(super) marks: u64,
    /// Bytes of blocks that were not written to their end.
    pub(super) torn_bytes: u64,
    /// What cannot be read beside these.
    pub(super) gaps: Vec<Gap>,
}

/// The directory of mark files in a buffer's.
pub(super) struct MarkFiles {
    directory: PathBuf,
}

impl MarkFiles {
    /// In the buffer's directory; made when missing.
    pub(super) fn open(buffer: &Path) -> io::Result<Self> {
        let directory = buffer.join("marks");
        crate::private::create_directory(&directory)?;
        Ok(Self { directory })
    }

    /// In the buffer's directory, without making anything.
    pub(super) fn existing(buffer: &Path) -> Self {
        Self { directory: buffer.join("marks") }
    }

    /// What is in each file, by day.
    pub(super) fn check(&self) -> io::Result<Vec<CheckedFile>> {
        let mut checked = Vec::new();
        for (day, path, _) in self.list()? {
            let bytes = fs::read(path)?;
            let mut file = CheckedFile { day, bytes: bytes.len() as u64, ..CheckedFile::default() };
            let gaps = decode_all(&bytes, &mut |marks| file.marks += marks.len() as u64);
            for gap in gaps {
                // What a crash cut off is written once more behind it.
                if is_torn(&bytes[gap.clone()]) {
                    file.torn_bytes += gap.len() as u64;
                } else {
                    file.gaps.push(Gap { offset: gap.start as u64, bytes: gap.len() as u64 });
                }
            }
            checked.push(file);
        }
        Ok(checked)
    }

    fn path(&self, day: u32) -> PathBuf {
        self.directory.join(format!("{day:06}.marks"))
    }

    /// About how many marks there are.
    pub(super) fn count(&self) -> io::Result<usize> {
        let bytes: u64 = self.list()?.iter().map(|(_, _, bytes)| bytes).sum();
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX) / ENTRY_BYTES)
    }

    /// Adds marks; they are on disk when it returns.
    pub(super) fn add(&self, marks: &[(EventId, Mark)]) -> io::Result<()> {
        let mut by_day: BTreeMap<u32, Vec<&(EventId, Mark)>> = BTreeMap::new();
        for mark in marks {
            by_day.entry(mark.1.expire_day).or_default().push(mark);
        }
        for (day, marks) in by_day {
            let path = self.path(day);
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            for block in marks.chunks(BLOCK_MARKS_MAX) {
                file.write_all(&encode(block))?;
            }
            file.sync_data()?;
        }
        sync_directory(&self.directory)
    }

    /// Visits all marks that expire on this day or later; of an id that comes more than once, the last counts. Returns how many
    /// bytes cannot be read.
    pub(super) fn read(&self, today: u32, visit: Visit<'_>) -> io::Result<u64> {
        let mut unreadable = 0;
        for (day, path, _) in self.list()? {
            if day >= today {
                unreadable += read_blocks(&File::open(path)?, visit)?;
            }
        }
        Ok(unreadable)
    }

    /// Removes what expired before this day, and, oldest first, what is over the budget. Returns the first day
    /// that is kept.
    pub(super) fn forget(&self, today: u32, bytes_max: u64) -> io::Result<u32> {
        let files = self.list()?;
        let mut bytes: u64 = files.iter().map(|(_, _, bytes)| bytes).sum();
        let mut first_kept = today;
        for (day, path, size) in files {
            if day < today || bytes > bytes_max {
                fs::remove_file(path)?;
                bytes -= size;
                first_kept = first_kept.max(day + 1);
            }
        }
        Ok(first_kept)
    }

    /// The files by day: path and length.
    fn list(&self) -> io::Result<Vec<(u32, PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let day = name.to_string_lossy().strip_suffix(".marks").and_then(|day| day.parse().ok());
            if let Some(day) = day {
                files.push((day, entry.path(), entry.metadata()?.len()));
            }
        }
        files.sort();
        Ok(files)
    }
}

fn encode(marks: &[&(EventId, Mark)]) -> Vec<u8> {
    let mut block = Vec::with_capacity(HEAD_BYTES + marks.len() * ENTRY_BYTES);
    block.extend_from_slice(&BLOCK);
    block.extend_from_slice(&u32::try_from(marks.len()).expect("a block is small").to_be_bytes());
    block.extend_from_slice(&[0; 4]);
    marks.iter().for_each(|(id, mark)| record::put_mark(&mut block, id, *mark));
    let crc = crc32c::crc32c(&block).to_be_bytes();
    block[8..HEAD_BYTES].copy_from_slice(&crc);
    block
}

/// The marks of the block that `bytes` begin with, and its length.
fn decode(bytes: &[u8]) -> Option<(Vec<(EventId, Mark)>, usize)> {
    let length = length_of(bytes)?;
    let (head, block) = (bytes.get(..HEAD_BYTES)?, bytes.get(..length)?);
    let mut head: [u8; HEAD_BYTES] = head.try_into().ok()?;
    let crc = u32::from_be_bytes(head[8..].try_into().ok()?);
    head[8..].fill(0);
    if crc32c::crc32c_append(crc32c::crc32c(&head), &block[HEAD_BYTES..]) != crc {
        return None;
    }
    let marks = block[HEAD_BYTES..].chunks_exact(ENTRY_BYTES).filter_map(record::read_mark).collect();
    Some((marks, length))
}

/// Length of the block that `bytes` begin with, as its head says.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let count = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    (starts_a_block(bytes) && count <= BLOCK_MARKS_MAX).then_some(HEAD_BYTES + count * ENTRY_BYTES)
}

fn starts_a_block(bytes: &[u8]) -> bool {
    bytes.starts_with(&BLOCK) || BLOCK.starts_with(bytes)
}

/// Whether they are the beginning of a block, and nothing else.
fn is_torn(bytes: &[u8]) -> bool {
    match length_of(bytes) {
        Some(length) => bytes.len() < length,
        None => bytes.len() < HEAD_BYTES && starts_a_block(bytes),
    }
}

/// Visits the marks of all blocks that can be read. Returns what lies between.
fn decode_all(bytes: &[u8], visit: Visit<'_>) -> Vec<Range<usize>> {
    let mut gaps: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if let Some((marks, length)) = decode(&bytes[at..]) {
            visit(&marks);
            at += length;
            continue;
        }
        let next = bytes[at + 1..].windows(BLOCK.len()).position(|window| window == BLOCK);
        let end = next.map_or(bytes.len(), |next| at + 1 + next);
        gaps.push(at..end);
        at = end;
    }
    gaps
}

/// Visits the marks of all blocks of a file that can be read. Returns how many bytes cannot. A file can have a day's marks, so only a part of it
/// is in memory at a time.
fn read_blocks(file: &File, visit: Visit<'_>) -> io::Result<u64> {
    let (mut bytes, mut at, mut is_end, mut unreadable) = (Vec::new(), 0, false, 0);
    loop {
        if !is_end && bytes.len() - at < BLOCK_BYTES_MAX {
            bytes.drain(..at);
            at = 0;
            is_end = file.take(READ_BYTES).read_to_end(&mut bytes)? == 0;
        }
        let rest = &bytes[at..];
        if rest.is_empty() {
            return Ok(unreadable);
        }
        at += match decode(rest) {
            Some((marks, length)) => {
                visit(&marks);
                length
            }
            None => {
                let next = rest[1..].windows(BLOCK.len()).position(|window| window == BLOCK);
                // A marker can begin in the last bytes and go on in the next part.
                let end = if rest.len() < BLOCK.len() { rest.len() } else { rest.len() - BLOCK.len() + 1 };
                let passed = next.map_or(end, |next| next + 1);
                unreadable += passed as u64;
                passed
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u8, expire_day: u32) -> (EventId, Mark) {
        (EventId::from_bytes([number; 16]), Mark { expire_day, ..Mark::new(0, u64::from(number)) })
    }

    fn read(files: &MarkFiles, today: u32) -> Vec<(EventId, Mark)> {
        let mut marks = Vec::new();
        files.read(today, &mut |block| marks.extend_from_slice(block)).unwrap();
        marks
    }

    /// Marks come back until their day is over, also behind a damaged block.
    #[test]
    fn marks_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let files = MarkFiles::open(directory.path()).unwrap();
        files.add(&[mark(1, 100), mark(2, 101)]).unwrap();
        files.add(&[mark(3, 101)]).unwrap();
        files.add(&[mark(4, 101)]).unwrap();
        assert_eq!(read(&files, 100), [mark(1, 100), mark(2, 101), mark(3, 101), mark(4, 101)]);
        let path = files.path(101);
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEAD_BYTES + ENTRY_BYTES + 20] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&files, 101), [mark(2, 101), mark(4, 101)]);
        assert_eq!(files.forget(101, u64::MAX).unwrap(), 101);
        assert_eq!(read(&files, 0), [mark(2, 101), mark(4, 101)]);
    }

    /// A check tells what is damaged from what a crash cut off, with their places.
    #[test]
    fn check_finds_damage() {
        let directory = tempfile::tempdir().unwrap();
        let files = MarkFiles::open(directory.path()).unwrap();
        let block = HEAD_BYTES + ENTRY_BYTES;
        files.add(&[mark(1, 100)]).unwrap();
        let path = files.path(100);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        bytes.extend_from_slice(&whole[..20]);
        fs::write(&path, &bytes).unwrap();
        files.add(&[mark(2, 100)]).unwrap();
        let checked = MarkFiles::existing(directory.path()).check().unwrap().remove(0);
        assert_eq!((checked.day, checked.marks, checked.torn_bytes), (100, 2, 20));
        assert_eq!(checked.gaps, []);

        let mut bytes = fs::read(&path).unwrap();
        bytes[HEAD_BYTES + 3] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let checked = files.check().unwrap().remove(0);
        assert_eq!((checked.marks, checked.torn_bytes), (1, 20));
        assert_eq!(checked.gaps, [Gap { offset: 0, bytes: block as u64 }]);
    }

    /// A file that is read in many parts gives the same as one that is read at once, damage included.
    #[test]
    fn large_files_are_read_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let files = MarkFiles::open(directory.path()).unwrap();
        let mark = |number: u32| {
            let id = EventId::derive(&[&number.to_string()]);
            (id, Mark { expire_day: 100, duplicates: 0, event: u64::from(number), is_taken_over: false })
        };
        let all: Vec<(EventId, Mark)> = (0..400_000).map(mark).collect();
        for part in all.chunks(30_011) {
            files.add(part).unwrap();
        }
        assert_eq!(read(&files, 0), all);
        let path = files.path(100);
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        for place in [100, length / 3, length / 2, length - 5] {
            bytes[place] ^= 1;
        }
        fs::write(&path, &bytes).unwrap();
        let mut expected = Vec::new();
        drop(decode_all(&bytes, &mut |marks| expected.extend_from_slice(marks)));
        assert!(expected.len() < all.len());
        assert_eq!(read(&files, 0), expected);
    }

    /// Over the budget the marks that expire first go first.
    #[test]
    fn budget_takes_the_oldest() {
        let directory = tempfile::tempdir().unwrap();
        let files = MarkFiles::open(directory.path()).unwrap();
        files.add(&[mark(1, 100), mark(2, 101)]).unwrap();
        let bytes: u64 = files.list().unwrap().iter().map(|(_, _, bytes)| bytes).sum();
        assert_eq!(files.forget(90, bytes - 1).unwrap(), 101);
        assert_eq!(read(&files, 0), [mark(2, 101)]);
    }
}
