//! `AgentService`: the fleet, for operators.

use std::{collections::HashMap, time::Duration};

use gateway_core::{instance::is_region, time};
use gateway_proto::v1::{self, agent_service_server::AgentService};
use gateway_runtime::clock;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};

use super::{page::Page, status};
use crate::{
    app::State,
    store::agents::{self, AgentRow},
};

/// Shortest life of a join token.
const TTL_MIN: Duration = Duration::from_secs(60);
/// Life of a join token when the caller does not say.
const TTL_DEFAULT: Duration = Duration::from_secs(3_600);
/// Longest life of a join token.
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Random characters of join tokens and credentials: 238 bits.
const SECRET_CHARS: usize = 40;

/// The service.
#[derive(Clone)]
pub struct AgentApi {
    state: State,
}

impl AgentApi {
    /// Answers from `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }

    /// The stored agent with what is known of it live.
    fn agent(&self, row: AgentRow, buffer_damages: Vec<v1::BufferDamage>) -> v1::Agent {
        let mut agent = v1::Agent {
            buffer_damages,
            id: row.id,
            region: row.region,
            build: row.build,
            state: v1::AgentState::Offline.into(),
            create_time: Some(time::to_proto(row.create_time)),
            last_seen_time: Some(time::to_proto(row.last_seen_time)),
            ..Default::default()
        };
        if let Some(member) = self.state.fleet.member(&agent.id) {
            if member.is_online {
                agent.state = v1::AgentState::Online.into();
            }
            agent.build = member.build;
            agent.accepted_version = member.accepted_version;
            agent.applied_version = member.applied_version;
            agent.refused = member.refused.into_values().collect();
            agent.report_lag = member.health.report_lag;
            agent.buffer_events = member.health.buffer_events;
            agent.buffer_oldest_age = member.health.buffer_oldest_age;
            agent.buffer_bytes = member.health.buffer_bytes;
            agent.buffer_bytes_max = member.health.buffer_bytes_max;
            agent.over_share_subscription_ids = member.health.over_share_subscription_ids;
            agent.last_seen_time = Some(time::to_proto(member.last_seen));
        }
        agent
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let page =
            Page::read("ListAgents", &[request.region.as_str()], request.page_size, &request.page_token)?;
        let region = (!request.region.is_empty()).then_some(request.region.as_str());
        let mut rows = agents::list(&self.state.store, region, page.after.as_deref(), page.limit()).await?;
        let next_page_token = page.cut(&mut rows, |row| &row.id);
        let mut damages = match (rows.first(), rows.last()) {
            (Some(first), Some(last)) => {
                agents::buffer_damages(&self.state.store, &first.id, &last.id).await?
            }
            _ => HashMap::new(),
        };
        let with_damages = |row: AgentRow| {
            let damages = damages.remove(&row.id).unwrap_or_default();
            self.agent(row, damages)
        };
        let agents = rows.into_iter().map(with_damages).collect();
        let config_version = self.state.store.version().await?;
        Ok(Response::new(v1::ListAgentsResponse { agents, config_version, next_page_token }))
    }

    async fn get_agent(
        &self,
        request: Request<v1::GetAgentRequest>,
    ) -> Result<Response<v1::GetAgentResponse>, Status> {
        let id = request.into_inner().id;
        if id.is_empty() {
            return Err(status::missing_field("id"));
        }
        let row =
            agents::get(&self.state.store, &id).await?.ok_or_else(|| status::not_found("agent", &id))?;
        let mut damages = agents::buffer_damages(&self.state.store, &id, &id).await?;
        let damages = damages.remove(&id).unwrap_or_default();
        Ok(Response::new(v1::GetAgentResponse { agent: Some(self.agent(row, damages)) }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let request = request.into_inner();
        check_region(&request.region)?;
        let ttl = ttl(request.ttl.as_ref())?;
        let now = clock::now();
        let ttl = jiff::SignedDuration::try_from(ttl).expect("seven days fit a signed duration");
        let expire_time = now.checked_add(ttl).map_err(|error| status::internal(&error))?;
        let join_token = secret("join_");
        agents::create_join_token(&self.state.store, &hash(&join_token), &request.region, now, expire_time)
            .await?;
        let expire_time = Some(time::to_proto(expire_time));
        Ok(Response::new(v1::CreateJoinTokenResponse { join_token, expire_time }))
    }
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

/// A random secret that begins with `prefix`.
pub(super) fn secret(prefix: &str) -> String {
    let random = rand::rng().sample_iter(rand::distr::Alphanumeric).take(SECRET_CHARS).map(char::from);
    prefix.chars().chain(random).collect()
}

/// SHA-256, as join tokens and credentials are stored.
pub(super) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
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
