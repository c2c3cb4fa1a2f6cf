//! Whether the deliveries of a subscription are attempted, held or cancelled: what the configuration says,
//! and what the destination said last.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use gateway_core::snapshot::SubscriptionConfig;
use tokio::time::Instant;
use url::Url;

use super::queue::Mode;

/// How long a subscription that the configuration never knew may still turn up: a test event can arrive
/// before the subscription it is for.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(10);

/// Where a subscription stands.
#[derive(Clone)]
pub(super) enum Standing {
    /// Deliveries are attempted, with these settings.
    Active(Arc<SubscriptionConfig>),
    /// It is paused, or its destination is gone.
    Held,
    /// The configuration does not know it yet.
    Unknown,
    /// It was deleted.
    Deleted,
}

/// A destination that answered 410, and the settings that were used. Other settings mean that somebody
/// acted, so it is tried again.
pub(super) struct Gone {
    destination: Url,
    settings: Arc<SubscriptionConfig>,
}

impl Gone {
    pub(super) fn of(settings: &Arc<SubscriptionConfig>) -> Self {
        Self { destination: settings.destination.clone(), settings: Arc::clone(settings) }
    }

    fn still_holds(&self, settings: &Arc<SubscriptionConfig>) -> bool {
        self.destination == settings.destination && Arc::ptr_eq(&self.settings, settings)
    }
}

struct Entry {
    standing: Standing,
    unknown_since: Option<Instant>,
    /// Batches of deliveries whose new state is on its way to the buffer.
    announcing: usize,
}

/// The standing of every subscription that is owed something.
#[derive(Default)]
pub(super) struct Standings {
    entries: HashMap<u32, Entry>,
    gone: HashMap<u32, Gone>,
    checks: BTreeSet<(Instant, u32)>,
}

impl Standings {
    /// Where a subscription stands; unknown when it was never evaluated.
    pub(super) fn of(&self, subscription: u32) -> &Standing {
        self.entries.get(&subscription).map_or(&Standing::Unknown, |entry| &entry.standing)
    }

    /// Decides where a subscription stands.
    pub(super) fn evaluate(
        &mut self,
        subscription: u32,
        settings: Option<&Arc<SubscriptionConfig>>,
        now: Instant,
    ) -> Standing {
        let before = self.entries.get(&subscription);
        let was_known = before.is_some_and(|entry| !matches!(entry.standing, Standing::Unknown));
        let mut unknown_since = before.and_then(|entry| entry.unknown_since);
        let announcing = before.map_or(0, |entry| entry.announcing);
        let standing = match settings {
            Some(settings) if settings.paused => Standing::Held,
            Some(settings) if self.gone.get(&subscription).is_some_and(|gone| gone.still_holds(settings)) => {
                Standing::Held
            }
            Some(settings) => {
                self.gone.remove(&subscription);
                Standing::Active(Arc::clone(settings))
            }
            None if was_known => Standing::Deleted,
            None => {
                let since = *unknown_since.get_or_insert(now);
                if now >= since + UNKNOWN_PATIENCE {
                    Standing::Deleted
                } else {
                    self.checks.insert((since + UNKNOWN_PATIENCE, subscription));
                    Standing::Unknown
                }
            }
        };
        self.entries.insert(subscription, Entry { standing: standing.clone(), unknown_since, announcing });
        standing
    }

    /// What the queue of the subscription may do.
    pub(super) fn mode(&self, subscription: u32) -> Mode {
        match self.entries.get(&subscription) {
            Some(Entry { standing: Standing::Active(settings), announcing: 0, .. }) => {
                Mode::Active { concurrency_max: settings.concurrency_max }
            }
            _ => Mode::Parked,
        }
    }

    /// Remembers that a destination is gone.
    pub(super) fn gone(&mut self, subscription: u32, gone: Gone) {
        self.gone.insert(subscription, gone);
    }

    pub(super) fn begin_announcing(&mut self, subscription: u32) {
        if let Some(entry) = self.entries.get_mut(&subscription) {
            entry.announcing += 1;
        }
    }

    pub(super) fn end_announcing(&mut self, subscription: u32) {
        if let Some(entry) = self.entries.get_mut(&subscription) {
            entry.announcing = entry.announcing.saturating_sub(1);
        }
    }

    pub(super) fn is_announcing(&self, subscription: u32) -> bool {
        self.entries.get(&subscription).is_some_and(|entry| entry.announcing > 0)
    }

    /// Forgets a subscription that is owed nothing. That its destination is gone is remembered.
    pub(super) fn forget(&mut self, subscription: u32) {
        self.entries.remove(&subscription);
    }

    /// When an unknown subscription is to be evaluated again.
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.checks.first().map(|(time, _)| *time)
    }

    /// Unknown subscriptions whose time has come.
    pub(super) fn due_checks(&mut self, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some((time, subscription)) = self.checks.first().copied() {
            if time > now {
                break;
            }
            self.checks.remove(&(time, subscription));
            if self.entries.contains_key(&subscription) {
                due.push(subscription);
            }
        }
        due
    }
}
