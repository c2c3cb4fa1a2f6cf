//! `TenantService`.

use gateway_core::{
    id::TenantId,
    tenant::{Tenant, TenantScope},
    time,
};
use gateway_proto::v1::{self, tenant_service_server::TenantService};
use gateway_runtime::clock;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    api_key,
    authorize::{self, Caller},
    field_mask, new_id,
    page::Page,
    repeat, status,
};
use crate::{
    app::State,
    audit::Audited,
    store::{
        Connection, agents,
        damaged::{Found, Head},
        requests, tenants,
    },
};

/// How many referring resources an error names.
const NAMED_MAX: u32 = 5;
/// How many agents it names: each of them is to be revoked.
const AGENTS_NAMED_MAX: u32 = 10;
const FIELDS: [&str; 1] = ["display_name"];

/// Tenants and their API keys.
pub struct TenantApi {
    state: State,
}

impl TenantApi {
    /// The service over `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl TenantService for TenantApi {
    async fn create_tenant(
        &self,
        request: Request<v1::CreateTenantRequest>,
    ) -> Result<Response<v1::CreateTenantResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let wanted = request.tenant.ok_or_else(|| status::missing_field("tenant"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let parts = [wanted.encode_to_vec()];
        let key = repeat::key(&caller, "CreateTenant", &request.request_id, &parts)?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let id = if wanted.id.is_empty() { new_id("ten_") } else { wanted.id };
        let now = Some(time::to_proto(clock::now()));
        let display_name = wanted.display_name;
        let mut tenant =
            v1::Tenant { id, display_name, create_time: now, update_time: now, ..Default::default() };
        Tenant::try_from(&tenant).map_err(status::invalid)?;
        if tenants::was_ever(&mut transaction, &tenant.id).await? {
            return Err(status::already_exists("tenant", &tenant.id));
        }
        tenants::put(&mut transaction, &mut tenant).await?;
        transaction.audit(&caller, Audited::created("TenantService/CreateTenant", &tenant)).await?;
        let response = v1::CreateTenantResponse { tenant: Some(tenant) };
        requests::remember(&mut transaction, &key, &response).await?;
        transaction.commit().await?;
        Ok(Response::new(response))
    }

    async fn get_tenant(
        &self,
        request: Request<v1::GetTenantRequest>,
    ) -> Result<Response<v1::GetTenantResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let tenant = find(&mut connection, &caller, "id", &id).await?;
        Ok(Response::new(v1::GetTenantResponse { tenant: Some(tenant) }))
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let owner = caller.page_owner();
        let page = Page::read("ListTenants", &[owner], request.page_size, &request.page_token)?;
        let mut connection = self.state.store.reader().await?;
        let after = page.after.as_deref();
        let mut found = tenants::list(&mut connection, &caller.tenants(), after, page.limit()).await?;
        let next_page_token = page.cut(&mut found, |tenant| &tenant.id);
        Ok(Response::new(v1::ListTenantsResponse { tenants: found, next_page_token }))
    }

    async fn update_tenant(
        &self,
        request: Request<v1::UpdateTenantRequest>,
    ) -> Result<Response<v1::UpdateTenantResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let wanted = request.tenant.ok_or_else(|| status::missing_field("tenant"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let before = match find_even_damaged(&mut transaction, &caller, "tenant.id", &wanted.id).await? {
            Found::Whole(tenant) => tenant,
            // It is written anew.
            Found::Damaged(Head { id, etag, .. }) => v1::Tenant { id, etag, ..Default::default() },
        };
        field_mask::read(request.update_mask.as_ref(), &FIELDS)?;
        status::check_etag("tenant", &wanted.id, &wanted.etag, &before.etag)?;
        let mut tenant = v1::Tenant {
            display_name: wanted.display_name,
            update_time: Some(time::to_proto(clock::now())),
            ..before.clone()
        };
        Tenant::try_from(&tenant).map_err(status::invalid)?;
        tenants::put(&mut transaction, &mut tenant).await?;
        let audited = Audited::changed("TenantService/UpdateTenant", &before, &tenant);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::UpdateTenantResponse { tenant: Some(tenant) }))
    }

    async fn delete_tenant(
        &self,
        request: Request<v1::DeleteTenantRequest>,
    ) -> Result<Response<v1::DeleteTenantResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::DeleteTenantRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let found = find_even_damaged(&mut transaction, &caller, "id", &id).await?;
        let current = match &found {
            Found::Whole(tenant) => &tenant.etag,
            Found::Damaged(head) => &head.etag,
        };
        status::check_etag("tenant", &id, &etag, current)?;
        if id == TenantId::default_tenant().as_str() {
            let message = "tenant `default` is there from the first start and cannot be deleted";
            return Err(status::failed_precondition("DEFAULT_TENANT", message));
        }
        let (by, names) = tenants::referring(&mut transaction, &id, NAMED_MAX).await?;
        if !names.is_empty() {
            return Err(status::in_use("tenant", &id, by, names.into_iter()));
        }
        let agents = agents::working_of_tenant(&mut transaction, &id, AGENTS_NAMED_MAX).await?;
        if !agents.is_empty() {
            let message =
                format!("tenant `{id}` has agents; call RevokeAgent first: `{}`", agents.join("`, `"));
            return Err(status::failed_precondition("IN_USE", message));
        }
        tenants::delete(&mut transaction, &id).await?;
        let method = "TenantService/DeleteTenant";
        let audited = match &found {
            Found::Whole(tenant) => Audited::deleted(method, tenant),
            Found::Damaged(head) => Audited::deleted_unread::<v1::Tenant>(method, head),
        };
        transaction.audit(&caller, audited).await?;
        let keys = self.state.keys.clone();
        transaction.after_commit(move || keys.look());
        transaction.commit().await?;
        Ok(Response::new(v1::DeleteTenantResponse {}))
    }

    async fn create_api_key(
        &self,
        request: Request<v1::CreateApiKeyRequest>,
    ) -> Result<Response<v1::CreateApiKeyResponse>, Status> {
        let caller = authorize::caller(&request)?;
        Ok(Response::new(api_key::create(&self.state.store, &caller, request.into_inner()).await?))
    }

    async fn list_api_keys(
        &self,
        request: Request<v1::ListApiKeysRequest>,
    ) -> Result<Response<v1::ListApiKeysResponse>, Status> {
        let caller = authorize::caller(&request)?;
        Ok(Response::new(api_key::list(&self.state, &caller, request.get_ref()).await?))
    }

    async fn revoke_api_key(
        &self,
        request: Request<v1::RevokeApiKeyRequest>,
    ) -> Result<Response<v1::RevokeApiKeyResponse>, Status> {
        let caller = authorize::caller(&request)?;
        Ok(Response::new(api_key::revoke(&self.state, &caller, request.get_ref()).await?))
    }
}

async fn find(
    connection: &mut dyn Connection,
    caller: &Caller,
    field: &str,
    id: &str,
) -> Result<v1::Tenant, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = tenants::find(connection, &caller.tenants(), id).await?;
    found.ok_or_else(|| status::not_found("tenant", id))
}

async fn find_even_damaged(
    connection: &mut dyn Connection,
    caller: &Caller,
    field: &str,
    id: &str,
) -> Result<Found<v1::Tenant>, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = tenants::find_even_damaged(connection, &caller.tenants(), id).await?;
    found.ok_or_else(|| status::not_found("tenant", id))
}

/// Checks that the tenant of what is to be created is there: a platform admin may name one that is not, and one
/// may be deleted while its caller's request is under way.
///
/// # Errors
/// NOT_FOUND when there is none.
pub(super) async fn require(connection: &mut dyn Connection, id: &str) -> Result<(), Status> {
    let found = tenants::find(connection, &TenantScope::All, id).await?;
    found.map(|_| ()).ok_or_else(|| status::not_found("tenant", id))
}
