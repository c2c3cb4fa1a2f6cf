//! Shows what was measured.

use std::{
    fmt,
    io::{self, Write as _},
    time::Duration,
};

/// Prints a line past the test runner, which shows the output of failed tests only.
pub fn figure(line: impl fmt::Display) {
    // Nothing can be done when standard error is closed.
    drop(io::stderr().write_all(format!("figure: {line}\n").as_bytes()));
}

/// Median, 99th percentile and longest of some durations; prints as milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    /// The median.
    pub median: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Spread {
    /// Of these durations, in any order; zero of none.
    pub fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let at = |percent: usize| {
            let index = durations.len().saturating_sub(1) * percent / 100;
            durations.get(index).copied().unwrap_or_default()
        };
        Self { median: at(50), p99: at(99), max: at(100) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, max] = [self.median, self.p99, self.max].map(|time| time.as_secs_f64() * 1_000.0);
        write!(f, "median {median:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
    }
}
