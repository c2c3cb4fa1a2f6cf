//! Pauses subscriptions that had nothing but failures for days: their deliveries are held from then on, and
//! people can see why.

use gateway_core::time;
use gateway_runtime::supervise::{OnEnd, Supervisor};
use tokio::sync::mpsc;
use tracing::warn;

use crate::{
    inbound_log::FailingSubscription,
    store::{Store, StoreError},
};

/// Subscriptions that wait to be paused. When full, they come again with a later failure.
pub const WAITING_MAX: usize = 256;

/// Pauses what comes, until the process stops.
pub fn spawn(store: Store, supervisor: &Supervisor, mut failing: mpsc::Receiver<FailingSubscription>) {
    supervisor.spawn("pause-failing", OnEnd::Shutdown, |stop| async move {
        loop {
            let found = tokio::select! {
                Some(found) = failing.recv() => found,
                () = stop.cancelled() => return Ok(()),
            };
            if let Err(error) = pause(&store, &found).await {
                // It comes again while it goes on failing.
                let id = &*found.subscription_id;
                warn!(gateway.subscription.id = id, %error, "failed to pause a subscription that only fails");
            }
        }
    });
}

/// Pauses one subscription, unless it is paused, was changed meanwhile or is gone. True when it was paused now.
///
/// # Errors
/// When the database cannot be written.
pub async fn pause(store: &Store, found: &FailingSubscription) -> Result<bool, StoreError> {
    let (id, since) = (&*found.subscription_id, time::rfc3339_seconds(found.since));
    let attempts = found.attempt_count;
    let reason =
        format!("every attempt since {since} failed ({attempts} attempts); fix the destination, then resume");
    let paused = store.pause_subscription_failing(id, found.time, &reason).await?;
    if paused {
        warn!(gateway.subscription.id = id, since, attempts, "paused a subscription that only failed");
    }
    Ok(paused)
}
