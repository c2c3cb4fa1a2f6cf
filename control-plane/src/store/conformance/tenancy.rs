//! Tenants see their own: every query that takes a scope gives nothing of others.

use gateway_core::{opt_out::ContactRef, tenant::TenantScope};
use gateway_proto::v1;

use super::{Factory, fixtures::*};
use crate::store::{
    Connection, Store, agents, api_keys, inbound_routes, instances,
    opt_outs::{self, OptOutFilter},
    tenants, webhook_subscriptions,
};

fn key(tenant_id: &str) -> v1::ApiKey {
    v1::ApiKey { id: format!("key_{tenant_id}"), tenant_id: tenant_id.to_owned(), ..Default::default() }
}

/// A tenant with one of everything, whose ids end with it.
async fn make_tenant(store: &Store, tenant_id: &str) {
    put_tenant(store, tenant_id).await;
    put_route(store, route_of(tenant_id, &format!("route_{tenant_id}"))).await;
    let mut instance = instance_of(tenant_id, &format!("inst_{tenant_id}"), &format!("route_{tenant_id}"));
    instance.provider_number_id = "1".to_owned();
    put_instance(store, instance).await.unwrap();
    let instance_id = format!("inst_{tenant_id}");
    put_subscription(store, subscription_of(tenant_id, &format!("sub_{tenant_id}"), &instance_id)).await;
    let decision = v1::OptOut { instance_id, tenant_id: tenant_id.into(), ..opt_out("+966500000001", 100) };
    store.record_opt_outs(agent(), vec![decision]).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let mut hash = [0; 32];
    hash[..tenant_id.len()].copy_from_slice(tenant_id.as_bytes());
    api_keys::create(&mut transaction, &key(tenant_id), &hash).await.unwrap();
    transaction.commit().await.unwrap();
}

/// What a scope finds in every list.
async fn listed(connection: &mut dyn Connection, scope: &TenantScope) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let found = inbound_routes::list(connection, scope, None, None, 100).await.unwrap();
    all.extend(found.into_iter().map(|one| one.id));
    all.extend(inbound_routes::ids(connection, scope).await.unwrap());
    let found = instances::list(connection, scope, None, None, 100).await.unwrap();
    all.extend(found.into_iter().map(|one| one.id));
    let found = webhook_subscriptions::list(connection, scope, None, None, 100).await.unwrap();
    all.extend(found.into_iter().map(|one| one.id));
    let filter = OptOutFilter::default();
    let found = opt_outs::list(connection, scope, &filter, None, 100).await.unwrap();
    all.extend(found.into_iter().map(|one| one.instance_id));
    let found = tenants::list(connection, scope, None, 100).await.unwrap();
    all.extend(found.into_iter().map(|one| one.id).filter(|id| id != "default"));
    let found = api_keys::list(connection, scope.only(), None, 100).await.unwrap();
    all.extend(found.into_iter().map(|one| one.id));
    all.sort();
    all
}

/// What a scope finds of a tenant's resources by their ids.
async fn found(connection: &mut dyn Connection, scope: &TenantScope, of: &str) -> usize {
    let opt_out = {
        let filter = OptOutFilter { instance_id: Some(&format!("inst_{of}")), ..Default::default() };
        opt_outs::list(connection, &TenantScope::All, &filter, None, 1).await.unwrap().remove(0).id
    };
    let (route, instance) = (format!("route_{of}"), format!("inst_{of}"));
    let some = [
        inbound_routes::find(connection, scope, &route).await.unwrap().is_some(),
        instances::find(connection, scope, &instance).await.unwrap().is_some(),
        webhook_subscriptions::find(connection, scope, &format!("sub_{of}")).await.unwrap().is_some(),
        opt_outs::find(connection, scope, &opt_out).await.unwrap().is_some(),
        tenants::find(connection, scope, of).await.unwrap().is_some(),
        api_keys::find(connection, scope, &format!("key_{of}")).await.unwrap().is_some(),
        !instances::list(connection, scope, Some(&route), None, 10).await.unwrap().is_empty(),
        !webhook_subscriptions::list(connection, scope, Some(&instance), None, 10).await.unwrap().is_empty(),
    ];
    some.into_iter().filter(|is_there| *is_there).count()
}

/// A tenant finds all of its own, by id and in lists, and nothing of another tenant, whose ids it knows; the platform
/// finds everything.
pub(super) async fn tenants_see_only_their_own(factory: &impl Factory) {
    let store = factory.open().await;
    for tenant_id in ["acme", "other"] {
        make_tenant(&store, tenant_id).await;
    }
    put_route(&store, route_of("", "route_platform")).await;
    let own = |of: &str| {
        let names = ["inst", "inst", "key", "route", "route", "sub"].map(|name| format!("{name}_{of}"));
        let mut own: Vec<String> = names.into_iter().chain([of.to_owned()]).collect();
        own.sort();
        own
    };
    let mut reader = store.reader().await.unwrap();
    for (tenant_id, another) in [("acme", "other"), ("other", "acme")] {
        assert_eq!(listed(&mut reader, &one(tenant_id)).await, own(tenant_id));
        assert_eq!(found(&mut reader, &one(tenant_id), tenant_id).await, 8);
        assert_eq!(found(&mut reader, &one(tenant_id), another).await, 0);
        assert_eq!(found(&mut reader, &one("nobody"), tenant_id).await, 0);
        assert_eq!(found(&mut reader, &TenantScope::All, tenant_id).await, 8);
        let phone = gateway_core::phone::normalize_phone("+966500000001");
        let (contact, tenant) = (ContactRef { phone, user_id: None }, tenant_id.parse().unwrap());
        let of_contact = opt_outs::of_contact(&mut reader, &tenant, None, &contact).await.unwrap();
        assert_eq!(of_contact.iter().map(|one| one.tenant_id.as_str()).collect::<Vec<_>>(), [tenant_id]);
        let routes = inbound_routes::ids_of_tenant(&mut reader, tenant_id).await.unwrap();
        assert_eq!(routes, [format!("route_{tenant_id}")]);
        let on = instances::routes_of_tenant(&mut reader, tenant_id).await.unwrap();
        assert_eq!(on, [(format!("inst_{tenant_id}"), format!("route_{tenant_id}"))]);
    }
    assert!(listed(&mut reader, &one("nobody")).await.is_empty());
    let mut everything = [own("acme"), own("other"), vec!["route_platform".into(); 2]].concat();
    everything.sort();
    assert_eq!(listed(&mut reader, &TenantScope::All).await, everything);
    assert!(inbound_routes::ids_of_tenant(&mut reader, "").await.unwrap().is_empty());
}

/// An id is its tenant's for ever: whose it is, is known as long as it is there and after that, also when the tenant
/// has it again, and for the platform's too.
pub(super) async fn ids_stay_their_tenants(factory: &impl Factory) {
    let store = factory.open().await;
    make_tenant(&store, "acme").await;
    put_route(&store, route_of("", "route_platform")).await;
    let owners = async |store: &Store| {
        [
            tenants::of_instance(store, "inst_acme").await.unwrap(),
            tenants::of_route(store, "route_acme").await.unwrap(),
            tenants::of_subscription(store, "sub_acme").await.unwrap(),
            tenants::of_route(store, "route_platform").await.unwrap(),
        ]
    };
    let expected = ["acme", "acme", "acme", ""].map(|owner| Some(owner.to_owned()));
    assert_eq!(owners(&store).await, expected);
    assert_eq!(tenants::of_instance(&store, "inst_nobody").await.unwrap(), None);
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut transaction, "sub_acme").await.unwrap();
    instances::delete(&mut transaction, "inst_acme").await.unwrap();
    inbound_routes::delete(&mut transaction, "route_acme").await.unwrap();
    inbound_routes::delete(&mut transaction, "route_platform").await.unwrap();
    transaction.commit().await.unwrap();
    store.close().await;
    let store = factory.open().await;
    assert_eq!(owners(&store).await, expected);
    let mut reader = store.reader().await.unwrap();
    for (kind, id) in
        [("instance", "inst_acme"), ("inbound_route", "route_acme"), ("webhook_subscription", "sub_acme")]
    {
        assert!(tenants::is_owned_by_another(&mut reader, kind, id, "other").await.unwrap(), "{id}");
        assert!(!tenants::is_owned_by_another(&mut reader, kind, id, "acme").await.unwrap(), "{id}");
        assert!(!tenants::is_owned_by_another(&mut reader, kind, "new", "other").await.unwrap());
    }
    assert!(
        tenants::is_owned_by_another(&mut reader, "inbound_route", "route_platform", "acme").await.unwrap()
    );
    put_route(&store, route_of("acme", "route_acme")).await;
    assert_eq!(tenants::of_route(&store, "route_acme").await.unwrap().as_deref(), Some("acme"));
}

/// A deleted tenant is in no list, has no keys and no tokens, and its id is remembered; who refers to a tenant is named.
pub(super) async fn deleted_tenants_are_gone(factory: &impl Factory) {
    let store = factory.open().await;
    make_tenant(&store, "acme").await;
    put_tenant(&store, "empty").await;
    let mut reader = store.reader().await.unwrap();
    let referring = tenants::referring(&mut reader, "acme", 5).await.unwrap();
    assert_eq!(referring, ("instances", vec!["inst_acme".to_owned()]));
    assert!(tenants::referring(&mut reader, "empty", 5).await.unwrap().1.is_empty());
    drop(reader);
    let mut transaction = store.begin_write().await.unwrap();
    let token =
        agents::JoinToken { region: "eu".into(), tenant_id: Some("empty".into()), created_by: String::new() };
    agents::create_join_token(&mut transaction, &[1; 32], &token, at(1), at(100)).await.unwrap();
    api_keys::create(&mut transaction, &key("empty"), &[2; 32]).await.unwrap();
    transaction.commit().await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    tenants::delete(&mut transaction, "empty").await.unwrap();
    transaction.commit().await.unwrap();
    let mut reader = store.reader().await.unwrap();
    assert!(tenants::find(&mut reader, &TenantScope::All, "empty").await.unwrap().is_none());
    assert!(tenants::was_ever(&mut reader, "empty").await.unwrap());
    assert!(!tenants::was_ever(&mut reader, "never").await.unwrap());
    let left = tenants::list(&mut reader, &TenantScope::All, None, 10).await.unwrap();
    assert_eq!(left.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["acme", "default"]);
    assert!(!agents::is_tenant(&store, "empty").await.unwrap());
    assert!(api_keys::find_by_secret_hash(&store, &[2; 32]).await.unwrap().is_none());
    assert!(!agents::is_join_token(&store, &[1; 32], at(2)).await.unwrap());
    assert_eq!(api_keys::list(&mut reader, None, None, 10).await.unwrap().len(), 1);
}
