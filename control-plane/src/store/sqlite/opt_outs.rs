//! Tables `opt_outs` and `opt_out_log`.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tonic::async_trait;

use super::{Rows, StoreError, from_sql, to_sql};
use crate::store::{
    damaged::PlainRow,
    opt_outs::{ContactKey, OptOutFilter, OptOutReads, OptOutRow, OptOutWrites, StoredOptOut},
};

/// The tables. `phone_key` is the number's match key, and NULL when there is no phone; so with `user_id`.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS opt_outs (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    phone_key TEXT,
    user_id TEXT,
    state INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (instance_id, phone_key),
    UNIQUE (instance_id, user_id)
) STRICT;
CREATE INDEX IF NOT EXISTS opt_outs_phone ON opt_outs (phone_key, tenant_id) WHERE phone_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS opt_outs_user_id ON opt_outs (user_id, tenant_id) WHERE user_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS opt_out_log (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT,
    opt_out_id TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
";

/// Id, tenant, instance, state and body.
type Row = (String, String, String, i32, Vec<u8>);

/// Cursor and id, and what the opt-out's row has now.
type LogRow = (i64, String, Option<String>, Option<String>, Option<i32>, Option<Vec<u8>>);

fn stored((id, tenant_id, parent_id, state, body): Row) -> StoredOptOut {
    StoredOptOut { row: PlainRow { id, tenant_id, parent_id, version: 0, body }, state }
}

/// Where the log ends; 0 when it is empty.
pub(super) async fn newest_cursor(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let newest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(cursor) FROM opt_out_log").fetch_one(connection).await?;
    Ok(from_sql(newest.unwrap_or(0)))
}

#[async_trait]
impl OptOutReads for Rows {
    async fn opt_out(
        &mut self,
        tenant_id: Option<&str>,
        id: &str,
    ) -> Result<Option<StoredOptOut>, StoreError> {
        let row = sqlx::query_as(
            "SELECT id, tenant_id, instance_id, state, body FROM opt_outs
             WHERE id = ?1 AND (?2 IS NULL OR tenant_id = ?2)",
        );
        Ok(row.bind(id).bind(tenant_id).fetch_optional(self.connection()).await?.map(stored))
    }

    async fn opt_outs(
        &mut self,
        tenant_id: Option<&str>,
        filter: &OptOutFilter<'_>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<StoredOptOut>, StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT id, tenant_id, instance_id, state, body FROM opt_outs WHERE id > ",
        );
        sql.push_bind(after);
        if let Some(tenant_id) = tenant_id {
            sql.push(" AND tenant_id = ").push_bind(tenant_id);
        }
        if let Some(instance_id) = filter.instance_id {
            sql.push(" AND instance_id = ").push_bind(instance_id);
        }
        if let Some(phone_key) = filter.phone_key {
            sql.push(" AND phone_key = ").push_bind(phone_key);
        }
        if let Some(state) = filter.state {
            sql.push(" AND state = ").push_bind(state);
        }
        sql.push(" ORDER BY id LIMIT ").push_bind(limit);
        let rows = sql.build_query_as().fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(stored).collect())
    }

    async fn opt_outs_of_contact(
        &mut self,
        tenant_id: &str,
        instance_id: Option<&str>,
        key: ContactKey<'_>,
    ) -> Result<Vec<StoredOptOut>, StoreError> {
        let (condition, key) = match key {
            ContactKey::Phone(key) => (" AND phone_key = ", key),
            ContactKey::UserId(key) => (" AND user_id = ", key),
        };
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT id, tenant_id, instance_id, state, body FROM opt_outs WHERE tenant_id = ",
        );
        sql.push_bind(tenant_id).push(condition).push_bind(key);
        if let Some(instance_id) = instance_id {
            sql.push(" AND instance_id = ").push_bind(instance_id);
        }
        sql.push(" ORDER BY id");
        let rows = sql.build_query_as().fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(stored).collect())
    }

    async fn opt_out_log(
        &mut self,
        cursor: u64,
        limit: u32,
    ) -> Result<Vec<(u64, Option<StoredOptOut>)>, StoreError> {
        let rows: Vec<LogRow> = sqlx::query_as(
            "SELECT l.cursor, l.opt_out_id, o.tenant_id, o.instance_id, o.state, o.body
             FROM opt_out_log l LEFT JOIN opt_outs o ON o.id = l.opt_out_id
             WHERE l.cursor > ?1 ORDER BY l.cursor LIMIT ?2",
        )
        .bind(to_sql(cursor))
        .bind(limit)
        .fetch_all(self.connection())
        .await?;
        let entry = |(cursor, id, tenant_id, instance_id, state, body): LogRow| {
            let now = tenant_id.zip(instance_id).zip(state).zip(body);
            let now = now.map(|(((tenant_id, instance_id), state), body)| {
                stored((id, tenant_id, instance_id, state, body))
            });
            (from_sql(cursor), now)
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    async fn newest_opt_out_entry(&mut self, id: &str) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let entry = sqlx::query_as(
            "SELECT cursor, body FROM opt_out_log WHERE opt_out_id = ?1 ORDER BY cursor DESC LIMIT 1",
        );
        let found: Option<(i64, Vec<u8>)> = entry.bind(id).fetch_optional(self.connection()).await?;
        Ok(found.map(|(cursor, body)| (from_sql(cursor), body)))
    }
}

#[async_trait]
impl OptOutWrites for Rows {
    async fn delete_opt_out(&mut self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM opt_outs WHERE id = ?1").bind(id).execute(self.connection()).await?;
        Ok(())
    }

    async fn log_opt_out(&mut self, opt_out_id: &str, body: &[u8]) -> Result<u64, StoreError> {
        let log =
            sqlx::query_scalar("INSERT INTO opt_out_log (opt_out_id, body) VALUES (?1, ?2) RETURNING cursor");
        let cursor: i64 = log.bind(opt_out_id).bind(body).fetch_one(self.connection()).await?;
        Ok(from_sql(cursor))
    }

    async fn put_opt_out(&mut self, row: OptOutRow<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT OR REPLACE INTO opt_outs (id, tenant_id, instance_id, phone_key, user_id, state, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(row.id)
        .bind(row.tenant_id)
        .bind(row.instance_id)
        .bind(row.phone_key)
        .bind(row.user_id)
        .bind(row.state)
        .bind(row.body)
        .execute(self.connection())
        .await?;
        Ok(())
    }
}
