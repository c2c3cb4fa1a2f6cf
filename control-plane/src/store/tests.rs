//! What the store does the same over every engine.

use gateway_core::opt_out::{Decision, OptOutRecord};
use gateway_runtime::clock;

use super::{conformance::fixtures::*, *};

async fn open(directory: &tempfile::TempDir) -> Store {
    Store::open(directory.path()).await.unwrap()
}

/// A destination that is gone pauses its subscription once, and never one that has moved on.
#[tokio::test]
async fn gone_destination_pauses_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    one_of_each(&store).await;
    let pause =
        async |url: &str| store.pause_subscription_gone("sub_1", url, "it answered 410").await.unwrap();
    assert!(!pause("https://other.example/").await);
    assert_eq!(store.version().await.unwrap(), 3);
    assert!(pause("https://EXAMPLE.com:443/hook").await);
    assert!(!pause("https://example.com/hook").await);
    let paused = store.webhook_subscription("sub_1").await.unwrap().unwrap();
    assert_eq!(paused.state(), v1::WebhookSubscriptionState::Paused);
    assert_eq!(paused.pause_reason, "it answered 410");
    assert_eq!(store.version().await.unwrap(), 4);
    assert!(!store.pause_subscription_gone("sub_9", "x", "y").await.unwrap());
}

/// A subscription that only fails is paused once, says why, and is left alone when it was changed after that
/// was found.
#[tokio::test]
async fn failing_subscription_pauses_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    put_route(&store, route("route_1")).await;
    put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let mut config = subscription("sub_1", "inst_1");
    let changed: jiff::Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
    let update_time = Some(gateway_core::time::to_proto(changed));
    config.webhook_subscription.as_mut().unwrap().update_time = update_time;
    webhook_subscriptions::put(&mut transaction, &mut config).await.unwrap();
    transaction.commit().await.unwrap();
    let pause = async |subscription_id: &str, found: &str| {
        let found = crate::inbound_log::FailingSubscription {
            subscription_id: subscription_id.into(),
            since: "2026-11-18T10:00:00Z".parse().unwrap(),
            attempt_count: 72,
            time: found.parse().unwrap(),
        };
        crate::pause::pause(&store, &found).await.unwrap()
    };
    assert!(!pause("sub_9", "2026-11-23T10:00:00Z").await);
    assert!(!pause("sub_1", "2026-11-20T09:59:59Z").await);
    assert!(pause("sub_1", "2026-11-23T10:00:00Z").await);
    assert!(!pause("sub_1", "2026-11-23T10:01:00Z").await);
    let paused = store.webhook_subscription("sub_1").await.unwrap().unwrap();
    assert_eq!(paused.state(), v1::WebhookSubscriptionState::Paused);
    let reason =
        "every attempt since 2026-11-18T10:00:00Z failed (72 attempts); fix the destination, then resume";
    assert_eq!(paused.pause_reason, reason);
    assert_eq!(store.version().await.unwrap(), 4);
}

/// A report that cannot be read is passed over, and does not hold up the others.
#[tokio::test]
async fn unreadable_report_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    let broken = v1::OptOut { phone: "abc".into(), ..opt_out("", 100) };
    let recorded = store.record_opt_outs(agent(), vec![broken, opt_out("+966500000001", 100)]).await.unwrap();
    assert_eq!(recorded.iter().map(|recorded| recorded.changed).collect::<Vec<_>>(), [false, true]);
}

/// An operator's opt-in ends a reported opt-out, and a reported STOP after it counts again.
#[tokio::test]
async fn operator_opt_in_ends_an_opt_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    let recorded =
        store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap().remove(0);
    let record = OptOutRecord::try_from(&recorded.opt_out).unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let decision = Decision::operator_opt_in(&record, clock::now());
    let ended = opt_outs::record(&mut transaction, &decision).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(ended.is_news);
    assert_eq!((ended.opt_out.state(), ended.opt_out.change_number), (v1::OptOutState::OptedIn, 2));
    let old = store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap();
    assert!(!old[0].changed, "a repeat of the old STOP does not undo the opt-in");
}
