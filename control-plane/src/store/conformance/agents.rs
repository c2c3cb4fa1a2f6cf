//! Agents, their tokens and their damages; uses of API keys.

use gateway_proto::v1;
use tokio::task::JoinSet;

use super::{Factory, fixtures::*};
use crate::store::{
    Store,
    agents::{self, BUFFER_DAMAGES_MAX, Holder, JoinToken, NewAgent},
    api_keys,
    damaged::Found,
    fleet,
};

async fn enroll(store: &Store, number: u8, tenant_id: Option<&str>, seconds: i64) {
    let agent = NewAgent {
        id: format!("agt_{number}"),
        region: "eu".into(),
        build: "1.0".into(),
        credential_hash: [number; 32],
        tenant_id: tenant_id.map(str::to_owned),
        certificate_expire_time: None,
    };
    let mut transaction = store.begin_write().await.unwrap();
    agents::create_agent(&mut transaction, &agent, at(seconds)).await.unwrap();
    transaction.commit().await.unwrap();
}

/// A join token that has not expired is given to one of those who come with it at once, and comes back when that one's
/// transaction is dropped.
pub(super) async fn join_tokens_are_used_once(factory: &impl Factory) {
    let store = factory.open().await;
    let token =
        JoinToken { region: "eu".into(), tenant_id: Some("acme".into()), created_by: "api_key:key_1".into() };
    let mut transaction = store.begin_write().await.unwrap();
    agents::create_join_token(&mut transaction, &[1; 32], &token, at(1), at(100)).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(agents::is_join_token(&store, &[1; 32], at(99)).await.unwrap());
    assert!(!agents::is_join_token(&store, &[1; 32], at(100)).await.unwrap());
    assert!(!agents::is_join_token(&store, &[2; 32], at(99)).await.unwrap());
    let mut dropped = store.begin_write().await.unwrap();
    assert!(agents::consume_join_token(&mut dropped, &[1; 32], at(100)).await.unwrap().is_none());
    let taken = agents::consume_join_token(&mut dropped, &[1; 32], at(99)).await.unwrap();
    assert_eq!(taken, Some(token.clone()));
    drop(dropped);
    let mut racing = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        racing.spawn(async move {
            let mut transaction = store.begin_write().await.unwrap();
            let taken = agents::consume_join_token(&mut transaction, &[1; 32], at(99)).await.unwrap();
            transaction.commit().await.unwrap();
            taken
        });
    }
    let taken = tokio::time::timeout(DEADLINE, racing.join_all()).await.unwrap();
    assert_eq!(taken.into_iter().flatten().collect::<Vec<_>>(), std::slice::from_ref(&token));
    // A new token takes the expired ones along.
    let mut transaction = store.begin_write().await.unwrap();
    agents::create_join_token(&mut transaction, &[3; 32], &token, at(1), at(50)).await.unwrap();
    agents::create_join_token(&mut transaction, &[4; 32], &token, at(60), at(90)).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(!agents::is_join_token(&store, &[3; 32], at(10)).await.unwrap());
}

/// A credential leads to its agent, and no two agents have one.
pub(super) async fn credentials_name_their_agent(factory: &impl Factory) {
    let store = factory.open().await;
    enroll(&store, 1, Some("acme"), 5).await;
    enroll(&store, 2, None, 6).await;
    let Some(Holder::Agent(agent)) = agents::find_by_credential_hash(&store, &[1; 32]).await.unwrap() else {
        panic!("agent 1 has a credential")
    };
    assert_eq!((agent.agent_id.as_str(), agent.tenant_id.as_deref()), ("agt_1", Some("acme")));
    assert!(!agent.has_certificate);
    assert_eq!(agents::find_by_credential_hash(&store, &[9; 32]).await.unwrap(), None);
    let copy = NewAgent {
        id: "agt_3".into(),
        region: "eu".into(),
        build: String::new(),
        credential_hash: [1; 32],
        tenant_id: None,
        certificate_expire_time: None,
    };
    let mut transaction = store.begin_write().await.unwrap();
    assert!(is_conflict(&agents::create_agent(&mut transaction, &copy, at(7)).await));
    drop(transaction);
    agents::record_connection(&store, "agt_1", "1.1", at(8)).await.unwrap();
    assert!(agents::record_certificate(&store, "agt_1", at(1_000)).await.unwrap());
    store.close().await;
    let row = agents::get(&factory.open().await, "agt_1").await.unwrap().unwrap();
    assert_eq!((row.create_time, row.last_seen_time, row.build.as_str()), (at(5), at(8), "1.1"));
    assert_eq!((row.certificate_expire_time, row.revoke_time), (Some(at(1_000)), None));
}

/// A revoked agent stays revoked since the first time, gets no certificate, and is not among its tenant's working ones.
pub(super) async fn revocation_is_final(factory: &impl Factory) {
    let store = factory.open().await;
    for number in [1, 2, 3] {
        enroll(&store, number, (number < 3).then_some("acme"), 5).await;
    }
    for seconds in [10, 20] {
        let mut transaction = store.begin_write().await.unwrap();
        agents::revoke(&mut transaction, "agt_1", at(seconds)).await.unwrap();
        transaction.commit().await.unwrap();
    }
    assert_eq!(agents::get(&store, "agt_1").await.unwrap().unwrap().revoke_time, Some(at(10)));
    assert_eq!(agents::find_by_credential_hash(&store, &[1; 32]).await.unwrap(), Some(Holder::Revoked));
    assert!(!agents::record_certificate(&store, "agt_1", at(1_000)).await.unwrap());
    assert!(agents::is_revoked(&store, "agt_1").await.unwrap());
    assert!(!agents::is_revoked(&store, "agt_2").await.unwrap());
    assert!(agents::is_revoked(&store, "agt_9").await.unwrap(), "one that is not there");
    let mut reader = store.reader().await.unwrap();
    assert_eq!(agents::working_of_tenant(&mut reader, "acme", 10).await.unwrap(), ["agt_2"]);
}

/// A damage is kept once, however often it is reported; the newest come first, and only the newest stay.
pub(super) async fn damages_are_kept_once(factory: &impl Factory) {
    let store = factory.open().await;
    let damage = |number: u32| v1::BufferDamage { cause: format!("cause {number}"), ..Default::default() };
    for number in 0..BUFFER_DAMAGES_MAX + 2 {
        assert!(agents::record_buffer_damage(&store, "agt_2", &damage(number)).await.unwrap());
        assert!(!agents::record_buffer_damage(&store, "agt_2", &damage(number)).await.unwrap());
    }
    assert!(agents::record_buffer_damage(&store, "agt_1", &damage(0)).await.unwrap());
    assert!(agents::record_buffer_damage(&store, "agt_4", &damage(0)).await.unwrap());
    let found = agents::buffer_damages(&store, "agt_1", "agt_3").await.unwrap();
    let expected: Vec<_> = (2..BUFFER_DAMAGES_MAX + 2).rev().map(damage).collect();
    assert_eq!((found.len(), &found["agt_2"], &found["agt_1"]), (2, &expected, &vec![damage(0)]));
}

/// Who is to drain is known since when it was first asked, until it is not to; agents that were heard within an hour
/// of the last make up the fleet, and hearing of an earlier time changes nothing.
pub(super) async fn drains_and_the_fleet_are_counted(factory: &impl Factory) {
    let store = factory.open().await;
    assert_eq!(fleet::size(&store).await.unwrap(), 0);
    for number in [1, 2, 3] {
        enroll(&store, number, None, 1_000).await;
    }
    for (drains, seconds) in [(true, 5), (true, 9)] {
        let mut transaction = store.begin_write().await.unwrap();
        fleet::set_drain(&mut transaction, "agt_1", drains, at(seconds)).await.unwrap();
        transaction.commit().await.unwrap();
    }
    assert!(fleet::is_to_drain(&store, "agt_1").await.unwrap());
    assert!(!fleet::is_to_drain(&store, "agt_2").await.unwrap());
    assert_eq!(
        fleet::drains(&store).await.unwrap().into_iter().collect::<Vec<_>>(),
        [("agt_1".into(), at(5))]
    );
    let mut transaction = store.begin_write().await.unwrap();
    fleet::set_drain(&mut transaction, "agt_1", false, at(10)).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(fleet::drains(&store).await.unwrap().is_empty());
    let seen = |id: &str, seconds| (id.to_owned(), at(seconds));
    fleet::record_seen(&store, &[seen("agt_1", 5_000), seen("agt_2", 8_600), seen("agt_9", 1)])
        .await
        .unwrap();
    assert_eq!(fleet::size(&store).await.unwrap(), 2);
    fleet::record_seen(&store, &[seen("agt_1", 4_000), seen("agt_2", 8_601)]).await.unwrap();
    assert_eq!(agents::get(&store, "agt_1").await.unwrap().unwrap().last_seen_time, at(5_000));
    assert_eq!(fleet::size(&store).await.unwrap(), 1);
}

/// A use is noted beside the key, which stays as it is; the key is found by its secret, and by its id among others.
pub(super) async fn uses_of_keys_are_noted(factory: &impl Factory) {
    let store = factory.open().await;
    let key = v1::ApiKey { id: "key_1".into(), tenant_id: "acme".into(), ..Default::default() };
    let mut transaction = store.begin_write().await.unwrap();
    api_keys::create(&mut transaction, &key, &[1; 32]).await.unwrap();
    transaction.commit().await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let copy = v1::ApiKey { id: "key_2".into(), ..key.clone() };
    assert!(is_conflict(&api_keys::create(&mut transaction, &copy, &[1; 32]).await));
    drop(transaction);
    api_keys::record_uses(&store, &[("key_1".into(), at(7)), ("key_9".into(), at(7))]).await.unwrap();
    let used = v1::ApiKey { last_use_time: Some(gateway_core::time::to_proto(at(7))), ..key.clone() };
    let found = api_keys::find_by_secret_hash(&store, &[1; 32]).await.unwrap();
    assert_eq!(found, Some(Found::Whole(used.clone())));
    let revoked = v1::ApiKey { revoke_time: used.last_use_time, ..key };
    let mut transaction = store.begin_write().await.unwrap();
    api_keys::update(&mut transaction, &revoked).await.unwrap();
    transaction.commit().await.unwrap();
    let all = api_keys::find_all(&store, &["key_9".into(), "key_1".into()]).await.unwrap();
    assert_eq!(all, [v1::ApiKey { revoke_time: used.revoke_time.or(used.last_use_time), ..used }]);
}
