//! `AgentSyncService`: what agents and the control plane tell each other.
//!
//! Each stream is a state machine that the connection pulls: nothing runs for an agent that does not read,
//! and dropping the stream ends it, puts the agent offline and frees its leases. [`config`] sends
//! configuration, [`report`] takes logs, [`work`] hands out work.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use gateway_proto::v1::{self, agent_sync_service_server::AgentSyncService};
use gateway_runtime::clock;
use tonic::{Request, Response, Status, Streaming};

use super::{
    agent::{hash, secret},
    authorize, new_id, status,
};
use crate::{
    app::State,
    publish::Publisher,
    store::{
        StoreError,
        agents::{self, NewAgent},
    },
};

mod config;
mod report;
mod work;

/// Longest `build`.
const BUILD_BYTES_MAX: usize = 128;

/// A response stream.
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct AgentSyncApi {
    state: State,
    publisher: Arc<Publisher>,
}

impl AgentSyncApi {
    /// Answers from `state`.
    pub fn new(state: State) -> Self {
        let publisher = Arc::new(Publisher::new(state.store.clone()));
        Self { state, publisher }
    }
}

#[tonic::async_trait]
impl AgentSyncService for AgentSyncApi {
    async fn enroll_agent(
        &self,
        request: Request<v1::EnrollAgentRequest>,
    ) -> Result<Response<v1::EnrollAgentResponse>, Status> {
        let request = request.into_inner();
        let now = clock::now();
        let credential = secret("agent_");
        let mut tx = self.state.store.begin_write().await?;
        let region = agents::consume_join_token(tx.connection(), &hash(&request.join_token), now)
            .await
            .map_err(StoreError::from)?
            .ok_or_else(|| {
                status::unauthenticated(
                    "the join token is unknown, used or expired; make a new one with CreateJoinToken",
                )
            })?;
        // Dropping the transaction here gives the token back.
        check_build(&request.build)?;
        if !request.region.is_empty() && request.region != region {
            return Err(status::invalid_field("region", format!("the join token is for region `{region}`")));
        }
        let agent =
            NewAgent { id: new_id("agt_"), region, build: request.build, credential_hash: hash(&credential) };
        agents::create_agent(tx.connection(), &agent, now).await.map_err(StoreError::from)?;
        tx.commit().await?;
        tracing::info!(gateway.agent.id = agent.id, region = agent.region, "agent enrolled");
        Ok(Response::new(v1::EnrollAgentResponse { agent_id: agent.id, credential, region: agent.region }))
    }

    type StreamConfigStream = Streamed<v1::StreamConfigResponse>;

    async fn stream_config(
        &self,
        request: Request<Streaming<v1::StreamConfigRequest>>,
    ) -> Result<Response<Self::StreamConfigStream>, Status> {
        let identity = authorize::agent(&request)?;
        let stream = config::ConfigStream::new(
            self.state.clone(),
            Arc::clone(&self.publisher),
            identity,
            request.into_inner(),
        );
        Ok(Response::new(stream.into_stream().boxed()))
    }

    type ReportLogsStream = Streamed<v1::ReportLogsResponse>;

    async fn report_logs(
        &self,
        request: Request<Streaming<v1::ReportLogsRequest>>,
    ) -> Result<Response<Self::ReportLogsStream>, Status> {
        let identity = authorize::agent(&request)?;
        let stream = report::ReportStream::new(self.state.clone(), identity, request.into_inner());
        Ok(Response::new(stream.into_stream().boxed()))
    }

    type StreamWorkStream = Streamed<v1::StreamWorkResponse>;

    async fn stream_work(
        &self,
        request: Request<Streaming<v1::StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        let identity = authorize::agent(&request)?;
        let stream = work::WorkResponses::new(&self.state, &identity, request.into_inner());
        Ok(Response::new(stream.into_stream().boxed()))
    }
}

fn check_build(build: &str) -> Result<(), Status> {
    match build.len() {
        0 => Err(status::missing_field("build")),
        1..=BUILD_BYTES_MAX => Ok(()),
        _ => Err(status::invalid_field("build", format!("must have at most {BUILD_BYTES_MAX} bytes"))),
    }
}

#[cfg(test)]
mod tests;
