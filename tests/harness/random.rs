//! Chance that can be repeated by its seed.

use std::ops::Range;

use anyhow::Context as _;

/// Sets the seed of tests that choose by chance, to repeat what they printed.
const SEED_ENV: &str = "GATEWAY_TESTS_SEED";

/// Numbers by SplitMix64, <https://prng.di.unimi.it/splitmix64.c>: enough to choose places and times with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub const fn of_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range, which must not be empty.
    pub const fn within(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "the range is empty");
        range.start + self.number() % (range.end - range.start)
    }

    /// One of these, of which there must be one.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = self.within(0..u64::try_from(of.len()).expect("a length is a u64"));
        &of[usize::try_from(index).expect("less than a length")]
    }
}

/// The seed that the environment asks for, or a new one.
///
/// # Errors
/// When the environment asks for something that is no number.
pub fn seed() -> anyhow::Result<u64> {
    match std::env::var(SEED_ENV) {
        Ok(seed) => seed.parse().with_context(|| format!("read {SEED_ENV}")),
        Err(_) => Ok(u64::from(uuid::Uuid::new_v4().as_fields().0)),
    }
}
