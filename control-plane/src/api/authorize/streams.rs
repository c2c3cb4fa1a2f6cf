//! How many streams operators hold open: each costs memory, and looks for what is new again and again. A program
//! that leaks them is refused before others feel it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use tonic::Status;

use super::Caller;
use crate::api::status;

/// Open streams of one key, the admin key included. One more is RESOURCE_EXHAUSTED.
const STREAMS_PER_KEY_MAX: usize = 64;
/// Open streams of all keys of one tenant. One more is RESOURCE_EXHAUSTED.
const STREAMS_PER_TENANT_MAX: usize = 256;
/// When a refused caller may try again: some other stream may have ended by then.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Open streams by who holds them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Streams {
    open: Arc<Mutex<HashMap<Holder, usize>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    Key(String),
    Tenant(String),
}

impl Holder {
    const fn limit(&self) -> usize {
        match self {
            Self::Key(_) => STREAMS_PER_KEY_MAX,
            Self::Tenant(_) => STREAMS_PER_TENANT_MAX,
        }
    }

    fn refusal(&self) -> Status {
        let (whose, limit) = match self {
            Self::Key(_) => ("this key has", STREAMS_PER_KEY_MAX),
            Self::Tenant(_) => ("the keys of this tenant have", STREAMS_PER_TENANT_MAX),
        };
        let message = format!("{whose} {limit} streams open, which is the most: end one first");
        status::exhausted_until("TOO_MANY_STREAMS", message, RETRY_DELAY)
    }
}

impl Streams {
    /// Counts one more stream of a caller, until what is returned is dropped.
    pub(super) fn open(&self, caller: &Caller) -> Result<OpenStream, Status> {
        let tenant_id = caller.tenants().only().map(|tenant_id| Holder::Tenant(tenant_id.to_owned()));
        let holders: Vec<_> =
            std::iter::once(Holder::Key(caller.actor.to_string())).chain(tenant_id).collect();
        let mut open = self.lock();
        let is_full = |holder: &&Holder| open.get(*holder).is_some_and(|count| *count >= holder.limit());
        if let Some(full) = holders.iter().find(is_full) {
            return Err(full.refusal());
        }
        for holder in &holders {
            *open.entry(holder.clone()).or_default() += 1;
        }
        drop(open);
        Ok(OpenStream { streams: self.clone(), holders })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Holder, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open stream of an operator.
pub struct OpenStream {
    streams: Streams,
    holders: Vec<Holder>,
}

impl OpenStream {
    /// The responses, which count as open until they are dropped.
    pub fn around<T>(self, responses: impl Stream<Item = T> + Send) -> impl Stream<Item = T> + Send {
        responses.map(move |response| {
            let _open = &self;
            response
        })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        for holder in &self.holders {
            let left = open.get(holder).map_or(0, |count| count.saturating_sub(1));
            if left == 0 {
                open.remove(holder);
            } else {
                open.insert(holder.clone(), left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use gateway_core::api_key::{Role, Scopes};
    use tonic::Code;

    use super::*;

    fn of(key: &str, tenant_id: &str) -> Caller {
        let tenant_id = Some(tenant_id.parse().unwrap());
        Caller::api_key(key.to_owned(), Role::Viewer, tenant_id, Scopes::default(), None, None)
    }

    /// A key, and a tenant, hold so many streams and no more; other keys and tenants go on. An ended stream makes
    /// room, also one that was never read.
    #[test]
    fn streams_are_bounded_per_key_and_tenant() {
        let streams = Streams::default();
        let one = of("key_1", "acme");
        let mut held: Vec<_> = (0..STREAMS_PER_KEY_MAX).map(|_| streams.open(&one).unwrap()).collect();
        let full = streams.open(&one).err().unwrap();
        assert_eq!(full.code(), Code::ResourceExhausted);
        let others = (STREAMS_PER_KEY_MAX..STREAMS_PER_TENANT_MAX).map(|number| {
            let key = format!("key_of_{}", number / STREAMS_PER_KEY_MAX);
            streams.open(&of(&key, "acme")).unwrap()
        });
        let others: Vec<_> = others.collect();
        assert!(streams.open(&of("key_9", "acme")).is_err());
        assert!(streams.open(&of("key_9", "other")).is_ok());
        drop(held.pop().unwrap().around(stream::empty::<()>()));
        assert!(streams.open(&of("key_9", "acme")).is_ok());
        assert!(streams.open(&one).is_ok());
        drop((held, others));
        assert!(streams.lock().is_empty(), "nothing is kept of whoever holds nothing");
    }
}
