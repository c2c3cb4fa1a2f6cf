use jiff::Timestamp;
use sqlx::Row as _;

use super::*;
use crate::{
    audit::{Audited, AuditedBy},
    store::{Store, audit, sqlite::testing},
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// SQLite refuses to change, remove or replace an entry, whatever code asks for it.
#[tokio::test]
async fn entries_are_only_added() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    transaction.audit(AuditedBy::GATEWAY, Audited::default()).await.unwrap();
    transaction.commit().await.unwrap();
    let mut connection = testing::connect(directory.path()).await;
    for forbidden in [
        "UPDATE audit_entries SET actor = 'admin_key'",
        "DELETE FROM audit_entries",
        "REPLACE INTO audit_entries SELECT * FROM audit_entries",
        "INSERT INTO audit_entries SELECT * FROM audit_entries WHERE TRUE ON CONFLICT DO UPDATE SET actor = 'admin_key'",
    ] {
        let refused = sqlx::query(forbidden).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("audit entries are never"), "{forbidden}: {refused}");
    }
    let mut reader = store.reader().await.unwrap();
    let found = audit::list(&mut reader, &AuditFilter::default(), None, 10).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.actor, "gateway");
}

/// Every list follows an index in the order that it gives: nothing is sorted, and no list reads the whole
/// table to find its first page.
#[tokio::test]
async fn every_list_follows_an_index() {
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path()).await.unwrap().close().await;
    let mut connection = testing::connect(directory.path()).await;
    for mask in 0..64 {
        let text = |bit: u32, value: &str| (mask & (1 << bit) != 0).then(|| value.to_owned());
        let time = |bit: u32| (mask & (1 << bit) != 0).then(|| at(bit.into()));
        let filter = AuditFilter {
            tenant_id: text(0, "acme"),
            resource_type: text(1, "instance"),
            resource_id: text(2, "inst_1"),
            actor: text(3, "admin_key"),
            start_time: time(4),
            end_time: time(5),
        };
        for before in [None, Some(AuditPlace { time: 1, seq: 1 })] {
            let sql = query(&filter, before, 10);
            let plan = format!("EXPLAIN QUERY PLAN {}", sql.sql().as_str());
            let rows = sqlx::query(sqlx::AssertSqlSafe(plan)).fetch_all(&mut connection).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            let follows =
                plan.iter().all(|step| step.contains("USING INDEX") && !step.contains("TEMP B-TREE"));
            assert!(follows, "{filter:?}: {plan:?}");
        }
    }
}
