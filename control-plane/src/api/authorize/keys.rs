//! Open calls of API keys. A key is looked up in the store for every call, so that no new one gets through
//! once it is revoked; what was open then is ended from here, and when keys were used is noted from here, off
//! the path of the calls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gateway_core::time;
use gateway_proto::v1;
use gateway_runtime::{
    clock,
    supervise::{OnEnd, Supervisor},
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::warn;

use super::{
    Caller,
    streams::{OpenStream, Streams},
};
use crate::store::{Store, StoreError, api_keys};

/// How often the keys of open calls are looked at, beside at once when one is revoked here. Revocation works
/// within 5 seconds, also when another process made it.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is noted at most that a key was used.
const USE_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// Keys looked at by one query.
const KEYS_CHUNK: usize = 500;

/// The keys that have open calls or were used lately. Cheap to clone.
#[derive(Clone, Default)]
pub struct KeyRing {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    uses: Mutex<HashMap<String, Use>>,
    streams: Streams,
    look: Notify,
}

struct Use {
    open: usize,
    ended: CancellationToken,
    last: Timestamp,
    recorded: Option<Timestamp>,
}

impl Use {
    /// Whether the newest use is to be noted: the first one is, and then one a minute.
    fn is_due(&self, now: Timestamp) -> bool {
        match self.recorded {
            None => true,
            Some(recorded) => self.last > recorded && now.duration_since(recorded) >= USE_INTERVAL,
        }
    }

    /// Whether nothing would be lost by forgetting it.
    fn is_idle(&self, now: Timestamp) -> bool {
        let is_recorded = self
            .recorded
            .is_some_and(|recorded| self.last <= recorded && now.duration_since(recorded) >= USE_INTERVAL);
        self.open == 0 && is_recorded
    }
}

impl KeyRing {
    /// A call by a key begins.
    pub fn enter(&self, key: &v1::ApiKey) -> OpenCall {
        let now = clock::now();
        let mut uses = self.lock();
        let entry = uses.entry(key.id.clone()).or_insert_with(|| Use {
            open: 0,
            ended: CancellationToken::new(),
            last: now,
            recorded: key.last_use_time.as_ref().and_then(time::from_proto),
        });
        entry.open += 1;
        entry.last = entry.last.max(now);
        OpenCall { ring: self.clone(), id: key.id.clone(), ended: entry.ended.clone() }
    }

    /// A caller opens a stream that goes on until one of the two ends it.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the key, or the keys of its tenant, hold too many.
    pub fn open_stream(&self, caller: &Caller) -> Result<OpenStream, Status> {
        self.inner.streams.open(caller)
    }

    /// Looks at the keys of open calls now: one was revoked or deleted.
    pub fn look(&self) {
        self.inner.look.notify_one();
    }

    /// Starts the task that ends calls and notes uses.
    pub fn spawn(&self, store: Store, supervisor: &Supervisor) {
        let ring = self.clone();
        supervisor.spawn("api-keys", OnEnd::Shutdown, |stop| async move {
            loop {
                if let Err(error) = ring.sweep(&store).await {
                    warn!(%error, "failed to look at the API keys in use");
                }
                tokio::select! {
                    () = ring.inner.look.notified() => {}
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    () = stop.cancelled() => return Ok(()),
                }
            }
        });
    }

    async fn sweep(&self, store: &Store) -> Result<(), StoreError> {
        let open: Vec<String> =
            self.lock().iter().filter(|(_, one)| one.open > 0).map(|(id, _)| id.clone()).collect();
        for ids in open.chunks(KEYS_CHUNK) {
            let keys = api_keys::find_all(store, ids).await?;
            self.keep_working(ids, &keys, clock::now());
        }
        self.record_uses(store, clock::now()).await
    }

    /// Ends the open calls of those of `ids` that do not work any more.
    fn keep_working(&self, ids: &[String], keys: &[v1::ApiKey], now: Timestamp) {
        let mut uses = self.lock();
        for id in ids {
            if keys.iter().any(|key| key.id == *id && refusal(key, now).is_none()) {
                if let Some(one) = uses.get_mut(id) {
                    one.last = now;
                }
            } else if let Some(one) = uses.remove(id) {
                one.ended.cancel();
            }
        }
    }

    async fn record_uses(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let due: Vec<(String, Timestamp)> = self
            .lock()
            .iter()
            .filter(|(_, one)| one.is_due(now))
            .map(|(id, one)| (id.clone(), one.last))
            .collect();
        if !due.is_empty() {
            api_keys::record_uses(store, &due).await?;
        }
        let mut uses = self.lock();
        for (id, time) in due {
            if let Some(one) = uses.get_mut(&id) {
                one.recorded = Some(time);
            }
        }
        uses.retain(|_, one| !one.is_idle(now));
        drop(uses);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        self.inner.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a key opens nothing that cannot be read.
pub const DAMAGED: &str =
    "what is stored of the API key cannot be read; have it revoked, and another one made";

/// Why a key opens nothing, None when it works.
pub fn refusal(key: &v1::ApiKey, now: Timestamp) -> Option<&'static str> {
    if key.is_damaged {
        return Some(DAMAGED);
    }
    if key.revoke_time.is_some() {
        return Some("the API key was revoked");
    }
    let expire_time = key.expire_time.as_ref()?;
    // A time that cannot be read is no reason to let somebody in.
    let has_time = time::from_proto(expire_time).is_some_and(|expire_time| now < expire_time);
    (!has_time).then_some("the API key has expired")
}

/// A call by an API key, from its beginning to the end of its answer.
pub struct OpenCall {
    ring: KeyRing,
    id: String,
    ended: CancellationToken,
}

impl OpenCall {
    /// Cancelled when the key does not work any more.
    pub const fn ended(&self) -> &CancellationToken {
        &self.ended
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if let Some(one) = self.ring.lock().get_mut(&self.id).filter(|_| !self.ended.is_cancelled()) {
            one.open = one.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> v1::ApiKey {
        v1::ApiKey { id: id.into(), ..Default::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// Calls of a key that is gone, revoked or expired end; those of others go on.
    #[test]
    fn calls_of_dead_keys_end() {
        let ring = KeyRing::default();
        let ids = ["gone", "revoked", "expired", "good"].map(str::to_owned);
        let calls = ids.clone().map(|id| ring.enter(&key(&id)));
        let past = Some(time::to_proto(at(5)));
        let keys = [
            v1::ApiKey { revoke_time: past, ..key("revoked") },
            v1::ApiKey { expire_time: past, ..key("expired") },
            v1::ApiKey { expire_time: Some(time::to_proto(at(6))), ..key("good") },
        ];
        ring.keep_working(&ids, &keys, at(5));
        assert_eq!(calls.each_ref().map(|call| call.ended().is_cancelled()), [true, true, true, false]);
        let again = ring.enter(&key("gone"));
        drop(calls);
        assert_eq!(ring.lock()["gone"].open, 1, "the end of an old call is not the end of a new one");
        assert_eq!(ring.lock()["good"].open, 0);
        assert!(!again.ended().is_cancelled());
    }

    /// The first use is noted, then one a minute; a key without open calls is forgotten after that.
    #[test]
    fn uses_are_noted_once_a_minute() {
        let used = |open, last, recorded: Option<i64>| Use {
            open,
            ended: CancellationToken::new(),
            last: at(last),
            recorded: recorded.map(at),
        };
        assert!(used(0, 100, None).is_due(at(100)) && !used(0, 100, None).is_idle(at(1_000)));
        assert!(!used(1, 130, Some(100)).is_due(at(159)) && used(1, 130, Some(100)).is_due(at(160)));
        assert!(!used(1, 100, Some(100)).is_due(at(1_000)), "it was not used since");
        assert!(used(0, 100, Some(100)).is_idle(at(160)) && !used(0, 100, Some(100)).is_idle(at(159)));
        assert!(!used(1, 100, Some(100)).is_idle(at(160)) && !used(0, 130, Some(100)).is_idle(at(160)));
    }
}
