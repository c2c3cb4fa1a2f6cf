//! The rows of an instance, without an index that grows at one place per instance.
//!
//! Such an index costs a page for every instance in every group: at a thousand instances half as much again
//! as everything else. So the rows of the tail are listed in memory, and each sealed segment has one list per
//! instance, written once.

use std::collections::HashMap;

use prost::Message as _;
use sqlx::{SqliteConnection, SqliteExecutor};

use super::insert::RowInsert;

/// Rows of each instance, in the order of their sequence.
pub(super) type InstanceSeqs = HashMap<Box<str>, Vec<i64>>;

/// The rows of an instance in a segment.
#[derive(Clone, PartialEq, prost::Message)]
struct Packed {
    /// Of each row, how far it is from the one before; of the first, its sequence.
    #[prost(int64, repeated, tag = "1")]
    steps: Vec<i64>,
}

fn pack(seqs: &[i64]) -> Vec<u8> {
    let before = std::iter::once(0).chain(seqs.iter().copied());
    let steps = seqs.iter().zip(before).map(|(seq, before)| seq - before).collect();
    Packed { steps }.encode_to_vec()
}

fn unpack(packed: &[u8]) -> Result<Vec<i64>, sqlx::Error> {
    let packed = Packed::decode(packed).map_err(|source| sqlx::Error::Decode(Box::new(source)))?;
    let seqs = packed.steps.into_iter().scan(0_i64, |seq, step| {
        *seq = seq.wrapping_add(step);
        Some(*seq)
    });
    Ok(seqs.collect())
}

/// Notes a row. Rows come in the order of their sequence.
pub(super) fn note(instances: &mut InstanceSeqs, instance_id: &str, seq: i64) {
    match instances.get_mut(instance_id) {
        Some(seqs) => seqs.push(seq),
        None => {
            instances.insert(instance_id.into(), vec![seq]);
        }
    }
}

/// The statement that [`write`] runs.
pub(super) fn insert() -> RowInsert {
    RowInsert::new("INSERT INTO log_instances (segment, instance_id, seqs)", 3, "")
}

/// Writes the lists of a segment, in the order of the table.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    insert: &RowInsert,
    segment: i64,
    instances: &[(Box<str>, Vec<i64>)],
) -> Result<(), sqlx::Error> {
    insert
        .run(connection, instances.iter().collect(), |(instance_id, seqs), row| {
            row.bind(segment)?;
            row.bind(&**instance_id)?;
            row.bind(pack(seqs))
        })
        .await
}

/// The rows of an instance in a segment, in the order of their sequence.
pub(super) async fn sealed(
    executor: impl SqliteExecutor<'_>,
    segment: i64,
    instance_id: &str,
) -> Result<Vec<i64>, sqlx::Error> {
    let seqs: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT seqs FROM log_instances WHERE segment = ? AND instance_id = ?")
            .bind(segment)
            .bind(instance_id)
            .fetch_optional(executor)
            .await?;
    seqs.map_or(Ok(Vec::new()), |seqs| unpack(&seqs))
}

/// The newest row of an instance in any segment.
pub(super) async fn newest_sealed(
    executor: impl SqliteExecutor<'_>,
    instance_id: &str,
) -> Result<Option<i64>, sqlx::Error> {
    let seqs: Option<Vec<u8>> =
        sqlx::query_scalar(NEWEST_SEALED).bind(instance_id).fetch_optional(executor).await?;
    Ok(seqs.map(|seqs| unpack(&seqs)).transpose()?.and_then(|seqs| seqs.last().copied()))
}

/// What [`newest_sealed`] asks. CROSS JOIN fixes the order of the loops: one seek in each segment, from the
/// newest on.
pub(super) const NEWEST_SEALED: &str = "SELECT log_instances.seqs FROM log_segments CROSS JOIN log_instances \
    ON log_instances.segment = log_segments.segment AND log_instances.instance_id = ? \
    ORDER BY log_segments.segment DESC LIMIT 1";

#[cfg(test)]
mod tests {
    use super::*;

    /// What is packed comes back.
    #[test]
    fn sequences_survive_packing() {
        for seqs in [vec![], vec![7], vec![1, 2, 3, 70_000, i64::MAX]] {
            assert_eq!(unpack(&pack(&seqs)).unwrap(), seqs);
        }
        assert!(unpack(&[0xff]).is_err());
    }
}
