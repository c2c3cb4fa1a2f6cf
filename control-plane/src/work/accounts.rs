//! Whose the unrouted callbacks are that carry no number.

use gateway_core::{
    route::{AccountOf, instances_of_account},
    tenant::TenantScope,
};
use gateway_proto::v1;

use crate::store::{Store, StoreError, inbound_routes, instances, webhook_subscriptions};

/// Which callbacks of a route that carry no number are about which of its instances. Agents decide it by the same
/// rule: what they would not take stays in the list, instead of going to them and coming back.
pub(super) struct Accounts {
    of_route: String,
    instances: Vec<v1::Instance>,
    subscribed: Vec<String>,
}

impl Accounts {
    pub(super) async fn of(store: &Store, route_id: &str) -> Result<Self, StoreError> {
        let mut connection = store.reader().await?;
        let route = inbound_routes::find_any(&mut connection, route_id).await?;
        let scope = TenantScope::All;
        let instances = instances::list(&mut connection, &scope, Some(route_id), None, i64::MAX).await?;
        let subscribed = webhook_subscriptions::instances_of_route(&mut connection, route_id).await?;
        let of_route = route.map(|stored| stored.route.provider_account_id).unwrap_or_default();
        Ok(Self { of_route, instances, subscribed })
    }

    /// An instance with a webhook subscription that a callback is about.
    pub(super) fn claimant(&self, callback: &v1::UnroutedCallback) -> Option<&v1::Instance> {
        let account = callback.provider_account_id.as_str();
        if !self.of_route.is_empty() && self.of_route != account {
            return None;
        }
        let found = instances_of_account(&self.instances, set(account), |one| AccountOf {
            tenant_id: &one.tenant_id,
            provider_account_id: set(&one.provider_account_id),
        });
        found.into_iter().find(|one| self.subscribed.contains(&one.id))
    }
}

fn set(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
