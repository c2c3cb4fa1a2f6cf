//! Waiting for a condition with a deadline. Tests never sleep.

use std::{future::Future, time::Duration};

use anyhow::Context as _;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

/// How long a condition may take that normally holds within milliseconds: generous, because a shared
/// machine can stall for seconds, and what was interrupted comes back with pauses of up to half a minute. What
/// promises a time has a limit of its own.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two probes of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Probes until the probe succeeds. Its error says what is still missing.
///
/// # Errors
/// When the deadline passes: the last probe's error.
pub async fn eventually<T>(
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = anyhow::anyhow!("the first probe did not end");
    loop {
        ticks.tick().await;
        match timeout_at(end, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => missing = error,
            Err(_) => {}
        }
        if Instant::now() >= end {
            return Err(missing.context(format!("wait up to {deadline:?}")));
        }
    }
}

/// A future with a deadline.
pub trait Within: Future + Sized {
    /// The value, if it comes within `deadline`.
    fn within(self, deadline: Duration) -> impl Future<Output = anyhow::Result<Self::Output>> {
        async move { timeout(deadline, self).await.with_context(|| format!("wait up to {deadline:?}")) }
    }
}

impl<F: Future> Within for F {}
