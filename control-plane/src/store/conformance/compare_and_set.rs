//! Compare-and-set by etag: what a method of the API does with the etag of its caller, in one transaction.

use tokio::task::JoinSet;

use super::{Factory, fixtures::*};
use crate::store::{Store, instances};

/// What became of a change.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// It is made, and this is the new etag.
    Done(String),
    /// Somebody was faster.
    Stale,
    /// There is nothing to change.
    Absent,
}

/// Names an instance if it still has the etag.
async fn rename(store: &Store, id: &str, etag: &str, display_name: &str) -> Outcome {
    let mut transaction = store.begin_write().await.unwrap();
    let Some(mut found) = instances::find_any(&mut transaction, id).await.unwrap() else {
        return Outcome::Absent;
    };
    if found.etag != etag {
        return Outcome::Stale;
    }
    tokio::task::yield_now().await;
    found.display_name = display_name.to_owned();
    let number = found.provider_number_id.clone();
    instances::put(&mut transaction, &mut found, &number).await.unwrap();
    transaction.commit().await.unwrap();
    Outcome::Done(found.etag)
}

/// Of many that change what they have seen, one does, whose change stands; the others learn that they are late.
pub(super) async fn one_writer_wins(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    let mut etag = put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    for _ in 0..5 {
        let mut racing = JoinSet::new();
        for number in 0..8 {
            let (store, etag) = (store.clone(), etag.clone());
            racing.spawn(async move {
                let name = number.to_string();
                (rename(&store, "inst_1", &etag, &name).await, name)
            });
        }
        let outcomes = tokio::time::timeout(DEADLINE, racing.join_all()).await.unwrap();
        let (winners, others): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(outcome, _)| matches!(outcome, Outcome::Done(_)));
        assert!(others.iter().all(|(outcome, _)| *outcome == Outcome::Stale));
        let [(Outcome::Done(newest), name)] = winners.as_slice() else { panic!("{winners:?}") };
        let stands = store.instance("inst_1").await.unwrap().unwrap();
        assert_eq!((&stands.etag, &stands.display_name), (newest, name));
        etag.clone_from(newest);
    }
}

/// Whoever comes late learns whether the thing was changed or is gone.
pub(super) async fn stale_is_told_apart_from_absent(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    let etag = put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    assert!(matches!(rename(&store, "inst_1", &etag, "b").await, Outcome::Done(_)));
    assert_eq!(rename(&store, "inst_1", &etag, "c").await, Outcome::Stale);
    assert_eq!(rename(&store, "inst_9", &etag, "c").await, Outcome::Absent);
    let mut transaction = store.begin_write().await.unwrap();
    instances::delete(&mut transaction, "inst_1").await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(rename(&store, "inst_1", &etag, "c").await, Outcome::Absent);
}

/// An etag names one state for ever: not that of a change that was dropped, nor that of a resource that was removed and
/// made anew, nor one of before a restart.
pub(super) async fn etags_are_never_used_again(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    let mut seen = vec![put_instance(&store, instance("inst_1", "route_1")).await.unwrap()];
    let mut dropped = store.begin_write().await.unwrap();
    instances::put(&mut dropped, &mut instance("inst_1", "route_1"), "1").await.unwrap();
    drop(dropped);
    assert_eq!(store.instance("inst_1").await.unwrap().unwrap().etag, seen[0]);
    for _ in 0..2 {
        let store = factory.open().await;
        let mut transaction = store.begin_write().await.unwrap();
        instances::delete(&mut transaction, "inst_1").await.unwrap();
        transaction.commit().await.unwrap();
        for _ in 0..2 {
            let etag = put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
            assert!(!seen.contains(&etag), "{etag} again: {seen:?}");
            seen.push(etag);
        }
        store.close().await;
    }
}
