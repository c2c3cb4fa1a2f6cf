//! `AgentService`: the fleet, for operators.

use std::sync::Arc;

use gateway_core::time;
use gateway_proto::v1::{self, agent_service_server::AgentService};
use gateway_runtime::clock;
use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};

use super::{
    authorize,
    driven::driven,
    page::{LARGE_CHUNK, Page},
    status,
};
use crate::{
    app::State,
    audit::Audited,
    store::{
        agents::{self, AgentRow},
        fleet,
    },
};

mod watch;
mod revoke;
pub(super) mod join_token;

pub(super) use revoke::join_secret;

/// Random characters of join tokens and credentials: 238 bits.
const SECRET_CHARS: usize = 40;

/// The service.
#[derive(Clone)]
pub struct AgentApi {
    state: State,
    /// What those who watch the fleet share.
    view: Arc<watch::SharedView>,
}

impl AgentApi {
    /// Answers from `state`.
    pub fn new(state: State) -> Self {
        Self { state, view: Arc::default() }
    }

    /// The stored agents with what is known of them live. `rows` are ordered by id.
    async fn agents(&self, rows: Vec<AgentRow>) -> Result<Vec<v1::Agent>, Status> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Vec::new()) };
        let mut damages = agents::buffer_damages(&self.state.store, &first.id, &last.id).await?;
        let drains = fleet::drains(&self.state.store).await?;
        let with_rest = |row: AgentRow| {
            let damages = damages.remove(&row.id).unwrap_or_default();
            let drain_time = drains.get(&row.id).copied();
            self.agent(row, damages, drain_time)
        };
        Ok(rows.into_iter().map(with_rest).collect())
    }

    /// One agent. NOT_FOUND when there is none.
    async fn one_agent(&self, id: &str) -> Result<v1::Agent, Status> {
        if id.is_empty() {
            return Err(status::missing_field("id"));
        }
        let row = agents::get(&self.state.store, id).await?.ok_or_else(|| status::not_found("agent", id))?;
        self.agents(vec![row]).await?.pop().ok_or_else(|| status::not_found("agent", id))
    }

    /// The stored agent with what is known of it live.
    fn agent(
        &self,
        row: AgentRow,
        buffer_damages: Vec<v1::BufferDamage>,
        drain_time: Option<Timestamp>,
    ) -> v1::Agent {
        let agent_id = row.id;
        let mut agent = v1::Agent {
            buffer_damages,
            id: agent_id.clone(),
            region: row.region,
            build: row.build,
            state: v1::AgentState::Offline.into(),
            tenant_id: row.tenant_id.unwrap_or_default(),
            certificate_expire_time: row.certificate_expire_time.map(time::to_proto),
            revoke_time: row.revoke_time.map(time::to_proto),
            twin_address: self.state.admissions.twin(&agent_id, clock::now()).unwrap_or_default(),
            drain_time: drain_time.map(time::to_proto),
            create_time: Some(time::to_proto(row.create_time)),
            last_seen_time: Some(time::to_proto(row.last_seen_time)),
            ..Default::default()
        };
        if let Some(member) = self.state.fleet.member(&agent.id) {
            agent.state = member.state(drain_time.is_some()).into();
            agent.refused_count = u32::try_from(member.refused_count()).unwrap_or(u32::MAX);
            if member.is_online() {
                agent.address = member.address.map(|address| address.to_string()).unwrap_or_default();
            }
            agent.connect_time = Some(time::to_proto(member.connect_time));
            agent.clock_skew = member.clock_skew.map(skew_to_proto);
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
        if agent.revoke_time.is_some() {
            agent.state = v1::AgentState::Revoked.into();
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
        let (mut agents, mut after) = (Vec::new(), page.after.clone());
        while !page.is_full(&agents) {
            let limit = page.limit().min(LARGE_CHUNK);
            let rows = agents::list(&self.state.store, region, after.as_deref(), limit).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.id.clone());
            agents.extend(self.agents(rows).await?);
        }
        let next_page_token = page.cut(&mut agents, |agent| &agent.id);
        let config_version = self.state.store.version().await?;
        Ok(Response::new(v1::ListAgentsResponse { agents, config_version, next_page_token }))
    }

    async fn get_agent(
        &self,
        request: Request<v1::GetAgentRequest>,
    ) -> Result<Response<v1::GetAgentResponse>, Status> {
        let agent = self.one_agent(&request.into_inner().id).await?;
        Ok(Response::new(v1::GetAgentResponse { agent: Some(agent) }))
    }

    type WatchAgentsStream = watch::WatchAgentsStream;

    async fn watch_agents(
        &self,
        request: Request<v1::WatchAgentsRequest>,
    ) -> Result<Response<Self::WatchAgentsStream>, Status> {
        let caller = authorize::caller(&request)?;
        watch::check(request.get_ref())?;
        let open = self.state.keys.open_stream(&caller)?;
        let watch = watch::Watch::new(self.clone(), request.into_inner());
        Ok(Response::new(Box::pin(driven(open.around(watch.into_stream())))))
    }

    async fn drain_agent(
        &self,
        request: Request<v1::DrainAgentRequest>,
    ) -> Result<Response<v1::DrainAgentResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::DrainAgentRequest { id, undo } = request.into_inner();
        let before = self.one_agent(&id).await?;
        let mut tx = self.state.store.begin_write().await?;
        let now = clock::now();
        fleet::set_drain(&mut tx, &id, !undo, now).await?;
        let (fleet, drained) = (self.state.fleet.clone(), id.clone());
        tx.after_commit(move || fleet.drain_changed(&drained));
        let drain_time = (!undo).then(|| before.drain_time.unwrap_or_else(|| time::to_proto(now)));
        let after = v1::Agent { drain_time, ..before.clone() };
        tx.audit(&caller, Audited::changed("AgentService/DrainAgent", &before, &after)).await?;
        tx.commit().await?;
        tracing::info!(gateway.agent.id = id, undo, "an agent was asked to drain, or no more");
        Ok(Response::new(v1::DrainAgentResponse { agent: Some(self.one_agent(&id).await?) }))
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentResponse>, Status> {
        self.revoke(request).await
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let made = join_token::create(&self.state.store, &caller, request.into_inner()).await?;
        // A repeat has none.
        let join_token =
            if made.join_token.is_empty() { String::new() } else { self.with_pin(made.join_token) };
        Ok(Response::new(v1::CreateJoinTokenResponse { join_token, ..made }))
    }
}

/// Both parts have the sign of the whole, as `google.protobuf.Duration` wants it.
const fn skew_to_proto(skew: SignedDuration) -> prost_types::Duration {
    prost_types::Duration { seconds: skew.as_secs(), nanos: skew.subsec_nanos() }
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
