//! Tables `agents`, `join_tokens` and `agent_buffer_damages`.

use jiff::Timestamp;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};
use tonic::async_trait;

use super::{Rows, StoreError};
use crate::store::agents::{AgentReads, AgentRow, AgentWrites, JoinToken, NewAgent};

/// The tables.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS agents (
    id TEXT PRIMARY KEY,
    region TEXT NOT NULL,
    build TEXT NOT NULL,
    credential_hash BLOB NOT NULL UNIQUE,
    create_time INTEGER NOT NULL,
    last_seen_time INTEGER NOT NULL,
    tenant_id TEXT,
    certificate_expire_time INTEGER,
    revoke_time INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS join_tokens (
    token_hash BLOB PRIMARY KEY,
    region TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    tenant_id TEXT,
    created_by TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS agent_buffer_damages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS agent_buffer_damages_agent ON agent_buffer_damages (agent_id, seq);
";

/// Columns that the first databases did not have.
const ADDED_COLUMNS: [(&str, &str, &str); 6] = [
    ("agents", "tenant_id", "TEXT"),
    ("agents", "certificate_expire_time", "INTEGER"),
    ("agents", "revoke_time", "INTEGER"),
    ("join_tokens", "tenant_id", "TEXT"),
    ("join_tokens", "created_by", "TEXT NOT NULL DEFAULT ''"),
    ("hand_over_positions", "set_time", "INTEGER NOT NULL DEFAULT 0"),
];

/// Adds the columns that an older database does not have.
pub(super) async fn add_columns(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for (table, column, kind) in ADDED_COLUMNS {
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM pragma_table_info(?) WHERE name = ?")
            .bind(table)
            .bind(column)
            .fetch_one(&mut *connection)
            .await?;
        if found == 0 {
            let sql = format!("ALTER TABLE {table} ADD COLUMN {column} {kind}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

fn agent(row: &SqliteRow) -> Result<AgentRow, sqlx::Error> {
    // A time that is none was damaged. It is long past: a certificate has expired, and whoever was revoked stays so.
    let parse = |micros| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
    let time = |column| row.try_get(column).map(parse);
    let optional_time = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(parse));
    Ok(AgentRow {
        id: row.try_get("id")?,
        region: row.try_get("region")?,
        build: row.try_get("build")?,
        create_time: time("create_time")?,
        last_seen_time: time("last_seen_time")?,
        tenant_id: row.try_get("tenant_id")?,
        certificate_expire_time: optional_time("certificate_expire_time")?,
        revoke_time: optional_time("revoke_time")?,
    })
}

#[async_trait]
impl AgentReads for Rows {
    async fn agent(&mut self, id: &str) -> Result<Option<AgentRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM agents WHERE id = ?1").bind(id);
        Ok(row.fetch_optional(self.connection()).await?.as_ref().map(agent).transpose()?)
    }

    async fn agent_of_credential(
        &mut self,
        credential_hash: &[u8; 32],
    ) -> Result<Option<AgentRow>, StoreError> {
        let row =
            sqlx::query("SELECT * FROM agents WHERE credential_hash = ?1").bind(credential_hash.as_slice());
        Ok(row.fetch_optional(self.connection()).await?.as_ref().map(agent).transpose()?)
    }

    async fn agents(
        &mut self,
        region: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<AgentRow>, StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM agents WHERE id > ");
        sql.push_bind(after);
        if let Some(region) = region {
            sql.push(" AND region = ").push_bind(region);
        }
        sql.push(" ORDER BY id LIMIT ").push_bind(limit);
        let rows = sql.build().fetch_all(self.connection()).await?;
        Ok(rows.iter().map(agent).collect::<Result<_, _>>()?)
    }

    async fn is_working_agent(&mut self, id: &str) -> Result<bool, StoreError> {
        let known = "SELECT EXISTS (SELECT 1 FROM agents WHERE id = ?1 AND revoke_time IS NULL)";
        Ok(sqlx::query_scalar(known).bind(id).fetch_one(self.connection()).await?)
    }

    async fn working_agents_of_tenant(
        &mut self,
        tenant_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        let of = "SELECT id FROM agents WHERE tenant_id = ?1 AND revoke_time IS NULL ORDER BY id LIMIT ?2";
        Ok(sqlx::query_scalar(of).bind(tenant_id).bind(limit).fetch_all(self.connection()).await?)
    }

    async fn is_join_token(&mut self, token_hash: &[u8; 32], now: Timestamp) -> Result<bool, StoreError> {
        let known = "SELECT EXISTS (SELECT 1 FROM join_tokens WHERE token_hash = ?1 AND expire_time > ?2)";
        let known = sqlx::query_scalar(known).bind(token_hash.as_slice()).bind(now.as_microsecond());
        Ok(known.fetch_one(self.connection()).await?)
    }

    async fn buffer_damages(
        &mut self,
        first: &str,
        last: &str,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT agent_id, body FROM agent_buffer_damages WHERE agent_id BETWEEN ?1 AND ?2
             ORDER BY agent_id, seq DESC",
        );
        Ok(rows.bind(first).bind(last).fetch_all(self.connection()).await?)
    }
}

#[async_trait]
impl AgentWrites for Rows {
    async fn insert_agent(&mut self, agent: &NewAgent, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO agents (id, region, build, credential_hash, create_time, last_seen_time, tenant_id,
             certificate_expire_time) VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)",
        )
        .bind(&agent.id)
        .bind(&agent.region)
        .bind(&agent.build)
        .bind(agent.credential_hash.as_slice())
        .bind(now.as_microsecond())
        .bind(&agent.tenant_id)
        .bind(agent.certificate_expire_time.map(Timestamp::as_microsecond))
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn connect_agent(&mut self, id: &str, build: &str, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE agents SET build = ?2, last_seen_time = ?3 WHERE id = ?1")
            .bind(id)
            .bind(build)
            .bind(now.as_microsecond())
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn certify_agent(&mut self, id: &str, expire_time: Timestamp) -> Result<bool, StoreError> {
        let update = "UPDATE agents SET certificate_expire_time = ?2 WHERE id = ?1 AND revoke_time IS NULL";
        let update = sqlx::query(update).bind(id).bind(expire_time.as_microsecond());
        Ok(update.execute(self.connection()).await?.rows_affected() > 0)
    }

    async fn revoke_agent(&mut self, id: &str, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE agents SET revoke_time = ?2 WHERE id = ?1 AND revoke_time IS NULL")
            .bind(id)
            .bind(now.as_microsecond())
            .execute(self.connection())
            .await?;
        Ok(())
    }

    async fn insert_join_token(
        &mut self,
        token_hash: &[u8; 32],
        token: &JoinToken,
        now: Timestamp,
        expire_time: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO join_tokens (token_hash, region, create_time, expire_time, tenant_id, created_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(token_hash.as_slice())
        .bind(&token.region)
        .bind(now.as_microsecond())
        .bind(expire_time.as_microsecond())
        .bind(&token.tenant_id)
        .bind(&token.created_by)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn take_join_token(
        &mut self,
        token_hash: &[u8; 32],
        now: Timestamp,
    ) -> Result<Option<JoinToken>, StoreError> {
        let row: Option<(String, Option<String>, String)> = sqlx::query_as(
            "DELETE FROM join_tokens WHERE token_hash = ?1 AND expire_time > ?2
             RETURNING region, tenant_id, created_by",
        )
        .bind(token_hash.as_slice())
        .bind(now.as_microsecond())
        .fetch_optional(self.connection())
        .await?;
        Ok(row.map(|(region, tenant_id, created_by)| JoinToken { region, tenant_id, created_by }))
    }

    async fn delete_expired_join_tokens(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM join_tokens WHERE expire_time < ?1").bind(now.as_microsecond());
        delete.execute(self.connection()).await?;
        Ok(())
    }

    async fn delete_join_tokens_of_creator(
        &mut self,
        created_by: &str,
    ) -> Result<Vec<([u8; 32], JoinToken)>, StoreError> {
        let delete = "DELETE FROM join_tokens WHERE created_by = ?1 RETURNING token_hash, region, tenant_id";
        let rows = sqlx::query(delete).bind(created_by).fetch_all(self.connection()).await?;
        let token = |row: &SqliteRow| {
            let created_by = created_by.to_owned();
            let token = JoinToken {
                region: row.try_get("region")?,
                tenant_id: row.try_get("tenant_id")?,
                created_by,
            };
            let hash: Vec<u8> = row.try_get("token_hash")?;
            let hash =
                hash.try_into().map_err(|_| sqlx::Error::Decode("a token's hash has 32 bytes".into()))?;
            Ok::<_, sqlx::Error>((hash, token))
        };
        Ok(rows.iter().map(token).collect::<Result<_, _>>()?)
    }

    async fn delete_join_tokens_of_tenant(&mut self, tenant_id: &str) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM join_tokens WHERE tenant_id = ?1").bind(tenant_id);
        delete.execute(self.connection()).await?;
        Ok(())
    }

    async fn insert_buffer_damage(&mut self, agent_id: &str, body: &[u8]) -> Result<bool, StoreError> {
        let insert = sqlx::query(
            "INSERT INTO agent_buffer_damages (agent_id, body) SELECT ?1, ?2
             WHERE NOT EXISTS (SELECT 1 FROM agent_buffer_damages WHERE agent_id = ?1 AND body = ?2)",
        );
        let inserted = insert.bind(agent_id).bind(body).execute(self.connection()).await?;
        Ok(inserted.rows_affected() > 0)
    }

    async fn delete_older_buffer_damages(&mut self, agent_id: &str, keep: u32) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM agent_buffer_damages WHERE agent_id = ?1 AND seq NOT IN
             (SELECT seq FROM agent_buffer_damages WHERE agent_id = ?1 ORDER BY seq DESC LIMIT ?2)",
        )
        .bind(agent_id)
        .bind(keep)
        .execute(self.connection())
        .await?;
        Ok(())
    }
}
