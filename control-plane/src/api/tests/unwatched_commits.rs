//! Changes whose caller goes away.

use std::task::Poll;

use crate::store::Store;

/// How long anything may take that is to happen.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// The caller of a change goes away while it is being committed, as one whose deadline passes does: everybody who is
/// to hear of the change still does, and the next writer gets its turn. One who goes away before changes nothing.
#[tokio::test]
async fn commits_are_told_without_their_caller() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let mut version = store.watch_version();
    let before = *version.borrow_and_update();
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut transaction = store.begin_write().await.unwrap();
    transaction.bump_version().await.unwrap();
    transaction.after_commit(move || assert_eq!(tell.send(()), Ok(())));
    let mut commit = Box::pin(transaction.commit());
    assert!(matches!(futures_util::poll!(&mut commit), Poll::Pending));
    drop(commit);
    tokio::time::timeout(DEADLINE, told).await.unwrap().expect("the change is told");
    tokio::time::timeout(DEADLINE, version.changed()).await.expect("the version is told").unwrap();
    assert_eq!((*version.borrow(), store.version().await.unwrap()), (before + 1, before + 1));

    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let mut transaction = store.begin_write().await.unwrap();
    transaction.bump_version().await.unwrap();
    transaction.after_commit(move || assert_eq!(tell.send(()), Ok(())));
    drop(transaction);
    assert!(told.await.is_err(), "what was not committed is not told");
    let next = tokio::time::timeout(DEADLINE, store.begin_write()).await.unwrap().unwrap();
    drop(next);
    assert_eq!(store.version().await.unwrap(), before + 1);
    store.close().await;
}
