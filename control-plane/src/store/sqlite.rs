//! The store in one SQLite file.
//!
//! SQLite has one writer at a time for each file; in this process a mutex gives writers their turn, so that they wait
//! in a row instead of asking again and again. Readers use the write-ahead log and never wait for a writer.

use std::{path::Path, sync::Arc, time::Duration};

use sqlx::{
    Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::async_trait;

use super::{
    Engine, Opened, StoreError,
    engine::{Reads, Writes},
};
use crate::sealing::RootKeys;

mod error;
pub(crate) mod files;
pub(crate) mod schema;
mod sealed;
mod tenant_keys;
mod tenants;
mod api_keys;
mod instances;
mod inbound_routes;
mod webhook_subscriptions;
mod opt_out_policies;
mod opt_outs;
mod requests;
mod agents;
mod work;
mod fleet;
mod route_reach;
mod audit;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Name of the database file in the data directory.
pub const FILE_NAME: &str = "config.db";
/// Connections to the file. Readers wait for a free one; there is one writer at a time.
const CONNECTIONS_MAX: u32 = 6;
/// How long SQLite waits for another process that holds the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections to the file.
struct Database {
    pool: SqlitePool,
    write_turn: Arc<Mutex<()>>,
}

/// Opens or creates the database in `data_dir`, whose secrets are sealed under `root_keys`, and brings it to this
/// program's schema.
///
/// # Errors
/// When the file cannot be opened, was written by a newer program, or needs a root key that is not there;
/// then it is left as it was.
pub(super) async fn open(data_dir: &Path, root_keys: &RootKeys) -> Result<Opened, StoreError> {
    let path = data_dir.join(FILE_NAME);
    let pool = connect(&path)
        .await
        .map_err(|source| StoreError::Open { database: path.display().to_string(), source: source.into() })?;
    let sealer = schema::prepare(&pool, root_keys).await?;
    let mut connection = pool.acquire().await?;
    let epoch = schema::epoch(&mut connection).await?;
    let version = schema::version(&mut connection).await?;
    let opt_out_cursor = opt_outs::newest_cursor(&mut connection).await?;
    drop(connection);
    let engine = Box::new(Database { pool, write_turn: Arc::default() });
    Ok(Opened { engine, epoch, sealer, version, opt_out_cursor })
}

async fn connect(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    SqlitePoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        // After a full disk SQLite may have ended a transaction by itself; then its connection cannot begin
        // another one.
        .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
        .connect_with(options)
        .await
}

#[async_trait]
impl Engine for Database {
    async fn reader(&self) -> Result<Box<dyn Reads>, StoreError> {
        Ok(Box::new(Rows::Pooled(self.pool.acquire().await?)))
    }

    async fn snapshot(&self) -> Result<Box<dyn Reads>, StoreError> {
        Ok(Box::new(Rows::Snapshot(self.pool.begin().await?)))
    }

    async fn begin_write(&self) -> Result<Box<dyn Writes>, StoreError> {
        let turn = Arc::clone(&self.write_turn).lock_owned().await;
        let transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Box::new(Rows::Write { transaction, _turn: turn }))
    }

    async fn wipe_if_due(&self) -> Result<(), StoreError> {
        sealed::wipe_if_due(&self.pool).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection. What it can be used for is decided by the trait that it is given away as.
enum Rows {
    Pooled(PoolConnection<Sqlite>),
    Snapshot(Transaction<'static, Sqlite>),
    Write {
        transaction: Transaction<'static, Sqlite>,
        /// Given up after the transaction has ended.
        _turn: OwnedMutexGuard<()>,
    },
}

impl Rows {
    fn connection(&mut self) -> &mut SqliteConnection {
        match self {
            Self::Pooled(connection) => connection,
            Self::Snapshot(transaction) | Self::Write { transaction, .. } => transaction,
        }
    }

    async fn end(self) -> Result<(), StoreError> {
        match self {
            Self::Pooled(_) => Ok(()),
            Self::Snapshot(transaction) | Self::Write { transaction, .. } => Ok(transaction.commit().await?),
        }
    }
}

#[async_trait]
impl Reads for Rows {
    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        self.end().await
    }
}

#[async_trait]
impl Writes for Rows {
    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.end().await
    }
}

/// SQLite's integers are signed.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
