//! Marks of segments that left the journal: one file per day on which they expire, removed whole on that day.
//!
//! A file is a row of blocks: marker, count, CRC32C, and then so many marks with their ids. A block that cannot
//! be read is passed over: a mark that is lost costs a repeated webhook with the same id.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use gateway_core::id::EventId;

use super::{
    journal::files::sync_directory,
    record::{self, MARK_BYTES, Mark},
};

const BLOCK: [u8; 4] = *b"MRK1";
const HEAD_BYTES: usize = 12;
const ENTRY_BYTES: usize = 16 + MARK_BYTES;
/// Most marks of one block.
const BLOCK_MARKS_MAX: usize = 65_536;

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

    fn path(&self, day: u32) -> PathBuf {
        self.directory.join(format!("{day:06}.marks"))
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

    /// Visits all marks that expire on this day or later; of an id that comes more than once, the last counts.
    pub(super) fn read(&self, today: u32, visit: &mut dyn FnMut(&[(EventId, Mark)])) -> io::Result<()> {
        for (day, path, _) in self.list()? {
            if day >= today {
                decode_all(&fs::read(path)?, visit);
            }
        }
        Ok(())
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
    let head = bytes.get(..HEAD_BYTES)?;
    if head[..4] != BLOCK {
        return None;
    }
    let count = u32::from_be_bytes(head[4..8].try_into().ok()?) as usize;
    if count > BLOCK_MARKS_MAX {
        return None;
    }
    let length = HEAD_BYTES + count * ENTRY_BYTES;
    let block = bytes.get(..length)?;
    let mut head: [u8; HEAD_BYTES] = head.try_into().ok()?;
    let crc = u32::from_be_bytes(head[8..].try_into().ok()?);
    head[8..].fill(0);
    if crc32c::crc32c_append(crc32c::crc32c(&head), &block[HEAD_BYTES..]) != crc {
        return None;
    }
    let marks = block[HEAD_BYTES..].chunks_exact(ENTRY_BYTES).filter_map(record::read_mark).collect();
    Some((marks, length))
}

fn decode_all(bytes: &[u8], visit: &mut dyn FnMut(&[(EventId, Mark)])) {
    let mut at = 0;
    while at < bytes.len() {
        if let Some((marks, length)) = decode(&bytes[at..]) {
            visit(&marks);
            at += length;
            continue;
        }
        let next = bytes[at + 1..].windows(BLOCK.len()).position(|window| window == BLOCK);
        let Some(next) = next else { break };
        at += 1 + next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u8, expire_day: u32) -> (EventId, Mark) {
        (EventId::from_bytes([number; 16]), Mark { expire_day, duplicates: 0, event: u64::from(number) })
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
