//! The queue of work: in its order, at least once, once by id.

use gateway_proto::v1::{self, work::Work as Task};

use super::{Factory, fixtures::*};
use crate::store::{
    Store,
    work::{self, NewWork, WorkKind},
};

fn test_event(id: &str, subscription_id: &str) -> v1::Work {
    let event = v1::TestEventWork { subscription_id: subscription_id.into(), ..Default::default() };
    v1::Work { id: id.to_owned(), work: Some(Task::TestEvent(event)) }
}

async fn queue(store: &Store, regions: &[&str], all: &[v1::Work]) {
    let regions: Vec<String> = regions.iter().map(|region| (*region).to_owned()).collect();
    let mut transaction = store.begin_write().await.unwrap();
    let all: Vec<_> =
        all.iter().map(|work| NewWork { work: work.clone(), regions: regions.clone() }).collect();
    work::insert(&mut transaction, &all).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn remove(store: &Store, ids: &[&str]) {
    let mut transaction = store.begin_write().await.unwrap();
    let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    work::delete(&mut transaction, &ids).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn of_kind(store: &Store, kind: WorkKind, region: &str, tenant_id: Option<&str>) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = work::waiting(store, kind, (region, tenant_id), after, 2).await.unwrap();
        let Some(last) = page.last() else { return all };
        assert!(page.is_sorted_by(|one, next| one.seq < next.seq) && page[0].seq > after);
        after = last.seq;
        all.extend(page.into_iter().map(|one| one.id));
    }
}

async fn queued(store: &Store, region: &str) -> Vec<String> {
    of_kind(store, WorkKind::TestEvent, region, None).await
}

/// Work comes in the order in which it was queued, whatever its ids, again and again until it is deleted; also after a
/// restart. Deleting what is not there is no error.
pub(super) async fn work_is_kept_in_order_until_deleted(factory: &impl Factory) {
    let store = factory.open().await;
    for id in ["work_c", "work_a", "work_e", "work_b", "work_d"] {
        queue(&store, &[], &[test_event(id, "sub_1")]).await;
    }
    let all = ["work_c", "work_a", "work_e", "work_b", "work_d"];
    assert_eq!(queued(&store, "eu").await, all);
    assert_eq!(queued(&store, "eu").await, all);
    store.close().await;
    let store = factory.open().await;
    assert_eq!(queued(&store, "eu").await, all);
    remove(&store, &["work_a", "work_9", "work_a"]).await;
    let mut dropped = store.begin_write().await.unwrap();
    work::delete(&mut dropped, &["work_c".to_owned()]).await.unwrap();
    drop(dropped);
    assert_eq!(queued(&store, "eu").await, ["work_c", "work_e", "work_b", "work_d"]);
}

/// Work whose id is in the queue is it: the first stays, where it is. An id that was deleted is queued anew.
pub(super) async fn work_is_queued_once_by_id(factory: &impl Factory) {
    let store = factory.open().await;
    queue(&store, &["eu"], &[test_event("work_1", "sub_1"), test_event("work_2", "sub_1")]).await;
    queue(&store, &["us"], &[test_event("work_1", "sub_9"), test_event("work_3", "sub_1")]).await;
    assert_eq!(queued(&store, "eu").await, ["work_1", "work_2"]);
    assert_eq!(queued(&store, "us").await, ["work_3"]);
    let first = work::waiting(&store, WorkKind::TestEvent, ("eu", None), 0, 1).await.unwrap()[0].seq;
    let (_, first) = work::read(&store, &[first]).await.unwrap().remove(0);
    assert_eq!(first.unwrap(), test_event("work_1", "sub_1"));
    remove(&store, &["work_1"]).await;
    queue(&store, &["eu"], &[test_event("work_1", "sub_9")]).await;
    assert_eq!(queued(&store, "eu").await, ["work_2", "work_1"]);
}

/// A place belongs to one piece of work for ever, also when that was the last one and is gone: who has read up to a
/// place misses nothing that comes later.
pub(super) async fn places_are_never_given_again(factory: &impl Factory) {
    let mut newest = 0;
    for round in 0..3 {
        let store = factory.open().await;
        for number in 0..3 {
            let id = format!("work_{round}_{number}");
            queue(&store, &[], &[test_event(&id, "sub_1")]).await;
            let found = work::waiting(&store, WorkKind::TestEvent, ("eu", None), newest, 10).await.unwrap();
            assert_eq!(found.iter().map(|one| &one.id).collect::<Vec<_>>(), [&id]);
            newest = found[0].seq;
            remove(&store, &[&id]).await;
        }
        store.close().await;
    }
}

/// Work goes to the regions that it names, to all when it names none, and to no other whose name is part of one.
pub(super) async fn work_goes_to_its_regions(factory: &impl Factory) {
    let store = factory.open().await;
    queue(&store, &["eu-1", "us"], &[test_event("work_1", "sub_1")]).await;
    queue(&store, &[], &[test_event("work_2", "sub_1")]).await;
    queue(&store, &["eu"], &[test_event("work_3", "sub_1")]).await;
    assert_eq!(queued(&store, "eu-1").await, ["work_1", "work_2"]);
    assert_eq!(queued(&store, "us").await, ["work_1", "work_2"]);
    assert_eq!(queued(&store, "eu").await, ["work_2", "work_3"]);
    for other in ["u", "eu-", "e", "-1", "s", "eu-11"] {
        assert_eq!(queued(&store, other).await, ["work_2"], "{other}");
    }
}

/// Agents of a tenant are given what concerns its instances on its own routes: nothing of others, nothing on a platform
/// route, nothing that is not there.
pub(super) async fn work_is_of_tenants(factory: &impl Factory) {
    let store = factory.open().await;
    for (tenant, suffix) in [("acme", "acme"), ("other", "other"), ("", "platform")] {
        put_route(&store, route_of(tenant, &format!("route_{suffix}"))).await;
    }
    for (tenant, id, route) in
        [("acme", "own", "route_acme"), ("acme", "away", "route_platform"), ("other", "other", "route_other")]
    {
        put_instance(&store, instance_of(tenant, &format!("inst_{id}"), route)).await.unwrap();
        let config = subscription_of(tenant, &format!("sub_{id}"), &format!("inst_{id}"));
        put_subscription(&store, config).await;
    }
    let mut all = Vec::new();
    for id in ["own", "away", "other", "gone"] {
        all.push(test_event(&format!("test_{id}"), &format!("sub_{id}")));
        let opt_out = v1::OptOut { instance_id: format!("inst_{id}"), ..Default::default() };
        all.push(v1::Work { id: format!("opt_out_{id}"), work: Some(Task::OptOut(opt_out)) });
    }
    for id in ["acme", "other", "platform"] {
        let callback = v1::UnroutedCallback { inbound_route_id: format!("route_{id}"), ..Default::default() };
        all.push(v1::Work { id: format!("callback_{id}"), work: Some(Task::UnroutedCallback(callback)) });
    }
    queue(&store, &[], &all).await;
    let of = async |tenant_id: &str| {
        let mut own = Vec::new();
        for kind in [WorkKind::TestEvent, WorkKind::OptOut, WorkKind::UnroutedCallback] {
            own.extend(of_kind(&store, kind, "eu", Some(tenant_id)).await);
        }
        own
    };
    assert_eq!(of("acme").await, ["test_own", "opt_out_own", "callback_acme"]);
    assert_eq!(of("other").await, ["test_other", "opt_out_other", "callback_other"]);
    assert!(of("").await.is_empty() && of("nobody").await.is_empty());
    assert_eq!(queued(&store, "eu").await.len(), 4, "the platform's agents are given all");
}

fn hand_over(id: &str) -> v1::Work {
    let log = v1::InboundLog { tenant_id: "acme".into(), instance_id: "inst_1".into(), ..Default::default() };
    let delivery = v1::Delivery { subscription_id: "sub_1".into(), ..Default::default() };
    let hand_over =
        v1::DeliveryHandOver { inbound_log: Some(log), delivery: Some(delivery), ..Default::default() };
    v1::Work { id: id.to_owned(), work: Some(Task::DeliveryHandOver(hand_over)) }
}

/// Deliveries wait where agents know their webhook subscription: in the region in which they were given away as long
/// as it serves the instance, otherwise in the first one that does, whose agents must use that configuration.
pub(super) async fn deliveries_follow_their_instance(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route_of("acme", "route_1")).await;
    let served = async |regions: &[&str]| {
        let regions = regions.iter().map(|region| (*region).to_owned()).collect();
        let instance = v1::Instance { regions, ..instance_of("acme", "inst_1", "route_1") };
        put_instance(&store, instance).await.unwrap();
    };
    let waiting = async |region| of_kind(&store, WorkKind::DeliveryHandOver, region, None).await;
    served(&[]).await;
    put_subscription(&store, subscription_of("acme", "sub_1", "inst_1")).await;
    queue(&store, &["eu"], &[hand_over("work_1")]).await;
    served(&["us", "eu"]).await;
    queue(&store, &["us"], &[hand_over("work_2")]).await;
    assert_eq!([waiting("eu").await, waiting("us").await], [["work_1"], ["work_2"]]);
    served(&["af", "us"]).await;
    assert_eq!([waiting("eu").await.len(), waiting("us").await.len()], [0, 1]);
    assert_eq!(waiting("af").await, ["work_1"]);
    let moved = work::waiting(&store, WorkKind::DeliveryHandOver, ("af", None), 0, 1).await.unwrap();
    assert_eq!(moved[0].version, store.version().await.unwrap());
    queue(&store, &["eu"], &[hand_over("work_3")]).await;
    assert_eq!(waiting("af").await, ["work_1", "work_3"], "given away by an agent that had it still");
}
