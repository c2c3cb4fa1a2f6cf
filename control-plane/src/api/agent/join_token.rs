//! Join tokens: making them, and taking back those that somebody made who was not to be trusted.

use std::time::Duration;

use gateway_core::{instance::is_region, time};
use gateway_proto::v1;
use gateway_runtime::clock;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{
    super::{api_key, authorize::Caller, repeat, status},
    hash, secret,
};
use crate::{
    audit::{Audited, NewJoinToken},
    store::{
        Store, WriteTx,
        agents::{self, JoinToken},
        requests,
    },
};

/// Shortest life of a join token.
const TTL_MIN: Duration = Duration::from_secs(60);
/// Life of a join token when the caller does not say.
const TTL_DEFAULT: Duration = Duration::from_secs(3_600);
/// Longest life of a join token.
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Makes a join token, which in the answer does not say yet whom the agent is to trust. A repeat has the first answer,
/// without the token.
///
/// # Errors
/// INVALID_ARGUMENT; NOT_FOUND for an unknown tenant; UNAUTHENTICATED when the caller's key was revoked meanwhile.
pub(in crate::api) async fn create(
    store: &Store,
    caller: &Caller,
    mut request: v1::CreateJoinTokenRequest,
) -> Result<v1::CreateJoinTokenResponse, Status> {
    let request_id = std::mem::take(&mut request.request_id);
    let key = repeat::key(caller, "CreateJoinToken", &request_id, &[request.encode_to_vec()])?;
    check_region(&request.region)?;
    let tenant_id = tenant_of_token(store, caller, &request.tenant_id).await?;
    let ttl = ttl(request.ttl.as_ref())?;
    let ttl = jiff::SignedDuration::try_from(ttl).expect("seven days fit a signed duration");
    let join_token = secret("join_");
    let token_hash = hash(&join_token);
    let mut tx = store.begin_write().await?;
    let now = clock::now();
    // The tokens of a revoked key are taken back with it; one made after that would be missed.
    api_key::check_works(&mut tx, caller, now).await?;
    if let Some(answer) = repeat::answer(&mut tx, &key).await? {
        return Ok(answer);
    }
    let expire_time = now.checked_add(ttl).map_err(|error| status::internal(&error))?;
    let token = JoinToken {
        region: request.region.clone(),
        tenant_id: tenant_id.clone(),
        created_by: caller.actor.to_string(),
    };
    agents::create_join_token(&mut tx, &token_hash, &token, now, expire_time).await?;
    let id = id(&token_hash);
    let made = NewJoinToken { tenant_id: tenant_id.unwrap_or_default(), ..request };
    let audited = Audited::created("AgentService/CreateJoinToken", &made);
    tx.audit(caller, Audited { resource_id: id.clone(), ..audited }).await?;
    let expire_time = Some(time::to_proto(expire_time));
    // The token is kept nowhere, so that a repeat cannot have it.
    let answer = v1::CreateJoinTokenResponse { join_token: String::new(), expire_time, id };
    requests::remember(&mut tx, &key, &answer).await?;
    tx.commit().await?;
    Ok(v1::CreateJoinTokenResponse { join_token, ..answer })
}

/// Takes back the unused tokens that `creator`, an actor, made; gives how many these are.
///
/// # Errors
/// When the database cannot be written.
pub(in crate::api) async fn take_back(
    tx: &mut WriteTx,
    caller: &Caller,
    method: &'static str,
    creator: &str,
) -> Result<usize, Status> {
    let taken = agents::take_back_join_tokens(tx, creator).await?;
    for (token_hash, token) in &taken {
        let tenant_id = token.tenant_id.clone().unwrap_or_default();
        let before = NewJoinToken { region: token.region.clone(), tenant_id, ..Default::default() };
        let audited = Audited { resource_id: id(token_hash), ..Audited::deleted(method, &before) };
        tx.audit(caller, audited).await?;
    }
    Ok(taken.len())
}

/// Names a join token for the audit log: made of a hash of its stored hash, so that it is known wherever the token
/// is, and tells nothing of it.
fn id(token_hash: &[u8; 32]) -> String {
    let hash = Sha256::digest(token_hash);
    format!("jt_{}", gateway_core::id::base32(hash.first_chunk::<10>().expect("a SHA-256 has 32 bytes")))
}

/// The tenant of an agent to come; None for one of the platform.
async fn tenant_of_token(store: &Store, caller: &Caller, named: &str) -> Result<Option<String>, Status> {
    if named.is_empty() && caller.is_platform() {
        return Ok(None);
    }
    let tenant_id = caller.tenant_for(named)?;
    if !agents::is_tenant(store, tenant_id.as_str()).await? {
        return Err(status::not_found("tenant", tenant_id.as_str()));
    }
    Ok(Some(tenant_id.to_string()))
}

fn check_region(region: &str) -> Result<(), Status> {
    if is_region(region) {
        Ok(())
    } else {
        Err(status::invalid_field("region", "must match [a-z0-9][a-z0-9_-]{0,62}"))
    }
}

fn ttl(ttl: Option<&prost_types::Duration>) -> Result<Duration, Status> {
    let Some(ttl) = ttl else { return Ok(TTL_DEFAULT) };
    time::duration_from_proto(ttl)
        .filter(|ttl| (TTL_MIN..=TTL_MAX).contains(ttl))
        .ok_or_else(|| status::invalid_field("ttl", "must be between 60s and 604800s (7 days)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regions follow the documented pattern.
    #[test]
    fn region_pattern_is_enforced() {
        for good in ["a", "eu-west_1", &"a".repeat(63)] {
            assert!(check_region(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "EU", "a b", &"a".repeat(64)] {
            assert!(check_region(bad).is_err(), "{bad}");
        }
    }

    /// A join token lives one minute to seven days, one hour by default.
    #[test]
    fn ttl_is_bounded() {
        let read = |seconds| ttl(Some(&prost_types::Duration { seconds, nanos: 0 })).ok();
        assert_eq!(ttl(None).unwrap(), TTL_DEFAULT);
        assert_eq!(read(60), Some(TTL_MIN));
        assert_eq!(read(604_800), Some(TTL_MAX));
        for bad in [-1, 0, 59, 604_801, i64::MAX] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
