//! Full-jitter exponential backoff, for whoever reconnects.
//! <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Delays that double from `first` up to `max`, each a random share of itself.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Begins with a delay of up to `first`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, ceiling: first }
    }

    /// The next delay: between zero and a ceiling that doubles each time.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.ceiling.mul_f64(rand::random::<f64>());
        self.ceiling = (self.ceiling * 2).min(self.max);
        delay
    }

    /// Begins again with `first`; to be called after a success.
    pub const fn reset(&mut self) {
        self.ceiling = self.first;
    }

    /// Waits for the next delay. False when `stop` came first. Cancel safe.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        let delay = self.next_delay();
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = stop.cancelled() => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delays never pass the ceiling, which doubles up to the maximum and begins again after a success.
    #[test]
    fn delays_are_bounded() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for ceiling in [100, 200, 400, 800, 1_000, 1_000] {
            assert!(backoff.next_delay() <= Duration::from_millis(ceiling));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
