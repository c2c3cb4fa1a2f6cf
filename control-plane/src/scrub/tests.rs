//! Damaged rows are seen before they are missed.

use gateway_proto::v1;
use prometheus_client::{encoding::text, registry::Registry};

use super::*;
use crate::store::{
    conformance::fixtures::{one_of_each, put_subscription, subscription},
    damaged::LeftOut,
    sqlite::testing,
    webhook_subscriptions,
    work::{self, NewWork},
};

async fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    (directory, store)
}

fn left_out(resource_type: &'static str, id: &str) -> LeftOut {
    LeftOut { resource_type, id: id.to_owned() }
}

/// A damaged row of any kind is found, counted by its type, and forgotten when it is written anew, or gone.
#[tokio::test]
async fn damaged_rows_are_counted() {
    let (directory, store) = store().await;
    one_of_each(&store).await;
    let mut registry = Registry::with_prefix("gateway");
    store.damages().register(&mut registry);
    let shown = || {
        let mut metrics = String::new();
        text::encode(&mut metrics, &registry).unwrap();
        let lines = metrics.lines().filter(|line| line.starts_with("gateway_store_damaged_rows{"));
        let mut lines: Vec<_> = lines.filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let rows = look(&store).await.unwrap().rows;
    assert!(rows >= 4, "tenant, route, instance and subscription are {rows} rows");
    assert_eq!(shown(), [""; 0]);
    let damage = "UPDATE instances SET body = x'ff'; UPDATE webhook_subscriptions SET config = x'00';";
    testing::execute(directory.path(), damage).await;
    let found = look(&store).await.unwrap();
    let both = [left_out("instance", "inst_1"), left_out("webhook_subscription", "sub_1")];
    assert_eq!(found.damaged.into_iter().collect::<Vec<_>>(), both);
    let one_each = ["instance", "webhook_subscription"]
        .map(|kind| format!("gateway_store_damaged_rows{{type=\"{kind}\"}} 1"));
    assert_eq!(shown(), one_each);
    put_subscription(&store, subscription("sub_1", "inst_1")).await;
    assert_eq!(shown(), one_each[..1], "a row that is written anew is whole");
    let mend = "DELETE FROM webhook_subscriptions; DELETE FROM instances";
    testing::execute(directory.path(), mend).await;
    assert_eq!(look(&store).await.unwrap().damaged.len(), 0);
    assert_eq!(shown(), [""; 0]);
}

/// Queued work that cannot be opened is known by its id, and leaves the queue once what it is about is gone; other work
/// stays.
#[tokio::test]
async fn unreadable_work_leaves_when_its_subject_is_gone() {
    let (directory, store) = store().await;
    one_of_each(&store).await;
    put_subscription(&store, subscription("sub_2", "inst_1")).await;
    let mut transaction = store.begin_write().await.unwrap();
    let test = |id: &str, subscription_id: &str| NewWork {
        work: v1::Work {
            id: id.to_owned(),
            work: Some(v1::work::Work::TestEvent(v1::TestEventWork {
                subscription_id: subscription_id.to_owned(),
                ..Default::default()
            })),
        },
        regions: Vec::new(),
    };
    let all = [test("work_1", "sub_1"), test("work_2", "sub_2"), test("work_3", "sub_1")];
    work::insert(&mut transaction, &all).await.unwrap();
    transaction.commit().await.unwrap();
    let damage = "UPDATE queued_work SET body = x'00' WHERE id IN ('work_1', 'work_2')";
    testing::execute(directory.path(), damage).await;
    let found = look(&store).await.unwrap().damaged.into_iter().collect::<Vec<_>>();
    assert_eq!(found, [left_out("work", "work_1"), left_out("work", "work_2")]);
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut transaction, "sub_1").await.unwrap();
    transaction.commit().await.unwrap();
    look(&store).await.unwrap();
    assert_eq!(store.damages().all(), [left_out("work", "work_2")]);
    let left = work::counts(&store).await.unwrap().iter().map(|count| count.count).sum::<i64>();
    assert_eq!(left, 2, "work that can be opened stays, whatever it is about");
}
