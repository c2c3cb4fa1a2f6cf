//! An agent that is played by the test.

use std::{collections::VecDeque, fs, path::Path};

use anyhow::{Context as _, ensure};
use gateway_proto::v1::{
    self, agent_sync_service_client::AgentSyncServiceClient, stream_config_request::Message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::request;
use crate::{
    condition::{DEADLINE, Within as _, eventually},
    control_plane::ControlPlane,
};

/// Requests on their way; when full, the test waits.
const REQUESTS_MAX: usize = 64;
/// As real agents take them.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Adds the credential.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The client of an enrolled agent.
pub type RawClient = AgentSyncServiceClient<InterceptedService<Channel, Bearer>>;

/// An enrolled agent without a program.
#[derive(Clone)]
pub struct RawAgent {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    credential: String,
    url: String,
}

impl RawAgent {
    /// Enrolls an agent in `region`.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn enroll(control_plane: &ControlPlane, region: &str) -> anyhow::Result<Self> {
        let join_token = control_plane.join_token(region).await?;
        let url = control_plane.url();
        let mut client = AgentSyncServiceClient::new(Endpoint::from_shared(url.clone())?.connect().await?);
        let request = v1::EnrollAgentRequest { join_token, build: "raw".to_owned(), ..Default::default() };
        let answer = client.enroll_agent(request).await?.into_inner();
        Ok(Self { id: answer.agent_id, region: answer.region, credential: answer.credential, url })
    }

    /// An agent that enrolled before, as its `credential.json` says.
    ///
    /// # Errors
    /// When the file is not one.
    pub fn of_credential_file(path: &Path, url: String) -> anyhow::Result<Self> {
        let file: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
        let text = |name: &str| {
            let text = file[name].as_str().with_context(|| format!("find `{name}` of `{}`", path.display()));
            text.map(str::to_owned)
        };
        Ok(Self { id: text("agent_id")?, region: text("region")?, credential: text("credential")?, url })
    }

    /// The value of `authorization` of its calls.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.credential)
    }

    /// The same agent, calling another address, such as a proxy's.
    pub fn at(&self, url: String) -> Self {
        Self { url, ..self.clone() }
    }

    /// A client with a connection of its own.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn client(&self) -> anyhow::Result<RawClient> {
        let channel = Endpoint::from_shared(self.url.clone())?.connect().await?;
        let bearer = Bearer(format!("Bearer {}", self.credential).parse()?);
        Ok(AgentSyncServiceClient::with_interceptor(channel, bearer)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX * 2))
    }

    /// What it says first when it has nothing.
    pub fn hello(&self) -> v1::ConfigHello {
        v1::ConfigHello {
            agent_id: self.id.clone(),
            region: self.region.clone(),
            build: "raw".to_owned(),
            ..Default::default()
        }
    }

    /// Opens a config stream and waits for its first response; comes again when it is asked to.
    ///
    /// # Errors
    /// When it is refused for another reason than that many agents are connecting.
    pub async fn open_config(&self, hello: v1::ConfigHello) -> anyhow::Result<ConfigSession> {
        eventually(DEADLINE, async || match self.try_open_config(hello.clone()).await? {
            Ok(session) => Ok(Ok(session)),
            Err(status) if status.message().contains("many agents") => Err(status.into()),
            Err(status) => Ok(Err(status)),
        })
        .await?
        .context("open a config stream")
    }

    /// The same, once.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn try_open_config(
        &self,
        hello: v1::ConfigHello,
    ) -> anyhow::Result<Result<ConfigSession, Status>> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        requests.send(request(Message::Hello(hello))).await?;
        let mut client = self.client().await?;
        let responses = match client.stream_config(ReceiverStream::new(outgoing)).await {
            Ok(responses) => responses.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let mut session = ConfigSession { requests, responses, first: VecDeque::new() };
        match session.responses.message().within(DEADLINE).await? {
            Ok(first) => session.first.extend(first),
            Err(status) => return Ok(Err(status)),
        }
        Ok(Ok(session))
    }
}

/// An open config stream of a raw agent. It says only what it is told to, so after 13 s of silence it is given
/// up.
pub struct ConfigSession {
    requests: mpsc::Sender<v1::StreamConfigRequest>,
    responses: Streaming<v1::StreamConfigResponse>,
    first: VecDeque<v1::StreamConfigResponse>,
}

impl ConfigSession {
    /// Says something.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn say(&self, message: Message) -> anyhow::Result<()> {
        self.requests
            .send(request(message))
            .within(DEADLINE)
            .await?
            .context("say something: the stream ended")
    }

    /// Acknowledges a response.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn ack(&self, response: &v1::StreamConfigResponse) -> anyhow::Result<()> {
        self.say(Message::Ack(v1::ConfigAck { nonce: response.nonce.clone() })).await
    }

    /// Says that a version is in use.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn applied(&self, version: u64) -> anyhow::Result<()> {
        self.say(Message::Applied(v1::ConfigApplied { version, ..Default::default() })).await
    }

    /// The next response, however long it takes; the status when the stream has ended with one.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn message(&mut self) -> Result<v1::StreamConfigResponse, Status> {
        if let Some(first) = self.first.pop_front() {
            return Ok(first);
        }
        self.responses.message().await?.ok_or_else(|| Status::ok("the stream ended"))
    }

    /// The next response.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn next(&mut self) -> anyhow::Result<v1::StreamConfigResponse> {
        Ok(self.message().within(DEADLINE).await??)
    }

    /// Acknowledges and applies responses until the version is reached; gives all of them.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn follow_to(&mut self, version: u64) -> anyhow::Result<Vec<v1::StreamConfigResponse>> {
        let mut responses = Vec::new();
        loop {
            let response = self.next().await?;
            self.ack(&response).await?;
            let reached = response.version;
            responses.push(response);
            if reached >= version {
                self.applied(reached).await?;
                return Ok(responses);
            }
            ensure!(responses.len() < 10_000, "{} responses do not reach version {version}", responses.len());
        }
    }
}
