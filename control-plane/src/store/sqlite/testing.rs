//! For tests that look into the file of a store, or change what no code changes.

use std::path::Path;

use sqlx::{Connection as _, Decode, Sqlite, SqliteConnection, Type};

use super::FILE_NAME;

/// A connection to the database in `data_dir`, beside the store's own.
pub(crate) async fn connect(data_dir: &Path) -> SqliteConnection {
    let path = data_dir.join(FILE_NAME);
    SqliteConnection::connect(path.to_str().unwrap()).await.unwrap()
}

/// Executes statements on the database in `data_dir`.
pub(crate) async fn execute(data_dir: &Path, sql: impl Into<String>) {
    let sql = sqlx::AssertSqlSafe(sql.into());
    let mut connection = connect(data_dir).await;
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// The one value that a query finds in the database in `data_dir`.
pub(crate) async fn value<T>(data_dir: &Path, sql: &'static str) -> T
where
    T: Type<Sqlite> + for<'row> Decode<'row, Sqlite> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(&mut connect(data_dir).await).await.unwrap()
}

/// Changes a row; `bytes` are bound to `?1`.
pub(crate) async fn change(data_dir: &Path, sql: &'static str, bytes: &[u8]) {
    let mut connection = connect(data_dir).await;
    let changed = sqlx::query(sql).bind(bytes).execute(&mut connection).await.unwrap();
    assert!(changed.rows_affected() > 0, "{sql}");
}
