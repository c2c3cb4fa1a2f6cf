//! What would be in an export if it could be read.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use crate::{
    fleet::serves,
    publish::TenantFilter,
    store::{
        Store, StoreError, damaged::LeftOut, inbound_routes::TYPE as ROUTE, instances as instances_table,
        route_reach, webhook_subscriptions,
    },
};

/// Resources that a text names.
const NAMED_MAX: usize = 10;

/// Resources in words: the first of them, and how many more there are.
#[derive(Debug, Clone)]
pub struct Named(pub Vec<LeftOut>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, left_out) in self.0.iter().take(NAMED_MAX).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{left_out}")?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Those of `all` that agents of `region`, and of a tenant, would be sent. What is deleted meanwhile is not among them.
///
/// # Errors
/// When the database cannot be read.
pub(super) async fn of_agents(
    store: &Store,
    all: &[LeftOut],
    region: &str,
    filter: Option<&TenantFilter>,
) -> Result<Vec<LeftOut>, StoreError> {
    let mut connection = store.reader().await?;
    let subscriptions: HashSet<&str> = all
        .iter()
        .filter(|one| one.resource_type == "webhook_subscription")
        .map(|one| one.id.as_str())
        .collect();
    let instances = if subscriptions.is_empty() {
        HashMap::new()
    } else {
        webhook_subscriptions::instances_of(&mut connection, &subscriptions).await?
    };
    let mut found = Vec::new();
    for one in all {
        let is_theirs = if one.resource_type == ROUTE {
            let reach = route_reach::regions(&mut connection, &one.id).await?;
            (reach.is_unsure || serves(&reach.regions, region))
                && filter.is_none_or(|filter| filter.has_route(&one.id))
        } else {
            let instance_id = match one.resource_type {
                "webhook_subscription" => instances.get(&one.id),
                // The instance itself, or its policy.
                _ => Some(&one.id),
            };
            let Some(instance_id) = instance_id else { continue };
            let is_served = match instances_table::find_any(&mut connection, instance_id).await {
                Ok(instance) => instance.is_some_and(|instance| serves(&instance.regions, region)),
                // Nobody knows its regions.
                Err(failure) if failure.is_damage() => true,
                Err(failure) => return Err(failure),
            };
            is_served && filter.is_none_or(|filter| filter.has_instance(instance_id))
        };
        if is_theirs {
            found.push(one.clone());
        }
    }
    Ok(found)
}
