use gateway_core::{
    id::TenantId,
    opt_out::{Decision, OptOutRecord},
    tenant::TenantScope,
};
use gateway_proto::v1::config_resource::Resource;
use gateway_runtime::clock;

use super::*;
use crate::audit::AuditedBy;
use crate::store::inbound_routes::StoredRoute;

fn agent() -> AuditedBy {
    AuditedBy::agent("agt_1", None)
}

async fn open(directory: &tempfile::TempDir) -> Store {
    Store::open(directory.path()).await.unwrap()
}

fn route(id: &str) -> StoredRoute {
    let route = v1::InboundRoute {
        id: id.to_owned(),
        tenant_id: "default".to_owned(),
        provider: v1::Provider::Meta.into(),
        ..Default::default()
    };
    let config = v1::InboundRouteConfig {
        id: id.to_owned(),
        provider: v1::Provider::Meta.into(),
        callback_token: format!("token-{id}"),
        ..Default::default()
    };
    StoredRoute { route, config }
}

fn instance(id: &str, route: &str, number: &str) -> v1::Instance {
    v1::Instance {
        id: id.to_owned(),
        tenant_id: "default".to_owned(),
        display_name: "Demo".to_owned(),
        inbound_route_id: route.to_owned(),
        provider_number_id: number.to_owned(),
        ..Default::default()
    }
}

fn subscription(id: &str, instance: &str) -> v1::WebhookSubscriptionConfig {
    let mut subscription = v1::WebhookSubscription {
        id: id.to_owned(),
        tenant_id: "default".to_owned(),
        instance_id: instance.to_owned(),
        destination_url: "https://example.com/hook".to_owned(),
        events: vec!["*".to_owned()],
        ..Default::default()
    };
    subscription.set_state(v1::WebhookSubscriptionState::Active);
    v1::WebhookSubscriptionConfig { webhook_subscription: Some(subscription), ..Default::default() }
}

async fn put_route(store: &Store, id: &str) {
    let mut transaction = store.begin_write().await.unwrap();
    inbound_routes::put(&mut transaction, &mut route(id)).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn put_instance(store: &Store, id: &str, route: &str, number: &str) -> Result<(), StoreError> {
    let mut transaction = store.begin_write().await?;
    instances::put(&mut transaction, &mut instance(id, route, number), number).await?;
    transaction.commit().await
}

async fn put_subscription(store: &Store, id: &str, instance: &str) {
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::put(&mut transaction, &mut subscription(id, instance)).await.unwrap();
    transaction.commit().await.unwrap();
}

fn names(changes: &ConfigChanges) -> Vec<String> {
    let name = |resource: &v1::ConfigResource| match resource.resource.as_ref().unwrap() {
        Resource::InboundRoute(route) => route.id.clone(),
        Resource::Instance(instance) => instance.id.clone(),
        Resource::WebhookSubscription(config) => config.webhook_subscription.as_ref().unwrap().id.clone(),
        Resource::OptOutPolicy(policy) => format!("policy of {}", policy.instance_id),
    };
    changes.upserts.iter().map(name).collect()
}

/// The version counts committed transactions without a gap: one that is dropped leaves none, and one that
/// changes several resources counts once.
#[tokio::test]
async fn version_has_no_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    assert_eq!(store.version().await.unwrap(), 0);
    put_route(&store, "route_1").await;
    let mut dropped = store.begin_write().await.unwrap();
    inbound_routes::put(&mut dropped, &mut route("route_2")).await.unwrap();
    drop(dropped);
    assert_eq!(store.version().await.unwrap(), 1);
    let mut both = store.begin_write().await.unwrap();
    inbound_routes::put(&mut both, &mut route("route_3")).await.unwrap();
    instances::put(&mut both, &mut instance("inst_1", "route_3", "1"), "1").await.unwrap();
    both.commit().await.unwrap();
    assert_eq!(store.version().await.unwrap(), 2);
    assert_eq!(*store.watch_version().borrow(), 2);
    assert_eq!(names(&store.changes_since(1).await.unwrap()), ["route_3", "inst_1"]);
}

/// Changes come in the order in which they refer to each other; removals are remembered until the id comes
/// back, and a fresh agent hears of none.
#[tokio::test]
async fn changes_are_ordered_and_removals_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    put_route(&store, "route_1").await;
    put_instance(&store, "inst_1", "route_1", "1").await.unwrap();
    put_subscription(&store, "sub_1", "inst_1").await;
    let mut transaction = store.begin_write().await.unwrap();
    let mut policy = v1::OptOutPolicy { instance_id: "inst_1".into(), ..Default::default() };
    let tenant_id = TenantId::default_tenant();
    opt_out_policies::put(&mut transaction, &tenant_id, &mut policy).await.unwrap();
    transaction.commit().await.unwrap();
    let all = store.changes_since(0).await.unwrap();
    assert_eq!(names(&all), ["route_1", "inst_1", "policy of inst_1", "sub_1"]);
    assert_eq!(all.upserts.iter().map(|resource| resource.version).collect::<Vec<_>>(), [1, 2, 4, 3]);

    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut transaction, "sub_1").await.unwrap();
    instances::delete(&mut transaction, "inst_1").await.unwrap();
    transaction.commit().await.unwrap();
    let changes = store.changes_since(4).await.unwrap();
    let removed: Vec<_> = changes.removals.iter().map(|removal| removal.r#type.as_str()).collect();
    assert_eq!(removed, ["webhook_subscription", "opt_out_policy", "instance"]);
    assert_eq!(changes.version, 5);
    assert!(store.changes_since(0).await.unwrap().removals.is_empty());

    put_instance(&store, "inst_1", "route_1", "1").await.unwrap();
    let changes = store.changes_since(4).await.unwrap();
    // A route goes where its instances are served, so it goes along.
    assert_eq!(names(&changes), ["route_1", "inst_1"]);
    assert_eq!(changes.removals.len(), 2);
}

/// The database itself refuses a number twice, a dangling route and a referenced route's removal.
#[tokio::test]
async fn database_keeps_references_and_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    put_route(&store, "route_1").await;
    put_instance(&store, "inst_1", "route_1", "1").await.unwrap();
    assert!(put_instance(&store, "inst_2", "route_1", "1").await.is_err());
    assert!(put_instance(&store, "inst_2", "route_9", "2").await.is_err());
    let mut transaction = store.begin_write().await.unwrap();
    assert!(inbound_routes::delete(&mut transaction, "route_1").await.is_err());
    drop(transaction);
    assert_eq!(store.version().await.unwrap(), 2);
    let holder = store.instance_of_number("route_1", "1").await.unwrap().unwrap();
    assert_eq!(holder.id, "inst_1");
    assert!(store.instance_of_number("route_1", "2").await.unwrap().is_none());
}

/// Version, epoch, opt-outs and their cursor are the same after a restart.
#[tokio::test]
async fn state_survives_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    put_route(&store, "route_1").await;
    store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap();
    let epoch = store.store_epoch().to_owned();
    assert!(epoch.len() >= 22);
    store.close().await;
    let store = open(&directory).await;
    assert_eq!((store.store_epoch(), *store.watch_version().borrow()), (epoch.as_str(), 1));
    assert_eq!(*store.watch_opt_out_cursor().borrow(), 1);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(open(&other).await.store_epoch(), epoch);
}

/// A destination that is gone pauses its subscription once, and never one that has moved on.
#[tokio::test]
async fn gone_destination_pauses_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    put_route(&store, "route_1").await;
    put_instance(&store, "inst_1", "route_1", "1").await.unwrap();
    put_subscription(&store, "sub_1", "inst_1").await;
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
    put_route(&store, "route_1").await;
    put_instance(&store, "inst_1", "route_1", "1").await.unwrap();
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

fn opt_out(phone: &str, seconds: i64) -> v1::OptOut {
    v1::OptOut {
        tenant_id: "default".into(),
        instance_id: "inst_1".into(),
        phone: phone.into(),
        state: v1::OptOutState::OptedOut.into(),
        reason: v1::OptOutReason::RecipientRequestedStop.into(),
        keyword: "stop".into(),
        event_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        change_number: 1,
        ..Default::default()
    }
}

fn opt_in(phone: &str, seconds: i64) -> v1::OptOut {
    let reason = v1::OptOutReason::RecipientRequestedStart.into();
    v1::OptOut { state: v1::OptOutState::OptedIn.into(), reason, change_number: 2, ..opt_out(phone, seconds) }
}

async fn states(store: &Store) -> Vec<(String, i32)> {
    let filter = opt_outs::OptOutFilter::default();
    let mut connection = store.reader().await.unwrap();
    let tenant_id = TenantId::default_tenant();
    let found =
        opt_outs::list(&mut connection, &TenantScope::One(tenant_id), &filter, None, 100).await.unwrap();
    found.into_iter().map(|opt_out| (opt_out.phone, opt_out.state)).collect()
}

/// What agents report merges into one record per contact: repeats change nothing, the later decision wins
/// in whatever order they arrive, and national variants are one contact.
#[tokio::test]
async fn reported_opt_outs_merge() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    let first = store.record_opt_outs(agent(), vec![opt_out("+5511987654321", 100)]).await.unwrap();
    assert!(first[0].changed && first[0].is_news && !first[0].opt_out.etag.is_empty());
    let repeat = store.record_opt_outs(agent(), vec![opt_out("+5511987654321", 100)]).await.unwrap();
    assert!(!repeat[0].changed);
    assert_eq!(repeat[0].opt_out, first[0].opt_out);
    store
        .record_opt_outs(agent(), vec![opt_in("+551187654321", 300), opt_out("+5511987654321", 200)])
        .await
        .unwrap();
    let opted_in = v1::OptOutState::OptedIn.into();
    assert_eq!(states(&store).await, [("+5511987654321".to_owned(), opted_in)]);
    assert_eq!(store.version().await.unwrap(), 0);
}

/// Readers of the log get the current record of each decision in order, page by page, and no repeats move
/// the cursor.
#[tokio::test]
async fn opt_out_log_has_its_own_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    let mut cursor = store.watch_opt_out_cursor();
    let two = vec![opt_out("+966500000001", 100), opt_out("+966500000002", 100)];
    store.record_opt_outs(agent(), two.clone()).await.unwrap();
    assert_eq!(*cursor.borrow_and_update(), 2);
    store.record_opt_outs(agent(), two).await.unwrap();
    assert!(!cursor.has_changed().unwrap());
    store.record_opt_outs(agent(), vec![opt_in("+966500000001", 200)]).await.unwrap();
    let (page, next) = store.opt_outs_since(0, 2).await.unwrap();
    assert_eq!((page.len(), next), (2, 2));
    assert_eq!(page[0].state(), v1::OptOutState::OptedIn);
    let (page, next) = store.opt_outs_since(2, 100).await.unwrap();
    assert_eq!((page.len(), next), (1, 3));
    assert_eq!(store.opt_outs_since(3, 100).await.unwrap(), (vec![], 3));
}

/// A decision that carries phone and user id joins the two records, and both keys find it from then on.
#[tokio::test]
async fn both_keys_become_one_record() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    let by_user_id = v1::OptOut { phone: String::new(), user_id: "US.1".into(), ..opt_out("", 150) };
    store.record_opt_outs(agent(), vec![opt_in("+966500000001", 100), by_user_id]).await.unwrap();
    assert_eq!(states(&store).await.len(), 2);
    let both = v1::OptOut { user_id: "US.1".into(), ..opt_in("+966500000001", 120) };
    let recorded = store.record_opt_outs(agent(), vec![both]).await.unwrap().remove(0).opt_out;
    assert_eq!((recorded.phone.as_str(), recorded.user_id.as_str()), ("+966500000001", "US.1"));
    assert_eq!(recorded.state(), v1::OptOutState::OptedOut, "the later wish of either key counts");
    assert_eq!(states(&store).await.len(), 1);
    let (log, _) = store.opt_outs_since(0, 100).await.unwrap();
    assert_eq!(log.last(), Some(&recorded));
}

/// When a user id moves to another number, the old number keeps its opt-out.
#[tokio::test]
async fn old_number_keeps_its_opt_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    let with_id = |phone: &str, seconds| v1::OptOut { user_id: "US.1".into(), ..opt_out(phone, seconds) };
    store.record_opt_outs(agent(), vec![with_id("+966500000001", 100)]).await.unwrap();
    store.record_opt_outs(agent(), vec![with_id("+966500000002", 200)]).await.unwrap();
    let mut phones: Vec<_> = states(&store).await.into_iter().map(|(phone, _)| phone).collect();
    phones.sort();
    assert_eq!(phones, ["+966500000001", "+966500000002"]);
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
