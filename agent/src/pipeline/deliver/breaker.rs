//! How much a subscription may start, by how its attempts went. Pure: times are milliseconds of a clock that
//! never jumps.
//!
//! | state | what may start |
//! |---|---|
//! | as at the beginning | as many at once as the subscription allows |
//! | open: ten attempts in a row failed | one probe every 30 s; all else waits and keeps its attempts |
//! | slowed down: an answer was 429 or 503 | nothing for as long as was asked, then one at a time |
//! | paused: an attempt could not be made here | nothing for a second |
//! | recovering: a success after one of these | one more at once for every success |
//!
//! It is not kept on disk: after a restart ten failures open it again.

use std::time::Duration;

/// Failures in a row, over all deliveries of a subscription, that open the breaker.
const FAILURES_MAX: u32 = 10;
/// How much the wait for a probe may grow by chance, so that agents do not probe together.
const JITTER_SHARE: f64 = 0.2;
/// How long nothing starts after 429 or 503 when the destination does not say how long.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest time for which a whole subscription waits because one answer asked for it. The delivery that was
/// answered so waits as long as was asked.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The breaker of one subscription.
#[derive(Debug)]
pub(super) struct Breaker {
    probe_interval: u64,
    failures: u32,
    /// When the next probe may start; none while it is closed.
    probe_at: Option<u64>,
    paused_until: u64,
    /// Attempts that may run at once, if the subscription allows them.
    allowed: usize,
}

impl Breaker {
    /// Closed. Probes are at least this far apart.
    pub(super) fn new(probe_interval: Duration) -> Self {
        Self {
            probe_interval: millis(probe_interval),
            failures: 0,
            probe_at: None,
            paused_until: 0,
            allowed: usize::MAX,
        }
    }

    /// Whether nothing is to be remembered: the last attempt did not fail.
    pub(super) const fn is_plain(&self) -> bool {
        self.failures == 0
    }

    /// Attempts that may run at once, if the subscription allows them.
    pub(super) const fn allowed(&self) -> usize {
        // Probes are apart in time, and what hangs since before it opened does not stand in their way.
        if self.probe_at.is_some() { usize::MAX } else { self.allowed }
    }

    /// When an attempt may start.
    pub(super) fn free_at(&self) -> u64 {
        self.probe_at.unwrap_or(0).max(self.paused_until)
    }

    /// An attempt starts. `random` is in 0..1.
    pub(super) fn started(&mut self, now: u64, random: f64) {
        if self.probe_at.is_some() {
            self.probe_at = Some(self.next_probe(now, random));
        }
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.allowed = match self.probe_at.take() {
            Some(_) => 1,
            None => self.allowed.saturating_add(1),
        };
    }

    /// An attempt failed. `random` is in 0..1.
    pub(super) fn failed(&mut self, now: u64, random: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX && self.probe_at.is_none() {
            self.probe_at = Some(self.next_probe(now, random));
        }
    }

    /// The destination asked for fewer requests, perhaps for as long. A success of what was sent before does not
    /// make the pause shorter.
    pub(super) fn slow_down(&mut self, now: u64, asked: Option<Duration>) {
        self.allowed = 1;
        self.pause(now, asked);
    }

    /// Nothing starts for as long, or a moment.
    pub(super) fn pause(&mut self, now: u64, asked: Option<Duration>) {
        self.paused_until = self.paused_until.max(now + millis(asked.unwrap_or(PAUSE).min(PAUSE_MAX)));
    }

    fn next_probe(&self, now: u64, random: f64) -> u64 {
        let jitter =
            Duration::from_millis(self.probe_interval).mul_f64(JITTER_SHARE * random.clamp(0.0, 1.0));
        now + self.probe_interval + millis(jitter)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(Duration::from_secs(30))
    }

    /// Nine failures change nothing, and a success makes them forgotten; the tenth in a row leaves one probe
    /// every 30 to 36 s.
    #[test]
    fn ten_failures_in_a_row_open_it() {
        let mut breaker = breaker();
        for _ in 0..3 {
            (0..9).for_each(|_| breaker.failed(0, 0.5));
            assert_eq!((breaker.free_at(), breaker.allowed()), (0, usize::MAX));
            breaker.succeeded();
            assert!(breaker.is_plain());
        }
        (0..10).for_each(|_| breaker.failed(1_000, 0.0));
        assert_eq!(breaker.free_at(), 31_000);
        breaker.started(40_000, 1.0);
        breaker.failed(41_000, 0.0);
        assert_eq!(breaker.free_at(), 76_000, "counted from its start");
    }

    /// A success closes it, and what is due does not go out at once: one more runs for every success.
    #[test]
    fn success_closes_it_slowly() {
        let mut breaker = breaker();
        (0..12).for_each(|_| breaker.failed(0, 0.0));
        breaker.succeeded();
        assert_eq!((breaker.free_at(), breaker.allowed()), (0, 1));
        breaker.succeeded();
        breaker.succeeded();
        assert_eq!(breaker.allowed(), 3);
        breaker.failed(0, 0.0);
        assert_eq!(breaker.allowed(), 3);
    }

    /// An answer that asks for fewer requests stops the subscription for a moment, never for long, and then
    /// leaves one at a time until a success.
    #[test]
    fn slowing_down_is_for_all() {
        let mut breaker = breaker();
        breaker.slow_down(1_000, None);
        assert_eq!((breaker.free_at(), breaker.allowed()), (2_000, 1));
        breaker.slow_down(1_000, Some(Duration::from_secs(5)));
        breaker.slow_down(1_500, None);
        assert_eq!(breaker.free_at(), 6_000);
        breaker.slow_down(1_000, Some(Duration::from_secs(86_400)));
        assert_eq!(breaker.free_at(), 31_000);
        breaker.succeeded();
        assert_eq!((breaker.free_at(), breaker.allowed()), (31_000, 2), "that was sent before");
    }
}
