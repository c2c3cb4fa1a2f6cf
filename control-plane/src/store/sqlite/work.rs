//! Table `work`: what agents are asked to do, until one of them has it on its own disk.

use gateway_proto::v1::{self, work::Work as Task};
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

/// Keeps of `rows` what agents of one tenant may do: what concerns an instance on an inbound route of that tenant.
/// What comes in on a platform route is not theirs, whosever the instance is.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_tenant(
    store: &Store,
    tenant_id: &str,
    rows: Vec<QueuedWork>,
) -> Result<Vec<QueuedWork>, StoreError> {
    let mut connection = store.reader().await?;
    let mut kept = Vec::new();
    for row in rows {
        let (query, id) = match &row.work.work {
            Some(Task::TestEvent(event)) => (OF_SUBSCRIPTION, &event.subscription_id),
            Some(Task::UnroutedCallback(callback)) => (OF_ROUTE, &callback.inbound_route_id),
            Some(Task::OptOut(opt_out)) => (OF_INSTANCE, &opt_out.instance_id),
            None => continue,
        };
        let is_own: bool =
            sqlx::query_scalar(query).bind(id).bind(tenant_id).fetch_one(&mut *connection).await?;
        if is_own {
            kept.push(row);
        }
    }
    Ok(kept)
}

const OF_ROUTE: &str =
    "SELECT EXISTS (SELECT 1 FROM inbound_routes WHERE id = ?1 AND tenant_id = ?2 AND ?2 <> '')";
const OF_INSTANCE: &str = "SELECT EXISTS (SELECT 1 FROM instances i
     JOIN inbound_routes r ON r.id = i.inbound_route_id
     WHERE i.id = ?1 AND i.tenant_id = ?2 AND r.tenant_id = ?2)";
const OF_SUBSCRIPTION: &str = "SELECT EXISTS (SELECT 1 FROM webhook_subscriptions s
     JOIN instances i ON i.id = s.instance_id
     JOIN inbound_routes r ON r.id = i.inbound_route_id
     WHERE s.id = ?1 AND i.tenant_id = ?2 AND r.tenant_id = ?2)";

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
