//! The statements of the queue: rows in, rows out, nothing of protobuf and sealing.

use sqlx::{FromRow, QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::WorkKind;

/// `regions` is empty for any region, otherwise the regions between spaces: ` eu us `; a delivery has one. The
/// sequence is never used twice. `tenant_id` is whose key seals `body`, empty for the platform's; `subject` is what
/// the work is about: a webhook subscription, an instance or an inbound route, as the kind has it. An agent is given
/// the work once it uses the configuration `version`. Table `work` is what programs before sealing wrote and know.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS work (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    regions TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS queued_work (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    regions TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    version INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS queued_work_small
    ON queued_work (kind, seq, regions, subject, version, bytes, id) WHERE kind <> 4;
CREATE INDEX IF NOT EXISTS queued_work_deliveries
    ON queued_work (regions, seq, tenant_id, subject, version, bytes, id) WHERE kind = 4;
CREATE TABLE IF NOT EXISTS hand_over_positions (
    agent_id TEXT NOT NULL,
    buffer_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (agent_id, buffer_id)
) STRICT, WITHOUT ROWID;
";

/// A piece of work to queue.
pub struct NewRow<'a> {
    /// Its id; work with an id that is in the queue is skipped.
    pub id: &'a str,
    /// What kind it is.
    pub kind: WorkKind,
    /// The regions whose agents may do it; empty for any.
    pub regions: &'a [String],
    /// Whose key seals the body.
    pub tenant_id: &'a str,
    /// What it is about.
    pub subject: &'a str,
    /// The configuration that an agent must use.
    pub version: i64,
    /// Microseconds since 1970.
    pub create_time: i64,
    /// The work, sealed.
    pub body: &'a [u8],
}

/// Queued work without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the queue.
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Size of the sealed body.
    pub bytes: i64,
    /// The configuration that an agent must use to be given it.
    pub version: i64,
}

/// How much work of a kind is in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// As it is stored; of deliveries one, of other work unset.
    pub regions: String,
    /// Whose it is; of work other than deliveries unset.
    pub tenant_id: String,
    /// How much.
    pub count: i64,
    /// When the first of it was queued, in microseconds since 1970.
    pub oldest: i64,
}

impl FromRow<'_, SqliteRow> for Waiting {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let (seq, id) = (row.try_get("seq")?, row.try_get("id")?);
        Ok(Self { seq, id, bytes: row.try_get("bytes")?, version: row.try_get("version")? })
    }
}

impl FromRow<'_, SqliteRow> for Count {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let (regions, tenant_id) = (row.try_get("regions")?, row.try_get("tenant_id")?);
        Ok(Self { regions, tenant_id, count: row.try_get("count")?, oldest: row.try_get("oldest")? })
    }
}

pub(super) fn regions_text(regions: &[String]) -> String {
    if regions.is_empty() { String::new() } else { format!(" {} ", regions.join(" ")) }
}

pub(super) async fn insert(connection: &mut SqliteConnection, row: &NewRow<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO queued_work (id, kind, regions, tenant_id, subject, version, bytes, create_time, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, length(?8), ?7, ?8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(row.id)
    .bind(row.kind.number())
    .bind(regions_text(row.regions))
    .bind(row.tenant_id)
    .bind(row.subject)
    .bind(row.version)
    .bind(row.create_time)
    .bind(row.body)
    .execute(connection)
    .await?;
    Ok(())
}

const SMALL: &str = "SELECT w.seq, w.id, w.bytes, w.version FROM queued_work w
     WHERE w.kind <> 4 AND w.kind = ";
const DELIVERIES: &str = "SELECT w.seq, w.id, w.bytes, w.version FROM queued_work w
     WHERE w.kind = 4 AND EXISTS (SELECT 1 FROM webhook_subscriptions s WHERE s.id = w.subject)
       AND w.regions = ";
const OF_ROUTE: &str = " AND EXISTS (SELECT 1 FROM inbound_routes r
     WHERE r.id = w.subject AND r.tenant_id <> '' AND r.tenant_id = ";
const OF_INSTANCE: &str = " AND EXISTS (SELECT 1 FROM instances i
     JOIN inbound_routes r ON r.id = i.inbound_route_id AND r.tenant_id = i.tenant_id
     WHERE i.id = w.subject AND i.tenant_id = ";
const OF_SUBSCRIPTION: &str = " AND EXISTS (SELECT 1 FROM webhook_subscriptions s
     JOIN instances i ON i.id = s.instance_id
     JOIN inbound_routes r ON r.id = i.inbound_route_id AND r.tenant_id = i.tenant_id
     WHERE s.id = w.subject AND i.tenant_id = ";

/// Work of a kind for agents of `region` and, unless None, of a tenant, after the place `after`, in the order in
/// which it was queued. A delivery to a webhook subscription that is gone is for nobody.
pub(super) async fn waiting(
    connection: &mut SqliteConnection,
    kind: WorkKind,
    region: &str,
    tenant_id: Option<&str>,
    after: i64,
    limit: i64,
) -> Result<Vec<Waiting>, sqlx::Error> {
    let region = format!(" {region} ");
    let mut sql = if kind == WorkKind::DeliveryHandOver {
        let mut sql = QueryBuilder::<Sqlite>::new(DELIVERIES);
        sql.push_bind(region);
        sql
    } else {
        let mut sql = QueryBuilder::<Sqlite>::new(SMALL);
        sql.push_bind(kind.number()).push(" AND (w.regions = '' OR instr(w.regions, ");
        sql.push_bind(region).push(") > 0)");
        sql
    };
    if let Some(tenant_id) = tenant_id {
        sql.push(match kind {
            WorkKind::TestEvent | WorkKind::DeliveryHandOver => OF_SUBSCRIPTION,
            WorkKind::OptOut => OF_INSTANCE,
            WorkKind::UnroutedCallback => OF_ROUTE,
        });
        sql.push_bind(tenant_id.to_owned()).push(")");
    }
    sql.push(" AND w.seq > ").push_bind(after);
    sql.push(" ORDER BY w.seq LIMIT ").push_bind(limit);
    sql.build_query_as().fetch_all(connection).await
}

/// Deliveries to webhook subscriptions that are gone, after the place `after`.
pub(super) async fn orphans(
    connection: &mut SqliteConnection,
    after: i64,
    limit: i64,
) -> Result<Vec<Waiting>, sqlx::Error> {
    sqlx::query_as(
        "SELECT seq, id, bytes, version FROM queued_work w
         WHERE kind = 4 AND NOT EXISTS (SELECT 1 FROM webhook_subscriptions s WHERE s.id = w.subject)
           AND seq > ?1
         ORDER BY seq LIMIT ?2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Place, tenant, id and sealed body of work that is still there, in the order of the places.
pub(super) async fn bodies(
    connection: &mut SqliteConnection,
    seqs: &[i64],
) -> Result<Vec<(i64, String, String, Vec<u8>)>, sqlx::Error> {
    let mut sql =
        QueryBuilder::<Sqlite>::new("SELECT seq, tenant_id, id, body FROM queued_work WHERE seq IN (");
    let mut separated = sql.separated(", ");
    for seq in seqs {
        separated.push_bind(*seq);
    }
    sql.push(") ORDER BY seq");
    sql.build_query_as().fetch_all(connection).await
}

/// How much work of a kind there is: deliveries by region and tenant, all other work in one sum.
pub(super) async fn counts(
    connection: &mut SqliteConnection,
    kind: WorkKind,
) -> Result<Vec<Count>, sqlx::Error> {
    let grouped = if kind == WorkKind::DeliveryHandOver {
        "SELECT c.regions, c.tenant_id, c.count, w.create_time AS oldest
         FROM (SELECT regions, tenant_id, count(*) AS count, min(seq) AS first FROM queued_work
               WHERE kind = 4 GROUP BY regions, tenant_id) c
         JOIN queued_work w ON w.seq = c.first"
    } else {
        "SELECT '' AS regions, '' AS tenant_id, c.count, w.create_time AS oldest
         FROM (SELECT count(*) AS count, min(seq) AS first FROM queued_work WHERE kind <> 4 AND kind = ?1) c
         JOIN queued_work w ON w.seq = c.first"
    };
    let query = sqlx::query_as(grouped);
    if kind == WorkKind::DeliveryHandOver {
        query.fetch_all(connection).await
    } else {
        query.bind(kind.number()).fetch_all(connection).await
    }
}

/// Whose what work is about is, of those that are there.
pub(super) async fn owner(
    connection: &mut SqliteConnection,
    kind: WorkKind,
    subject: &str,
) -> Result<Option<String>, sqlx::Error> {
    let owner = match kind {
        WorkKind::TestEvent | WorkKind::DeliveryHandOver => {
            "SELECT tenant_id FROM webhook_subscriptions WHERE id = ?1"
        }
        WorkKind::OptOut => "SELECT tenant_id FROM instances WHERE id = ?1",
        WorkKind::UnroutedCallback => "SELECT tenant_id FROM inbound_routes WHERE id = ?1",
    };
    sqlx::query_scalar(owner).bind(subject).fetch_optional(connection).await
}

pub(super) async fn delete(connection: &mut SqliteConnection, id: &str) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM queued_work WHERE id = ?1").bind(id).execute(connection).await?;
    Ok(())
}

/// Up to which sequence of an agent's buffer deliveries were taken over; 0 when none was.
pub(super) async fn position(
    connection: &mut SqliteConnection,
    agent_id: &str,
    buffer_id: &str,
) -> Result<i64, sqlx::Error> {
    let found: Option<i64> =
        sqlx::query_scalar("SELECT sequence FROM hand_over_positions WHERE agent_id = ?1 AND buffer_id = ?2")
            .bind(agent_id)
            .bind(buffer_id)
            .fetch_optional(connection)
            .await?;
    Ok(found.unwrap_or(0))
}

pub(super) async fn set_position(
    connection: &mut SqliteConnection,
    agent_id: &str,
    buffer_id: &str,
    sequence: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO hand_over_positions (agent_id, buffer_id, sequence) VALUES (?1, ?2, ?3)
         ON CONFLICT (agent_id, buffer_id) DO UPDATE SET sequence = excluded.sequence",
    )
    .bind(agent_id)
    .bind(buffer_id)
    .bind(sequence)
    .execute(connection)
    .await?;
    Ok(())
}

/// Sequence, id, regions, creation and readable body of what an earlier program queued, after the place `after`.
pub(super) async fn readable(
    connection: &mut SqliteConnection,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, String, String, i64, Vec<u8>)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT seq, id, regions, create_time, body FROM work WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await
}

pub(super) async fn delete_readable(connection: &mut SqliteConnection, seq: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM work WHERE seq = ?1").bind(seq).execute(connection).await?;
    Ok(())
}
