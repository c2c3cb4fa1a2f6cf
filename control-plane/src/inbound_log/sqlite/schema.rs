//! Tables of `logs.db`, and how it is opened.

use std::{path::Path, sync::Arc, time::Duration};

use rand::RngExt as _;
use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::inbound_log::LogStoreError;

/// Queries that may run at the same time; more wait for a connection.
const READERS_MAX: u32 = 4;
/// How long a connection waits for a lock: only a backup tool can hold one against the single writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The version of the tables that this program writes. Version 1 did not say so.
pub(crate) const SCHEMA_VERSION: i64 = 2;

/// `logs` has the attempts that came with the log; later ones are in `attempts`. `log_changes` and
/// `log_event_ids` have many entries in each row. `log_duplicates` has rows only of agents that were not the first to take an event.
///
/// `logs` has no secondary index. `log_segments` says which times each sealed segment holds, and `log_instances`
/// and `log_event_ids` which rows of it are whose.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS logs (
    seq INTEGER PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    event TEXT NOT NULL,
    from_phone TEXT NOT NULL,
    external_message_id TEXT NOT NULL,
    receive_time INTEGER NOT NULL,
    event_key BLOB NOT NULL,
    attempt_count INTEGER NOT NULL,
    record BLOB NOT NULL,
    first_attempts BLOB
);
CREATE TABLE IF NOT EXISTS attempts (
    log_seq INTEGER NOT NULL,
    attempt_seq INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (log_seq, attempt_seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log_duplicates (
    log_seq INTEGER NOT NULL,
    agent_id TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (log_seq, agent_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log_changes (
    change_seq_last INTEGER PRIMARY KEY,
    changes BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS log_segments (
    segment INTEGER PRIMARY KEY,
    seq_first INTEGER NOT NULL,
    seq_last INTEGER NOT NULL,
    receive_time_min INTEGER NOT NULL,
    receive_time_max INTEGER NOT NULL,
    change_seq_first INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS log_event_ids (
    segment INTEGER NOT NULL,
    key_first BLOB NOT NULL,
    ids BLOB NOT NULL,
    PRIMARY KEY (segment, key_first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log_instances (
    segment INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    seqs BLOB NOT NULL,
    PRIMARY KEY (segment, instance_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS report_positions (
    agent_id TEXT NOT NULL,
    buffer_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    last_use INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent_id, buffer_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subscription_failures (
    subscription_id TEXT PRIMARY KEY,
    good_until INTEGER,
    failing_since INTEGER,
    last_failure INTEGER,
    failure_count INTEGER NOT NULL,
    write_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unrouted_callbacks (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    route_id TEXT NOT NULL,
    number_key TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS unrouted_callbacks_by_route ON unrouted_callbacks (route_id);
CREATE INDEX IF NOT EXISTS unrouted_callbacks_by_number ON unrouted_callbacks (route_id, number_key);
";

/// The only connection that writes. A commit returns after the write-ahead log is synced
/// (`synchronous=FULL`); a larger page, cache and log than the defaults suit appends of rows of 1 to 2 kB.
///
/// # Errors
/// [`LogStoreError::Open`], or [`LogStoreError::OtherSchema`] when another version wrote the file, which then
/// is left as it is.
pub(super) async fn open_writer(path: &Path) -> Result<SqliteConnection, LogStoreError> {
    let open = |source: sqlx::Error| LogStoreError::Open {
        database: path.display().to_string(),
        source: Arc::new(source),
    };
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(8_192)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("cache_size", "-16384")
        .pragma("wal_autocheckpoint", "4096")
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(open)?;
    if let Some(found) =
        version(&mut connection).await.map_err(open)?.filter(|found| *found != SCHEMA_VERSION)
    {
        let database = path.display().to_string();
        return Err(LogStoreError::OtherSchema { database, found, known: SCHEMA_VERSION });
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(open)?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await.map_err(open)?;
    add_last_use(&mut transaction).await.map_err(open)?;
    sqlx::query("INSERT OR IGNORE INTO meta (name, value) VALUES ('schema_version', ?)")
        .bind(SCHEMA_VERSION.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(open)?;
    transaction.commit().await.map_err(open)?;
    Ok(connection)
}

/// Adds the column that older files do not have. Older programs can use a file that has it.
async fn add_last_use(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let found: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pragma_table_info('report_positions') WHERE name = 'last_use'",
    )
    .fetch_one(&mut *connection)
    .await?;
    if found == 0 {
        let add = "ALTER TABLE report_positions ADD COLUMN last_use INTEGER NOT NULL DEFAULT 0";
        sqlx::raw_sql(add).execute(connection).await?;
    }
    Ok(())
}

/// The version of the tables in the file. None when there are none.
async fn version(connection: &mut SqliteConnection) -> Result<Option<i64>, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'")
        .fetch_one(&mut *connection)
        .await?;
    if tables == 0 {
        return Ok(None);
    }
    let version: Option<i64> =
        sqlx::query_scalar("SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'schema_version'")
            .fetch_optional(connection)
            .await?;
    Ok(Some(version.unwrap_or(1)))
}

/// Connections for queries. They never write, and never wait for the writer.
pub(super) async fn open_readers(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging();
    SqlitePoolOptions::new().max_connections(READERS_MAX).connect_with(options).await
}

/// Makes a restored database one of its own: cursors of the one it was copied from count no more.
///
/// # Errors
/// When the database cannot be written.
pub(crate) async fn forget_epoch(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM meta WHERE name = 'epoch'").execute(connection).await?;
    Ok(())
}

/// The name of this database, made once: cursors carry it.
pub(super) async fn epoch(connection: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    let fresh = format!("{:016x}", rand::rng().random::<u64>());
    sqlx::query("INSERT OR IGNORE INTO meta (name, value) VALUES ('epoch', ?)")
        .bind(fresh)
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar("SELECT value FROM meta WHERE name = 'epoch'").fetch_one(connection).await
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A file of another version is refused with both versions in the text, and is left as it was; one that
    /// says no version is of the first. One of this version opens.
    #[tokio::test]
    async fn files_of_other_versions_are_refused() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("logs.db");
        let mut connection = open_writer(&path).await.unwrap();
        for (change, found) in [
            ("UPDATE meta SET value = '99' WHERE name = 'schema_version'", Some(99)),
            ("DELETE FROM meta WHERE name = 'schema_version'", Some(1)),
            ("INSERT INTO meta (name, value) VALUES ('schema_version', '2')", None),
        ] {
            sqlx::query(change).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            let before = std::fs::read(&path).unwrap();
            let text = open_writer(&path).await.err().map(|refused| refused.to_string());
            assert_eq!(text.is_some(), found.is_some(), "{text:?}");
            for part in
                found.map(|found| [format!("schema version {found}:"), "version 2;".into()]).iter().flatten()
            {
                assert!(text.as_ref().is_some_and(|text| text.contains(part)), "{text:?}");
            }
            assert_eq!(std::fs::read(&path).unwrap(), before);
            connection = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
        }
    }
}
