//! The order in which logs were recorded and deliveries changed state: what cursors point into.
//!
//! Every event is at least one change, mostly two, so that a row for each would cost as much as the log
//! itself. The changes of a group are therefore packed into a few rows, two or three bytes each.

use std::collections::HashMap;

use sqlx::{SqliteConnection, SqliteExecutor};

use super::insert::RowInsert;
use crate::inbound_log::stage::Change;

/// Changes of one row.
const CHANGES_PER_ROW: usize = 1_024;

/// A row: changes with consecutive sequences, the last of which is the row's key.
#[derive(Clone, PartialEq, prost::Message)]
struct Packed {
    /// Of each change, how far its log is from the one before.
    #[prost(sint64, repeated, tag = "1")]
    log_seq_steps: Vec<i64>,
    /// Of each change, the place of its subscription in `subscription_ids`, counted from 1; 0 when the log
    /// was recorded.
    #[prost(uint32, repeated, tag = "2")]
    places: Vec<u32>,
    #[prost(string, repeated, tag = "3")]
    subscription_ids: Vec<String>,
}

impl Packed {
    fn new(changes: &[Change]) -> Self {
        let mut packed = Self::default();
        let mut places = HashMap::new();
        let mut before = 0;
        for change in changes {
            packed.log_seq_steps.push(change.log_seq - before);
            before = change.log_seq;
            let place = change.subscription_id.as_deref().map_or(0, |id| {
                let next = places.len() + 1;
                *places.entry(id).or_insert_with(|| {
                    packed.subscription_ids.push(id.to_owned());
                    u32::try_from(next).unwrap_or(u32::MAX)
                })
            });
            packed.places.push(place);
        }
        packed
    }

    fn unpack(self, last: i64) -> impl Iterator<Item = Change> {
        let first = last.saturating_add(1).saturating_sub_unsigned(self.log_seq_steps.len() as u64);
        let seqs = self.log_seq_steps.into_iter().scan(0_i64, |seq, step| {
            *seq = seq.wrapping_add(step);
            Some(*seq)
        });
        (first..).zip(seqs.zip(self.places)).map(move |(change_seq, (log_seq, place))| {
            let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
            let subscription_id = place.and_then(|place| self.subscription_ids.get(place).cloned());
            Change { change_seq, log_seq, subscription_id }
        })
    }
}

/// The statement that [`write`] runs.
pub(super) fn insert() -> RowInsert {
    RowInsert::new("INSERT INTO log_changes (change_seq_last, changes)", 2, "")
}

/// Writes the changes of a group, which come in the order of their sequence, without gaps.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    insert: &RowInsert,
    changes: &[Change],
) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = changes.chunks(CHANGES_PER_ROW).collect();
    insert
        .run(connection, rows, |changes, row| {
            row.bind(changes.last().map_or(0, |change| change.change_seq))?;
            row.bind(prost::Message::encode_to_vec(&Packed::new(changes)))
        })
        .await
}

/// The next changes after `change_seq`, as far as one row has them. Empty when there are none.
pub(super) async fn after(
    executor: impl SqliteExecutor<'_>,
    change_seq: i64,
) -> Result<Vec<Change>, sqlx::Error> {
    let row: Option<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT change_seq_last, changes FROM log_changes WHERE change_seq_last > ? ORDER BY change_seq_last LIMIT 1",
    )
    .bind(change_seq)
    .fetch_optional(executor)
    .await?;
    let Some((last, packed)) = row else { return Ok(Vec::new()) };
    let packed: Packed =
        prost::Message::decode(packed.as_slice()).map_err(|source| sqlx::Error::Decode(Box::new(source)))?;
    Ok(packed.unpack(last).filter(|change| change.change_seq > change_seq).collect())
}

/// The first change after `change_seq` that recorded a log after `log_seq`.
pub(super) async fn first_recorded(
    connection: &mut SqliteConnection,
    mut change_seq: i64,
    log_seq: i64,
) -> Result<Option<i64>, sqlx::Error> {
    loop {
        let changes = after(&mut *connection, change_seq).await?;
        let Some(last) = changes.last() else { return Ok(None) };
        change_seq = last.change_seq;
        let is_wanted = |change: &&Change| change.log_seq > log_seq && change.subscription_id.is_none();
        if let Some(first) = changes.iter().find(is_wanted) {
            return Ok(Some(first.change_seq));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is packed comes back: jumps between logs in both directions, several subscriptions.
    #[test]
    fn changes_survive_packing() {
        let changes: Vec<_> =
            [(7, None), (7, Some("sub_1")), (8, None), (3, Some("sub_2")), (9, Some("sub_1"))]
                .into_iter()
                .zip(41..)
                .map(|((log_seq, subscription_id), change_seq)| Change {
                    change_seq,
                    log_seq,
                    subscription_id: subscription_id.map(str::to_owned),
                })
                .collect();
        let unpacked: Vec<_> = Packed::new(&changes).unpack(45).collect();
        assert_eq!(unpacked, changes);
    }
}
