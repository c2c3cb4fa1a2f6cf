//! Looks at every row of the configuration database now and then: a row that cannot be read is to be known, by an ERROR
//! and `gateway_store_damaged_rows`, before a new agent or a customer misses it. It does not make the control plane
//! unready: everything else works.

use std::{sync::PoisonError, time::Duration};

use gateway_runtime::supervise::{OnEnd, Supervisor};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::{
    app::State,
    store::{
        Store, StoreError,
        check::{self, Check, Checked},
    },
};

/// How often all rows are read.
const INTERVAL: Duration = Duration::from_hours(1);
/// How soon it is tried again after a failure.
const AGAIN: Duration = Duration::from_mins(1);
/// Reading takes no more than one part in so many of the time, so that nobody notices it.
const SHARE: u32 = 10;
/// Longest pause between two pages.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Starts the task: at once, and then every hour.
pub(crate) fn spawn(state: &State, supervisor: &Supervisor) {
    {
        let mut registry = state.metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
        state.store.damages().register(&mut registry);
    }
    let store = state.store.clone();
    supervisor.spawn("scrub", OnEnd::Log, |stop| async move {
        loop {
            let looked = tokio::select! {
                looked = look(&store) => looked,
                () = stop.cancelled() => return Ok(()),
            };
            let pause = match looked {
                Ok(_) => INTERVAL,
                Err(failure) => {
                    let error = format!("{:#}", anyhow::Error::from(failure));
                    warn!(error, "failed to look for damaged rows");
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

/// Reads every row, and removes queued work that nobody can do.
async fn look(store: &Store) -> Result<Checked, StoreError> {
    let mut check = Check::new(store);
    loop {
        let began = Instant::now();
        if check.advance().await?.is_none() {
            break;
        }
        tokio::time::sleep((began.elapsed() * (SHARE - 1)).min(PAUSE_MAX)).await;
    }
    let checked = check.finish();
    for id in check::remove_unread_work(store, &checked.work).await? {
        error!(
            gateway.work.id = id,
            "removed queued work that could not be opened, as what it was about is gone"
        );
    }
    Ok(checked)
}

#[cfg(test)]
mod tests;
