//! An instance and its inbound route in one request: of one tenant, and refused together.

use gateway_core::{
    id::TenantId, inbound_route::InboundRoute, instance::Instance, violation::FieldViolations,
};
use gateway_proto::v1;
use tonic::Status;

use super::super::{authorize::Caller, new_id, status};

/// The tenant of both: either of them may name it.
///
/// # Errors
/// NOT_FOUND when one of them names a tenant that is not within the caller's reach.
pub(super) fn tenant(
    caller: &Caller,
    instance: &v1::Instance,
    route: &v1::InboundRoute,
) -> Result<TenantId, Status> {
    let of_route = caller.tenant_for(&route.tenant_id)?;
    if instance.tenant_id.is_empty() { Ok(of_route) } else { caller.tenant_for(&instance.tenant_id) }
}

/// Makes the ids that are missing, binds the instance to the route, and gives the route that is to be created.
///
/// # Errors
/// INVALID_ARGUMENT with every bad field of both.
pub(super) fn prepare(
    instance: &mut v1::Instance,
    route: &v1::InboundRoute,
    tenant_id: &TenantId,
) -> Result<v1::InboundRoute, Status> {
    let mut violations = FieldViolations::new();
    if !route.tenant_id.is_empty() && route.tenant_id != tenant_id.as_str() {
        let description = "must be empty or name `instance.tenant_id` when the route is created inline";
        violations.add("inbound_route.tenant_id", description);
    }
    let named = &instance.inbound_route_id;
    if !named.is_empty() && *named != route.id {
        let description = "must be empty or name `inbound_route.id` when the route is created inline";
        violations.add("instance.inbound_route_id", description);
    }
    let mut route = route.clone();
    if route.id.is_empty() {
        route.id = new_id("route_");
    }
    if instance.id.is_empty() {
        instance.id = new_id("inst_");
    }
    tenant_id.as_str().clone_into(&mut instance.tenant_id);
    instance.inbound_route_id.clone_from(&route.id);
    let of_instance = Instance::try_from(&*instance).err().unwrap_or_default();
    // The instance has the id of the route, which is bad once.
    violations.0.extend(of_instance.0.into_iter().filter(|bad| bad.field != "instance.inbound_route_id"));
    violations.0.extend(InboundRoute::try_from(&route).err().unwrap_or_default().0);
    violations.into_result(route).map_err(status::invalid)
}
