//! Rules that the tables keep by themselves, whatever code forgets to look.

use super::{Factory, fixtures::*};
use crate::store::{Store, inbound_routes, instances, opt_out_policies, webhook_subscriptions};

async fn put_numbered(store: &Store, id: &str, route: &str, number: &str) -> bool {
    let mut transaction = store.begin_write().await.unwrap();
    let outcome = instances::put(&mut transaction, &mut instance(id, route), number).await;
    assert!(outcome.is_ok() || is_conflict(&outcome), "{outcome:?}");
    if outcome.is_ok() {
        transaction.commit().await.unwrap();
    }
    outcome.is_ok()
}

/// One instance has a number on a route; the same number on another route is another one. The number is free again
/// when its instance has another one or is gone.
pub(super) async fn numbers_are_unique_on_a_route(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    put_route(&store, route("route_2")).await;
    assert!(put_numbered(&store, "inst_1", "route_1", "1").await);
    assert!(!put_numbered(&store, "inst_2", "route_1", "1").await);
    assert!(put_numbered(&store, "inst_1", "route_1", "1").await, "it has the number itself");
    assert!(put_numbered(&store, "inst_2", "route_2", "1").await);
    assert!(!put_numbered(&store, "inst_2", "route_1", "1").await, "moved to a route where it is taken");
    let holder = store.instance_of_number("route_1", "1").await.unwrap().unwrap();
    assert_eq!(holder.id, "inst_1");
    assert!(put_numbered(&store, "inst_1", "route_1", "2").await);
    assert!(store.instance_of_number("route_1", "1").await.unwrap().is_none());
    assert!(put_numbered(&store, "inst_3", "route_1", "1").await);
    let mut transaction = store.begin_write().await.unwrap();
    instances::delete(&mut transaction, "inst_3").await.unwrap();
    transaction.commit().await.unwrap();
    assert!(put_numbered(&store, "inst_2", "route_1", "1").await);
}

/// Nothing refers to what is not there, and what is referred to cannot be removed.
pub(super) async fn references_are_kept(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    assert!(is_conflict(&put_instance(&store, instance("inst_2", "route_9")).await));
    let mut transaction = store.begin_write().await.unwrap();
    let orphan = webhook_subscriptions::put(&mut transaction, &mut subscription("sub_2", "inst_9")).await;
    assert!(is_conflict(&orphan));
    drop(transaction);
    let mut transaction = store.begin_write().await.unwrap();
    let mut policy = gateway_proto::v1::OptOutPolicy { instance_id: "inst_9".into(), ..Default::default() };
    let tenant_id = "default".parse().unwrap();
    assert!(is_conflict(&opt_out_policies::put(&mut transaction, &tenant_id, &mut policy).await));
    drop(transaction);
    let mut transaction = store.begin_write().await.unwrap();
    assert!(is_conflict(&inbound_routes::delete(&mut transaction, "route_1").await));
    drop(transaction);
    let mut transaction = store.begin_write().await.unwrap();
    assert!(is_conflict(&instances::delete(&mut transaction, "inst_1").await));
    drop(transaction);
    assert_eq!(store.version().await.unwrap(), 3);
}

/// A callback token leads to one route.
pub(super) async fn callback_tokens_are_unique(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    let mut transaction = store.begin_write().await.unwrap();
    let mut copy = route("route_2");
    copy.config.callback_token = "token-route_1".to_owned();
    assert!(is_conflict(&inbound_routes::put(&mut transaction, &mut copy).await));
    drop(transaction);
    put_route(&store, route("route_1")).await;
    put_route(&store, route("route_2")).await;
}
