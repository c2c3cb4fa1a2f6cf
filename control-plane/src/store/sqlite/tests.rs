use super::*;
use crate::store::Store;

/// A file of a newer program is refused with both versions.
#[tokio::test]
async fn newer_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path()).await.unwrap().close().await;
    testing::execute(directory.path(), "UPDATE meta SET number = 99 WHERE name = 'schema_version'").await;
    let error = Store::open(directory.path()).await.err().unwrap();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
}

/// WAL and full synchronization are on, on every connection.
#[tokio::test]
async fn commits_are_durable() {
    let directory = tempfile::tempdir().unwrap();
    let pool = connect(&directory.path().join(FILE_NAME)).await.unwrap();
    let (mut one, mut other) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    for connection in [&mut one, &mut other] {
        let journal: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut **connection).await.unwrap();
        let synchronous: i64 =
            sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut **connection).await.unwrap();
        let foreign_keys: i64 =
            sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&mut **connection).await.unwrap();
        assert_eq!((journal.as_str(), synchronous, foreign_keys), ("wal", 2, 1));
    }
}
