//! `InboundRouteService`.

mod secrets;

use gateway_core::{
    api_key::Role,
    event::Provider,
    id::TenantId,
    inbound_route::{
        InboundRoute, SecretValue, callback_path, check_callback_token, check_descriptions, provider_names,
    },
    tenant::TenantScope,
    time,
    violation::FieldViolations,
};
use gateway_proto::v1::{self, inbound_route_service_server::InboundRouteService};
use gateway_runtime::clock;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    authorize::{self, Caller},
    field_mask, instance, new_id, new_token,
    page::Page,
    repeat, status, tenant,
};
use crate::{
    app::State,
    audit::Audited,
    store::{
        Connection, WriteTx,
        damaged::Found,
        inbound_routes::{self, StoredRoute},
        requests, tenants,
    },
};

const FIELDS: [&str; 3] = ["display_name", "provider_account_id", "callback_token_suffices"];

/// Where providers call us.
pub struct InboundRouteApi {
    state: State,
}

impl InboundRouteApi {
    /// The service over `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }

    /// The routes of which a caller may see unrouted callbacks: the one that the filter names, if it is within
    /// reach; without a filter all that are. None stands for every route.
    async fn reachable_routes(&self, caller: &Caller, named: &str) -> Result<Option<Vec<String>>, Status> {
        let scope = caller.tenants();
        if named.is_empty() && scope == TenantScope::All {
            return Ok(None);
        }
        let mut connection = self.state.store.reader().await?;
        if named.is_empty() {
            return Ok(Some(inbound_routes::ids(&mut connection, &scope).await?));
        }
        let found = inbound_routes::find_even_damaged(&mut connection, &scope, named).await?;
        Ok(Some(found.map(|_| named.to_owned()).into_iter().collect()))
    }
}

#[tonic::async_trait]
impl InboundRouteService for InboundRouteApi {
    async fn create_inbound_route(
        &self,
        request: Request<v1::CreateInboundRouteRequest>,
    ) -> Result<Response<v1::CreateInboundRouteResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let route = request.inbound_route.ok_or_else(|| status::missing_field("inbound_route"))?;
        let owner = if request.platform {
            caller.require(Role::PlatformAdmin, "creating a platform route")?;
            check_no_tenant(&route)?;
            None
        } else {
            Some(caller.tenant_for(&route.tenant_id)?)
        };
        let mut transaction = self.state.store.begin_write().await?;
        let parts = [route.encode_to_vec(), vec![request.platform.into()]];
        let key = repeat::key(&caller, "CreateInboundRoute", &request.request_id, &parts)?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let stored = create(&mut transaction, owner.as_ref(), &route).await?;
        let audited = Audited::created("InboundRouteService/CreateInboundRoute", &stored.route);
        transaction.audit(&caller, audited).await?;
        let response = v1::CreateInboundRouteResponse { inbound_route: Some(stored.route) };
        requests::remember(&mut transaction, &key, &response).await?;
        transaction.commit().await?;
        Ok(Response::new(response))
    }

    async fn get_inbound_route(
        &self,
        request: Request<v1::GetInboundRouteRequest>,
    ) -> Result<Response<v1::GetInboundRouteResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let stored = find(&mut connection, &caller.tenants(), "id", &id).await?;
        let shown = shown_to(&caller, stored.route);
        Ok(Response::new(v1::GetInboundRouteResponse { inbound_route: Some(shown) }))
    }

    async fn list_inbound_routes(
        &self,
        request: Request<v1::ListInboundRoutesRequest>,
    ) -> Result<Response<v1::ListInboundRoutesResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let filters = request.provider.to_string();
        let page = Page::read(
            "ListInboundRoutes",
            &[caller.page_owner(), &filters],
            request.page_size,
            &request.page_token,
        )?;
        let is_any = request.provider == i32::from(v1::Provider::Unspecified);
        if !is_any && Provider::from_proto(request.provider).is_none() {
            let description = format!("must be one of {}, or unset for all", provider_names());
            return Err(status::invalid_field("provider", description));
        }
        let provider = (!is_any).then_some(request.provider);
        let mut connection = self.state.store.reader().await?;
        let after = page.after.as_deref();
        let routes =
            inbound_routes::list(&mut connection, &caller.tenants(), provider, after, page.limit()).await?;
        let mut inbound_routes = routes.into_iter().map(|route| shown_to(&caller, route)).collect();
        let next_page_token = page.cut(&mut inbound_routes, |route| &route.id);
        Ok(Response::new(v1::ListInboundRoutesResponse { inbound_routes, next_page_token }))
    }

    async fn update_inbound_route(
        &self,
        request: Request<v1::UpdateInboundRouteRequest>,
    ) -> Result<Response<v1::UpdateInboundRouteResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let wanted = request.inbound_route.ok_or_else(|| status::missing_field("inbound_route"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let mut stored = find(&mut transaction, &caller.tenants(), "inbound_route.id", &wanted.id).await?;
        let before = stored.route.clone();
        let fields = field_mask::read(request.update_mask.as_ref(), &FIELDS)?;
        status::check_etag("inbound route", &wanted.id, &wanted.etag, &stored.route.etag)?;
        apply(&mut stored, &wanted, &fields)?;
        put_changed(&mut transaction, &mut stored).await?;
        let audited = Audited::changed("InboundRouteService/UpdateInboundRoute", &before, &stored.route);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::UpdateInboundRouteResponse { inbound_route: Some(stored.route) }))
    }

    async fn delete_inbound_route(
        &self,
        request: Request<v1::DeleteInboundRouteRequest>,
    ) -> Result<Response<v1::DeleteInboundRouteResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::DeleteInboundRouteRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let found = find_even_damaged(&mut transaction, &caller.tenants(), "id", &id).await?;
        let current = match &found {
            Found::Whole(stored) => &stored.route.etag,
            Found::Damaged(head) => &head.etag,
        };
        status::check_etag("inbound route", &id, &etag, current)?;
        let referring = instance::ids_of_route(&mut transaction, &id).await?;
        if !referring.is_empty() {
            return Err(status::in_use("inbound route", &id, "instances", referring.into_iter()));
        }
        inbound_routes::delete(&mut transaction, &id).await?;
        let method = "InboundRouteService/DeleteInboundRoute";
        let audited = match &found {
            Found::Whole(stored) => Audited::deleted(method, &stored.route),
            Found::Damaged(head) => Audited::deleted_unread::<v1::InboundRoute>(method, head),
        };
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::DeleteInboundRouteResponse {}))
    }

    async fn add_inbound_route_secret(
        &self,
        request: Request<v1::AddInboundRouteSecretRequest>,
    ) -> Result<Response<v1::AddInboundRouteSecretResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::AddInboundRouteSecretRequest { id, kind, value, request_id } = request.into_inner();
        let parts = [id.clone().into_bytes(), kind.to_be_bytes().into(), value.clone().into_bytes()];
        let key = repeat::key(&caller, "AddInboundRouteSecret", &request_id, &parts)?;
        let mut transaction = self.state.store.begin_write().await?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let mut stored = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        let kind = secrets::check(&stored, kind, &value)?;
        secrets::refuse_superfluous(&stored, kind, &value)?;
        let before = stored.route.clone();
        let secret = secrets::add(&mut stored, kind, &SecretValue::new(&value), clock::now());
        put_changed(&mut transaction, &mut stored).await?;
        let audited = Audited::changed("InboundRouteService/AddInboundRouteSecret", &before, &stored.route);
        transaction.audit(&caller, audited).await?;
        let response =
            v1::AddInboundRouteSecretResponse { inbound_route: Some(stored.route), secret: Some(secret) };
        requests::remember(&mut transaction, &key, &response).await?;
        transaction.commit().await?;
        Ok(Response::new(response))
    }

    async fn remove_inbound_route_secret(
        &self,
        request: Request<v1::RemoveInboundRouteSecretRequest>,
    ) -> Result<Response<v1::RemoveInboundRouteSecretResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::RemoveInboundRouteSecretRequest { id, secret_id } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut stored = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        if secret_id.is_empty() {
            return Err(status::missing_field("secret_id"));
        }
        let before = stored.route.clone();
        secrets::remove(&mut stored, &secret_id)?;
        put_changed(&mut transaction, &mut stored).await?;
        let audited =
            Audited::changed("InboundRouteService/RemoveInboundRouteSecret", &before, &stored.route);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::RemoveInboundRouteSecretResponse { inbound_route: Some(stored.route) }))
    }

    /// Callbacks stay listed until an instance of the inbound route claims the number and has a webhook
    /// subscription: without one their events would be recorded and delivered to nobody.
    async fn list_unrouted_callbacks(
        &self,
        request: Request<v1::ListUnroutedCallbacksRequest>,
    ) -> Result<Response<v1::ListUnroutedCallbacksResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let route = request.inbound_route_id.as_str();
        let page = Page::read(
            "ListUnroutedCallbacks",
            &[caller.page_owner(), route],
            request.page_size,
            &request.page_token,
        )?;
        let before = match page.after.as_deref().map(str::parse).transpose() {
            Ok(before) => before,
            Err(_) => return Err(status::invalid_field("page_token", "must be one of this list")),
        };
        let routes = self.reachable_routes(&caller, route).await?;
        let limit = usize::try_from(page.size).expect("a page size fits usize");
        let (unrouted_callbacks, next) =
            self.state.logs.list_unrouted(routes.as_deref(), before, limit).await?;
        let next_page_token = next.map(|next| page.token_after(&next.to_string())).unwrap_or_default();
        Ok(Response::new(v1::ListUnroutedCallbacksResponse { unrouted_callbacks, next_page_token }))
    }
}

/// A route within reach of the caller; `field` is the request's field that names it.
pub(super) async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    field: &str,
    id: &str,
) -> Result<StoredRoute, Status> {
    match find_even_damaged(connection, scope, field, id).await? {
        Found::Whole(stored) => Ok(stored),
        Found::Damaged(_) => Err(damaged(id)),
    }
}

/// A route as a caller may see it. Whoever knows the token in the callback path makes events up where the token is all
/// that proves a callback, and on every other route from the day on which that is switched on: so it is a secret, and
/// a viewer reads none.
pub(super) fn shown_to(caller: &Caller, route: v1::InboundRoute) -> v1::InboundRoute {
    if caller.role > Role::Viewer {
        return route;
    }
    let without_token = |path: &str| path.rsplit_once('/').map(|(before, _)| format!("{before}/…"));
    let callback_path = without_token(&route.callback_path).unwrap_or_default();
    v1::InboundRoute { callback_path, ..route }
}

/// DATA_LOSS: the route cannot be read.
pub(super) fn damaged(id: &str) -> Status {
    status::damaged("inbound route", id, "DeleteInboundRoute")
}

async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    field: &str,
    id: &str,
) -> Result<Found<StoredRoute>, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = inbound_routes::find_even_damaged(connection, scope, id).await?;
    found.ok_or_else(|| status::not_found("inbound route", id))
}

/// A platform route has no tenant.
fn check_no_tenant(route: &v1::InboundRoute) -> Result<(), Status> {
    if route.tenant_id.is_empty() {
        return Ok(());
    }
    Err(status::invalid_field("inbound_route.tenant_id", "must be empty for a platform route"))
}

async fn put_changed(transaction: &mut WriteTx, stored: &mut StoredRoute) -> Result<(), Status> {
    stored.route.update_time = Some(time::to_proto(clock::now()));
    Ok(inbound_routes::put(transaction, stored).await?)
}

/// Changes the fields of the mask.
fn apply(stored: &mut StoredRoute, wanted: &v1::InboundRoute, fields: &[&str]) -> Result<(), Status> {
    let StoredRoute { route, config } = stored;
    for field in fields {
        match *field {
            "display_name" => route.display_name.clone_from(&wanted.display_name),
            "provider_account_id" => {
                route.provider_account_id.clone_from(&wanted.provider_account_id);
                config.provider_account_id.clone_from(&wanted.provider_account_id);
            }
            "callback_token_suffices" => {
                route.callback_token_suffices = wanted.callback_token_suffices;
                config.callback_token_suffices = wanted.callback_token_suffices;
            }
            other => unreachable!("the mask allows only known fields, not `{other}`"),
        }
    }
    let mut violations = FieldViolations::new();
    check_descriptions(&mut violations, route);
    if let Some(provider) = Provider::from_proto(route.provider) {
        check_callback_token(&mut violations, provider, route.callback_token_suffices);
    }
    violations.into_result(()).map_err(status::invalid)?;
    secrets::require_proof(stored)
}

/// Validates and writes a new route of a tenant, or of the platform, with a callback token of its own.
pub(super) async fn create(
    transaction: &mut WriteTx,
    owner: Option<&TenantId>,
    wanted: &v1::InboundRoute,
) -> Result<StoredRoute, Status> {
    let mut wanted = wanted.clone();
    if wanted.id.is_empty() {
        wanted.id = new_id("route_");
    }
    if let Some(owner) = owner {
        tenant::require(transaction, owner.as_str()).await?;
    }
    let checked = InboundRoute::try_from(&wanted).map_err(status::invalid)?;
    let id = checked.id.to_string();
    let owner = owner.map_or("", TenantId::as_str);
    let is_others = tenants::is_owned_by_another(transaction, "inbound_route", &id, owner).await?;
    let found = inbound_routes::find_even_damaged(transaction, &TenantScope::All, &id).await?;
    if is_others || found.is_some() {
        return Err(status::already_exists("inbound route", &id));
    }
    let now = clock::now();
    let token = new_token();
    let route = v1::InboundRoute {
        id: id.clone(),
        tenant_id: owner.to_owned(),
        provider: wanted.provider,
        display_name: checked.display_name,
        provider_account_id: checked.provider_account_id.clone(),
        callback_path: callback_path(checked.provider, &token),
        callback_token_suffices: checked.callback_token_suffices,
        create_time: Some(time::to_proto(now)),
        update_time: Some(time::to_proto(now)),
        ..Default::default()
    };
    let config = v1::InboundRouteConfig {
        id,
        provider: wanted.provider,
        callback_token: token,
        provider_account_id: checked.provider_account_id,
        secrets: Vec::new(),
        callback_token_suffices: checked.callback_token_suffices,
    };
    let mut stored = StoredRoute { route, config };
    for (kind, value) in &checked.secrets {
        secrets::add(&mut stored, *kind, value, now);
    }
    inbound_routes::put(transaction, &mut stored).await?;
    Ok(stored)
}
