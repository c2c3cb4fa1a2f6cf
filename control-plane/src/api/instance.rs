//! `InstanceService`.

mod inline;

use gateway_core::{api_key::Role, id::TenantId, instance::Instance, tenant::TenantScope, time};
use gateway_proto::v1::{self, instance_service_server::InstanceService};
use gateway_runtime::clock;
use prost::Message as _;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::{
    authorize::{self, Caller},
    diagnosis, field_mask, inbound_route, new_id,
    page::Page,
    repeat, status, tenant,
};
use crate::{
    app::State,
    audit::Audited,
    store::{
        Connection, WriteTx, damaged::Found, inbound_routes, instances, requests, tenants,
        webhook_subscriptions,
    },
    work::DueClaim,
};

/// How many referring resources an error names.
const NAMED_MAX: u32 = 5;

const FIELDS: [&str; 7] = [
    "display_name",
    "inbound_route_id",
    "provider_number_id",
    "phone_number",
    "provider_account_id",
    "regions",
    "labels",
];

/// Connected business numbers.
pub struct InstanceApi {
    state: State,
}

impl InstanceApi {
    /// The service over `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }

    /// Callbacks that waited for the instance go on their way, if it has a webhook subscription; otherwise
    /// the first one claims them. The instance stands whatever comes of it:
    /// the claiming task looks again.
    async fn claim_unrouted(&self, instance: &v1::Instance, due: &DueClaim) {
        match self.state.work.claim_unrouted(instance).await {
            Ok(_) => due.claimed(),
            Err(error) => {
                warn!(gateway.instance.id = instance.id, %error, "failed to claim unrouted callbacks");
            }
        }
    }
}

#[tonic::async_trait]
impl InstanceService for InstanceApi {
    async fn create_instance(
        &self,
        request: Request<v1::CreateInstanceRequest>,
    ) -> Result<Response<v1::CreateInstanceResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let key = repeat::key(&caller, "CreateInstance", &request.request_id, &parts(&request))?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let response = create(&mut transaction, &caller, &request).await?;
        audit_creation(&mut transaction, &caller, &response).await?;
        requests::remember(&mut transaction, &key, &response).await?;
        let due = self.state.work.claim_due(&mut transaction);
        transaction.commit().await?;
        if let Some(instance) = &response.instance {
            self.claim_unrouted(instance, &due).await;
        }
        Ok(Response::new(response))
    }

    async fn get_instance(
        &self,
        request: Request<v1::GetInstanceRequest>,
    ) -> Result<Response<v1::GetInstanceResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let instance = find(&mut connection, &caller.tenants(), "id", &id).await?;
        Ok(Response::new(v1::GetInstanceResponse { instance: Some(instance) }))
    }

    async fn list_instances(
        &self,
        request: Request<v1::ListInstancesRequest>,
    ) -> Result<Response<v1::ListInstancesResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let route = request.inbound_route_id.as_str();
        let page = Page::read(
            "ListInstances",
            &[caller.page_owner(), route],
            request.page_size,
            &request.page_token,
        )?;
        let route = Some(route).filter(|route| !route.is_empty());
        let mut connection = self.state.store.reader().await?;
        let after = page.after.as_deref();
        let mut instances =
            instances::list(&mut connection, &caller.tenants(), route, after, page.limit()).await?;
        let next_page_token = page.cut(&mut instances, |instance| &instance.id);
        Ok(Response::new(v1::ListInstancesResponse { instances, next_page_token }))
    }

    async fn update_instance(
        &self,
        request: Request<v1::UpdateInstanceRequest>,
    ) -> Result<Response<v1::UpdateInstanceResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let wanted = request.instance.ok_or_else(|| status::missing_field("instance"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let mut instance = find(&mut transaction, &caller.tenants(), "instance.id", &wanted.id).await?;
        let fields = field_mask::read(request.update_mask.as_ref(), &FIELDS)?;
        status::check_etag("instance", &wanted.id, &wanted.etag, &instance.etag)?;
        let was = instance.clone();
        apply(&mut instance, wanted, &fields);
        check_routing(&mut transaction, &caller, &was, &instance).await?;
        instance.update_time = Some(time::to_proto(clock::now()));
        put(&mut transaction, &mut instance).await?;
        transaction
            .audit(&caller, Audited::changed("InstanceService/UpdateInstance", &was, &instance))
            .await?;
        let due = (routing(&was) != routing(&instance)).then(|| self.state.work.claim_due(&mut transaction));
        transaction.commit().await?;
        if let Some(due) = due {
            self.claim_unrouted(&instance, &due).await;
        }
        Ok(Response::new(v1::UpdateInstanceResponse { instance: Some(instance) }))
    }

    async fn delete_instance(
        &self,
        request: Request<v1::DeleteInstanceRequest>,
    ) -> Result<Response<v1::DeleteInstanceResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::DeleteInstanceRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let found = find_even_damaged(&mut transaction, &caller.tenants(), &id).await?;
        let current = match &found {
            Found::Whole(instance) => &instance.etag,
            Found::Damaged(head) => &head.etag,
        };
        status::check_etag("instance", &id, &etag, current)?;
        let limit = i64::from(NAMED_MAX);
        let referring =
            webhook_subscriptions::list(&mut transaction, &caller.tenants(), Some(&id), None, limit).await?;
        if !referring.is_empty() {
            let names = referring.into_iter().map(|subscription| subscription.id);
            return Err(status::in_use("instance", &id, "webhook subscriptions", names));
        }
        instances::delete(&mut transaction, &id).await?;
        let method = "InstanceService/DeleteInstance";
        let audited = match &found {
            Found::Whole(instance) => Audited::deleted(method, instance),
            Found::Damaged(head) => Audited::deleted_unread::<v1::Instance>(method, head),
        };
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::DeleteInstanceResponse {}))
    }

    async fn diagnose_instance(
        &self,
        request: Request<v1::DiagnoseInstanceRequest>,
    ) -> Result<Response<v1::DiagnoseInstanceResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let instance = find(&mut connection, &caller.tenants(), "id", &id).await?;
        drop(connection);
        Ok(Response::new(diagnosis::of(&self.state, &caller, &instance).await?))
    }
}

/// An instance within reach of the caller; `field` is the request's field that names it.
pub(super) async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    field: &str,
    id: &str,
) -> Result<v1::Instance, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = instances::find(connection, scope, id).await?;
    found.ok_or_else(|| status::not_found("instance", id))
}

async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Found<v1::Instance>, Status> {
    if id.is_empty() {
        return Err(status::missing_field("id"));
    }
    let found = instances::find_even_damaged(connection, scope, id).await?;
    found.ok_or_else(|| status::not_found("instance", id))
}

/// Ids of instances that refer to a route, at most as many as an error names.
pub(super) async fn ids_of_route(
    connection: &mut dyn Connection,
    inbound_route_id: &str,
) -> Result<Vec<String>, Status> {
    Ok(instances::ids_of_route(connection, inbound_route_id, NAMED_MAX).await?)
}

/// What makes a creation's body: maps have no fixed encoding, so labels are a part of their own.
fn parts(request: &v1::CreateInstanceRequest) -> [Vec<u8>; 3] {
    let mut instance = request.instance.clone().unwrap_or_default();
    let labels = repeat::map_part(&std::mem::take(&mut instance.labels));
    let route = request.inbound_route.as_ref().map(v1::InboundRoute::encode_to_vec);
    [instance.encode_to_vec(), labels, route.unwrap_or_default()]
}

async fn create(
    transaction: &mut WriteTx,
    caller: &Caller,
    request: &v1::CreateInstanceRequest,
) -> Result<v1::CreateInstanceResponse, Status> {
    let mut instance = request.instance.clone().ok_or_else(|| status::missing_field("instance"))?;
    let (tenant_id, inbound_route) = match &request.inbound_route {
        None => (route_for(transaction, caller, &instance).await?, None),
        Some(route) => {
            caller.require(Role::TenantAdmin, "creating an inbound route with the instance")?;
            let tenant_id = inline::tenant(caller, &instance, route)?;
            tenant::require(transaction, tenant_id.as_str()).await?;
            let route = inline::prepare(&mut instance, route, &tenant_id)?;
            let stored = inbound_route::create(transaction, Some(&tenant_id), &route).await?;
            (tenant_id, Some(stored.route))
        }
    };
    if instance.id.is_empty() {
        instance.id = new_id("inst_");
    }
    let now = Some(time::to_proto(clock::now()));
    instance.tenant_id = tenant_id.to_string();
    instance.is_damaged = false;
    instance.create_time = now;
    instance.update_time = now;
    tenant::require(transaction, tenant_id.as_str()).await?;
    let id_taken = instances::find_even_damaged(transaction, &TenantScope::All, &instance.id)
        .await?
        .is_some()
        || tenants::is_owned_by_another(transaction, "instance", &instance.id, tenant_id.as_str()).await?;
    let checked = Instance::try_from(&instance).map_err(status::invalid)?;
    if id_taken {
        return Err(status::already_exists("instance", checked.id.as_str()));
    }
    put(transaction, &mut instance).await?;
    Ok(v1::CreateInstanceResponse { instance: Some(instance), inbound_route })
}

/// Audits what a creation made: the instance, and its route when that is new too.
async fn audit_creation(
    transaction: &mut WriteTx,
    caller: &Caller,
    created: &v1::CreateInstanceResponse,
) -> Result<(), Status> {
    const METHOD: &str = "InstanceService/CreateInstance";
    if let Some(route) = &created.inbound_route {
        transaction.audit(caller, Audited::created(METHOD, route)).await?;
    }
    if let Some(instance) = &created.instance {
        transaction.audit(caller, Audited::created(METHOD, instance)).await?;
    }
    Ok(())
}

fn apply(instance: &mut v1::Instance, wanted: v1::Instance, fields: &[&str]) {
    for field in fields {
        match *field {
            "display_name" => instance.display_name.clone_from(&wanted.display_name),
            "inbound_route_id" => instance.inbound_route_id.clone_from(&wanted.inbound_route_id),
            "provider_number_id" => instance.provider_number_id.clone_from(&wanted.provider_number_id),
            "phone_number" => instance.phone_number.clone_from(&wanted.phone_number),
            "provider_account_id" => instance.provider_account_id.clone_from(&wanted.provider_account_id),
            "regions" => instance.regions.clone_from(&wanted.regions),
            "labels" => instance.labels.clone_from(&wanted.labels),
            other => unreachable!("the mask allows only known fields, not `{other}`"),
        }
    }
}

/// The tenant of a new instance, whose inbound route must be there: the route's own tenant, or on a platform
/// route the one that the platform admin names.
async fn route_for(
    transaction: &mut WriteTx,
    caller: &Caller,
    instance: &v1::Instance,
) -> Result<TenantId, Status> {
    let route = require_route(transaction, &caller.tenants(), &instance.inbound_route_id).await?;
    let named = if instance.tenant_id.is_empty() { &route.tenant_id } else { &instance.tenant_id };
    let tenant_id = caller.tenant_for(named)?;
    if !route.tenant_id.is_empty() && route.tenant_id != tenant_id.as_str() {
        return Err(status::not_found("inbound route", &route.id));
    }
    Ok(tenant_id)
}

async fn require_route(
    transaction: &mut WriteTx,
    scope: &TenantScope,
    id: &str,
) -> Result<v1::InboundRoute, Status> {
    Ok(inbound_route::find(transaction, scope, "instance.inbound_route_id", id).await?.route)
}

/// What decides which callbacks are an instance's.
fn routing(instance: &v1::Instance) -> [&str; 4] {
    [
        &instance.inbound_route_id,
        &instance.provider_number_id,
        &instance.phone_number,
        &instance.provider_account_id,
    ]
}

/// What comes in on an inbound route is its owner's, so that nobody else chooses which part of it an instance
/// gets: on a platform route that is a platform admin.
async fn check_routing(
    transaction: &mut WriteTx,
    caller: &Caller,
    was: &v1::Instance,
    instance: &v1::Instance,
) -> Result<(), Status> {
    if routing(was) == routing(instance) {
        return Ok(());
    }
    // A route that cannot be read may be left for another one.
    let left =
        inbound_routes::find_even_damaged(transaction, &caller.tenants(), &was.inbound_route_id).await?;
    if left.is_none() {
        let what = "changing which callbacks of a platform route an instance gets";
        return caller.require(Role::PlatformAdmin, what);
    }
    let route = require_route(transaction, &caller.tenants(), &instance.inbound_route_id).await?;
    if !route.tenant_id.is_empty() && route.tenant_id != instance.tenant_id {
        return Err(status::not_found("inbound route", &route.id));
    }
    Ok(())
}

/// Validates and writes an instance whose number nobody else has.
async fn put(transaction: &mut WriteTx, instance: &mut v1::Instance) -> Result<(), Status> {
    let checked = Instance::try_from(&*instance).map_err(status::invalid)?;
    if let Some(phone) = &checked.phone_number {
        phone.as_str().clone_into(&mut instance.phone_number);
    }
    let number_key = checked.number_key();
    let route_id = checked.inbound_route_id.as_str();
    let holder = instances::holder_of_number(transaction, route_id, &number_key).await?;
    if let Some(holder) = holder.filter(|holder| *holder != instance.id) {
        let message = format!(
            "instance `{holder}` has this `provider_number_id` on inbound route `{route_id}` already; change or \
             delete it first"
        );
        return Err(status::conflict("NUMBER_TAKEN", message));
    }
    Ok(instances::put(transaction, instance, &number_key).await?)
}
