//! Which unrouted callbacks were reported before.
//!
//! A copied or restored data directory of an agent reports its callbacks again under another buffer, and two
//! agents can take the same one; the id of a callback, which the agents make from its content, says so. An index
//! on these random ids would cost more than everything else about a callback, and there are few: so the ids of a
//! route are read when its first callback comes, and kept in memory.

use std::collections::HashSet;

use futures_util::TryStreamExt as _;
use gateway_core::{id::EventId, snapshot::canonical_number};
use gateway_proto::v1;
use prost::Message as _;
use sqlx::SqliteConnection;

use crate::inbound_log::event_key::{EventKey, EventKeyMap};

/// Ids kept in memory, in about 4 MiB, before they are forgotten and read anew, each route's with its next
/// callback. A group of callbacks of very many routes may so list a repeat twice, which does no harm.
const KEYS_MAX: usize = 100_000;

/// The callbacks of some routes that are listed, or were since the process began. What was taken out of the list is
/// in hand, so its repeat is one all the same.
#[derive(Debug, Default)]
pub(super) struct UnroutedKeys {
    routes: HashSet<String>,
    keys: EventKeyMap<()>,
}

/// What names a callback; one without id is named by what is in it and when it came.
fn key(callback: &v1::UnroutedCallback) -> EventKey {
    let route_id = callback.inbound_route_id.as_str();
    if !callback.id.is_empty() {
        return *EventId::derive(&[route_id, &callback.id]).as_bytes();
    }
    let number = canonical_number(&callback.provider_number_id);
    let time = callback.receive_time.map_or_else(String::new, |time| time.to_string());
    let parts = [route_id, &number, &callback.provider_account_id, &time, &callback.payload_json];
    *EventId::derive(&parts).as_bytes()
}

impl UnroutedKeys {
    /// Takes out of `callbacks` what was reported before, and gives the keys of the rest, which are to be noted
    /// once they are committed.
    pub(super) async fn keep_new(
        &mut self,
        connection: &mut SqliteConnection,
        callbacks: &mut Vec<v1::UnroutedCallback>,
    ) -> Result<Vec<EventKey>, sqlx::Error> {
        if self.keys.len() > KEYS_MAX {
            *self = Self::default();
        }
        for callback in callbacks.iter() {
            self.load(connection, &callback.inbound_route_id).await?;
        }
        let mut new = EventKeyMap::default();
        callbacks.retain(|callback| {
            let key = key(callback);
            !self.keys.contains_key(&key) && new.insert(key, ()).is_none()
        });
        Ok(new.into_keys().collect())
    }

    /// Notes what is committed.
    pub(super) fn insert(&mut self, keys: Vec<EventKey>) {
        self.keys.extend(keys.into_iter().map(|key| (key, ())));
    }

    async fn load(&mut self, connection: &mut SqliteConnection, route_id: &str) -> Result<(), sqlx::Error> {
        if self.routes.contains(route_id) {
            return Ok(());
        }
        if self.keys.len() > KEYS_MAX {
            *self = Self::default();
        }
        let mut listed = Vec::new();
        let mut rows =
            sqlx::query_scalar::<_, Vec<u8>>("SELECT body FROM unrouted_callbacks WHERE route_id = ?")
                .bind(route_id)
                .fetch(connection);
        while let Some(body) = rows.try_next().await? {
            // One that cannot be read is nobody's repeat.
            listed.extend(v1::UnroutedCallback::decode(body.as_slice()).ok().as_ref().map(key));
        }
        self.insert(listed);
        self.routes.insert(route_id.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;

    fn callback(number: usize) -> v1::UnroutedCallback {
        v1::UnroutedCallback {
            id: format!("unrouted_{number}"),
            inbound_route_id: "route_1".to_owned(),
            ..Default::default()
        }
    }

    /// Memory is bounded, also when all callbacks are of one route; a repeat of what is listed is one all the same.
    #[tokio::test]
    async fn keys_in_memory_are_bounded() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let table = "CREATE TABLE unrouted_callbacks (route_id TEXT NOT NULL, body BLOB NOT NULL)";
        sqlx::raw_sql(table).execute(&mut connection).await.unwrap();
        let listed = callback(KEYS_MAX + 1);
        sqlx::query("INSERT INTO unrouted_callbacks VALUES ('route_1', ?)")
            .bind(listed.encode_to_vec())
            .execute(&mut connection)
            .await
            .unwrap();
        let mut known = UnroutedKeys::default();
        for start in (0..=KEYS_MAX).step_by(1_000) {
            let mut callbacks: Vec<_> = (start..start + 1_000).map(callback).collect();
            let new = known.keep_new(&mut connection, &mut callbacks).await.unwrap();
            known.insert(new);
        }
        let mut callbacks = vec![listed, callback(KEYS_MAX + 1_000)];
        let new = known.keep_new(&mut connection, &mut callbacks).await.unwrap();
        assert_eq!(callbacks, [callback(KEYS_MAX + 1_000)]);
        known.insert(new);
        assert!(known.keys.len() <= KEYS_MAX, "{}", known.keys.len());
    }
}
