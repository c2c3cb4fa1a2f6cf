//! Events by their id, as 16 bytes.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use gateway_core::id::EventId;

/// The 16 bytes that an event id stands for.
pub(super) type EventKey = [u8; 16];

/// The key of an event id. Ids of another form than ours get the hash of their text.
pub(super) fn event_key(event_id: &str) -> EventKey {
    let id = event_id.parse().unwrap_or_else(|_| EventId::derive(&[event_id]));
    *id.as_bytes()
}

/// Finds something by key.
pub(super) type EventKeyMap<T> = HashMap<EventKey, T, BuildHasherDefault<KeyHasher>>;

/// Keys are hashes already: the first half of one will do.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The length of a key, which tells nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
