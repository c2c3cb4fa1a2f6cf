//! Transactions: all or nothing, one at a time, and visible when they are committed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gateway_core::tenant::TenantScope;
use gateway_proto::v1;
use tokio::task::JoinSet;

use super::{Factory, fixtures::*};
use crate::{
    audit::{Audited, AuditedBy},
    store::{
        Store,
        audit::{self, AuditFilter},
        instances, opt_outs, work,
    },
};

const WRITERS: usize = 8;
const WRITES: u32 = 12;
const READS: usize = 40;

/// A transaction that is dropped leaves nothing of all that it wrote.
pub(super) async fn dropped_transactions_change_nothing(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    let before = store.changes_since(0).await.unwrap();
    let mut dropped = store.begin_write().await.unwrap();
    instances::put(&mut dropped, &mut instance("inst_2", "route_1"), "2").await.unwrap();
    crate::store::webhook_subscriptions::delete(&mut dropped, "sub_1").await.unwrap();
    opt_outs::record_reported(&mut dropped, &opt_out("+966500000001", 100)).await.unwrap();
    let task = v1::work::Work::TestEvent(v1::TestEventWork::default());
    let queued = v1::Work { id: "work_1".into(), work: Some(task) };
    let queued = work::NewWork { work: queued, regions: Vec::new() };
    work::insert(&mut dropped, &[queued]).await.unwrap();
    dropped.audit(AuditedBy::GATEWAY, Audited::default()).await.unwrap();
    drop(dropped);
    for store in [store.clone(), factory.open().await] {
        assert_eq!(store.changes_since(0).await.unwrap(), before);
        assert!(store.changes_since(before.version).await.unwrap().removals.is_empty());
        assert_eq!(store.opt_outs_since(0, 10).await.unwrap(), (vec![], 0));
        assert!(
            work::waiting(&store, work::WorkKind::TestEvent, ("eu", None), 0, 10).await.unwrap().is_empty()
        );
        let mut reader = store.reader().await.unwrap();
        assert!(audit::list(&mut reader, &AuditFilter::default(), None, 10).await.unwrap().is_empty());
    }
}

/// A statement that is refused takes its transaction with it, and the next one begins as if nothing had been.
pub(super) async fn refused_statements_change_nothing(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    let mut refused = store.begin_write().await.unwrap();
    instances::put(&mut refused, &mut instance("inst_2", "route_1"), "2").await.unwrap();
    let outcome = instances::put(&mut refused, &mut instance("inst_3", "route_9"), "3").await;
    assert!(is_conflict(&outcome), "{outcome:?}");
    drop(refused);
    assert_eq!(store.version().await.unwrap(), 3);
    assert!(store.instance("inst_2").await.unwrap().is_none());
    put_instance(&store, instance("inst_2", "route_1")).await.unwrap();
    assert_eq!(store.version().await.unwrap(), 4);
}

/// A transaction sees what it has written, and nobody else does until it is committed; then everybody does.
pub(super) async fn transactions_see_what_they_wrote(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    let mut transaction = store.begin_write().await.unwrap();
    instances::put(&mut transaction, &mut instance("inst_1", "route_1"), "1").await.unwrap();
    assert!(instances::find_any(&mut transaction, "inst_1").await.unwrap().is_some());
    assert!(store.instance("inst_1").await.unwrap().is_none());
    assert_eq!(store.version().await.unwrap(), 1);
    let mut reader = store.reader().await.unwrap();
    assert!(instances::find_any(&mut reader, "inst_1").await.unwrap().is_none());
    transaction.commit().await.unwrap();
    assert!(instances::find_any(&mut reader, "inst_1").await.unwrap().is_some());
    assert_eq!(store.version().await.unwrap(), 2);
}

async fn set_names(store: &Store, name: &str) {
    let mut transaction = store.begin_write().await.unwrap();
    for id in ["inst_1", "inst_2"] {
        let mut changed = instance(id, "route_1");
        changed.display_name = name.to_owned();
        instances::put(&mut transaction, &mut changed, id).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

/// Two instances that only ever change together are the same in every query that gives both.
pub(super) async fn half_transactions_are_not_seen(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    set_names(&store, "0").await;
    let is_read = Arc::new(AtomicBool::new(false));
    let (writer, done) = (store.clone(), Arc::clone(&is_read));
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        let mut number = 0_u32;
        while !done.load(Ordering::Relaxed) {
            number += 1;
            set_names(&writer, &number.to_string()).await;
        }
    });
    let mut reading = JoinSet::new();
    for _ in 0..3 {
        let store = store.clone();
        reading.spawn(async move {
            let mut seen: Vec<u32> = Vec::new();
            while seen.len() < READS || seen.first() == seen.last() {
                let mut reader = store.reader().await.unwrap();
                let both = instances::list(&mut reader, &TenantScope::All, None, None, 10).await.unwrap();
                let [one, other] = both.as_slice() else { panic!("both are there, not {}", both.len()) };
                assert_eq!(one.display_name, other.display_name);
                seen.push(one.display_name.parse().unwrap());
            }
            assert!(seen.is_sorted(), "what was committed is seen by whoever reads later: {seen:?}");
        });
    }
    let read = tokio::time::timeout(DEADLINE, reading.join_all()).await;
    is_read.store(true, Ordering::Relaxed);
    read.unwrap();
    writing.join_all().await;
}

/// Writers that read a value and write it back, one more, lose nothing, however many write at once.
pub(super) async fn writers_take_turns(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    let mut counter = instance("inst_1", "route_1");
    counter.display_name = "0".to_owned();
    put_instance(&store, counter).await.unwrap();
    // Two stores over one database are two processes, as far as it knows.
    let stores = [store.clone(), factory.open().await];
    let mut writing = JoinSet::new();
    for number in 0..WRITERS {
        let store = stores[number % stores.len()].clone();
        writing.spawn(async move {
            for _ in 0..WRITES {
                let mut transaction = store.begin_write().await.unwrap();
                let mut found = instances::find_any(&mut transaction, "inst_1").await.unwrap().unwrap();
                tokio::task::yield_now().await;
                found.display_name = (found.display_name.parse::<u32>().unwrap() + 1).to_string();
                let number = found.provider_number_id.clone();
                instances::put(&mut transaction, &mut found, &number).await.unwrap();
                transaction.commit().await.unwrap();
            }
        });
    }
    tokio::time::timeout(DEADLINE, writing.join_all()).await.unwrap();
    let counter = store.instance("inst_1").await.unwrap().unwrap();
    let written = WRITES * u32::try_from(WRITERS).unwrap();
    assert_eq!(counter.display_name, written.to_string());
    assert_eq!(store.version().await.unwrap(), u64::from(written) + 2);
}

/// Whoever asked is told of a commit once, after it, and not of a transaction that is dropped or refused.
pub(super) async fn commits_are_told_of(factory: &impl Factory) {
    let store = factory.open().await;
    let (told, mut heard) = tokio::sync::mpsc::channel(10);
    let tell = |name: &'static str| {
        let told = told.clone();
        move || told.try_send(name).unwrap()
    };
    let mut dropped = store.begin_write().await.unwrap();
    dropped.after_commit(tell("dropped"));
    drop(dropped);
    let mut transaction = store.begin_write().await.unwrap();
    transaction.bump_version().await.unwrap();
    transaction.after_commit(tell("one"));
    transaction.after_commit(tell("two"));
    assert!(heard.is_empty());
    transaction.commit().await.unwrap();
    assert_eq!((heard.try_recv().unwrap(), heard.try_recv().unwrap()), ("one", "two"));
    assert!(heard.is_empty());
}

/// A commit whose caller goes away goes on, and is told of.
pub(super) async fn commits_go_on_without_their_caller(factory: &impl Factory) {
    let store = factory.open().await;
    let mut watched = store.watch_version();
    for version in 1..=5 {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut transaction = store.begin_write().await.unwrap();
        transaction.bump_version().await.unwrap();
        transaction.after_commit(move || tell.send(()).unwrap());
        let mut commit = Box::pin(transaction.commit());
        let _ = futures_util::poll!(commit.as_mut());
        drop(commit);
        tokio::time::timeout(DEADLINE, told).await.unwrap().unwrap();
        assert_eq!(*watched.borrow_and_update(), version);
        assert_eq!(store.version().await.unwrap(), version);
    }
}

/// Trying to write takes a turn like any writer, and changes nothing that anybody reads.
pub(super) async fn writing_is_tried(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    let before = store.changes_since(0).await.unwrap();
    for _ in 0..3 {
        store.try_write().await.unwrap();
    }
    assert_eq!(store.changes_since(0).await.unwrap(), before);
    let turn = store.begin_write().await.unwrap();
    let mut trying = Box::pin(store.try_write());
    assert!(futures_util::poll!(trying.as_mut()).is_pending());
    drop(turn);
    tokio::time::timeout(DEADLINE, trying).await.unwrap().unwrap();
}
