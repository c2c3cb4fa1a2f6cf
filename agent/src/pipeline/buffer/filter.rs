//! Tells of most ids that they were never seen, without a look at the index: a blocked Bloom filter
//! (Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters", 2007). It forgets nothing, so it
//! is built anew when it has grown too full.

use gateway_core::id::EventId;

/// A block is a cache line.
const BLOCK_WORDS: usize = 8;
/// Bits set per id.
const BITS_PER_ID: u32 = 6;
/// Ids per block at which it is full: about one in a hundred unseen ids then looks seen.
const IDS_PER_BLOCK: usize = 48;
/// Fewest ids that a filter has room for.
const CAPACITY_MIN: usize = 200_000;

/// What was seen, as bits.
pub(super) struct Filter {
    blocks: Vec<[u64; BLOCK_WORDS]>,
    count: usize,
}

impl Filter {
    /// With room for so many ids, and as many more.
    pub(super) fn with_room_for(count: usize) -> Self {
        let blocks = (count.max(CAPACITY_MIN) * 2).div_ceil(IDS_PER_BLOCK);
        Self { blocks: vec![[0; BLOCK_WORDS]; blocks], count: 0 }
    }

    /// Adds an id.
    pub(super) fn insert(&mut self, id: &EventId) {
        let (block, bits) = self.place(id);
        for bit in bits {
            self.blocks[block][bit / 64] |= 1 << (bit % 64);
        }
        self.count += 1;
    }

    /// Whether the id may have been added; false is certain.
    pub(super) fn may_contain(&self, id: &EventId) -> bool {
        let (block, mut bits) = self.place(id);
        bits.all(|bit| self.blocks[block][bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// How many ids were added.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// Whether it should be built anew with more room.
    pub(super) fn is_full(&self) -> bool {
        self.count > self.blocks.len() * IDS_PER_BLOCK
    }

    /// An id is a hash already: one half picks the block, the other the bits.
    fn place(&self, id: &EventId) -> (usize, impl Iterator<Item = usize> + use<>) {
        let id = u128::from_be_bytes(*id.as_bytes());
        let (block, bits) = ((id >> 64) as u64, id as u64);
        let block = (block % self.blocks.len() as u64) as usize;
        (block, (0..BITS_PER_ID).map(move |number| (bits >> (9 * number)) as usize % (64 * BLOCK_WORDS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> EventId {
        EventId::derive(&[&number.to_string()])
    }

    /// What was added is always found, and of what was not, about one in a hundred at most.
    #[test]
    fn finds_what_was_added() {
        let mut filter = Filter::with_room_for(0);
        let mut added = 0;
        while !filter.is_full() {
            filter.insert(&id(added));
            added += 1;
        }
        assert_eq!(filter.len(), added);
        assert!(added >= 2 * CAPACITY_MIN);
        assert!((0..added).all(|number| filter.may_contain(&id(number))));
        let wrong = (added..added + 100_000).filter(|number| filter.may_contain(&id(*number))).count();
        assert!(wrong < 2_500, "{wrong} of 100000");
    }
}
