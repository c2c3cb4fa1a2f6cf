//! Table `queued_work`: the queue of what agents are asked to do; and sealing what older programs queued.

use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{FromRow, QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};
use tonic::async_trait;

use super::{Rows, StoreError, from_sql, schema, sealed, tenant_keys, to_sql};
use crate::{
    sealing::Sealer,
    store::work::{
        NewRow, Orphan, QueuedWork, SealedWork, Waiting, WorkCount, WorkKind, WorkReads, WorkWrites, about,
        sealed_resource, version_for,
    },
};

/// Readable rows that are sealed at a time.
const SEALED_AT_A_TIME: i64 = 100;

/// `regions` is empty for any region, otherwise the regions between spaces: ` eu us `; a delivery has one. The
/// sequence is never used twice. `tenant_id` is whose key seals `body`, empty for the platform's; `subject` is what
/// the work is about: a webhook subscription, an instance or an inbound route, as the kind has it. An agent is given
/// the work once it uses the configuration `version`. Table `work` is what programs before sealing wrote and know.
pub(super) const SCHEMA: &str = "
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
    set_time INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent_id, buffer_id)
) STRICT, WITHOUT ROWID;
";

const SMALL: &str = "SELECT w.seq, w.id, w.bytes, w.version FROM queued_work w
     WHERE w.kind <> 4 AND w.kind = ";
const DELIVERIES: &str = "SELECT w.seq, w.id, w.bytes, w.version FROM queued_work w
     WHERE w.kind = 4 AND EXISTS (SELECT 1 FROM webhook_subscriptions s
                                  WHERE s.id = w.subject AND s.tenant_id = w.tenant_id)
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

impl FromRow<'_, SqliteRow> for Waiting {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let (seq, id) = (row.try_get("seq")?, row.try_get("id")?);
        Ok(Self { seq, id, bytes: row.try_get("bytes")?, version: from_sql(row.try_get("version")?) })
    }
}

#[async_trait]
impl WorkReads for Rows {
    async fn waiting_work(
        &mut self,
        kind: WorkKind,
        region: &str,
        tenant_id: Option<&str>,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Waiting>, StoreError> {
        Ok(waiting(self.connection(), kind, region, tenant_id, after, limit).await?)
    }

    async fn orphaned_work(&mut self, after: i64, limit: i64) -> Result<Vec<Orphan>, StoreError> {
        let orphans = sqlx::query_as(
            "SELECT seq, id, tenant_id, subject FROM queued_work w
             WHERE kind = 4 AND NOT EXISTS (SELECT 1 FROM webhook_subscriptions s
                                            WHERE s.id = w.subject AND s.tenant_id = w.tenant_id)
               AND seq > ?1
             ORDER BY seq LIMIT ?2",
        );
        let rows: Vec<(i64, String, String, String)> =
            orphans.bind(after).bind(limit).fetch_all(self.connection()).await?;
        let orphan = |(seq, id, tenant_id, subscription_id)| Orphan { seq, id, tenant_id, subscription_id };
        Ok(rows.into_iter().map(orphan).collect())
    }

    async fn work_at(&mut self, seqs: &[i64]) -> Result<Vec<SealedWork>, StoreError> {
        let mut sql =
            QueryBuilder::<Sqlite>::new("SELECT seq, tenant_id, id, body FROM queued_work WHERE seq IN (");
        let mut separated = sql.separated(", ");
        for seq in seqs {
            separated.push_bind(*seq);
        }
        sql.push(") ORDER BY seq");
        let rows: Vec<(i64, String, String, Vec<u8>)> =
            sql.build_query_as().fetch_all(self.connection()).await?;
        let work = |(seq, tenant_id, id, body)| SealedWork { seq, tenant_id, id, body };
        Ok(rows.into_iter().map(work).collect())
    }

    async fn all_work(&mut self, after: i64, limit: i64) -> Result<Vec<QueuedWork>, StoreError> {
        let rows: Vec<(i64, String, String, Vec<u8>, i64, String)> = sqlx::query_as(
            "SELECT seq, tenant_id, id, body, kind, subject FROM queued_work WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(self.connection())
        .await?;
        let work = |(seq, tenant_id, id, body, number, subject)| {
            let kind = WorkKind::ALL.into_iter().find(|kind| kind.number() == number);
            QueuedWork { sealed: SealedWork { seq, tenant_id, id, body }, kind, subject }
        };
        Ok(rows.into_iter().map(work).collect())
    }

    async fn work_counts(&mut self, kind: WorkKind) -> Result<Vec<WorkCount>, StoreError> {
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
        let is_delivery = kind == WorkKind::DeliveryHandOver;
        let query = sqlx::query_as(grouped);
        let query = if is_delivery { query } else { query.bind(kind.number()) };
        let rows: Vec<(String, String, i64, i64)> = query.fetch_all(self.connection()).await?;
        let count = |(regions, tenant_id, count, oldest): (String, String, i64, i64)| WorkCount {
            kind,
            region: is_delivery.then(|| regions.trim().to_owned()),
            tenant_id,
            count,
            oldest: Timestamp::from_microsecond(oldest).unwrap_or_default(),
        };
        Ok(rows.into_iter().map(count).collect())
    }

    async fn work_owner(&mut self, kind: WorkKind, subject: &str) -> Result<Option<String>, StoreError> {
        Ok(owner(self.connection(), kind, subject).await?)
    }

    async fn hand_over_position(&mut self, agent_id: &str, buffer_id: &str) -> Result<u64, StoreError> {
        let position = sqlx::query_scalar(
            "SELECT sequence FROM hand_over_positions WHERE agent_id = ?1 AND buffer_id = ?2",
        );
        let found: Option<i64> =
            position.bind(agent_id).bind(buffer_id).fetch_optional(self.connection()).await?;
        Ok(from_sql(found.unwrap_or(0)))
    }
}

#[async_trait]
impl WorkWrites for Rows {
    async fn insert_work(&mut self, row: NewRow<'_>) -> Result<(), StoreError> {
        Ok(insert(self.connection(), &row).await?)
    }

    async fn delete_work(&mut self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM queued_work WHERE id = ?1").bind(id).execute(self.connection()).await?;
        Ok(())
    }

    async fn set_hand_over_position(
        &mut self,
        agent_id: &str,
        buffer_id: &str,
        sequence: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO hand_over_positions (agent_id, buffer_id, sequence, set_time) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (agent_id, buffer_id)
             DO UPDATE SET sequence = excluded.sequence, set_time = excluded.set_time",
        )
        .bind(agent_id)
        .bind(buffer_id)
        .bind(to_sql(sequence))
        .bind(now.as_microsecond())
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn forget_hand_over_positions(
        &mut self,
        agent_id: &str,
        keep: u32,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        // 0 is of a program that did not note the time.
        sqlx::query(
            "DELETE FROM hand_over_positions WHERE (set_time > 0 AND set_time < ?3)
             OR (agent_id = ?1 AND buffer_id NOT IN
                 (SELECT buffer_id FROM hand_over_positions WHERE agent_id = ?1
                  ORDER BY set_time DESC, buffer_id DESC LIMIT ?2))",
        )
        .bind(agent_id)
        .bind(keep)
        .bind(before.as_microsecond())
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn move_deliveries(
        &mut self,
        instance_id: &str,
        regions: &[String],
        to: &str,
        version: u64,
    ) -> Result<(), StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new("UPDATE queued_work SET regions = ");
        sql.push_bind(format!(" {to} ")).push(", version = ").push_bind(to_sql(version));
        sql.push(" WHERE kind = 4 AND subject IN (SELECT id FROM webhook_subscriptions WHERE instance_id = ");
        sql.push_bind(instance_id).push(") AND regions NOT IN (");
        let mut separated = sql.separated(", ");
        for region in regions {
            separated.push_bind(format!(" {region} "));
        }
        sql.push(")");
        sql.build().execute(self.connection()).await?;
        Ok(())
    }
}

fn regions_text(regions: &[String]) -> String {
    if regions.is_empty() { String::new() } else { format!(" {} ", regions.join(" ")) }
}

async fn insert(connection: &mut SqliteConnection, row: &NewRow<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO queued_work (id, kind, regions, tenant_id, subject, version, bytes, create_time, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, length(?8), ?7, ?8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(row.id)
    .bind(row.kind.number())
    .bind(regions_text(row.regions))
    .bind(row.tenant_id)
    .bind(row.subject)
    .bind(to_sql(row.version))
    .bind(row.create_time.as_microsecond())
    .bind(row.body)
    .execute(connection)
    .await?;
    Ok(())
}

/// Work of a kind for agents of `region` and, unless None, of a tenant, after the place `after`, in the order in
/// which it was queued. A delivery to a webhook subscription that is gone is for nobody.
async fn waiting(
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

/// Whose what work is about is, of those that are there.
async fn owner(
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

/// Seals what a program before sealing queued, inside the caller's transaction. What cannot be read stays where it
/// is, for the program that wrote it.
pub(super) async fn seal_readable(
    connection: &mut SqliteConnection,
    sealer: &Sealer,
) -> Result<(), StoreError> {
    let newest = schema::version(connection).await?;
    let (mut after, mut any) = (0, false);
    loop {
        let page = readable(connection, after, SEALED_AT_A_TIME).await?;
        let Some(last) = page.last() else { break };
        after = last.0;
        for (seq, id, regions, create_time, body) in page {
            let Some(task) = v1::Work::decode(body.as_slice()).ok().and_then(|work| work.work) else {
                continue;
            };
            let (kind, subject) = about(&task);
            let tenant_id = owner(connection, kind, subject).await?.unwrap_or_default();
            let (body, unstored) = sealer.seal(&tenant_id, &sealed_resource(&id), &body);
            if let Some(key) = unstored {
                tenant_keys::insert(connection, &key).await?;
            }
            let regions: Vec<String> = regions.split_whitespace().map(str::to_owned).collect();
            let row = NewRow {
                id: &id,
                kind,
                regions: &regions,
                tenant_id: &tenant_id,
                subject,
                version: version_for(kind, newest),
                create_time: Timestamp::from_microsecond(create_time).unwrap_or_default(),
                body: &body,
            };
            insert(connection, &row).await?;
            delete_readable(connection, seq).await?;
            any = true;
        }
    }
    if any { sealed::note_wipe(connection).await } else { Ok(()) }
}

/// Sequence, id, regions, creation and readable body of what an earlier program queued, after the place `after`.
async fn readable(
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

async fn delete_readable(connection: &mut SqliteConnection, seq: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM work WHERE seq = ?1").bind(seq).execute(connection).await?;
    Ok(())
}
