//! Every long-lived task: its name, what its end means, and waiting for all of them.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// What follows when a task ends before it was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The process shuts down: it cannot do its work without this task.
    Shutdown,
    /// A line in the log is enough.
    Log,
}

/// Spawns long-lived tasks and waits for them. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    stop: CancellationToken,
    tasks: Arc<Mutex<JoinSet<()>>>,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

/// Tasks did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("stop all tasks within {0:?}: some still run")]
pub struct StillRunning(pub Duration);

impl Supervisor {
    /// A supervisor whose tasks end when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tasks: Arc::default(), failure: Arc::default() }
    }

    /// The token that ends all tasks.
    pub const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Spawns a task. It gets a token of its own that is cancelled at shutdown, and must then end.
    pub fn spawn<F, Fut>(&self, name: &'static str, on_end: OnEnd, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let running = task(self.stop.child_token());
        let watcher = self.clone();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // A task inside a task, so that a panic of the inner one is seen as its end.
        tasks.spawn(async move {
            let mut inner = JoinSet::new();
            inner.spawn(running);
            let outcome = match inner.join_next().await {
                Some(Ok(outcome)) => outcome,
                Some(Err(panic)) => Err(anyhow::Error::new(panic)),
                None => Ok(()),
            };
            watcher.ended(name, on_end, outcome);
        });
    }

    fn ended(&self, name: &'static str, on_end: OnEnd, outcome: anyhow::Result<()>) {
        let stopping = self.stop.is_cancelled();
        match &outcome {
            Err(failure) => {
                error!(task = name, error = format!("{failure:#}"), "failed to keep a task running")
            }
            Ok(()) if !stopping => warn!(task = name, "a task ended early"),
            Ok(()) => {}
        }
        if on_end == OnEnd::Shutdown && (!stopping || outcome.is_err()) {
            let failure = match outcome {
                Err(failure) => failure.context(format!("run task `{name}`")),
                Ok(()) => anyhow::anyhow!("task `{name}` ended early"),
            };
            let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(failure);
            self.stop.cancel();
        }
    }

    /// Waits until `stop` is cancelled and all tasks have ended.
    ///
    /// # Errors
    /// The first failure of a task whose end means shutdown, or [`StillRunning`] after `grace`.
    pub async fn wait(&self, grace: Duration) -> anyhow::Result<()> {
        self.stop.cancelled().await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(grace, all_ended).await;
        if let Some(failure) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
        in_time.map_err(|_| StillRunning(grace))?;
        Ok(())
    }
}

/// Resolves at the first SIGINT or SIGTERM.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn termination() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    /// The failure of a needed task, a panic included, stops the others and comes out of `wait`.
    #[tokio::test]
    async fn failure_of_a_needed_task_stops_all() {
        for panics in [false, true] {
            let supervisor = Supervisor::new(CancellationToken::new());
            supervisor.spawn("patient", OnEnd::Shutdown, |stop| async move {
                stop.cancelled().await;
                Ok(())
            });
            supervisor.spawn("broken", OnEnd::Shutdown, move |_| async move {
                assert!(!panics, "a bug");
                Err(anyhow::anyhow!("a fault"))
            });
            let failure = supervisor.wait(GRACE).await.unwrap_err();
            assert!(format!("{failure:#}").contains("broken"), "{failure:#}");
        }
    }

    /// A task that does not end is reported instead of waited for without limit.
    #[tokio::test(start_paused = true)]
    async fn a_stuck_task_is_reported() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("stuck", OnEnd::Log, |_| std::future::pending());
        supervisor.stop().cancel();
        assert!(supervisor.wait(GRACE).await.unwrap_err().is::<StillRunning>());
    }
}
