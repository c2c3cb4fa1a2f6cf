//! `AgentSyncService`: what agents and the control plane tell each other.
//!
//! Each stream is a state machine that the connection pulls: for an agent that does not read no step is begun,
//! and dropping the stream ends it, puts the agent offline and frees its leases. [`config`] sends
//! configuration, [`report`] takes logs, [`work`] hands out work; [`enroll`] decides who may.

use std::{pin::Pin, sync::Arc};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use gateway_proto::v1::{self, agent_sync_service_server::AgentSyncService};
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{driven::driven, status};
use crate::{
    admission::{Admitted, Ended},
    app::State,
    publish::Publisher,
};

mod enroll;
mod config;
mod report;
mod work;

/// Longest `build`.
const BUILD_BYTES_MAX: usize = 128;

/// Tells an agent, with the opening of its report stream, that it may hand deliveries over on it. An earlier control
/// plane, which would ack them unseen, does not say this.
const TAKES_HAND_OVERS_HEADER: &str = "gateway-takes-hand-overs";

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
        self.enroll(request).await
    }

    async fn renew_agent_certificate(
        &self,
        request: Request<v1::RenewAgentCertificateRequest>,
    ) -> Result<Response<v1::RenewAgentCertificateResponse>, Status> {
        self.renew(request).await
    }

    type StreamConfigStream = Streamed<v1::StreamConfigResponse>;

    async fn stream_config(
        &self,
        request: Request<Streaming<v1::StreamConfigRequest>>,
    ) -> Result<Response<Self::StreamConfigStream>, Status> {
        let (identity, admitted) = self.admit(&request).await?;
        let stream = config::ConfigStream::new(
            self.state.clone(),
            Arc::clone(&self.publisher),
            identity,
            request.remote_addr(),
            request.into_inner(),
        );
        Ok(Response::new(until_ended(stream.into_stream(), admitted)))
    }

    type ReportLogsStream = Streamed<v1::ReportLogsResponse>;

    async fn report_logs(
        &self,
        request: Request<Streaming<v1::ReportLogsRequest>>,
    ) -> Result<Response<Self::ReportLogsStream>, Status> {
        let (identity, admitted) = self.admit(&request).await?;
        let source_address = request.remote_addr();
        let stream =
            report::ReportStream::new(self.state.clone(), identity, source_address, request.into_inner());
        let mut response = Response::new(until_ended(stream.into_stream(), admitted));
        response.metadata_mut().insert(TAKES_HAND_OVERS_HEADER, MetadataValue::from_static("true"));
        Ok(response)
    }

    type StreamWorkStream = Streamed<v1::StreamWorkResponse>;

    async fn stream_work(
        &self,
        request: Request<Streaming<v1::StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        let (identity, admitted) = self.admit(&request).await?;
        let stream = work::WorkResponses::new(&self.state, &identity, request.into_inner());
        Ok(Response::new(until_ended(stream.into_stream(), admitted)))
    }
}

/// The stream, up to the moment at which its agent is cut off; then the reason.
fn until_ended<T: Send + 'static>(
    responses: impl Stream<Item = Result<T, Status>> + Send + 'static,
    admitted: Admitted,
) -> Streamed<T> {
    let ended = admitted.ended().boxed();
    let open = (Some(responses.boxed()), ended, admitted);
    let until = stream::unfold(open, |(responses, mut ended, admitted)| async move {
        let mut responses = responses?;
        tokio::select! {
            biased;
            why = &mut ended => {
                let status = match why {
                    Ended::Revoked => status::agent_revoked(),
                    Ended::TakenOver => enroll::taken_over(),
                };
                Some((Err(status), (None, ended, admitted)))
            }
            response = responses.next() => Some((response?, (Some(responses), ended, admitted))),
        }
    });
    driven(until).boxed()
}

/// The status of a message that could not be read because it is too large; None for a broken connection.
fn too_large(status: &Status) -> Option<Status> {
    matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted)
        .then(|| super::unexplained::with_reason(status))
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
