//! The configuration in use, as the pipeline sees it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use gateway_core::snapshot::Snapshot;
use gateway_runtime::backoff::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{REVOKED, drain::Drain};

/// The configuration in use. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotHandle {
    current: Arc<ArcSwap<Snapshot>>,
    ready: Arc<AtomicBool>,
    fresh: watch::Sender<bool>,
    version: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    drain: Arc<Drain>,
    has_twin: Arc<AtomicBool>,
    /// Counts the client certificates that this process got.
    certificates: watch::Sender<u64>,
}

/// Waits between two calls to the control plane, until another certificate makes the next one worth trying.
pub struct Retry(watch::Receiver<u64>);

impl Retry {
    /// A call is about to be made: with the certificate of now, or with a newer one.
    pub fn begin(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits for `backoff`, but no longer than until there is another client certificate than when the call began: what was
    /// refused for the old one is tried again at once. False when `stop` came first. Cancel safe.
    pub async fn wait(&mut self, backoff: &mut Backoff, stop: &CancellationToken) -> bool {
        let goes_on = tokio::select! {
            goes_on = backoff.wait(stop) => Some(goes_on),
            // Without a sender there is no other certificate.
            Ok(()) = self.0.changed() => None,
        };
        goes_on.unwrap_or_else(|| {
            // The first call may still meet the end of the old connection.
            backoff.reset();
            true
        })
    }
}

impl SnapshotHandle {
    /// Nothing configured, and not ready.
    pub fn empty() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            ready: Arc::new(AtomicBool::new(false)),
            fresh: watch::Sender::new(false),
            version: watch::Sender::new(0),
            connected: watch::Sender::new(false),
            drain: Arc::default(),
            has_twin: Arc::default(),
            certificates: watch::Sender::new(0),
        }
    }

    /// Ready, with this configuration.
    pub fn fixed(snapshot: Snapshot) -> Self {
        let handle = Self::empty();
        handle.replace(snapshot);
        handle
    }

    /// The configuration in use.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Whether some configuration, even an empty one, came from disk or wire.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Waits until the control plane has answered this process with a configuration: until then the one in
    /// use may be as old as the disk. Once so, it stays so.
    pub async fn fresh(&self) {
        let mut fresh = self.fresh.subscribe();
        // The sender is in `self`, so the wait does not fail.
        drop(fresh.wait_for(|is_fresh| *is_fresh).await);
    }

    /// Says that the configuration in use came from the control plane.
    pub(super) fn mark_fresh(&self) {
        self.fresh.send_replace(true);
    }

    /// Whether this agent takes callbacks.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Waits until the control plane has let this agent in: its config stream is open and was answered. Cancel
    /// safe.
    pub async fn connected(&self) {
        let mut connected = self.connected.subscribe();
        // The sender is in `self`, so the wait does not fail.
        drop(connected.wait_for(|is_connected| *is_connected).await);
    }

    /// Says whether the control plane has let this agent in; gives what was so before.
    pub(super) fn set_connected(&self, is_connected: bool) -> bool {
        if is_connected && self.has_twin.swap(false, Ordering::AcqRel) {
            info!(
                "the control plane has let this process in again: no other one with its identity is connected"
            );
        }
        self.connected.send_replace(is_connected)
    }

    /// The control plane has revoked this agent: callbacks are refused from here on.
    pub fn revoke(&self) {
        match self.drain.revoke() {
            Ok(true) => error!("{REVOKED}"),
            Ok(false) => {}
            Err(error) => error!(%error, "failed to write down that the agent was revoked. {REVOKED}"),
        }
    }

    /// The control plane lets this process not in, because another one with its identity is connected. So until it does.
    pub fn note_twin(&self) {
        // A stream that was refused before the others were let in says nothing any more.
        if !*self.connected.borrow() && !self.has_twin.swap(true, Ordering::AcqRel) {
            warn!(
                "the control plane refuses this process while another one with its identity is connected: its data \
                 directory was copied; empty one of the two and enroll it anew. Serving from the last good configuration"
            );
        }
    }

    /// Whether another process with the agent's identity keeps this one out.
    pub fn has_twin(&self) -> bool {
        self.has_twin.load(Ordering::Acquire) && !*self.connected.borrow()
    }

    /// There is another client certificate, and connections to come show it.
    pub fn note_certificate(&self) {
        self.certificates.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// For whoever calls the control plane until it answers.
    pub fn retry(&self) -> Retry {
        Retry(self.certificates.subscribe())
    }

    /// Wakes whenever another configuration is in use.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Uses this configuration from now on.
    pub fn replace(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.current.store(Arc::new(snapshot));
        self.ready.store(true, Ordering::Release);
        // Woken also when only secrets or opt-outs changed under the same version.
        self.version.send_modify(|current| *current = version);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A configuration from disk is not fresh, whatever else changes; what the control plane delivers makes it so.
    #[tokio::test(start_paused = true)]
    async fn fresh_once_the_control_plane_delivers() {
        let handle = SnapshotHandle::fixed(Snapshot::default());
        let patience = Duration::from_secs(5);
        assert!(tokio::time::timeout(patience, handle.fresh()).await.is_err());
        handle.mark_fresh();
        handle.replace(Snapshot::default());
        assert!(tokio::time::timeout(patience, handle.fresh()).await.is_ok());
    }

    /// What is tried again and again is tried at once when there is another certificate, also when that came during the
    /// call; one that was there before the call changes nothing.
    #[tokio::test(start_paused = true)]
    async fn another_certificate_is_tried_at_once() {
        let (handle, stop) = (SnapshotHandle::empty(), CancellationToken::new());
        let mut retry = handle.retry();
        let long = || Backoff::new(Duration::from_secs(3_600), Duration::from_secs(3_600));
        let started = tokio::time::Instant::now();
        let mut backoff = long();
        let (goes_on, ()) =
            tokio::join!(retry.wait(&mut backoff, &stop), async { handle.note_certificate() });
        assert!(goes_on && started.elapsed().is_zero());
        retry.begin();
        handle.note_certificate();
        assert!(retry.wait(&mut long(), &stop).await && started.elapsed().is_zero());
        handle.note_certificate();
        retry.begin();
        assert!(retry.wait(&mut long(), &stop).await && !started.elapsed().is_zero());
        stop.cancel();
        assert!(!retry.wait(&mut long(), &stop).await);
    }
}
