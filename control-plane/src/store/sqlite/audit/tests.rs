use sqlx::{ConnectOptions as _, Connection as _, Row as _, sqlite::SqliteConnectOptions};

use super::*;

async fn database() -> SqliteConnection {
    let mut connection = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
    sqlx::raw_sql(SCHEMA).execute(&mut connection).await.unwrap();
    connection
}

fn audited(tenant_id: &str, resource_type: &'static str, resource_id: &str) -> Audited {
    Audited {
        tenant_id: tenant_id.into(),
        method: "InstanceService/UpdateInstance",
        resource_type,
        resource_id: resource_id.into(),
        changes: Vec::new(),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

async fn add(connection: &mut SqliteConnection, seconds: i64, actor: &str, audited: Audited) {
    insert(connection, at(seconds), actor, None, audited).await.unwrap();
}

async fn times(connection: &mut SqliteConnection, filter: &AuditFilter) -> Vec<i64> {
    let found = list(connection, filter, None, 100).await.unwrap();
    found.iter().map(|(place, _)| place.time / 1_000_000).collect()
}

/// SQLite refuses to change, remove or replace an entry, whatever code asks for it.
#[tokio::test]
async fn entries_are_only_added() {
    let mut connection = database().await;
    add(&mut connection, 1, "admin_key", audited("acme", "instance", "inst_1")).await;
    for forbidden in [
        "UPDATE audit_entries SET actor = 'gateway'",
        "DELETE FROM audit_entries",
        "REPLACE INTO audit_entries SELECT * FROM audit_entries",
        "INSERT INTO audit_entries SELECT * FROM audit_entries WHERE TRUE ON CONFLICT DO UPDATE SET actor = 'gateway'",
    ] {
        let refused = sqlx::query(forbidden).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("audit entries are never"), "{forbidden}: {refused}");
    }
    let found = list(&mut connection, &AuditFilter::default(), None, 10).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.actor, "admin_key");
}

/// An entry comes back as it was written, and goes with the transaction that it was written in.
#[tokio::test]
async fn an_entry_is_of_its_transaction() {
    let mut connection = database().await;
    let change =
        v1::AuditChange { field: "display_name".into(), before: "\"A\"".into(), after: "\"B\"".into() };
    let entry = Audited { changes: vec![change.clone()], ..audited("acme", "instance", "inst_1") };
    let address = "192.0.2.1:4711".parse().ok();
    let mut transaction = connection.begin().await.unwrap();
    insert(&mut transaction, at(7), "api_key:key_1", address, entry.clone()).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(list(&mut connection, &AuditFilter::default(), None, 10).await.unwrap(), []);
    insert(&mut connection, at(7), "api_key:key_1", address, entry).await.unwrap();
    let expected = v1::AuditEntry {
        id: "aud_0000000000000001".into(),
        time: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
        tenant_id: "acme".into(),
        actor: "api_key:key_1".into(),
        source_address: "192.0.2.1:4711".into(),
        method: "InstanceService/UpdateInstance".into(),
        resource_type: "instance".into(),
        resource_id: "inst_1".into(),
        changes: vec![change],
    };
    let found = list(&mut connection, &AuditFilter::default(), None, 10).await.unwrap();
    assert_eq!(found, [(AuditPlace { time: 7_000_000, seq: 1 }, expected)]);
}

/// Filters hold together; the start of a time range is in it, its end is not.
#[tokio::test]
async fn filters_narrow_the_list() {
    let mut connection = database().await;
    let connection = &mut connection;
    add(connection, 1, "admin_key", audited("acme", "instance", "inst_1")).await;
    add(connection, 2, "api_key:key_1", audited("acme", "webhook_subscription", "sub_1")).await;
    add(connection, 3, "api_key:key_1", audited("acme", "instance", "inst_1")).await;
    add(connection, 4, "admin_key", audited("other", "instance", "inst_2")).await;
    add(connection, 5, "gateway", audited("", "agent", "agt_1")).await;
    let all = AuditFilter::default();
    let text = |value: &str| Some(value.to_owned());
    assert_eq!(times(connection, &all).await, [5, 4, 3, 2, 1]);
    let acme = AuditFilter { tenant_id: text("acme"), ..all.clone() };
    assert_eq!(times(connection, &acme).await, [3, 2, 1]);
    let of = |resource_type| AuditFilter { resource_type: text(resource_type), ..AuditFilter::default() };
    assert_eq!(times(connection, &of("instance")).await, [4, 3, 1]);
    let instances = AuditFilter { resource_type: text("instance"), ..acme.clone() };
    assert_eq!(times(connection, &instances).await, [3, 1]);
    let by_key = AuditFilter { actor: text("api_key:key_1"), ..instances };
    assert_eq!(times(connection, &by_key).await, [3]);
    let by_admin = AuditFilter { actor: text("admin_key"), ..all.clone() };
    assert_eq!(times(connection, &by_admin).await, [4, 1]);
    let one = AuditFilter { resource_id: text("inst_1"), end_time: Some(at(3)), ..acme };
    assert_eq!(times(connection, &one).await, [1]);
    let between = AuditFilter { start_time: Some(at(2)), end_time: Some(at(4)), ..all };
    assert_eq!(times(connection, &between).await, [3, 2]);
}

/// Pages join without gap or repeat while entries are added, also where several share one time.
#[tokio::test]
async fn pages_join_while_entries_are_added() {
    let mut connection = database().await;
    for number in 0..10 {
        add(&mut connection, number / 4, "admin_key", audited("acme", "instance", &number.to_string())).await;
    }
    let filter = AuditFilter { tenant_id: Some("acme".into()), ..AuditFilter::default() };
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = list(&mut connection, &filter, before, 3).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        before = Some(*last);
        seen.extend(page.into_iter().map(|(_, entry)| entry.resource_id.parse::<i64>().unwrap()));
        add(&mut connection, 100, "admin_key", audited("acme", "instance", "99")).await;
    }
    assert_eq!(seen, (0..10).rev().collect::<Vec<_>>());
}

/// Every list follows an index in the order that it gives: nothing is sorted, and no list reads the whole
/// table to find its first page.
#[tokio::test]
async fn every_list_follows_an_index() {
    let mut connection = database().await;
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
