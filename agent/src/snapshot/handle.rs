//! The configuration in use, as the pipeline sees it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use gateway_core::snapshot::Snapshot;
use tokio::sync::watch;

use super::drain::Drain;

/// The configuration in use. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotHandle {
    current: Arc<ArcSwap<Snapshot>>,
    ready: Arc<AtomicBool>,
    fresh: watch::Sender<bool>,
    version: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    drain: Arc<Drain>,
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
        self.connected.send_replace(is_connected)
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
}
