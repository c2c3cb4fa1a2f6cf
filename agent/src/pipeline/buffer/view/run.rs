//! Marks that were taken together, sorted by id: on disk in parts of a few kilobytes, in memory a filter and where
//! each part begins. Taking a mark by itself would cost sled a hundred times as much, in time and in memory.

use gateway_core::id::EventId;

use super::super::{
    journal::format::Reader,
    record::{self, MARK_BYTES, Mark},
};

/// Most marks of a run.
pub(super) const RUN_MARKS_MAX: usize = 2_048;
/// Most marks of a part, which must stay below 4 KiB: sled keeps larger values in files that it never syncs.
const PART_MARKS: usize = 126;
/// Bits of the filter per mark: about one in a hundred ids that are not there looks as if it were.
const BITS_PER_MARK: usize = 10;
const BITS_PER_LOOK: u64 = 6;
const ENTRY_BYTES: usize = 16 + MARK_BYTES;

/// What is in memory of a run.
pub(super) struct Run {
    pub(super) number: u64,
    /// The last day on which one of its marks may be forgotten.
    pub(super) expire_day: u32,
    /// The beginnings of the first ids of its parts.
    firsts: Box<[u64]>,
    filter: Box<[u64]>,
}

fn halves(id: &EventId) -> (u64, u64) {
    let id = u128::from_be_bytes(*id.as_bytes());
    ((id >> 64) as u64, id as u64)
}

fn bits(id: &EventId, words: usize) -> impl Iterator<Item = usize> + use<> {
    let ((start, step), count) = (halves(id), words as u64 * 64);
    (0..BITS_PER_LOOK).map(move |look| (start.wrapping_add(look.wrapping_mul(step | 1)) % count) as usize)
}

impl Run {
    /// Of marks that are sorted by id and not empty.
    pub(super) fn of(number: u64, marks: &[(EventId, Mark)]) -> Self {
        let mut filter = vec![0; (marks.len() * BITS_PER_MARK).div_ceil(64)].into_boxed_slice();
        for (id, _) in marks {
            bits(id, filter.len()).for_each(|bit| filter[bit / 64] |= 1 << (bit % 64));
        }
        let expire_day = marks.iter().map(|(_, mark)| mark.expire_day).max().unwrap_or(0);
        let firsts = marks.chunks(PART_MARKS).map(|part| halves(&part[0].0).0).collect();
        Self { number, expire_day, firsts, filter }
    }

    /// The part that has this id, if any has.
    pub(super) fn part_of(&self, id: &EventId) -> Option<u16> {
        if !bits(id, self.filter.len()).all(|bit| self.filter[bit / 64] & (1 << (bit % 64)) != 0) {
            return None;
        }
        let before = self.firsts.partition_point(|first| *first <= halves(id).0);
        u16::try_from(before.checked_sub(1)?).ok()
    }

    /// How many parts it has.
    pub(super) fn parts(&self) -> u16 {
        u16::try_from(self.firsts.len()).expect("a run has few parts")
    }

    /// What is stored beside the parts.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.expire_day.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.parts().to_be_bytes());
        self.firsts.iter().chain(&self.filter).for_each(|word| bytes.extend_from_slice(&word.to_be_bytes()));
        bytes
    }

    /// From what [`Self::encode`] made.
    pub(super) fn decode(number: u64, bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let expire_day = u32::from_be_bytes(rest.array()?);
        let parts = usize::from(u16::from_be_bytes(rest.array()?));
        let words =
            rest.0.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap_or_default()));
        let words: Vec<u64> = words.collect();
        let (firsts, filter) = words.split_at_checked(parts)?;
        if firsts.is_empty() || filter.is_empty() {
            return None;
        }
        Some(Self { number, expire_day, firsts: firsts.into(), filter: filter.into() })
    }
}

/// The parts of marks that are sorted by id.
pub(super) fn encode_parts(marks: &[(EventId, Mark)]) -> impl Iterator<Item = Vec<u8>> {
    marks.chunks(PART_MARKS).map(|part| {
        let mut bytes = Vec::with_capacity(part.len() * ENTRY_BYTES);
        part.iter().for_each(|(id, mark)| record::put_mark(&mut bytes, id, *mark));
        bytes
    })
}

/// The marks of a part; none when it is not whole.
pub(super) fn decode_part(part: &[u8]) -> Option<Vec<(EventId, Mark)>> {
    let is_whole = !part.is_empty() && part.len().is_multiple_of(ENTRY_BYTES);
    is_whole.then(|| part.chunks_exact(ENTRY_BYTES).filter_map(record::read_mark).collect())
}

/// The mark of an id in a part.
pub(super) fn find_in_part(part: &[u8], id: &EventId) -> Option<Mark> {
    let mut entries = part.chunks_exact(ENTRY_BYTES);
    let entry = entries.find(|entry| entry.starts_with(id.as_bytes()))?;
    record::read_mark(entry).map(|(_, mark)| mark)
}
