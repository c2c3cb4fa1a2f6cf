//! The task that finds instances for unrouted callbacks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gateway_proto::v1;
use gateway_runtime::supervise::{OnEnd, Supervisor};
use tracing::warn;

use super::{ClaimError, WorkQueue};
use crate::{
    app::State,
    inbound_log::UnroutedNumber,
    store::{Store, StoreError, WriteTx},
};

/// Pause after a failure to claim.
const CLAIM_RETRY: Duration = Duration::from_secs(5);
/// Pause after callbacks were claimed: an agent that cannot use the instance reports them again at once.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);

/// Callbacks that a change lets an instance claim, which whoever makes the change does after the commit. When that does
/// not happen, because claiming fails or the caller's deadline passes before, the task looks at all callbacks.
pub struct DueClaim {
    queue: WorkQueue,
    is_committed: AtomicBool,
    is_claimed: AtomicBool,
}

impl WorkQueue {
    /// Call before the commit of a change after which an instance may claim callbacks.
    pub fn claim_due(&self, tx: &mut WriteTx) -> Arc<DueClaim> {
        let due = DueClaim { queue: self.clone(), is_committed: false.into(), is_claimed: false.into() };
        let due = Arc::new(due);
        let told = Arc::clone(&due);
        // Held until the commit ends, so that the task does not look before.
        tx.after_commit(move || told.is_committed.store(true, Ordering::Release));
        due
    }
}

impl DueClaim {
    /// The callbacks are claimed.
    pub fn claimed(&self) {
        self.is_claimed.store(true, Ordering::Release);
    }
}

impl Drop for DueClaim {
    fn drop(&mut self) {
        if *self.is_committed.get_mut() && !*self.is_claimed.get_mut() {
            self.queue.inner.unclaimed.notify_one();
        }
    }
}

/// Starts it.
pub(super) fn spawn(state: &State, supervisor: &Supervisor) {
    let state = state.clone();
    supervisor.spawn("claim-unrouted", OnEnd::Shutdown, |stop| async move {
        let mut newest = state.logs.watch_unrouted();
        let mut looked_at = 0;
        loop {
            let head = *newest.borrow_and_update();
            let pause = match claim(&state, looked_at).await {
                Ok(moved) => {
                    looked_at = head;
                    if moved > 0 { CLAIM_PAUSE } else { Duration::ZERO }
                }
                Err(error) => {
                    warn!(%error, "failed to claim unrouted callbacks");
                    newest.mark_changed();
                    CLAIM_RETRY
                }
            };
            let again = async {
                tokio::time::sleep(pause).await;
                // The sender lives in the inbound log's writer, which ends at shutdown only.
                if newest.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = again => {}
                () = state.work.inner.unclaimed.notified() => looked_at = 0,
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

async fn claim(state: &State, after: i64) -> Result<usize, ClaimError> {
    let mut moved = 0;
    for number in state.logs.unrouted_numbers(after).await? {
        if number.number_key.is_empty() {
            moved += state.work.claim_accounts(&number.route_id).await?;
        } else if let Some(instance) = claimant(&state.store, &number).await? {
            moved += state.work.claim_unrouted(&instance).await?;
        }
    }
    Ok(moved)
}

/// The instance that claims a number.
async fn claimant(store: &Store, number: &UnroutedNumber) -> Result<Option<v1::Instance>, StoreError> {
    store.instance_of_number(&number.route_id, &number.number_key).await
}
