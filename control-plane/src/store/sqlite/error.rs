//! What SQLite's errors mean.

use sqlx::error::ErrorKind;

use crate::store::{StoreError, Trouble};

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database { trouble: trouble(&error), source: error.into() }
    }
}

fn trouble(error: &sqlx::Error) -> Trouble {
    let sqlx::Error::Database(error) = error else {
        return if matches!(error, sqlx::Error::PoolTimedOut) { Trouble::Busy } else { Trouble::Other };
    };
    if matches!(error.kind(), ErrorKind::UniqueViolation | ErrorKind::ForeignKeyViolation) {
        return Trouble::Conflict;
    }
    let code: Option<i32> = error.code().and_then(|code| code.parse().ok());
    // The low byte is the primary result code (<https://sqlite.org/rescode.html>).
    match code.map(|code| code & 0xff) {
        Some(5 | 6) => Trouble::Busy,
        Some(8 | 10 | 14) => Trouble::NotWritable,
        Some(13) => Trouble::Full,
        _ => Trouble::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A database that is locked, read-only or full is told apart, and so is a key that is taken.
    #[tokio::test]
    async fn troubles_of_the_database_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(directory.path().join("test.db"))
            .create_if_missing(true)
            .busy_timeout(Duration::ZERO);
        let pool = sqlx::SqlitePool::connect_with(options.clone()).await.unwrap();
        sqlx::raw_sql("CREATE TABLE t (body BLOB UNIQUE)").execute(&pool).await.unwrap();
        let holder = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let locked = pool.begin_with("BEGIN IMMEDIATE").await.map(|_| ()).unwrap_err();
        assert_eq!(trouble(&locked), Trouble::Busy);
        drop(holder);
        let reading = sqlx::SqlitePool::connect_with(options.read_only(true)).await.unwrap();
        let read_only = sqlx::raw_sql("INSERT INTO t VALUES (1)").execute(&reading).await.unwrap_err();
        assert_eq!(trouble(&read_only), Trouble::NotWritable);
        let mut connection = pool.acquire().await.unwrap();
        let twice = "INSERT INTO t VALUES (1), (1)";
        let taken = sqlx::raw_sql(twice).execute(&mut *connection).await.unwrap_err();
        assert_eq!(trouble(&taken), Trouble::Conflict);
        sqlx::raw_sql("PRAGMA max_page_count = 3").execute(&mut *connection).await.unwrap();
        let large = "INSERT INTO t VALUES (zeroblob(100000))";
        let full = sqlx::raw_sql(large).execute(&mut *connection).await.unwrap_err();
        assert_eq!(trouble(&full), Trouble::Full);
        assert_eq!(trouble(&sqlx::Error::PoolTimedOut), Trouble::Busy);
        assert_eq!(trouble(&sqlx::Error::ColumnNotFound("planted".into())), Trouble::Other);
    }
}
