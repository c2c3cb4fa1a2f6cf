//! `StreamWork`: work down, acknowledgements up.

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use gateway_proto::v1;
use prost::Message as _;
use std::collections::VecDeque;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{api::authorize::AgentIdentity, app::State, fleet::Fleet, work::WorkStream};

/// Work of one response ends at this size; a single larger one goes alone.
const RESPONSE_BYTES_MAX: usize = 1_024 * 1_024;
/// Acknowledgements that are written in one transaction. Agents acknowledge one by one; what comes while one
/// transaction is on its way to disk goes into the next.
const ACKED_TOGETHER_MAX: usize = 1_024;

/// One agent's work.
pub(super) struct WorkResponses {
    work: WorkStream,
    fleet: Fleet,
    agent_id: String,
    inbound: Streaming<v1::StreamWorkRequest>,
    stop: CancellationToken,
    /// Leased and not sent yet.
    leased: VecDeque<v1::Work>,
    /// Whether the agent has said something.
    is_heard: bool,
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
        let work = state.work.open(&identity.agent_id, &identity.region, identity.tenant_id.as_deref());
        Self {
            work,
            fleet: state.fleet.clone(),
            agent_id: identity.agent_id.clone(),
            inbound,
            stop: state.stop.clone(),
            leased: VecDeque::new(),
            is_heard: false,
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
            // The agent may not have read for long.
            self.work.keep_held(&mut self.leased);
            if self.fleet.is_to_drain(&self.agent_id) {
                // A draining agent is to have nothing left; others of its region do the work.
                let ids: Vec<String> = self.leased.drain(..).map(|work| work.id).collect();
                if !ids.is_empty() {
                    self.work.give_back(&ids);
                }
            } else if self.leased.is_empty() {
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
                    let acked = self.heard(message);
                    if let Err(error) = self.work.acknowledge(acked).await {
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

    /// What is acknowledged by a message and by those that have come after it. The first says what the agent knows.
    fn heard(&mut self, message: v1::StreamWorkRequest) -> Vec<String> {
        if !self.is_heard && message.takes_hand_overs {
            self.work.takes_hand_overs();
        }
        self.is_heard = true;
        let mut acked = message.acked_work_ids;
        while acked.len() < ACKED_TOGETHER_MAX {
            // The end of the stream comes again with the next wait.
            let Some(Some(Ok(message))) = self.inbound.next().now_or_never() else { break };
            acked.extend(message.acked_work_ids);
        }
        acked
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
