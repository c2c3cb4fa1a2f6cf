//! Making, listing and revoking API keys, for `TenantService`.

use gateway_core::{
    api_key::{self, ApiKey, RANDOM_CHARS, Role, SHOWN_CHARS},
    time,
};
use gateway_proto::v1;
use gateway_runtime::clock;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{
    authorize::{Caller, access},
    new_id,
    page::Page,
    status, tenant,
};
use crate::{
    app::State,
    audit::Audited,
    store::{api_keys, tenants},
};

/// Makes a key that may do at most what its creator may.
pub(super) async fn create(
    state: &State,
    caller: &Caller,
    request: v1::CreateApiKeyRequest,
) -> Result<v1::CreateApiKeyResponse, Status> {
    let mut wanted = request.api_key.ok_or_else(|| status::missing_field("api_key"))?;
    let is_platform = Role::from_proto(wanted.role) == Some(Role::PlatformAdmin);
    if is_platform {
        caller.require(Role::PlatformAdmin, "creating a platform admin's key")?;
    } else {
        wanted.tenant_id = caller.tenant_for(&wanted.tenant_id)?.to_string();
    }
    let mut transaction = state.store.begin_write().await?;
    let now = clock::now();
    if !is_platform {
        tenant::require(&mut transaction, &wanted.tenant_id).await?;
    }
    let checked = ApiKey::from_proto(&wanted, now, access::is_scope).map_err(status::invalid)?;
    check_at_most(caller, &checked)?;
    let random: String =
        rand::rng().sample_iter(rand::distr::Alphanumeric).take(RANDOM_CHARS).map(char::from).collect();
    let secret = api_key::secret(&random);
    let key = v1::ApiKey {
        id: new_id("key_"),
        tenant_id: checked.tenant_id.map_or_else(String::new, |tenant_id| tenant_id.to_string()),
        role: wanted.role,
        display_name: checked.display_name,
        scopes: wanted.scopes,
        expire_time: wanted.expire_time,
        prefix: secret.chars().take(SHOWN_CHARS).collect(),
        create_time: Some(time::to_proto(now)),
        last_use_time: None,
        revoke_time: None,
    };
    api_keys::create(&mut transaction, &key, &Sha256::digest(&secret).into()).await?;
    transaction.audit(caller, Audited::created("TenantService/CreateApiKey", &key)).await?;
    transaction.commit().await?;
    Ok(v1::CreateApiKeyResponse { api_key: Some(key), secret })
}

/// A creator cannot give more than it has: neither role, nor scopes, nor time.
fn check_at_most(caller: &Caller, key: &ApiKey) -> Result<(), Status> {
    caller.require(key.role, "creating a key with a greater role")?;
    if !caller.scopes().include(&key.scopes) {
        let message = "creating a key with wider `scopes` than those of this key: name some of them";
        return Err(status::permission_denied(message));
    }
    let outlives = match (caller.expire_time(), key.expire_time) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(own), Some(given)) => given > own,
    };
    if outlives {
        let message = "creating a key that outlives this key: set `expire_time` to this key's or before";
        return Err(status::permission_denied(message));
    }
    Ok(())
}

/// A page of keys, of the caller's tenant or of the one that a platform admin names.
pub(super) async fn list(
    state: &State,
    caller: &Caller,
    request: &v1::ListApiKeysRequest,
) -> Result<v1::ListApiKeysResponse, Status> {
    let named = request.tenant_id.as_str();
    let page =
        Page::read("ListApiKeys", &[caller.page_owner(), named], request.page_size, &request.page_token)?;
    let mut connection = state.store.reader().await?;
    if !named.is_empty() && tenants::find(&mut connection, &caller.tenants(), named).await?.is_none() {
        return Err(status::not_found("tenant", named));
    }
    let scope = caller.tenants();
    let tenant_id = if named.is_empty() { scope.only() } else { Some(named) };
    let after = page.after.as_deref();
    let mut keys = api_keys::list(&mut connection, tenant_id, after, page.limit()).await?;
    let next_page_token = page.cut(&mut keys, |key| &key.id);
    Ok(v1::ListApiKeysResponse { api_keys: keys, next_page_token })
}

/// Revokes a key, once: what it opened ends, and it opens nothing more.
pub(super) async fn revoke(
    state: &State,
    caller: &Caller,
    id: &str,
) -> Result<v1::RevokeApiKeyResponse, Status> {
    if id.is_empty() {
        return Err(status::missing_field("id"));
    }
    let mut transaction = state.store.begin_write().await?;
    let found = api_keys::find(&mut transaction, &caller.tenants(), id).await?;
    let before = found.ok_or_else(|| status::not_found("API key", id))?;
    if before.revoke_time.is_some() {
        return Ok(v1::RevokeApiKeyResponse { api_key: Some(before) });
    }
    let key = v1::ApiKey { revoke_time: Some(time::to_proto(clock::now())), ..before.clone() };
    api_keys::update(&mut transaction, &key).await?;
    transaction.audit(caller, Audited::changed("TenantService/RevokeApiKey", &before, &key)).await?;
    transaction.commit().await?;
    state.keys.look();
    Ok(v1::RevokeApiKeyResponse { api_key: Some(key) })
}
