//! Looking after the disk: free space, who takes more than a share, writing again after a failure.

use std::{sync::PoisonError, time::Instant};

use tracing::{error, info, warn};

use super::{
    engine::{Engine, TICK},
    shared::Health,
};

/// Space kept free when no setting says how much.
const DISK_FREE_BYTES_MIN_DEFAULT: u64 = 64 << 20;
/// But of a small disk at most one part in so many.
const DISK_SHARE: u64 = 20;

impl Engine {
    pub(super) fn tick(&mut self) {
        self.next_tick = Instant::now() + TICK;
        let stats = self.shared.stats();
        let oldest_age = stats.oldest_age.map_or(0.0, |age| age.as_secs_f64());
        self.metrics.buffer(stats.events, stats.bytes, oldest_age);
        if self.is_failing {
            self.try_again();
        }
        self.look_after_space();
        self.look_after_budget(stats.bytes);
        self.look_after_shares();
        self.clean();
        #[cfg(test)]
        self.shared.ticks.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }

    fn look_after_space(&mut self) {
        let is_low = match self.journal.space() {
            Ok(space) => {
                let default = || DISK_FREE_BYTES_MIN_DEFAULT.min(space.total_bytes / DISK_SHARE);
                space.free_bytes < self.config.disk_free_bytes_min.unwrap_or_else(default)
            }
            Err(failure) => {
                warn!(error = &failure as &dyn std::error::Error, "failed to ask for the free disk space");
                false
            }
        };
        if is_low != self.is_low_on_space {
            self.is_low_on_space = is_low;
            if is_low {
                error!("the buffer's disk is nearly full; callbacks get 503 until there is space");
            } else {
                info!("the buffer's disk has space again");
            }
        }
        if !self.is_failing {
            self.shared.set_health(if is_low { Health::DiskFull } else { Health::Good });
        }
    }

    /// Says once that the budget is used up, and once that it is not any more.
    fn look_after_budget(&mut self, bytes: u64) {
        let is_full = bytes >= self.config.bytes_max;
        if is_full != self.is_full {
            self.is_full = is_full;
            if is_full {
                warn!(
                    bytes,
                    "the buffer has used up its budget; callbacks get 503 until some of it is delivered"
                );
            } else {
                info!(bytes, "the buffer has room again");
            }
        }
    }

    /// Says once of every subscription that is owed more than its share, and once that it is not any more.
    fn look_after_shares(&self) {
        let share = self.config.share_bytes_max();
        let now = if share >= self.config.bytes_max {
            Vec::new()
        } else {
            let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
            index.owed_more_than(share.saturating_sub(1))
        };
        let mut before = self.shared.over_share.lock().unwrap_or_else(PoisonError::into_inner);
        let subscriptions = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        for subscription in now.iter().filter(|subscription| !before.contains(subscription)) {
            warn!(
                subscription = %subscriptions.id(*subscription),
                "a destination is owed its whole share of the buffer; callbacks for it get 503"
            );
        }
        for subscription in before.iter().filter(|subscription| !now.contains(subscription)) {
            info!(
                subscription = %subscriptions.id(*subscription),
                "a destination is owed less than its share of the buffer again"
            );
        }
        *before = now;
    }
}
