//! Answers to requests that are repeated.

use gateway_proto::v1;
use tokio::task::JoinSet;

use super::{Factory, fixtures::*};
use crate::store::{
    Store,
    requests::{self, Recalled, RequestKey},
};

/// Does what a creation does: answers with a new tenant named `id`, unless it was answered before. None when another
/// request had the name.
async fn create(store: &Store, owner: &str, request_id: &str, body: &str, id: &str) -> Option<String> {
    let mut transaction = store.begin_write().await.unwrap();
    let key = RequestKey::new(owner, "CreateTenant", request_id, &[body.into()]);
    match requests::recall::<v1::Tenant>(&mut transaction, &key).await.unwrap() {
        Recalled::New => {}
        Recalled::Answered(first) => return Some(first.id),
        Recalled::Different => return None,
    }
    let tenant = v1::Tenant { id: id.to_owned(), ..Default::default() };
    requests::remember(&mut transaction, &key, &tenant).await.unwrap();
    transaction.commit().await.unwrap();
    Some(tenant.id)
}

/// A repeat gets the first answer, also after a restart; another request with the same name is refused, and the names
/// of tenants do not meet. Without a name every request is a new one.
pub(super) async fn repeats_get_the_first_answer(factory: &impl Factory) {
    let store = factory.open().await;
    assert_eq!(create(&store, "acme", "r1", "body", "first").await.as_deref(), Some("first"));
    store.close().await;
    let store = factory.open().await;
    assert_eq!(create(&store, "acme", "r1", "body", "second").await.as_deref(), Some("first"));
    assert_eq!(create(&store, "acme", "r1", "other", "third").await, None);
    assert_eq!(create(&store, "acme", "r2", "other", "third").await.as_deref(), Some("third"));
    assert_eq!(create(&store, "other", "r1", "body", "theirs").await.as_deref(), Some("theirs"));
    assert_eq!(create(&store, "", "r1", "body", "platform's").await.as_deref(), Some("platform's"));
    assert_eq!(create(&store, "acme", "", "body", "a").await.as_deref(), Some("a"));
    assert_eq!(create(&store, "acme", "", "body", "b").await.as_deref(), Some("b"));
    let mut dropped = store.begin_write().await.unwrap();
    let key = RequestKey::new("acme", "CreateTenant", "r3", &[b"body".to_vec()]);
    requests::remember(&mut dropped, &key, &v1::Tenant::default()).await.unwrap();
    drop(dropped);
    assert_eq!(create(&store, "acme", "r3", "body", "new").await.as_deref(), Some("new"));
}

/// However many send the same request at once, one answer is given to all.
pub(super) async fn concurrent_repeats_are_answered_once(factory: &impl Factory) {
    let store = factory.open().await;
    let mut racing = JoinSet::new();
    for number in 0..8 {
        let store = store.clone();
        racing.spawn(async move { create(&store, "acme", "r1", "body", &number.to_string()).await.unwrap() });
    }
    let answers = tokio::time::timeout(DEADLINE, racing.join_all()).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}
