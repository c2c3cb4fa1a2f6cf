//! The version, and what changed since one.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use gateway_proto::v1::config_resource::Resource;
use tokio::task::JoinSet;

use super::{Factory, fixtures::*};
use crate::store::{inbound_routes, instances, webhook_subscriptions};

/// Committed versions count up by one, whoever writes at once, gives up, or starts anew; several changes of one
/// transaction have one.
pub(super) async fn versions_have_no_gap(factory: &impl Factory) {
    let mut committed = BTreeSet::new();
    for round in 0..2 {
        let stores = [factory.open().await, factory.open().await];
        let mut writing = JoinSet::new();
        for writer in 0..6 {
            let store = stores[writer % stores.len()].clone();
            writing.spawn(async move {
                let mut versions = Vec::new();
                for number in 0..8 {
                    let mut transaction = store.begin_write().await.unwrap();
                    let version = transaction.bump_version().await.unwrap();
                    let mut route = route(&format!("route_{round}_{writer}_{number}"));
                    inbound_routes::put(&mut transaction, &mut route).await.unwrap();
                    assert_eq!(transaction.bump_version().await.unwrap(), version);
                    if number % 3 != 1 {
                        transaction.commit().await.unwrap();
                        versions.push(version);
                    }
                }
                versions
            });
        }
        for version in tokio::time::timeout(DEADLINE, writing.join_all()).await.unwrap().concat() {
            assert!(committed.insert(version), "{version} twice");
        }
        for store in stores {
            assert_eq!(store.version().await.unwrap(), *committed.last().unwrap());
            store.close().await;
        }
    }
    let expected: BTreeSet<u64> = (1..=committed.len().try_into().unwrap()).collect();
    assert_eq!(committed, expected);
}

/// Whoever watches sees the version go up, to that of the last commit, and sees nothing of what was not committed. A
/// store that is opened knows the version at once.
pub(super) async fn versions_are_watched(factory: &impl Factory) {
    let store = factory.open().await;
    let mut watched = store.watch_version();
    assert_eq!(*watched.borrow_and_update(), 0);
    let mut dropped = store.begin_write().await.unwrap();
    inbound_routes::put(&mut dropped, &mut route("route_1")).await.unwrap();
    drop(dropped);
    put_tenant(&store, "acme").await;
    assert!(!watched.has_changed().unwrap(), "nothing that has a version was committed");
    let mut writing = JoinSet::new();
    for number in 0..20 {
        let store = store.clone();
        writing.spawn(async move { put_route(&store, route(&format!("route_{number}"))).await });
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&20) {
        tokio::time::timeout(DEADLINE, watched.changed()).await.unwrap().unwrap();
        let version = *watched.borrow_and_update();
        assert!(store.version().await.unwrap() >= version, "told of a version that is not there");
        seen.push(version);
    }
    assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    writing.join_all().await;
    assert_eq!(*factory.open().await.watch_version().borrow(), 20);
}

/// Changes come in the order in which they refer to each other; removals are remembered until the id comes
/// back, and a fresh agent hears of none.
pub(super) async fn changes_are_in_their_order(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    put_policy(&store, "inst_1").await;
    let all = store.changes_since(0).await.unwrap();
    assert_eq!(changed(&all), ["route_1", "inst_1", "inst_1", "sub_1"]);
    assert_eq!(all.upserts.iter().map(|resource| resource.version).collect::<Vec<_>>(), [1, 2, 4, 3]);
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut transaction, "sub_1").await.unwrap();
    instances::delete(&mut transaction, "inst_1").await.unwrap();
    inbound_routes::delete(&mut transaction, "route_1").await.unwrap();
    transaction.commit().await.unwrap();
    let changes = store.changes_since(4).await.unwrap();
    assert_eq!(
        removed(&changes),
        [
            ("webhook_subscription", "sub_1"),
            ("opt_out_policy", "inst_1"),
            ("instance", "inst_1"),
            ("inbound_route", "route_1")
        ]
    );
    assert_eq!((changes.version, changes.upserts.len()), (5, 0));
    assert!(store.changes_since(0).await.unwrap().removals.is_empty());
    assert!(store.changes_since(5).await.unwrap().removals.is_empty());
    put_route(&store, route("route_1")).await;
    put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    let changes = store.changes_since(4).await.unwrap();
    assert_eq!(changed(&changes), ["route_1", "inst_1"]);
    assert_eq!(removed(&changes), [("webhook_subscription", "sub_1"), ("opt_out_policy", "inst_1")]);
}

/// A route goes along with an instance that comes to it, changes on it or leaves it, and no other does.
pub(super) async fn routes_go_along_with_their_instances(factory: &impl Factory) {
    let store = factory.open().await;
    for id in ["route_1", "route_2", "route_3"] {
        put_route(&store, route(id)).await;
    }
    put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    assert_eq!(changed(&store.changes_since(3).await.unwrap()), ["route_1", "inst_1"]);
    put_instance(&store, instance("inst_1", "route_2")).await.unwrap();
    assert_eq!(changed(&store.changes_since(4).await.unwrap()), ["route_1", "route_2", "inst_1"]);
    let mut transaction = store.begin_write().await.unwrap();
    instances::delete(&mut transaction, "inst_1").await.unwrap();
    transaction.commit().await.unwrap();
    let changes = store.changes_since(5).await.unwrap();
    assert_eq!(
        (changed(&changes), removed(&changes)),
        (vec!["route_2".to_owned()], vec![("instance", "inst_1")])
    );
    // Which version it has stays the one in which it changed itself.
    assert_eq!(changes.upserts[0].version, 2);
}

/// The changes since a version are one state, whatever is committed while they are read: a route, its instance and its
/// subscription that only change together have one version, which is that of the whole.
pub(super) async fn changes_are_one_state(factory: &impl Factory) {
    let store = factory.open().await;
    let is_read = Arc::new(AtomicBool::new(false));
    let change_all = async |store: &crate::store::Store| {
        let mut transaction = store.begin_write().await.unwrap();
        inbound_routes::put(&mut transaction, &mut route("route_1")).await.unwrap();
        instances::put(&mut transaction, &mut instance("inst_1", "route_1"), "1").await.unwrap();
        webhook_subscriptions::put(&mut transaction, &mut subscription("sub_1", "inst_1")).await.unwrap();
        transaction.commit().await.unwrap();
    };
    change_all(&store).await;
    let (writer, done) = (store.clone(), Arc::clone(&is_read));
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        while !done.load(Ordering::Relaxed) {
            let mut transaction = writer.begin_write().await.unwrap();
            inbound_routes::put(&mut transaction, &mut route("route_1")).await.unwrap();
            instances::put(&mut transaction, &mut instance("inst_1", "route_1"), "1").await.unwrap();
            webhook_subscriptions::put(&mut transaction, &mut subscription("sub_1", "inst_1")).await.unwrap();
            transaction.commit().await.unwrap();
        }
    });
    let reading = async {
        let mut seen = Vec::new();
        while seen.len() < 60 || seen.first() == seen.last() {
            let changes = store.changes_since(0).await.unwrap();
            let versions: Vec<u64> = changes.upserts.iter().map(|resource| resource.version).collect();
            assert_eq!(versions, [changes.version; 3]);
            // What the etag says is the same version.
            let Some(Resource::Instance(instance)) = &changes.upserts[1].resource else {
                panic!("{changes:?}")
            };
            assert_eq!(instance.etag, store.etag(changes.version));
            seen.push(changes.version);
        }
    };
    let read = tokio::time::timeout(DEADLINE, reading).await;
    is_read.store(true, Ordering::Relaxed);
    read.unwrap();
    writing.join_all().await;
}
