//! Data keys and sealed columns.

use gateway_proto::v1;

use super::{Factory, fixtures::*};
use crate::{
    sealing::WrappedKey,
    store::{
        Connection as _,
        damaged::{Found, Head},
        inbound_routes,
        requests::{self, RequestKey},
        sealed::{SealedColumn, SealedTable, TABLES},
        tenant_keys, webhook_subscriptions,
    },
};

fn key(tenant_id: &str, number: u8) -> WrappedKey {
    WrappedKey {
        tenant_id: tenant_id.into(),
        key_id: format!("key_{tenant_id}_{number}"),
        root_key_id: "root_1".into(),
        wrapped: vec![number],
    }
}

/// Keys come in the order in which they were made, and a key that is there stays where and as it is; one under another
/// root key takes its place; the newest of a tenant outlives the others, and nobody else's goes along.
pub(super) async fn keys_keep_their_order(factory: &impl Factory) {
    let store = factory.open().await;
    let made = [key("b", 1), key("a", 1), key("b", 2), key("a", 2)];
    let mut transaction = store.begin_write().await.unwrap();
    for key in &made {
        tenant_keys::insert(&mut transaction, key).await.unwrap();
    }
    let again = WrappedKey { wrapped: vec![9], ..key("b", 1) };
    tenant_keys::insert(&mut transaction, &again).await.unwrap();
    assert_eq!(tenant_keys::all(&mut transaction).await.unwrap(), made);
    let rewrapped = WrappedKey { root_key_id: "root_2".into(), wrapped: vec![8], ..key("b", 1) };
    tenant_keys::replace(&mut transaction, &rewrapped).await.unwrap();
    let all = tenant_keys::all(&mut transaction).await.unwrap();
    assert_eq!(all, [rewrapped, made[1].clone(), made[2].clone(), made[3].clone()]);
    let newest = tenant_keys::newest(&mut transaction).await.unwrap();
    assert_eq!(newest.iter().map(|(tenant_id, _)| tenant_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(newest[0].1 > newest[1].1, "the last one made is a's: {newest:?}");
    tenant_keys::delete_older(&mut transaction, "b").await.unwrap();
    let all = tenant_keys::all(&mut transaction).await.unwrap();
    assert_eq!(all, [made[1].clone(), made[2].clone(), made[3].clone()]);
}

/// That keys are being renewed is noted once, up to the key that was the newest then, until it is over.
pub(super) async fn renewal_is_noted_once(factory: &impl Factory) {
    let store = factory.open().await;
    let mut transaction = store.begin_write().await.unwrap();
    tenant_keys::insert(&mut transaction, &key("a", 1)).await.unwrap();
    let until = tenant_keys::begin_renewal(&mut transaction).await.unwrap();
    assert_eq!(tenant_keys::newest(&mut transaction).await.unwrap(), [("a".to_owned(), until)]);
    tenant_keys::insert(&mut transaction, &key("a", 2)).await.unwrap();
    assert_eq!(tenant_keys::begin_renewal(&mut transaction).await.unwrap(), until);
    tenant_keys::end_renewal(&mut transaction).await.unwrap();
    assert!(tenant_keys::begin_renewal(&mut transaction).await.unwrap() > until);
}

/// In every table with a sealed column, the rows under other keys than the one named are found, only of the tenant, and
/// changing the column changes nothing else.
pub(super) async fn sealed_columns_are_replaced_alone(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    put_route(&store, route_of("other", "route_other")).await;
    let mut transaction = store.begin_write().await.unwrap();
    let request = RequestKey::new("default", "CreateTenant", "r1", &[]);
    requests::remember(&mut transaction, &request, &v1::Tenant::default()).await.unwrap();
    transaction.commit().await.unwrap();
    let newest = store.sealer().newest_key("default").unwrap();
    let before = store.changes_since(0).await.unwrap();
    let names = [("route_1", ""), ("sub_1", ""), ("CreateTenant", "r1")];
    for (table, (first, second)) in TABLES.into_iter().zip(names) {
        let mut transaction = store.begin_write().await.unwrap();
        let of = newest.as_bytes().as_slice();
        assert_eq!(transaction.rows().sealed_under_others(table, "default", of, 10).await.unwrap(), []);
        let under_others =
            transaction.rows().sealed_under_others(table, "default", &[0; 8], 10).await.unwrap();
        let [SealedColumn { name, sealed }] = under_others.as_slice() else { panic!("{under_others:?}") };
        assert_eq!((name.0.as_str(), name.1.as_str()), (first, second));
        assert_eq!(transaction.rows().sealed_under_others(table, "default", &[0; 8], 0).await.unwrap(), []);
        // Sealed under a key that nobody has: then it is found under others, and nothing else is.
        let other = [&sealed[..1], &[7; 8], &sealed[9..]].concat();
        let column = SealedColumn { name: name.clone(), sealed: other };
        transaction.writes().replace_sealed(table, "default", &column).await.unwrap();
        let found = transaction.rows().sealed_under_others(table, "default", of, 10).await.unwrap();
        assert_eq!(found, std::slice::from_ref(&column));
        let wrong_tenant = SealedColumn { sealed: sealed.clone(), ..column };
        transaction.writes().replace_sealed(table, "other", &wrong_tenant).await.unwrap();
        assert_eq!(transaction.rows().sealed_under_others(table, "default", of, 10).await.unwrap().len(), 1);
        transaction.writes().replace_sealed(table, "default", &wrong_tenant).await.unwrap();
        transaction.commit().await.unwrap();
    }
    assert_eq!(store.changes_since(0).await.unwrap(), before);
    let mut transaction = store.begin_write().await.unwrap();
    let others = SealedTable::InboundRoutes;
    let found = transaction.rows().sealed_under_others(others, "other", &[0; 8], 10).await.unwrap();
    assert_eq!(found[0].name.0, "route_other");
    transaction.writes().note_wipe().await.unwrap();
    transaction.commit().await.unwrap();
    store.wipe_if_due().await.unwrap();
    assert_eq!(store.changes_since(0).await.unwrap().upserts.len(), 4);
}

/// A row that cannot be opened says which one it is to those whom it concerns, and keeps nothing else from anybody; it
/// can be removed.
pub(super) async fn damaged_rows_show_what_is_known(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    put_subscription(&store, subscription("sub_2", "inst_1")).await;
    let mut transaction = store.begin_write().await.unwrap();
    for (table, id) in [(SealedTable::InboundRoutes, "route_1"), (SealedTable::WebhookSubscriptions, "sub_1")]
    {
        let garbage = SealedColumn { name: (id.into(), String::new()), sealed: vec![1; 100] };
        transaction.writes().replace_sealed(table, "default", &garbage).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let (mut reader, own, others) = (store.reader().await.unwrap(), one("default"), one("other"));
    let head =
        |id: &str, version| Head { id: id.into(), tenant_id: "default".into(), etag: store.etag(version) };
    let route = inbound_routes::find_even_damaged(&mut reader, &own, "route_1").await.unwrap();
    assert_eq!(route, Some(Found::Damaged(head("route_1", 1))));
    let found = webhook_subscriptions::find_even_damaged(&mut reader, &own, "sub_1").await.unwrap();
    assert_eq!(found, Some(Found::Damaged(head("sub_1", 3))));
    let found = webhook_subscriptions::find_even_damaged(&mut reader, &own, "sub_2").await.unwrap();
    assert!(matches!(found, Some(Found::Whole(_))));
    assert_eq!(inbound_routes::find_even_damaged(&mut reader, &others, "route_1").await.unwrap(), None);
    assert_eq!(webhook_subscriptions::find_even_damaged(&mut reader, &others, "sub_1").await.unwrap(), None);
    assert!(inbound_routes::find(&mut reader, &own, "route_1").await.unwrap_err().is_damage());
    // Who does not own it is not told that it is damaged either.
    assert_eq!(inbound_routes::find(&mut reader, &others, "route_1").await.unwrap(), None);
    assert_eq!(changed(&store.changes_since(0).await.unwrap()), ["inst_1", "sub_2"]);
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut transaction, "sub_1").await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(removed(&store.changes_since(4).await.unwrap()), [("webhook_subscription", "sub_1")]);
}
