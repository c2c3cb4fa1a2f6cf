//! What is done to a buffer, and what may be lost by it.

use std::{
    collections::BTreeSet,
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use gateway_tests::random::Random;

use super::backlog::Backlog;

/// How ids of messages begin; as many hexadecimal digits follow.
const WAMID_PREFIX: &[u8] = b"wamid.";
const WAMID_DIGITS: usize = 32;
/// The longest run of bytes that is overwritten or cut out.
const RUN_BYTES_MAX: u64 = 3_000;
/// Bytes that are appended.
const TAIL_BYTES: usize = 10_000;
const JOURNAL: &str = "journal";
const INDEX: &str = "index";
const MARKS: &str = "marks";

/// One change of the files.
#[derive(Debug, Clone)]
enum Change {
    /// One bit of the byte at an offset.
    Flip(u64, u8),
    /// Random bytes instead of these.
    Overwrite(Range<u64>, Vec<u8>),
    /// These are gone, and what follows moves up.
    Cut(Range<u64>),
    /// Everything from here on is gone.
    Truncate(u64),
    /// More at the end.
    Append(Vec<u8>),
    /// The file or directory is gone.
    Remove,
}

/// A change of one file or directory of the buffer, and what may come of it.
#[derive(Debug, Clone)]
pub struct Injury {
    /// Which one, relative to the buffer's directory.
    path: PathBuf,
    change: Change,
    /// Messages that may be lost by it: those whose records are touched.
    pub may_lose: BTreeSet<String>,
    /// What the agent can know of a loss.
    pub notice: Notice,
    /// Whether it is no damage at all.
    pub is_harmless: bool,
}

/// What an agent can know of events that are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Nothing. The newest record of all ends in the middle after every crash.
    Nothing,
    /// That some are lost: the index, which lags behind a little, tells it of a journal that is gone.
    Some,
    /// How many at most.
    AtMost,
}

/// Makes an injury of a backlog.
type Make = fn(&Backlog) -> anyhow::Result<Injury>;

impl Injury {
    /// Those that are always tried.
    pub const NAMED: [Make; 11] = [
        |backlog| Self::segment(backlog, |count| count / 2, Change::Remove),
        |backlog| Self::segment(backlog, |_| 0, Change::Remove),
        |backlog| Self::segment(backlog, |count| count - 1, Change::Remove),
        |backlog| Self::segment(backlog, |count| count / 2, Change::Truncate(0)),
        |backlog| Self::segment(backlog, |count| count / 3, Change::Append(garbage(&mut Random::of_seed(1)))),
        |backlog| Self::segment(backlog, |count| count - 1, Change::Append(garbage(&mut Random::of_seed(2)))),
        |backlog| {
            let zeros = Self::segment(backlog, |count| count - 1, Change::Append(vec![0; TAIL_BYTES]))?;
            Ok(Self { is_harmless: true, ..zeros })
        },
        |_| Ok(Self::of_directory(INDEX, BTreeSet::new())),
        |_| Ok(Self::of_directory(MARKS, BTreeSet::new())),
        |backlog| {
            let journal = Self::of_directory(JOURNAL, backlog.pending.clone());
            Ok(Self { notice: Notice::Some, ..journal })
        },
        // Then this is a fresh buffer, and nothing tells that there was another.
        |backlog| Ok(Self::of_directory("", backlog.pending.clone())),
    ];

    /// One at a random place of journal, index or marks.
    pub fn at_random(random: &mut Random, backlog: &Backlog) -> anyhow::Result<Self> {
        let directory = *random.pick(&[JOURNAL, JOURNAL, JOURNAL, JOURNAL, INDEX, INDEX, MARKS]);
        let mut files = files_below(&backlog.buffer(), directory)?;
        if files.is_empty() {
            files = files_below(&backlog.buffer(), JOURNAL)?;
        }
        // Every byte is as likely as every other.
        let all: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        ensure!(all > 0, "`{directory}` has no bytes");
        let mut place = random.within(0..all);
        let (path, bytes) = files
            .into_iter()
            .find(|(_, bytes)| {
                let is_here = place < *bytes;
                place = if is_here { place } else { place - bytes };
                is_here
            })
            .context("the place is in one of the files")?;
        let run = place..(place + random.within(1..RUN_BYTES_MAX)).min(bytes);
        let change = match random.within(0..4) {
            0 => Change::Flip(place, 1 << random.within(0..8)),
            1 => {
                let bytes = run.clone().map(|_| random.number().to_be_bytes()[0]).collect();
                Change::Overwrite(run, bytes)
            }
            2 => Change::Cut(run),
            _ => Change::Truncate(place),
        };
        Self::of_file(backlog, path, change)
    }

    /// Of the segment that `which` chooses by their number.
    fn segment(backlog: &Backlog, which: fn(usize) -> usize, change: Change) -> anyhow::Result<Self> {
        let segments = files_below(&backlog.buffer(), JOURNAL)?;
        ensure!(segments.len() > 4, "only {} segments", segments.len());
        let (path, _) = segments[which(segments.len())].clone();
        Self::of_file(backlog, path, change)
    }

    fn of_directory(path: &str, may_lose: BTreeSet<String>) -> Self {
        let notice = Notice::Nothing;
        Self { path: path.into(), change: Change::Remove, may_lose, notice, is_harmless: false }
    }

    fn of_file(backlog: &Backlog, path: PathBuf, change: Change) -> anyhow::Result<Self> {
        let bytes = fs::read(backlog.buffer().join(&path))?;
        let segments = files_below(&backlog.buffer(), JOURNAL)?;
        let is_journal = path.starts_with(JOURNAL);
        let is_newest = segments.last().is_some_and(|(newest, _)| *newest == path);
        let may_lose = if is_journal { touched(&bytes, &change) } else { BTreeSet::new() };
        let notice = if is_newest { Notice::Nothing } else { Notice::AtMost };
        Ok(Self { path, change, may_lose, notice, is_harmless: false })
    }

    /// Does it to a buffer.
    pub fn inflict(&self, buffer: &Path) -> anyhow::Result<()> {
        let path = buffer.join(&self.path);
        let at = |offset: u64| usize::try_from(offset).expect("files are small");
        if matches!(self.change, Change::Remove) {
            return match path.is_dir() {
                true => Ok(fs::remove_dir_all(path)?),
                false if path.exists() => Ok(fs::remove_file(path)?),
                false => Ok(()),
            };
        }
        let mut bytes = fs::read(&path)?;
        match &self.change {
            Change::Flip(offset, bit) => bytes[at(*offset)] ^= bit,
            Change::Overwrite(range, with) => bytes[at(range.start)..at(range.end)].copy_from_slice(with),
            Change::Cut(range) => drop(bytes.drain(at(range.start)..at(range.end))),
            Change::Truncate(offset) => bytes.truncate(at(*offset)),
            Change::Append(tail) => bytes.extend(tail),
            Change::Remove => {}
        }
        Ok(fs::write(path, bytes)?)
    }

    /// Whether there is still something that can be set aside.
    pub const fn leaves_file(&self) -> bool {
        !matches!(self.change, Change::Remove)
    }
}

impl fmt::Display for Injury {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Change::Flip(offset, bit) => write!(f, "flip bit {bit:#04x} of byte {offset}")?,
            Change::Overwrite(range, _) => write!(f, "overwrite bytes {range:?}")?,
            Change::Cut(range) => write!(f, "cut out bytes {range:?}")?,
            Change::Truncate(offset) => write!(f, "truncate at byte {offset}")?,
            Change::Append(tail) => write!(f, "append {} bytes", tail.len())?,
            Change::Remove => write!(f, "remove")?,
        }
        write!(f, " of `{}`, which may lose {} messages", self.path.display(), self.may_lose.len())
    }
}

/// Messages of which a record is touched by a change. A record has the id of its message in it, so every byte
/// belongs to the record of the id before it or to that of the id behind it.
fn touched(bytes: &[u8], change: &Change) -> BTreeSet<String> {
    let end = bytes.len() as u64;
    let range = match change {
        Change::Flip(offset, _) => *offset..*offset + 1,
        Change::Overwrite(range, _) | Change::Cut(range) => range.clone(),
        Change::Truncate(offset) => *offset..end,
        Change::Append(_) => end..end,
        Change::Remove => 0..end,
    };
    let places = places(bytes);
    let first = places.partition_point(|(place, _)| *place <= range.start).saturating_sub(1);
    let last = places.partition_point(|(place, _)| *place < range.end);
    let touched = places.get(first..=last).or_else(|| places.get(first..)).unwrap_or_default();
    touched.iter().map(|(_, wamid)| wamid.clone()).collect()
}

/// Where ids of messages are in some bytes.
fn places(bytes: &[u8]) -> Vec<(u64, String)> {
    let ids = bytes.windows(WAMID_PREFIX.len() + WAMID_DIGITS).enumerate();
    ids.filter(|(_, id)| id.starts_with(WAMID_PREFIX))
        .map(|(place, id)| (place as u64, String::from_utf8_lossy(id).into_owned()))
        .collect()
}

/// The files below a directory of the buffer, with their lengths, in the order of their names.
fn files_below(buffer: &Path, directory: &str) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::from(directory)];
    while let Some(directory) = directories.pop() {
        let full = buffer.join(&directory);
        let entries = fs::read_dir(&full).with_context(|| format!("read `{}`", full.display()))?;
        for entry in entries {
            let (entry, relative) = {
                let entry = entry?;
                let name = entry.file_name();
                (entry, directory.join(name))
            };
            if entry.file_type()?.is_dir() {
                directories.push(relative);
            } else {
                files.push((relative, entry.metadata()?.len()));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn garbage(random: &mut Random) -> Vec<u8> {
    (0..TAIL_BYTES).map(|_| random.number().to_be_bytes()[0]).collect()
}
