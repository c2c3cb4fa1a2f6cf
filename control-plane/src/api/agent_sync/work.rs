//! `StreamWork`: work down, acknowledgements up.

use futures_util::{Stream, StreamExt as _, stream};
use gateway_proto::v1;
use prost::Message as _;
use std::collections::VecDeque;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{api::authorize::AgentIdentity, app::State, fleet::Fleet, work::WorkStream};

/// Work of one response ends at this size; a single larger one goes alone.
const RESPONSE_BYTES_MAX: usize = 1_024 * 1_024;

/// One agent's work.
pub(super) struct WorkResponses {
    work: WorkStream,
    fleet: Fleet,
    agent_id: String,
    inbound: Streaming<v1::StreamWorkRequest>,
    stop: CancellationToken,
    /// Leased and not sent yet.
    leased: VecDeque<v1::Work>,
}

enum Woken {
    Message(Option<Result<v1::StreamWorkRequest, Status>>),
    Available,
    Stop,
}

impl WorkResponses {
    pub(super) fn new(
        state: &State,
        identity: &AgentIdentity,
        inbound: Streaming<v1::StreamWorkRequest>,
    ) -> Self {
        let work = state.work.open(&identity.region, identity.tenant_id.as_deref());
        Self {
            work,
            fleet: state.fleet.clone(),
            agent_id: identity.agent_id.clone(),
            inbound,
            stop: state.stop.clone(),
            leased: VecDeque::new(),
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<v1::StreamWorkResponse, Status>> {
        stream::unfold(Some(self), |responses| async move {
            let mut responses = responses?;
            match responses.next().await? {
                Ok(response) => Some((Ok(response), Some(responses))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    /// The next work; waits for some. None at the end of the stream.
    async fn next(&mut self) -> Option<Result<v1::StreamWorkResponse, Status>> {
        loop {
            // A draining agent is to have nothing left; others of its region do the work.
            if self.leased.is_empty() && !self.fleet.is_to_drain(&self.agent_id) {
                let applied_version = self.fleet.applied_version(&self.agent_id);
                match self.work.lease(applied_version).await {
                    Ok(work) => self.leased.extend(work),
                    Err(error) => return Some(Err(error.into())),
                }
            }
            if !self.leased.is_empty() {
                return Some(Ok(self.response()));
            }
            match self.wait().await {
                Woken::Available => {}
                Woken::Stop | Woken::Message(None | Some(Err(_))) => return None,
                Woken::Message(Some(Ok(message))) => {
                    if let Err(error) = self.work.acknowledge(&message.acked_work_ids).await {
                        return Some(Err(error.into()));
                    }
                }
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        tokio::select! {
            message = self.inbound.next() => Woken::Message(message),
            () = self.work.available() => Woken::Available,
            () = self.stop.cancelled() => Woken::Stop,
        }
    }

    fn response(&mut self) -> v1::StreamWorkResponse {
        let (mut work, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.leased.front() {
            bytes += next.encoded_len();
            if !work.is_empty() && bytes > RESPONSE_BYTES_MAX {
                break;
            }
            work.extend(self.leased.pop_front());
        }
        v1::StreamWorkResponse { work }
    }
}
