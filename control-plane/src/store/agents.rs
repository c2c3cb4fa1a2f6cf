//! Agents, the tokens with which they join, and what broke on them: who may report for which region. Tokens and
//! credentials are kept as SHA-256 only; both are random, so a slow hash would add nothing.

use std::collections::HashMap;

use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use tonic::async_trait;

use super::{Connection, Store, StoreError, WriteTx, damaged, work};
use crate::api::authorize::AgentIdentity;

/// Damages kept per agent; the oldest go.
pub const BUFFER_DAMAGES_MAX: u32 = 10;

/// An enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its id.
    pub id: String,
    /// Where it runs.
    pub region: String,
    /// Its program version when it last connected.
    pub build: String,
    /// When it enrolled.
    pub create_time: Timestamp,
    /// When it last connected.
    pub last_seen_time: Timestamp,
    /// The tenant it works for; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// When its newest client certificate expires; None when it never had one.
    pub certificate_expire_time: Option<Timestamp>,
    /// When it was revoked.
    pub revoke_time: Option<Timestamp>,
}

/// An agent that is about to exist.
#[derive(Debug, Clone)]
pub struct NewAgent {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its program version.
    pub build: String,
    /// SHA-256 of its credential.
    pub credential_hash: [u8; 32],
    /// The tenant it works for; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// When its client certificate expires; None when it has none.
    pub certificate_expire_time: Option<Timestamp>,
}

/// What a join token was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The region of the agent.
    pub region: String,
    /// Its tenant; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// Who made the token, as the audit log names actors; empty for tokens made before this was noted.
    pub created_by: String,
}

/// Reads agents, join tokens and damages. Times have microseconds.
#[async_trait]
pub trait AgentReads: Send {
    /// An agent.
    async fn agent(&mut self, id: &str) -> Result<Option<AgentRow>, StoreError>;

    /// The agent that has a credential.
    async fn agent_of_credential(
        &mut self,
        credential_hash: &[u8; 32],
    ) -> Result<Option<AgentRow>, StoreError>;

    /// Agents by id, after `after`, at most `limit`; only of a region.
    async fn agents(
        &mut self,
        region: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<AgentRow>, StoreError>;

    /// Whether an agent is there and not revoked.
    async fn is_working_agent(&mut self, id: &str) -> Result<bool, StoreError>;

    /// Ids of a tenant's agents that are not revoked, by id, at most `limit`.
    async fn working_agents_of_tenant(
        &mut self,
        tenant_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError>;

    /// Whether there is such a join token that expires after `now`.
    async fn is_join_token(&mut self, token_hash: &[u8; 32], now: Timestamp) -> Result<bool, StoreError>;

    /// Agent and body of the damages of the agents from id `first` to id `last`, by agent, each agent's newest first.
    async fn buffer_damages(&mut self, first: &str, last: &str)
    -> Result<Vec<(String, Vec<u8>)>, StoreError>;
}

/// Changes agents, join tokens and damages.
#[async_trait]
pub trait AgentWrites: Send {
    /// Writes a new agent, heard at `now`. A conflict when its id or its credential is taken.
    async fn insert_agent(&mut self, agent: &NewAgent, now: Timestamp) -> Result<(), StoreError>;

    /// Notes that an agent connected. Nothing when it is not there.
    async fn connect_agent(&mut self, id: &str, build: &str, now: Timestamp) -> Result<(), StoreError>;

    /// Notes when the certificate of an agent that is not revoked expires. False when there is no such agent.
    async fn certify_agent(&mut self, id: &str, expire_time: Timestamp) -> Result<bool, StoreError>;

    /// Revokes an agent. One that was revoked before stays revoked since then.
    async fn revoke_agent(&mut self, id: &str, now: Timestamp) -> Result<(), StoreError>;

    /// Keeps a join token. A conflict when it is there.
    async fn insert_join_token(
        &mut self,
        token_hash: &[u8; 32],
        token: &JoinToken,
        now: Timestamp,
        expire_time: Timestamp,
    ) -> Result<(), StoreError>;

    /// Removes a join token that expires after `now`, and gives what it was made for: to one transaction only.
    async fn take_join_token(
        &mut self,
        token_hash: &[u8; 32],
        now: Timestamp,
    ) -> Result<Option<JoinToken>, StoreError>;

    /// Removes join tokens that expire before `now`.
    async fn delete_expired_join_tokens(&mut self, now: Timestamp) -> Result<(), StoreError>;

    /// Removes the join tokens that somebody made, used ones aside, and gives their hashes and what they were made for.
    async fn delete_join_tokens_of_creator(
        &mut self,
        created_by: &str,
    ) -> Result<Vec<([u8; 32], JoinToken)>, StoreError>;

    /// Removes a tenant's join tokens.
    async fn delete_join_tokens_of_tenant(&mut self, tenant_id: &str) -> Result<(), StoreError>;

    /// Keeps a damage. False, and nothing changes, when the agent has one with the same body.
    async fn insert_buffer_damage(&mut self, agent_id: &str, body: &[u8]) -> Result<bool, StoreError>;

    /// Removes an agent's damages but the `keep` newest.
    async fn delete_older_buffer_damages(&mut self, agent_id: &str, keep: u32) -> Result<(), StoreError>;
}

/// Keeps a join token that can be used until `expire_time`, and forgets expired ones, inside the caller's
/// transaction.
///
/// # Errors
/// When the database cannot be written.
pub async fn create_join_token(
    transaction: &mut WriteTx,
    token_hash: &[u8; 32],
    token: &JoinToken,
    now: Timestamp,
    expire_time: Timestamp,
) -> Result<(), StoreError> {
    transaction.writes().delete_expired_join_tokens(now).await?;
    transaction.writes().insert_join_token(token_hash, token, now, expire_time).await
}

/// Whether a join token could be used at `now`.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_join_token(store: &Store, token_hash: &[u8; 32], now: Timestamp) -> Result<bool, StoreError> {
    store.reader().await?.rows().is_join_token(token_hash, now).await
}

/// Uses a join token up, inside the caller's transaction, and returns what it was made for. None when it is unknown,
/// used or expired.
///
/// # Errors
/// When the database cannot be written.
pub async fn consume_join_token(
    transaction: &mut WriteTx,
    token_hash: &[u8; 32],
    now: Timestamp,
) -> Result<Option<JoinToken>, StoreError> {
    transaction.writes().take_join_token(token_hash, now).await
}

/// Takes back the unused join tokens that somebody made, inside the caller's transaction. Gives their hashes and what
/// they were made for.
///
/// # Errors
/// When the database cannot be written.
pub async fn take_back_join_tokens(
    transaction: &mut WriteTx,
    created_by: &str,
) -> Result<Vec<([u8; 32], JoinToken)>, StoreError> {
    transaction.writes().delete_join_tokens_of_creator(created_by).await
}

/// Records an agent, inside the caller's transaction.
///
/// # Errors
/// When the database cannot be written.
pub async fn create_agent(
    transaction: &mut WriteTx,
    agent: &NewAgent,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction.writes().insert_agent(agent, now).await
}

/// Who has a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An agent that may call.
    Agent(AgentIdentity),
    /// An agent that was revoked.
    Revoked,
}

/// The agent that has a credential.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_by_credential_hash(
    store: &Store,
    credential_hash: &[u8; 32],
) -> Result<Option<Holder>, StoreError> {
    let row = store.reader().await?.rows().agent_of_credential(credential_hash).await?;
    Ok(row.map(|row| match row.revoke_time {
        Some(_) => Holder::Revoked,
        None => Holder::Agent(AgentIdentity {
            agent_id: row.id,
            region: row.region,
            tenant_id: row.tenant_id,
            has_certificate: row.certificate_expire_time.is_some(),
        }),
    }))
}

/// Whether an agent was revoked, or is not there.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_revoked(store: &Store, id: &str) -> Result<bool, StoreError> {
    Ok(!store.reader().await?.rows().is_working_agent(id).await?)
}

/// Notes when an agent's new client certificate expires. False when the agent was revoked meanwhile.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_certificate(store: &Store, id: &str, expire_time: Timestamp) -> Result<bool, StoreError> {
    let mut tx = store.begin_write().await?;
    let recorded = tx.writes().certify_agent(id, expire_time).await?;
    tx.commit().await?;
    Ok(recorded)
}

/// Revokes an agent, inside the caller's transaction. One that was revoked before stays revoked since then.
///
/// # Errors
/// When the database cannot be written.
pub async fn revoke(transaction: &mut WriteTx, id: &str, now: Timestamp) -> Result<(), StoreError> {
    work::forget_agent(transaction, id).await?;
    transaction.writes().revoke_agent(id, now).await
}

/// Notes that an agent connected.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_connection(
    store: &Store,
    id: &str,
    build: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut tx = store.begin_write().await?;
    tx.writes().connect_agent(id, build, now).await?;
    tx.commit().await
}

/// One agent.
///
/// # Errors
/// When the database cannot be read.
pub async fn get(store: &Store, id: &str) -> Result<Option<AgentRow>, StoreError> {
    store.reader().await?.rows().agent(id).await
}

/// At most `limit` agents with ids after `after`, by id, perhaps of one region only.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    store: &Store,
    region: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<AgentRow>, StoreError> {
    store.reader().await?.rows().agents(region, after.unwrap_or_default(), limit).await
}

/// Keeps a damage that an agent found in its buffer. False when it is known already: reports may repeat.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_buffer_damage(
    store: &Store,
    agent_id: &str,
    damage: &v1::BufferDamage,
) -> Result<bool, StoreError> {
    let mut tx = store.begin_write().await?;
    if !tx.writes().insert_buffer_damage(agent_id, &damage.encode_to_vec()).await? {
        return Ok(false);
    }
    tx.writes().delete_older_buffer_damages(agent_id, BUFFER_DAMAGES_MAX).await?;
    tx.commit().await?;
    Ok(true)
}

/// What is noted of a damage of a buffer that cannot be read itself.
pub(super) const DAMAGE_TYPE: &str = "buffer_damage";

pub(super) fn read_damage(agent_id: &str, body: &[u8]) -> Result<v1::BufferDamage, StoreError> {
    v1::BufferDamage::decode(body).map_err(|source| StoreError::Damaged {
        resource_type: DAMAGE_TYPE,
        id: agent_id.to_owned(),
        source: super::Damage::Decode(source),
    })
}

/// The damages of the agents from id `first` to id `last`, each agent's newest first. What cannot be read is left out.
///
/// # Errors
/// When the database cannot be read.
pub async fn buffer_damages(
    store: &Store,
    first: &str,
    last: &str,
) -> Result<HashMap<String, Vec<v1::BufferDamage>>, StoreError> {
    let rows = store.reader().await?.rows().buffer_damages(first, last).await?;
    let mut damages: HashMap<String, Vec<v1::BufferDamage>> = HashMap::new();
    for (agent_id, body) in rows {
        let read = read_damage(&agent_id, &body);
        if let Some(damage) = damaged::or_note(store.damages(), (DAMAGE_TYPE, &agent_id), read)? {
            damages.entry(agent_id).or_default().push(damage);
        }
    }
    Ok(damages)
}

/// Ids of a tenant's agents that are not revoked, at most `limit`.
///
/// # Errors
/// When the database cannot be read.
pub async fn working_of_tenant(
    connection: &mut dyn Connection,
    tenant_id: &str,
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    connection.rows().working_agents_of_tenant(tenant_id, limit).await
}

/// Whether there is such a tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_tenant(store: &Store, tenant_id: &str) -> Result<bool, StoreError> {
    Ok(store.reader().await?.rows().tenant(tenant_id).await?.is_some())
}
