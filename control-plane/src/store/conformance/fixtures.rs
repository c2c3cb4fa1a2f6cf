//! Resources for tests of the store.

use std::time::Duration;

use gateway_core::tenant::TenantScope;
use gateway_proto::v1::{self, config_resource::Resource};
use jiff::Timestamp;

use crate::{
    audit::AuditedBy,
    store::{
        ConfigChanges, Store, StoreError, Trouble, inbound_routes, inbound_routes::StoredRoute, instances,
        opt_out_policies, tenants, webhook_subscriptions,
    },
};

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

pub(crate) fn agent() -> AuditedBy {
    AuditedBy::agent("agt_1", None)
}

pub(crate) fn one(tenant_id: &str) -> TenantScope {
    TenantScope::One(tenant_id.parse().unwrap())
}

/// Whether a statement was refused because it breaks a rule of the tables.
pub(crate) fn is_conflict<T>(outcome: &Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Database { trouble: Trouble::Conflict, .. }))
}

pub(crate) fn route_of(tenant_id: &str, id: &str) -> StoredRoute {
    let provider = v1::Provider::Meta.into();
    let route = v1::InboundRoute {
        id: id.to_owned(),
        tenant_id: tenant_id.to_owned(),
        provider,
        ..Default::default()
    };
    let callback_token = format!("token-{id}");
    let config = v1::InboundRouteConfig { id: id.to_owned(), provider, callback_token, ..Default::default() };
    StoredRoute { route, config }
}

pub(crate) fn route(id: &str) -> StoredRoute {
    route_of("default", id)
}

pub(crate) fn instance_of(tenant_id: &str, id: &str, route: &str) -> v1::Instance {
    v1::Instance {
        id: id.to_owned(),
        tenant_id: tenant_id.to_owned(),
        display_name: "Demo".to_owned(),
        inbound_route_id: route.to_owned(),
        provider_number_id: format!("number-{id}"),
        ..Default::default()
    }
}

pub(crate) fn instance(id: &str, route: &str) -> v1::Instance {
    instance_of("default", id, route)
}

pub(crate) fn subscription_of(tenant_id: &str, id: &str, instance: &str) -> v1::WebhookSubscriptionConfig {
    let mut subscription = v1::WebhookSubscription {
        id: id.to_owned(),
        tenant_id: tenant_id.to_owned(),
        instance_id: instance.to_owned(),
        destination_url: "https://example.com/hook".to_owned(),
        events: vec!["*".to_owned()],
        ..Default::default()
    };
    subscription.set_state(v1::WebhookSubscriptionState::Active);
    v1::WebhookSubscriptionConfig { webhook_subscription: Some(subscription), ..Default::default() }
}

pub(crate) fn subscription(id: &str, instance: &str) -> v1::WebhookSubscriptionConfig {
    subscription_of("default", id, instance)
}

pub(crate) fn opt_out(phone: &str, seconds: i64) -> v1::OptOut {
    v1::OptOut {
        tenant_id: "default".into(),
        instance_id: "inst_1".into(),
        phone: phone.into(),
        state: v1::OptOutState::OptedOut.into(),
        reason: v1::OptOutReason::RecipientRequestedStop.into(),
        keyword: "stop".into(),
        event_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        change_number: 1,
        ..Default::default()
    }
}

pub(crate) fn opt_in(phone: &str, seconds: i64) -> v1::OptOut {
    let reason = v1::OptOutReason::RecipientRequestedStart.into();
    v1::OptOut { state: v1::OptOutState::OptedIn.into(), reason, change_number: 2, ..opt_out(phone, seconds) }
}

pub(crate) async fn put_tenant(store: &Store, id: &str) {
    let mut transaction = store.begin_write().await.unwrap();
    let mut tenant = v1::Tenant { id: id.to_owned(), ..Default::default() };
    tenants::put(&mut transaction, &mut tenant).await.unwrap();
    transaction.commit().await.unwrap();
}

pub(crate) async fn put_route(store: &Store, mut route: StoredRoute) {
    let mut transaction = store.begin_write().await.unwrap();
    inbound_routes::put(&mut transaction, &mut route).await.unwrap();
    transaction.commit().await.unwrap();
}

/// Writes an instance; its etag comes back.
pub(crate) async fn put_instance(store: &Store, mut instance: v1::Instance) -> Result<String, StoreError> {
    let mut transaction = store.begin_write().await?;
    let number = instance.provider_number_id.clone();
    instances::put(&mut transaction, &mut instance, &number).await?;
    transaction.commit().await?;
    Ok(instance.etag)
}

pub(crate) async fn put_subscription(store: &Store, mut config: v1::WebhookSubscriptionConfig) {
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::put(&mut transaction, &mut config).await.unwrap();
    transaction.commit().await.unwrap();
}

pub(crate) async fn put_policy(store: &Store, instance_id: &str) {
    let mut transaction = store.begin_write().await.unwrap();
    let mut policy = v1::OptOutPolicy { instance_id: instance_id.into(), ..Default::default() };
    opt_out_policies::put(&mut transaction, &"default".parse().unwrap(), &mut policy).await.unwrap();
    transaction.commit().await.unwrap();
}

/// A route, an instance on it and a subscription of that: `route_1`, `inst_1`, `sub_1`.
pub(crate) async fn one_of_each(store: &Store) {
    put_route(store, route("route_1")).await;
    put_instance(store, instance("inst_1", "route_1")).await.unwrap();
    put_subscription(store, subscription("sub_1", "inst_1")).await;
}

/// Type and id of a resource, as a removal names them.
pub(crate) fn name(resource: &v1::ConfigResource) -> (String, String) {
    let (kind, id) = match resource.resource.as_ref().unwrap() {
        Resource::InboundRoute(route) => ("inbound_route", &route.id),
        Resource::Instance(instance) => ("instance", &instance.id),
        Resource::WebhookSubscription(config) => {
            ("webhook_subscription", &config.webhook_subscription.as_ref().unwrap().id)
        }
        Resource::OptOutPolicy(policy) => ("opt_out_policy", &policy.instance_id),
    };
    (kind.to_owned(), id.clone())
}

/// The ids of changed resources, in their order; a policy has the id of its instance.
pub(crate) fn changed(changes: &ConfigChanges) -> Vec<String> {
    changes.upserts.iter().map(|resource| name(resource).1).collect()
}

/// Type and id of what was removed, in their order.
pub(crate) fn removed(changes: &ConfigChanges) -> Vec<(&str, &str)> {
    changes.removals.iter().map(|removal| (removal.r#type.as_str(), removal.id.as_str())).collect()
}
