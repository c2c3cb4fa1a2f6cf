//! How far the buffers of agents are committed: by this a report that comes again is recognized.
//!
//! An agent has two buffers, and other ones after its disk was lost or copied. What is kept is bounded: of each agent the
//! buffers used last, and none that was not used for long. A repeat from a buffer that is forgotten is recognized by the
//! ids of what it reports, as the report of another agent is.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use jiff::Timestamp;
use sqlx::SqliteConnection;

/// Buffers of an agent that are kept.
const KEPT_PER_AGENT: usize = 16;
/// How long an unused buffer is remembered, in seconds: longer than any agent is away.
const FORGET_AFTER: i64 = 60 * 24 * 3_600;

/// An agent and a buffer of it.
pub(super) type Position = (String, String);

/// The committed sequence of each buffer.
#[derive(Debug, Default)]
pub(super) struct Positions {
    of: HashMap<Position, Committed>,
}

#[derive(Debug, Clone, Copy)]
struct Committed {
    sequence: u64,
    /// When that was, in seconds since 1970.
    last_use: i64,
}

/// What a transaction changes of them.
pub(super) struct Moved {
    to: HashMap<Position, u64>,
    forgotten: Vec<Position>,
    now: i64,
}

impl Positions {
    /// Reads the table, without what is too old.
    pub(super) async fn load(connection: &mut SqliteConnection, now: Timestamp) -> Result<Self, sqlx::Error> {
        let now = now.as_second();
        // 0 is of a program that did not note the time.
        sqlx::query("UPDATE report_positions SET last_use = ? WHERE last_use = 0")
            .bind(now)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM report_positions WHERE last_use < ?")
            .bind(now - FORGET_AFTER)
            .execute(&mut *connection)
            .await?;
        let rows: Vec<(String, String, i64, i64)> =
            sqlx::query_as("SELECT agent_id, buffer_id, sequence, last_use FROM report_positions")
                .fetch_all(connection)
                .await?;
        let of = rows.into_iter().map(|(agent_id, buffer_id, sequence, last_use)| {
            ((agent_id, buffer_id), Committed { sequence: sequence.cast_unsigned(), last_use })
        });
        Ok(Self { of: of.collect() })
    }

    /// Up to where a buffer is committed.
    pub(super) fn get(&self, position: &Position) -> Option<u64> {
        self.of.get(position).map(|committed| committed.sequence)
    }

    /// The change to these positions. With a new buffer the oldest ones of its agent go, and all that are too old.
    pub(super) fn moved(&self, to: HashMap<Position, u64>, now: Timestamp) -> Moved {
        let now = now.as_second();
        let agents: HashSet<&str> = to
            .keys()
            .filter(|position| !self.of.contains_key(position))
            .map(|(agent_id, _)| &**agent_id)
            .collect();
        let mut forgotten = Vec::new();
        if !agents.is_empty() {
            let mut kept: HashMap<&str, Vec<(i64, &Position)>> = HashMap::new();
            for (position, committed) in self.of.iter().filter(|(position, _)| !to.contains_key(position)) {
                if committed.last_use < now - FORGET_AFTER {
                    forgotten.push(position.clone());
                } else if agents.contains(&*position.0) {
                    kept.entry(&position.0).or_default().push((committed.last_use, position));
                }
            }
            for (agent_id, mut others) in kept {
                others.sort_unstable_by_key(|other| Reverse(*other));
                let moving = to.keys().filter(|position| position.0 == agent_id).count();
                let beyond = others.into_iter().skip(KEPT_PER_AGENT.saturating_sub(moving));
                forgotten.extend(beyond.map(|(_, position)| position.clone()));
            }
        }
        Moved { to, forgotten, now }
    }

    /// Takes over what was committed.
    pub(super) fn committed(&mut self, Moved { to, forgotten, now }: Moved) {
        for position in forgotten {
            self.of.remove(&position);
        }
        let moved = to.into_iter();
        self.of.extend(moved.map(|(position, sequence)| (position, Committed { sequence, last_use: now })));
    }
}

impl Moved {
    /// Writes it, in the transaction of the reports.
    pub(super) async fn write(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for (agent_id, buffer_id) in &self.forgotten {
            sqlx::query("DELETE FROM report_positions WHERE agent_id = ? AND buffer_id = ?")
                .bind(agent_id)
                .bind(buffer_id)
                .execute(&mut *connection)
                .await?;
        }
        for ((agent_id, buffer_id), sequence) in &self.to {
            sqlx::query(
                "INSERT OR REPLACE INTO report_positions (agent_id, buffer_id, sequence, last_use) VALUES (?, ?, ?, ?)",
            )
            .bind(agent_id)
            .bind(buffer_id)
            .bind(sequence.cast_signed())
            .bind(self.now)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbound_log::sqlite::{FILE_NAME, schema};

    fn position(agent_id: &str, number: usize) -> Position {
        (agent_id.to_owned(), format!("buf_{number:02}"))
    }

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * 24 * 3_600).unwrap()
    }

    /// Of each agent the buffers used last are kept, in memory and on disk, and none that was not used for 60 days; rows
    /// of a program that did not note the time count from now on.
    #[tokio::test]
    async fn positions_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut connection = schema::open_writer(&directory.path().join(FILE_NAME)).await.unwrap();
        sqlx::raw_sql(
            "INSERT INTO report_positions (agent_id, buffer_id, sequence) VALUES ('agt_0', 'buf_00', 7)",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        let mut positions = Positions::load(&mut connection, at(0)).await.unwrap();
        let mut moves = vec![("agt_2", 0, 1)];
        moves.extend((0..=KEPT_PER_AGENT).map(|number| ("agt_1", number, 1)));
        for (day, (agent_id, number, sequence)) in (0..).zip(moves) {
            let moved = positions.moved([(position(agent_id, number), sequence)].into(), at(day));
            moved.write(&mut connection).await.unwrap();
            positions.committed(moved);
        }
        let last = i64::try_from(KEPT_PER_AGENT).unwrap() + 1;
        let again = positions.moved([(position("agt_1", 1), 5)].into(), at(last));
        again.write(&mut connection).await.unwrap();
        positions.committed(again);
        let new = positions.moved([(position("agt_1", 99), 1)].into(), at(last));
        new.write(&mut connection).await.unwrap();
        positions.committed(new);
        let stored = Positions::load(&mut connection, at(last)).await.unwrap();
        for known in [&positions, &stored] {
            assert_eq!(known.of.keys().filter(|known| known.0 == "agt_1").count(), KEPT_PER_AGENT);
            assert_eq!([0, 2].map(|number| known.get(&position("agt_1", number))), [None, None]);
            assert_eq!(
                [1, 3, 99].map(|number| known.get(&position("agt_1", number))),
                [Some(5), Some(1), Some(1)]
            );
            assert_eq!(
                [0, 2].map(|agent| known.get(&position(&format!("agt_{agent}"), 0))),
                [Some(7), Some(1)]
            );
        }
        let later = positions.moved([(position("agt_3", 0), 1)].into(), at(61));
        later.write(&mut connection).await.unwrap();
        positions.committed(later);
        assert_eq!([0, 2].map(|agent| positions.get(&position(&format!("agt_{agent}"), 0))), [None, None]);
        let stored = Positions::load(&mut connection, at(200)).await.unwrap();
        assert!(stored.of.is_empty());
    }
}
