use gateway_proto::v1;

use super::*;
use crate::store::{Store, damaged::Found};

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

/// An earlier program, which makes no checksums, was started in between and changed an API key: the key works on after the
/// next start. One whose bytes changed by themselves does not.
#[tokio::test]
async fn keys_of_an_earlier_program_work_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let key = |id: &str| v1::ApiKey { id: id.into(), tenant_id: "default".into(), ..Default::default() };
    let mut transaction = store.begin_write().await.unwrap();
    for (number, id) in [(1, "key_1"), (2, "key_2")] {
        crate::store::api_keys::create(&mut transaction, &key(id), &[number; 32]).await.unwrap();
    }
    transaction.commit().await.unwrap();
    store.close().await;
    let renamed = v1::ApiKey { display_name: "renamed".into(), ..key("key_1") };
    let earlier = "UPDATE api_keys SET body = ?1 WHERE id = 'key_1'";
    testing::change(directory.path(), earlier, &prost::Message::encode_to_vec(&renamed)).await;
    let store = Store::open(directory.path()).await.unwrap();
    let found = async |number: u8| {
        crate::store::api_keys::find_by_secret_hash(&store, &[number; 32]).await.unwrap().unwrap()
    };
    assert!(matches!(found(1).await, Found::Whole(found) if found == renamed));
    store.close().await;
    // No trigger hears of what a disk does.
    let bytes = "DROP TRIGGER api_keys_without_checksum_changed;
                 UPDATE api_keys SET body = x'0a' WHERE id = 'key_2'";
    testing::execute(directory.path(), bytes).await;
    let store = Store::open(directory.path()).await.unwrap();
    let damaged = crate::store::api_keys::find_by_secret_hash(&store, &[2; 32]).await.unwrap().unwrap();
    assert!(matches!(damaged, Found::Damaged(_)));
}
