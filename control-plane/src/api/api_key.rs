//! Making, listing and revoking API keys, for `TenantService`.

use std::collections::HashMap;

use gateway_core::{
    api_key::{self, ApiKey, RANDOM_CHARS, Role, SHOWN_CHARS},
    time,
    violation::FieldViolations,
};
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{
    agent::join_token,
    authorize::{Actor, Caller, access, keys},
    new_id,
    page::Page,
    repeat, status, tenant,
};
use crate::{
    app::State,
    audit::Audited,
    store::{
        Connection, Store, api_keys,
        damaged::{Found, Head},
        requests, tenants,
    },
};

/// Keys read by one query.
const KEYS_CHUNK: i64 = 1_000;
/// Keys of a tenant, or of the platform, that work. One more is RESOURCE_EXHAUSTED.
const WORKING_KEYS_MAX: usize = 1_000;
const REVOKE: &str = "TenantService/RevokeApiKey";

/// Makes a key that may do at most what its creator may. A repeat has the first answer, without the secret.
pub(super) async fn create(
    store: &Store,
    caller: &Caller,
    request: v1::CreateApiKeyRequest,
) -> Result<v1::CreateApiKeyResponse, Status> {
    let mut wanted = request.api_key.ok_or_else(|| status::missing_field("api_key"))?;
    let request = repeat::key(caller, "CreateApiKey", &request.request_id, &[wanted.encode_to_vec()])?;
    let is_platform = Role::from_proto(wanted.role) == Some(Role::PlatformAdmin);
    if is_platform {
        caller.require(Role::PlatformAdmin, "creating a platform admin's key")?;
    } else {
        wanted.tenant_id = caller.tenant_for(&wanted.tenant_id)?.to_string();
    }
    let mut transaction = store.begin_write().await?;
    let now = clock::now();
    check_works(&mut transaction, caller, now).await?;
    if let Some(answer) = repeat::answer(&mut transaction, &request).await? {
        return Ok(answer);
    }
    if !is_platform {
        tenant::require(&mut transaction, &wanted.tenant_id).await?;
    }
    let checked = check(&wanted, now)?;
    check_at_most(caller, &checked)?;
    check_room(&mut transaction, &wanted.tenant_id, now).await?;
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
        created_by: caller.actor.to_string(),
        is_damaged: false,
    };
    api_keys::create(&mut transaction, &key, &Sha256::digest(&secret).into()).await?;
    transaction.audit(caller, Audited::created("TenantService/CreateApiKey", &key)).await?;
    // The secret is kept nowhere, so that a repeat cannot have it.
    let answer = v1::CreateApiKeyResponse { api_key: Some(key), secret: String::new() };
    requests::remember(&mut transaction, &request, &answer).await?;
    transaction.commit().await?;
    Ok(v1::CreateApiKeyResponse { secret, ..answer })
}

/// Checks a key that is asked for, also that each of its scopes opens something to its role.
fn check(wanted: &v1::ApiKey, now: Timestamp) -> Result<ApiKey, Status> {
    let (checked, mut violations) = match ApiKey::from_proto(wanted, now, access::is_scope) {
        Ok(checked) => (Some(checked), FieldViolations::new()),
        Err(violations) => (None, violations),
    };
    let scopes = wanted.scopes.iter().enumerate().take(api_key::SCOPES_MAX);
    if let Some(role) = Role::from_proto(wanted.role) {
        for (index, _) in scopes.filter(|(_, scope)| access::is_scope(scope) && !access::serves(scope, role))
        {
            let description =
                format!("opens nothing to {role}: choose a greater role, or leave the scope out");
            violations.add(format!("api_key.scopes[{index}]"), description);
        }
    }
    checked.filter(|_| violations.0.is_empty()).ok_or_else(|| status::invalid(violations))
}

/// The caller's key works still. It may have been revoked while the call waited for its turn, together with all keys
/// and join tokens made with it: one made after that would be missed.
pub(super) async fn check_works(
    connection: &mut dyn Connection,
    caller: &Caller,
    now: Timestamp,
) -> Result<(), Status> {
    let Actor::ApiKey(id) = &caller.actor else { return Ok(()) };
    let key = api_keys::find(connection, &caller.tenants(), id).await?;
    match key.filter(|key| keys::refusal(key, now).is_none()) {
        Some(_) => Ok(()),
        None => Err(status::unauthenticated("the API key of this call was revoked, or has expired")),
    }
}

/// There is room for one more key of a tenant; empty for the platform.
async fn check_room(connection: &mut dyn Connection, tenant_id: &str, now: Timestamp) -> Result<(), Status> {
    let mut working = 0;
    let mut after: Option<String> = None;
    loop {
        let keys = api_keys::list(connection, Some(tenant_id), after.as_deref(), KEYS_CHUNK).await?;
        working += keys.iter().filter(|key| keys::refusal(key, now).is_none()).count();
        if working >= WORKING_KEYS_MAX {
            let (subject, whose) = match tenant_id {
                "" => ("platform".to_owned(), "the platform".to_owned()),
                id => (format!("tenant:{id}"), format!("tenant `{id}`")),
            };
            let description = format!(
                "{whose} has {WORKING_KEYS_MAX} API keys that are neither revoked nor expired, which is the most: \
                 revoke one with RevokeApiKey first"
            );
            return Err(status::quota_exceeded("TOO_MANY_API_KEYS", &subject, description));
        }
        match keys.last() {
            Some(last) => after = Some(last.id.clone()),
            None => return Ok(()),
        }
    }
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
    let is_there = named.is_empty()
        || tenants::find_even_damaged(&mut connection, &caller.tenants(), named).await?.is_some();
    if !is_there {
        return Err(status::not_found("tenant", named));
    }
    let scope = caller.tenants();
    let tenant_id = if named.is_empty() { scope.only() } else { Some(named) };
    let after = page.after.as_deref();
    let mut keys = api_keys::list(&mut connection, tenant_id, after, page.limit()).await?;
    let next_page_token = page.cut(&mut keys, |key| &key.id);
    Ok(v1::ListApiKeysResponse { api_keys: keys, next_page_token })
}

/// Revokes a key, once: what it opened ends, and it opens nothing more. With `revoke_created` also those that were made
/// with it, directly or not, and the unused join tokens that were made with any of them.
pub(super) async fn revoke(
    state: &State,
    caller: &Caller,
    request: &v1::RevokeApiKeyRequest,
) -> Result<v1::RevokeApiKeyResponse, Status> {
    let id = request.id.as_str();
    if id.is_empty() {
        return Err(status::missing_field("id"));
    }
    let mut transaction = state.store.begin_write().await?;
    let found = api_keys::find_even_damaged(&mut transaction, &caller.tenants(), id).await?;
    let mut key = match found.ok_or_else(|| status::not_found("API key", id))? {
        Found::Whole(key) => key,
        Found::Damaged(Head { id, tenant_id, .. }) => v1::ApiKey { id, tenant_id, ..Default::default() },
    };
    let created =
        if request.revoke_created { created_with(&mut transaction, &key).await? } else { Vec::new() };
    let (mut revoked_count, mut tokens) = (0, 0);
    for before in std::iter::once(key.clone()).chain(created) {
        if request.revoke_created {
            let creator = Actor::ApiKey(before.id.clone()).to_string();
            tokens += join_token::take_back(&mut transaction, caller, REVOKE, &creator).await?;
        }
        if before.revoke_time.is_some() {
            continue;
        }
        let after = v1::ApiKey { revoke_time: Some(time::to_proto(clock::now())), ..before.clone() };
        api_keys::update(&mut transaction, &after).await?;
        let audited = Audited::changed(REVOKE, &before, &after);
        transaction.audit(caller, audited).await?;
        revoked_count += 1;
        if after.id == key.id {
            key = after;
        }
    }
    if revoked_count > 0 || tokens > 0 {
        let keys = state.keys.clone();
        transaction.after_commit(move || keys.look());
        transaction.commit().await?;
    }
    let revoked_join_token_count = i32::try_from(tokens).unwrap_or(i32::MAX);
    Ok(v1::RevokeApiKeyResponse { api_key: Some(key), revoked_count, revoked_join_token_count })
}

/// The keys that were made with a key, those made with these, and so on, without the key itself. A tenant's key
/// makes keys of its tenant only.
async fn created_with(connection: &mut dyn Connection, key: &v1::ApiKey) -> Result<Vec<v1::ApiKey>, Status> {
    let tenant_id = Some(key.tenant_id.as_str()).filter(|tenant_id| !tenant_id.is_empty());
    let mut by_creator: HashMap<String, Vec<v1::ApiKey>> = HashMap::new();
    let mut after: Option<String> = None;
    loop {
        let keys = api_keys::list(connection, tenant_id, after.as_deref(), KEYS_CHUNK).await?;
        let Some(last) = keys.last() else { break };
        after = Some(last.id.clone());
        for key in keys {
            by_creator.entry(key.created_by.clone()).or_default().push(key);
        }
    }
    let (mut created, mut creators) = (Vec::new(), vec![key.id.clone()]);
    while let Some(creator) = creators.pop() {
        // A creator's keys are taken once, so that this ends.
        let keys = by_creator.remove(&Actor::ApiKey(creator).to_string()).unwrap_or_default();
        creators.extend(keys.iter().map(|key| key.id.clone()));
        created.extend(keys);
    }
    Ok(created)
}
