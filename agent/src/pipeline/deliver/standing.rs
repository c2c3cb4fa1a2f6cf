//! Whether the deliveries of a subscription are attempted, held or cancelled: what the configuration says,
//! and what the destination said last.

use std::{collections::HashMap, sync::Arc};

use gateway_core::snapshot::{Ordering, SubscriptionConfig, SubscriptionLookup};

use super::queue::Limits;

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

impl Standing {
    /// What the queue of the subscription may do; none while nothing may be attempted.
    pub(super) fn limits(&self) -> Option<Limits> {
        let Self::Active(settings) = self else { return None };
        let ordering_attempts_max = match settings.ordering {
            Ordering::None => None,
            Ordering::Contact { attempts_max } => Some(attempts_max),
        };
        let (concurrency_max, rate) = (settings.concurrency_max, settings.rate_per_second_max);
        Some(Limits { concurrency_max, rate, ordering_attempts_max })
    }

    /// Whether nothing changed, the settings included.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Active(settings), Self::Active(other)) => Arc::ptr_eq(settings, other),
            _ => self.is_same_kind(other),
        }
    }

    /// Whether nothing changed but settings.
    pub(super) const fn is_same_kind(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Active(_), Self::Active(_)) | (Self::Held, Self::Held) | (Self::Deleted, Self::Deleted)
        )
    }
}

/// The standing of every subscription that is owed something.
#[derive(Default)]
pub(super) struct Standings {
    standings: HashMap<u32, Standing>,
    /// Destinations that answered 410, with the settings that were used. Other settings mean that somebody
    /// acted, so it is tried again.
    gone: HashMap<u32, Arc<SubscriptionConfig>>,
}

impl Standings {
    /// Where a subscription stands; held when it was never evaluated.
    pub(super) fn of(&self, subscription: u32) -> &Standing {
        self.standings.get(&subscription).unwrap_or(&Standing::Held)
    }

    /// Decides where a subscription stands.
    pub(super) fn evaluate(&mut self, subscription: u32, lookup: SubscriptionLookup<'_>) -> Standing {
        let standing = match lookup {
            SubscriptionLookup::Unknown => Standing::Held,
            SubscriptionLookup::Deleted => Standing::Deleted,
            SubscriptionLookup::Known(settings) => {
                let is_gone = self.gone.get(&subscription).is_some_and(|gone| Arc::ptr_eq(gone, settings));
                if settings.paused || is_gone {
                    Standing::Held
                } else {
                    self.gone.remove(&subscription);
                    Standing::Active(Arc::clone(settings))
                }
            }
        };
        self.standings.insert(subscription, standing.clone());
        standing
    }

    /// Remembers that the destination of these settings is gone.
    pub(super) fn gone(&mut self, subscription: u32, settings: Arc<SubscriptionConfig>) {
        self.gone.insert(subscription, settings);
    }

    /// Forgets a subscription that is owed nothing. That its destination is gone is remembered.
    pub(super) fn forget(&mut self, subscription: u32) {
        self.standings.remove(&subscription);
    }
}
