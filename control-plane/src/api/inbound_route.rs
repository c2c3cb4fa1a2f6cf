//! `InboundRouteService`.

use gateway_core::{
    id::TenantId,
    inbound_route::{
        InboundRoute, SECRETS_PER_KIND_MAX, SecretValue, callback_path, check_descriptions, check_secret,
        provider_from_proto, provider_of, secret_kind_from_proto, secret_kind_to_proto,
    },
    snapshot::RouteSecretKind,
    time,
    violation::FieldViolations,
};
use gateway_proto::v1::{self, inbound_route_service_server::InboundRouteService};
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::SqliteConnection;
use tonic::{Request, Response, Status};

use super::{authorize, field_mask, instance, new_id, new_token, page::Page, repeat, status};
use crate::{
    app::State,
    store::{
        WriteTx,
        inbound_routes::{self, StoredRoute},
        requests,
    },
};

const FIELDS: [&str; 2] = ["display_name", "provider_account_id"];

/// Where providers call us.
pub struct InboundRouteApi {
    state: State,
}

impl InboundRouteApi {
    /// The service over `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl InboundRouteService for InboundRouteApi {
    async fn create_inbound_route(
        &self,
        request: Request<v1::CreateInboundRouteRequest>,
    ) -> Result<Response<v1::CreateInboundRouteResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let request = request.into_inner();
        let route = request.inbound_route.ok_or_else(|| status::missing_field("inbound_route"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let parts = [route.encode_to_vec()];
        let key = repeat::key(&tenant_id, "CreateInboundRoute", &request.request_id, &parts)?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let stored = create(&mut transaction, &tenant_id, &route).await?;
        let response = v1::CreateInboundRouteResponse { inbound_route: Some(stored.route) };
        requests::remember(&mut transaction, &key, &response).await?;
        transaction.commit().await?;
        Ok(Response::new(response))
    }

    async fn get_inbound_route(
        &self,
        request: Request<v1::GetInboundRouteRequest>,
    ) -> Result<Response<v1::GetInboundRouteResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let stored = find(&mut connection, &tenant_id, "id", &id).await?;
        Ok(Response::new(v1::GetInboundRouteResponse { inbound_route: Some(stored.route) }))
    }

    async fn list_inbound_routes(
        &self,
        request: Request<v1::ListInboundRoutesRequest>,
    ) -> Result<Response<v1::ListInboundRoutesResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let request = request.into_inner();
        let filters = request.provider.to_string();
        let page = Page::read("ListInboundRoutes", &[&filters], request.page_size, &request.page_token)?;
        let is_any = request.provider == i32::from(v1::Provider::Unspecified);
        if !is_any && provider_from_proto(request.provider).is_none() {
            return Err(status::invalid_field("provider", "must be PROVIDER_META, or unset for all"));
        }
        let provider = (!is_any).then_some(request.provider);
        let mut connection = self.state.store.reader().await?;
        let after = page.after.as_deref();
        let mut routes =
            inbound_routes::list(&mut connection, &tenant_id, provider, after, page.limit()).await?;
        let next_page_token = page.cut(&mut routes, |route| &route.id);
        Ok(Response::new(v1::ListInboundRoutesResponse { inbound_routes: routes, next_page_token }))
    }

    async fn update_inbound_route(
        &self,
        request: Request<v1::UpdateInboundRouteRequest>,
    ) -> Result<Response<v1::UpdateInboundRouteResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let request = request.into_inner();
        let wanted = request.inbound_route.ok_or_else(|| status::missing_field("inbound_route"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let mut stored = find(&mut transaction, &tenant_id, "inbound_route.id", &wanted.id).await?;
        let fields = field_mask::read(request.update_mask.as_ref(), &FIELDS)?;
        status::check_etag("inbound route", &wanted.id, &wanted.etag, &stored.route.etag)?;
        if fields.contains(&"display_name") {
            stored.route.display_name = wanted.display_name;
        }
        if fields.contains(&"provider_account_id") {
            stored.config.provider_account_id.clone_from(&wanted.provider_account_id);
            stored.route.provider_account_id = wanted.provider_account_id;
        }
        let mut violations = FieldViolations::new();
        check_descriptions(&mut violations, &stored.route);
        violations.into_result(()).map_err(status::invalid)?;
        put_changed(&mut transaction, &mut stored).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::UpdateInboundRouteResponse { inbound_route: Some(stored.route) }))
    }

    async fn delete_inbound_route(
        &self,
        request: Request<v1::DeleteInboundRouteRequest>,
    ) -> Result<Response<v1::DeleteInboundRouteResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let v1::DeleteInboundRouteRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let stored = find(&mut transaction, &tenant_id, "id", &id).await?;
        status::check_etag("inbound route", &id, &etag, &stored.route.etag)?;
        let referring = instance::ids_of_route(&mut transaction, &id).await?;
        if !referring.is_empty() {
            return Err(status::in_use("inbound route", &id, "instances", referring.into_iter()));
        }
        inbound_routes::delete(&mut transaction, &id).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::DeleteInboundRouteResponse {}))
    }

    async fn add_inbound_route_secret(
        &self,
        request: Request<v1::AddInboundRouteSecretRequest>,
    ) -> Result<Response<v1::AddInboundRouteSecretResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let v1::AddInboundRouteSecretRequest { id, kind, value } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut stored = find(&mut transaction, &tenant_id, "id", &id).await?;
        let mut violations = FieldViolations::new();
        let provider = provider_from_proto(stored.route.provider);
        let kind = secret_kind_from_proto(kind).filter(|kind| Some(provider_of(*kind)) == provider);
        if kind.is_none() {
            let description = "must be INBOUND_ROUTE_SECRET_KIND_META_APP_SECRET or \
                               INBOUND_ROUTE_SECRET_KIND_META_VERIFY_TOKEN for this route's provider";
            violations.add("kind", description);
        }
        check_secret(&mut violations, "value", &value);
        let (Some(kind), true) = (kind, violations.0.is_empty()) else {
            return Err(status::invalid(violations));
        };
        refuse_superfluous(&stored, kind, &value)?;
        let secret = add_secret(&mut stored, kind, &SecretValue::new(&value), clock::now());
        put_changed(&mut transaction, &mut stored).await?;
        transaction.commit().await?;
        let response =
            v1::AddInboundRouteSecretResponse { inbound_route: Some(stored.route), secret: Some(secret) };
        Ok(Response::new(response))
    }

    async fn remove_inbound_route_secret(
        &self,
        request: Request<v1::RemoveInboundRouteSecretRequest>,
    ) -> Result<Response<v1::RemoveInboundRouteSecretResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let v1::RemoveInboundRouteSecretRequest { id, secret_id } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut stored = find(&mut transaction, &tenant_id, "id", &id).await?;
        if secret_id.is_empty() {
            return Err(status::missing_field("secret_id"));
        }
        let secret = stored.config.secrets.iter().find(|secret| secret.id == secret_id);
        let kind = secret.ok_or_else(|| status::not_found("inbound route secret", &secret_id))?.kind;
        if stored.config.secrets.iter().filter(|secret| secret.kind == kind).count() == 1 {
            let message = format!(
                "secret `{secret_id}` is the last one of its kind; add another with AddInboundRouteSecret first"
            );
            return Err(status::failed_precondition("LAST_SECRET", message));
        }
        stored.config.secrets.retain(|secret| secret.id != secret_id);
        stored.route.secrets.retain(|secret| secret.id != secret_id);
        put_changed(&mut transaction, &mut stored).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::RemoveInboundRouteSecretResponse { inbound_route: Some(stored.route) }))
    }

    /// Callbacks stay listed until an instance of the inbound route claims the number and has a webhook
    /// subscription: without one their events would be recorded and delivered to nobody.
    async fn list_unrouted_callbacks(
        &self,
        request: Request<v1::ListUnroutedCallbacksRequest>,
    ) -> Result<Response<v1::ListUnroutedCallbacksResponse>, Status> {
        authorize::tenant(&request)?;
        let request = request.into_inner();
        let route = request.inbound_route_id.as_str();
        let page = Page::read("ListUnroutedCallbacks", &[route], request.page_size, &request.page_token)?;
        let before = match page.after.as_deref().map(str::parse).transpose() {
            Ok(before) => before,
            Err(_) => return Err(status::invalid_field("page_token", "must be one of this list")),
        };
        let route = Some(route).filter(|route| !route.is_empty());
        let limit = usize::try_from(page.size).expect("a page size fits usize");
        let (unrouted_callbacks, next) = self.state.logs.list_unrouted(route, before, limit).await?;
        let next_page_token = next.map(|next| page.token_after(&next.to_string())).unwrap_or_default();
        Ok(Response::new(v1::ListUnroutedCallbacksResponse { unrouted_callbacks, next_page_token }))
    }
}

async fn find(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    field: &str,
    id: &str,
) -> Result<StoredRoute, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = inbound_routes::find(connection, tenant_id, id).await?;
    found.ok_or_else(|| status::not_found("inbound route", id))
}

async fn put_changed(transaction: &mut WriteTx, stored: &mut StoredRoute) -> Result<(), Status> {
    stored.route.update_time = Some(time::to_proto(clock::now()));
    Ok(inbound_routes::put(transaction, stored).await?)
}

/// Validates and writes a new route, with a callback token of its own.
pub(super) async fn create(
    transaction: &mut WriteTx,
    tenant_id: &TenantId,
    wanted: &v1::InboundRoute,
) -> Result<StoredRoute, Status> {
    let mut wanted = wanted.clone();
    if wanted.id.is_empty() {
        wanted.id = new_id("route_");
    }
    let checked = InboundRoute::try_from(&wanted).map_err(status::invalid)?;
    let id = checked.id.to_string();
    if inbound_routes::find_any(transaction, &id).await?.is_some() {
        return Err(status::already_exists("inbound route", &id));
    }
    let now = clock::now();
    let token = new_token();
    let route = v1::InboundRoute {
        id: id.clone(),
        tenant_id: tenant_id.to_string(),
        provider: wanted.provider,
        display_name: checked.display_name,
        provider_account_id: checked.provider_account_id.clone(),
        callback_path: callback_path(checked.provider, &token),
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
    };
    let mut stored = StoredRoute { route, config };
    for (kind, value) in &checked.secrets {
        add_secret(&mut stored, *kind, value, now);
    }
    inbound_routes::put(transaction, &mut stored).await?;
    Ok(stored)
}

/// A secret that is live already, or one too many, is refused.
fn refuse_superfluous(stored: &StoredRoute, kind: RouteSecretKind, value: &str) -> Result<(), Status> {
    let kind = i32::from(secret_kind_to_proto(kind));
    let mut live = stored.config.secrets.iter().filter(|secret| secret.kind == kind);
    if let Some(same) = live.clone().find(|secret| secret.value == value) {
        let message = format!("this value is live already as secret `{}`", same.id);
        return Err(status::conflict("SECRET_EXISTS", message));
    }
    if live.nth(SECRETS_PER_KIND_MAX - 1).is_some() {
        let message = format!(
            "the route has {SECRETS_PER_KIND_MAX} live secrets of this kind; remove one with \
             RemoveInboundRouteSecret first"
        );
        return Err(status::failed_precondition("TOO_MANY_SECRETS", message));
    }
    Ok(())
}

fn add_secret(
    stored: &mut StoredRoute,
    kind: RouteSecretKind,
    value: &SecretValue,
    now: Timestamp,
) -> v1::InboundRouteSecret {
    let (id, kind) = (new_id("key_"), secret_kind_to_proto(kind).into());
    let shown = v1::InboundRouteSecret {
        id: id.clone(),
        kind,
        fingerprint: value.fingerprint(),
        create_time: Some(time::to_proto(now)),
    };
    let value = value.reveal().to_owned();
    stored.config.secrets.push(v1::InboundRouteSecretValue { id, kind, value });
    stored.route.secrets.push(shown.clone());
    shown
}
