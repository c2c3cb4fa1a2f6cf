//! From a name to its addresses.

use std::{future::Future, io, net::IpAddr, net::ToSocketAddrs as _, pin::Pin, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lookups that run at once, all sites together. They run on the runtime's blocking threads, 512 of them,
/// and must leave some to everybody else. When all are taken, lookups wait.
const LOOKUPS_MAX: usize = 256;

/// A lookup that runs.
pub(crate) type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Looks names up.
pub(crate) trait Resolve: Send + Sync {
    /// All addresses of a name. `turn` is given back when the lookup really ended, also if nobody waits for
    /// it any more. Cancel safe.
    fn resolve(&self, name: &str, turn: OwnedSemaphorePermit) -> Resolving;
}

/// The resolver of the operating system.
pub(crate) struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl SystemResolver {
    pub(crate) fn new() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str, turn: OwnedSemaphorePermit) -> Resolving {
        let (name, lookups) = (name.to_owned(), Arc::clone(&self.lookups));
        Box::pin(async move {
            let thread = lookups.acquire_owned().await.map_err(io::Error::other)?;
            let looking_up = tokio::task::spawn_blocking(move || {
                let _taken = (turn, thread);
                let found = (name.as_str(), 0).to_socket_addrs()?;
                Ok(found.map(|address| address.ip()).collect())
            });
            looking_up.await.map_err(io::Error::other)?
        })
    }
}
