//! Rows of the smaller tables.

use gateway_core::snapshot::canonical_number;
use gateway_proto::v1;
use prost::Message as _;
use sqlx::SqliteConnection;

use crate::inbound_log::{
    sqlite::{insert::RowInsert, unrouted::trim},
    stage::{AgentRepeats, StagedLog},
};

/// What further agents add to the count of repeats of a log.
pub(super) async fn stored_repeats(
    connection: &mut SqliteConnection,
    log_seq: i64,
) -> Result<Vec<AgentRepeats>, sqlx::Error> {
    let rows: Vec<(String, u32)> =
        sqlx::query_as("SELECT agent_id, count FROM log_duplicates WHERE log_seq = ?")
            .bind(log_seq)
            .fetch_all(connection)
            .await?;
    Ok(rows
        .into_iter()
        .map(|(agent_id, count)| AgentRepeats { agent_id, count, is_changed: false })
        .collect())
}

/// Writes what further agents add to the counts of repeats, as far as it changed.
pub(super) async fn write_repeats(
    connection: &mut SqliteConnection,
    insert: &RowInsert,
    logs: &[StagedLog],
) -> Result<(), sqlx::Error> {
    let changed: Vec<_> = logs
        .iter()
        .flat_map(|staged| staged.repeats.iter().map(|repeats| (staged.seq, repeats)))
        .filter(|(_, repeats)| repeats.is_changed)
        .collect();
    insert
        .run(connection, changed, |(log_seq, repeats), row| {
            row.bind(log_seq)?;
            row.bind(repeats.agent_id.as_str())?;
            row.bind(i64::from(repeats.count))
        })
        .await
}

/// Appends unrouted callbacks, and trims their routes. Returns the sequence of the newest.
pub(super) async fn write_unrouted(
    connection: &mut SqliteConnection,
    callbacks: &[v1::UnroutedCallback],
) -> Result<Option<i64>, sqlx::Error> {
    let mut newest = None;
    let mut routes = std::collections::HashSet::new();
    for callback in callbacks {
        let inserted =
            sqlx::query("INSERT INTO unrouted_callbacks (route_id, number_key, body) VALUES (?, ?, ?)")
                .bind(&callback.inbound_route_id)
                .bind(canonical_number(&callback.provider_number_id))
                .bind(callback.encode_to_vec())
                .execute(&mut *connection)
                .await?;
        newest = Some(inserted.last_insert_rowid());
        routes.insert(callback.inbound_route_id.as_str());
    }
    for route_id in routes {
        trim(connection, route_id).await?;
    }
    Ok(newest)
}
