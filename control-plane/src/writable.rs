//! Whether the control plane can keep what it is told: `/readyz` says so while it cannot, and so does
//! `gateway_store_writable`.
//!
//! A small write to the configuration database, and a look at the free space. Both, since a database on a full disk
//! goes on writing into space that it had before, until a change needs more.

use std::{path::PathBuf, sync::PoisonError, time::Duration};

use gateway_runtime::{
    supervise::{OnEnd, Supervisor},
    system,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tracing::{error, info};

use crate::{api::status, app::State, store::Store};

/// How often it is tried while it works, and while it does not.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a write may take; others may write before it.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// With less free space than this the disk counts as full.
const FREE_BYTES_MIN: u64 = 8 << 20;

const FULL: &str = "the disk of the data directory is full";
const BUSY: &str = "the configuration database is held by another process, or its disk does not answer";
const FAILED: &str = "the configuration database cannot be written";

/// Why nothing can be written; None while it can.
pub type Trouble = Option<&'static str>;

/// Starts the task that looks, and gives what it saw last.
pub fn spawn(state: &State, supervisor: &Supervisor) -> watch::Receiver<Trouble> {
    let gauge: Gauge = Gauge::default();
    gauge.set(1);
    let mut registry = state.metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
    registry.register("store_writable", "1 while changes can be stored, otherwise 0", gauge.clone());
    drop(registry);
    let looker = Looker {
        store: state.store.clone(),
        data_dir: state.config.data_dir.clone(),
        free_bytes_min: FREE_BYTES_MIN,
        interval: LOOK_INTERVAL,
    };
    looker.spawn(gauge, supervisor)
}

struct Looker {
    store: Store,
    data_dir: PathBuf,
    free_bytes_min: u64,
    interval: Duration,
}

impl Looker {
    fn spawn(self, gauge: Gauge, supervisor: &Supervisor) -> watch::Receiver<Trouble> {
        let (seen, trouble) = watch::channel(None);
        supervisor.spawn("writable", OnEnd::Log, |stop| async move {
            loop {
                let was = *seen.borrow();
                let pause = if was.is_none() { self.interval } else { self.interval.min(LOOK_AGAIN) };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return Ok(()),
                }
                let now = self.look(was).await;
                if now.is_none() && was.is_some() {
                    info!("changes can be stored again; the control plane is ready");
                }
                gauge.set(i64::from(now.is_none()));
                seen.send_replace(now);
            }
        });
        trouble
    }

    /// Why nothing can be written now. A new reason is logged.
    async fn look(&self, was: Trouble) -> Trouble {
        let (reason, cause) = self.try_write().await.err()?;
        if was != Some(reason) {
            error!(reason, cause, "failed to store anything; the control plane is not ready");
        }
        Some(reason)
    }

    async fn try_write(&self) -> Result<(), (&'static str, String)> {
        // What cannot be asked is no reason; the write tells.
        if let Some(free) = system::free_bytes(&self.data_dir).ok().filter(|free| *free < self.free_bytes_min)
        {
            return Err((FULL, format!("{free} bytes are free, and {} are needed", self.free_bytes_min)));
        }
        let written = tokio::time::timeout(WRITE_TIME_MAX, self.store.try_write()).await;
        let Ok(written) = written else { return Err((BUSY, "a write takes too long".to_owned())) };
        written.map_err(|error| {
            let reason = match status::trouble_of(&error) {
                Some("STORE_FULL") => FULL,
                Some("STORE_BUSY") => BUSY,
                _ => FAILED,
            };
            (reason, format!("{:#}", anyhow::Error::from(error)))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Has the database refuse what [`Store::try_write`] writes, or take it again.
    async fn let_write(data_dir: &std::path::Path, is_allowed: bool) {
        let change = if is_allowed {
            "DROP TRIGGER planted"
        } else {
            "CREATE TRIGGER planted BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'planted'); END"
        };
        crate::store::sqlite::testing::execute(data_dir, change).await;
    }

    const DEADLINE: Duration = Duration::from_secs(60);

    /// Waits until this was seen.
    async fn sees(trouble: &mut watch::Receiver<Trouble>, wanted: Trouble) {
        let seen = tokio::time::timeout(DEADLINE, trouble.wait_for(|trouble| *trouble == wanted)).await;
        seen.expect("it is seen in time").unwrap();
    }

    /// A store that cannot be written is seen with a reason, and is well again by itself.
    #[tokio::test]
    async fn an_unwritable_store_is_seen_and_recovers() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let looker = Looker {
            store: store.clone(),
            data_dir: directory.path().to_owned(),
            free_bytes_min: 1,
            interval: Duration::from_millis(5),
        };
        let gauge: Gauge = Gauge::default();
        let mut trouble = looker.spawn(gauge.clone(), &supervisor);
        trouble.changed().await.unwrap();
        assert_eq!((*trouble.borrow(), gauge.get()), (None, 1));
        let_write(directory.path(), false).await;
        sees(&mut trouble, Some(FAILED)).await;
        assert_eq!(gauge.get(), 0);
        let_write(directory.path(), true).await;
        sees(&mut trouble, None).await;
        supervisor.stop().cancel();
    }

    /// Too little free space counts as full, before a write fails; another process that writes for too long is said to
    /// hold the database.
    #[tokio::test]
    async fn reasons_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        let looker = |free_bytes_min| Looker {
            store: store.clone(),
            data_dir: directory.path().to_owned(),
            free_bytes_min,
            interval: LOOK_INTERVAL,
        };
        assert_eq!(looker(0).look(None).await, None);
        assert_eq!(looker(u64::MAX).look(None).await, Some(FULL));
        let other = Store::open(directory.path()).await.unwrap();
        let held = other.begin_write().await.unwrap();
        assert_eq!(looker(0).look(None).await, Some(BUSY));
        drop(held);
        assert_eq!(looker(0).look(Some(BUSY)).await, None);
    }
}
