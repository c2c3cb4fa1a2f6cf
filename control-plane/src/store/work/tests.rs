//! The queue on disk: sealed, also what was written before; taken over once.

use std::path::Path;

use super::*;
use crate::{
    sealing::{RootKeys, rewrap},
    store::{FILE_NAME, sqlite::testing},
};

/// Stands for what people write.
const PLANTED: &str = "planted-message-text";

fn hand_over(number: u32) -> NewWork {
    let log = v1::InboundLog { payload_json: PLANTED.to_owned(), ..Default::default() };
    let delivery = v1::Delivery { subscription_id: "sub_1".to_owned(), ..Default::default() };
    let hand_over =
        v1::DeliveryHandOver { inbound_log: Some(log), delivery: Some(delivery), ..Default::default() };
    let work = v1::Work { id: format!("work_{number}"), work: Some(Task::DeliveryHandOver(hand_over)) };
    NewWork { work, regions: vec!["eu".to_owned()] }
}

fn callback(id: &str) -> v1::Work {
    let callback = v1::UnroutedCallback { payload_json: PLANTED.to_owned(), ..Default::default() };
    v1::Work { id: id.to_owned(), work: Some(Task::UnroutedCallback(callback)) }
}

fn on_disk(directory: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let of_database = files.filter(|path| path.to_string_lossy().contains(FILE_NAME));
    // The log of the database goes with the last connection to it, which may be now.
    of_database.filter_map(|path| std::fs::read(path).ok()).flatten().collect()
}

fn shows(bytes: &[u8]) -> bool {
    bytes.windows(PLANTED.len()).any(|window| window == PLANTED.as_bytes())
}

async fn callbacks(store: &Store) -> Vec<v1::Work> {
    let rows = waiting(store, WorkKind::UnroutedCallback, ("eu", None), 0, 10).await.unwrap();
    let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
    read(store, &seqs).await.unwrap().into_iter().map(|(_, work)| work.unwrap()).collect()
}

/// What an earlier program queued in the clear is given out as before, and no file shows it any more; nor does any
/// what is queued now. New data keys keep it.
#[tokio::test]
async fn what_people_wrote_is_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let earlier = callback("work_earlier");
    let queued =
        "INSERT INTO work (id, regions, create_time, body) VALUES ('work_earlier', ' eu us ', 7, ?1)";
    testing::change(directory.path(), queued, &earlier.encode_to_vec()).await;
    store.close().await;
    assert!(shows(&on_disk(directory.path())), "the test sees what is in the clear");
    let store = Store::open(directory.path()).await.unwrap();
    let now = callback("work_now");
    let mut tx = store.begin_write().await.unwrap();
    insert(&mut tx, &[NewWork { work: now.clone(), regions: Vec::new() }]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(callbacks(&store).await, [earlier.clone(), now.clone()]);
    let elsewhere = waiting(&store, WorkKind::UnroutedCallback, ("af", None), 0, 10).await.unwrap();
    assert_eq!(elsewhere.len(), 1, "regions are kept");
    let counts = counts(&store).await.unwrap();
    assert_eq!(
        counts.iter().map(|count| (count.kind, count.count)).collect::<Vec<_>>(),
        [(WorkKind::UnroutedCallback, 2)]
    );
    assert_eq!(counts[0].oldest, Timestamp::from_microsecond(7).unwrap(), "it was queued then");
    let root_keys = rewrap::existing(&RootKeys::of_data_dir(directory.path())).unwrap();
    store.rewrap(&root_keys, true, |_| {}).await.unwrap();
    assert_eq!(callbacks(&store).await, [earlier, now]);
    store.close().await;
    assert!(!shows(&on_disk(directory.path())));
    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(callbacks(&store).await.len(), 2, "and after a restart");
}

/// Sealed work that was changed in the database is told apart from the rest, which is read.
#[tokio::test]
async fn changed_work_is_refused_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let mut tx = store.begin_write().await.unwrap();
    let all = ["one", "two"].map(|id| NewWork { work: callback(id), regions: Vec::new() });
    insert(&mut tx, &all).await.unwrap();
    tx.commit().await.unwrap();
    let swap =
        "UPDATE queued_work SET body = (SELECT body FROM queued_work WHERE id = 'two') WHERE id = 'one'";
    testing::execute(directory.path(), swap).await;
    let read = read(&store, &[1, 2]).await.unwrap();
    assert!(read[0].1.is_err() && read[1].1.as_ref().is_ok_and(|work| work.id == "two"));
}

/// A report that comes again brings nothing back that is done, and one that comes later is taken; another buffer has
/// sequences of its own.
#[tokio::test]
async fn a_repeated_report_queues_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let count = async || counts(&store).await.unwrap().iter().map(|count| count.count).sum::<i64>();
    hand_over_all(&store, "buf_1", &[(4, 1), (5, 2)]).await;
    assert_eq!(count().await, 2);
    let mut tx = store.begin_write().await.unwrap();
    delete(&mut tx, &["work_1".to_owned(), "work_2".to_owned()]).await.unwrap();
    tx.commit().await.unwrap();
    hand_over_all(&store, "buf_1", &[(4, 1), (5, 2), (6, 3)]).await;
    assert_eq!(count().await, 1);
    hand_over_all(&store, "buf_2", &[(1, 4), (2, 3)]).await;
    assert_eq!(count().await, 2, "the same delivery is queued once");
}

async fn hand_over_all(store: &Store, buffer_id: &str, given: &[(u64, u32)]) {
    let given = given.iter().map(|(sequence, number)| (*sequence, hand_over(*number)));
    super::hand_over(store, ("agt_1", buffer_id), given.collect(), || {}).await.unwrap();
}

/// What is kept of buffers is bounded: of each agent those used last, of none what is old, of a revoked one nothing.
#[tokio::test]
async fn positions_of_buffers_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let position =
        async |id: &str| store.reader().await.unwrap().rows().hand_over_position("agt_1", id).await.unwrap();
    let long_ago = Timestamp::from_second(1_000).unwrap();
    let mut tx = store.begin_write().await.unwrap();
    tx.writes().set_hand_over_position("agt_2", "buf_old", 9, long_ago).await.unwrap();
    tx.commit().await.unwrap();
    for number in 0..=POSITIONS_KEPT {
        hand_over_all(&store, &format!("buf_{number:02}"), &[(1, number)]).await;
    }
    hand_over_all(&store, "buf_01", &[(2, 101)]).await;
    hand_over_all(&store, "buf_new", &[(1, 102)]).await;
    assert_eq!([position("buf_00").await, position("buf_02").await], [0, 0]);
    assert_eq!([position("buf_01").await, position("buf_new").await], [2, 1]);
    let of_others =
        store.reader().await.unwrap().rows().hand_over_position("agt_2", "buf_old").await.unwrap();
    assert_eq!(of_others, 0);
    let mut tx = store.begin_write().await.unwrap();
    crate::store::agents::revoke(&mut tx, "agt_1", clock::now()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(position("buf_01").await, 0);
}
