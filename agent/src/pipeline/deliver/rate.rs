//! How many attempts may begin per second. Pure: times are milliseconds of a clock that never jumps.

use std::num::NonZeroU32;

/// What may be saved up while nothing begins. So little that every second sees the rate, and enough to make up
/// for timers that fire late.
const SAVED_MS: u64 = 50;
/// One attempt, in thousandths: so many of them come per millisecond as attempts per second.
const ONE: u64 = 1_000;

/// A token bucket that is nearly flat: at most one attempt, and what [`SAVED_MS`] brings, begin at once.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: NonZeroU32,
    saved: u64,
    filled: u64,
}

impl Rate {
    /// One attempt may begin at once.
    pub(super) const fn new(per_second: NonZeroU32, now: u64) -> Self {
        Self { per_second, saved: ONE, filled: now }
    }

    /// The rate.
    pub(super) const fn per_second(&self) -> NonZeroU32 {
        self.per_second
    }

    /// When the next attempt may begin: `now` or later.
    pub(super) fn free_at(&mut self, now: u64) -> u64 {
        self.fill(now);
        now + ONE.saturating_sub(self.saved).div_ceil(u64::from(self.per_second.get()))
    }

    /// An attempt begins.
    pub(super) fn take(&mut self, now: u64) {
        self.fill(now);
        self.saved = self.saved.saturating_sub(ONE);
    }

    fn fill(&mut self, now: u64) {
        let rate = u64::from(self.per_second.get());
        let come = now.saturating_sub(self.filled).saturating_mul(rate);
        self.saved = self.saved.saturating_add(come).min(ONE + rate * SAVED_MS);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many attempts begin before `until`, when a timer fires `late` milliseconds after its time.
    fn begun(per_second: u32, until: u64, late: u64) -> u64 {
        let mut rate = Rate::new(NonZeroU32::new(per_second).unwrap(), 0);
        let (mut now, mut count) = (0, 0);
        while now < until {
            match rate.free_at(now) {
                free if free > now => now = free + late,
                _ => {
                    rate.take(now);
                    count += 1;
                }
            }
        }
        count
    }

    /// Ten per second are between 9 and 11 per second over every few seconds, also when timers fire late; and
    /// a thousand are a thousand.
    #[test]
    fn rate_is_kept() {
        for late in [0, 1, 5, 20] {
            for seconds in [2, 3, 10] {
                let count = begun(10, seconds * 1_000, late);
                assert!(
                    (9 * seconds..=11 * seconds).contains(&count),
                    "{count} in {seconds} s, {late} ms late"
                );
            }
        }
        let count = begun(1_000, 5_000, 1);
        assert!((4_900..=5_100).contains(&count), "{count}");
    }

    /// Silence is not saved up for a burst.
    #[test]
    fn silence_makes_no_burst() {
        let mut rate = Rate::new(NonZeroU32::new(10).unwrap(), 0);
        let mut burst = 0;
        while rate.free_at(3_600_000) == 3_600_000 {
            rate.take(3_600_000);
            burst += 1;
        }
        assert_eq!(burst, 1);
    }

    proptest! {
        /// No window holds more than its share and one attempt more than the bucket holds.
        #[test]
        fn no_window_is_over_the_rate(per_second in 1_u32..1_000, steps in proptest::collection::vec(0_u64..400, 1..200)) {
            let mut rate = Rate::new(NonZeroU32::new(per_second).unwrap(), 0);
            let (mut now, mut count) = (0, 0);
            for step in steps {
                now += step;
                while rate.free_at(now) == now {
                    rate.take(now);
                    count += 1;
                }
                prop_assert!(count * 1_000 <= (now + SAVED_MS) * u64::from(per_second) + ONE);
            }
        }
    }
}
