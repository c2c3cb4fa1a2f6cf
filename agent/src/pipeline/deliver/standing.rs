//! Whether the deliveries of a subscription are attempted, held or cancelled: what the configuration says,
//! and what the destination said last.

use std::{collections::HashMap, sync::Arc};

use gateway_core::snapshot::{SubscriptionConfig, SubscriptionLookup};
use url::Url;

use super::queue::Mode;

/// Where a subscription stands.
#[derive(Clone)]
pub(super) enum Standing {
    /// Deliveries are attempted, with these settings.
    Active(Arc<SubscriptionConfig>),
    /// It is paused, its destination is gone, or the configuration does not know it: that may be an old one,
    /// so nothing is given up before a configuration says that the subscription was deleted.
    Held,
    /// A configuration says that it was deleted.
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
    /// Batches of deliveries whose new state is on its way to the buffer.
    announcing: usize,
}

/// The standing of every subscription that is owed something.
#[derive(Default)]
pub(super) struct Standings {
    entries: HashMap<u32, Entry>,
    gone: HashMap<u32, Gone>,
}

impl Standings {
    /// Where a subscription stands; held when it was never evaluated.
    pub(super) fn of(&self, subscription: u32) -> &Standing {
        self.entries.get(&subscription).map_or(&Standing::Held, |entry| &entry.standing)
    }

    /// Decides where a subscription stands.
    pub(super) fn evaluate(&mut self, subscription: u32, lookup: SubscriptionLookup<'_>) -> Standing {
        let announcing = self.entries.get(&subscription).map_or(0, |entry| entry.announcing);
        let standing = match lookup {
            SubscriptionLookup::Unknown => Standing::Held,
            SubscriptionLookup::Deleted => Standing::Deleted,
            SubscriptionLookup::Known(settings) => {
                let gone = self.gone.get(&subscription);
                if settings.paused || gone.is_some_and(|gone| gone.still_holds(settings)) {
                    Standing::Held
                } else {
                    self.gone.remove(&subscription);
                    Standing::Active(Arc::clone(settings))
                }
            }
        };
        self.entries.insert(subscription, Entry { standing: standing.clone(), announcing });
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
}
