//! Table `work`: what agents are asked to do, until one of them has it on its own disk.

use gateway_proto::v1;
use prost::Message as _;
use sqlx::{Sqlite, SqliteConnection};

use super::{Store, StoreError};

/// `regions` is empty for any region, otherwise the regions between spaces: ` eu us `. The sequence is
/// never used twice, so it may stand in the work's id.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS work (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    regions TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    body BLOB NOT NULL
);
";

/// Queued work and its place.
#[derive(Debug, Clone)]
pub struct QueuedWork {
    /// Its place in the queue.
    pub seq: i64,
    /// The work, with its id.
    pub work: v1::Work,
}

/// Queues work for an agent of one of `regions` (empty: of any), inside the caller's transaction. Its id
/// must be set.
///
/// # Errors
/// When the database cannot be written.
pub async fn insert(
    connection: &mut SqliteConnection,
    regions: &[String],
    work: &v1::Work,
    create_time: jiff::Timestamp,
) -> Result<(), sqlx::Error> {
    let regions = if regions.is_empty() { String::new() } else { format!(" {} ", regions.join(" ")) };
    sqlx::query("INSERT INTO work (id, regions, create_time, body) VALUES (?, ?, ?, ?)")
        .bind(&work.id)
        .bind(regions)
        .bind(create_time.as_microsecond())
        .bind(work.encode_to_vec())
        .execute(connection)
        .await?;
    Ok(())
}

/// At most `limit` pieces of work for agents of `region` after the place `after`, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    store: &Store,
    region: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<QueuedWork>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as::<Sqlite, _>(
        "SELECT seq, body FROM work WHERE seq > ? AND (regions = '' OR instr(regions, ?) > 0) ORDER BY seq LIMIT ?",
    )
    .bind(after)
    .bind(format!(" {region} "))
    .bind(limit)
    .fetch_all(store.pool())
    .await?;
    rows.into_iter()
        .map(|(seq, body)| Ok(QueuedWork { seq, work: v1::Work::decode(body.as_slice())? }))
        .collect()
}

/// Removes work that is durable on an agent. Work that is gone already is skipped.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(connection: &mut SqliteConnection, ids: &[String]) -> Result<(), sqlx::Error> {
    for id in ids {
        sqlx::query("DELETE FROM work WHERE id = ?").bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}
