//! What an agent of one tenant is sent: the tenant's inbound routes, and its instances on them with what hangs on
//! these. Platform routes, whose secrets are other tenants' too, are for agents of the platform, and so are the
//! instances on them.

use std::collections::HashSet;

use gateway_proto::v1::{self, config_resource::Resource};

use super::{Part, group, resource_key, route_id};
use crate::store::{REMOVAL_ORDER, Store, StoreError, inbound_routes, instances};

/// Ids of what is a tenant's, as the store has it now.
pub struct TenantFilter {
    routes: HashSet<String>,
    /// Instances on `routes`.
    instances: HashSet<String>,
    /// The tenant's other instances. An agent may have one of them from the time before it was moved.
    elsewhere: HashSet<String>,
    is_snapshot: bool,
    /// Taken out, and perhaps on the agent.
    left: Vec<v1::ConfigRemoval>,
}

/// Takes out the opt-outs that are not for agents of `tenant_id`; None for agents of the platform, which get all.
pub fn keep_own_opt_outs(opt_outs: &mut Vec<v1::OptOut>, tenant_id: Option<&str>) {
    if let Some(tenant_id) = tenant_id {
        opt_outs.retain(|opt_out| opt_out.tenant_id == tenant_id);
    }
}

impl TenantFilter {
    /// Reads what is `tenant_id`'s. To be read after the changes that it is used on, so that it knows their
    /// resources, and anew for each change.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read(store: &Store, tenant_id: &str) -> Result<Self, StoreError> {
        let mut connection = store.reader().await?;
        let routes = inbound_routes::ids_of_tenant(&mut connection, tenant_id).await?;
        let routes: HashSet<String> = routes.into_iter().collect();
        let found = instances::routes_of_tenant(&mut connection, tenant_id).await?;
        let (mut instances, mut elsewhere) = (HashSet::new(), HashSet::new());
        for (id, route_id) in found {
            let ids = if routes.contains(&route_id) { &mut instances } else { &mut elsewhere };
            ids.insert(id);
        }
        Ok(Self { routes, instances, elsewhere, is_snapshot: false, left: Vec::new() })
    }

    /// Takes what is not for the tenant's agents out of what is to be sent. Removals stay: an id that the agent
    /// does not know tells it nothing.
    pub fn apply(&mut self, part: &mut Part) {
        self.is_snapshot |= part.begins_snapshot;
        let (kept, others) =
            std::mem::take(&mut part.upserts).into_iter().partition(|resource| self.allows(resource));
        part.upserts = kept;
        part.unreadable.retain(|(instance_id, named)| {
            if instance_id.is_empty() { self.has_route(&named.id) } else { self.has_instance(instance_id) }
        });
        if self.is_snapshot {
            return;
        }
        let others: Vec<v1::ConfigResource> = others;
        let left = others.iter().filter(|resource| self.elsewhere.contains(group(resource)));
        self.left.extend(left.filter_map(resource_key).map(|(r#type, id)| v1::ConfigRemoval {
            r#type,
            id,
            deleted: false,
        }));
        if part.is_last {
            part.removals.append(&mut self.left);
            part.removals
                .sort_by_key(|removal| REMOVAL_ORDER.iter().position(|known| *known == removal.r#type));
        }
    }

    /// Whether an inbound route is for the tenant's agents.
    pub fn has_route(&self, id: &str) -> bool {
        self.routes.contains(id)
    }

    /// Whether an instance, and what hangs on it, is for the tenant's agents.
    pub fn has_instance(&self, id: &str) -> bool {
        self.instances.contains(id)
    }

    fn allows(&self, resource: &v1::ConfigResource) -> bool {
        match &resource.resource {
            Some(Resource::InboundRoute(_)) => {
                route_id(resource).is_some_and(|route_id| self.has_route(route_id))
            }
            Some(_) => self.has_instance(group(resource)),
            None => false,
        }
    }
}
