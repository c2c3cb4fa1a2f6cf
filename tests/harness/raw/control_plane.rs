//! A control plane that is played by the test.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use gateway_proto::v1::{
    self,
    agent_sync_service_server::{AgentSyncService, AgentSyncServiceServer},
    stream_config_request::Message,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex as AsyncMutex, mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, transport::Server};

use crate::condition::{DEADLINE, Within as _};

/// Config streams that wait for the test, and responses on their way.
const WAITING_MAX: usize = 64;
/// As real control planes take them.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// The control plane. It ends when dropped.
pub struct RawControlPlane {
    address: SocketAddr,
    links: AsyncMutex<mpsc::Receiver<ConfigLink>>,
    reports: Arc<Mutex<Vec<v1::Report>>>,
    acked_work: Arc<Mutex<Vec<String>>>,
    takes_hand_overs: watch::Sender<bool>,
    _server: JoinSet<()>,
}

/// The config stream of an agent.
pub struct ConfigLink {
    /// What the agent said first.
    pub hello: v1::ConfigHello,
    requests: Streaming<v1::StreamConfigRequest>,
    responses: mpsc::Sender<Result<v1::StreamConfigResponse, Status>>,
}

impl RawControlPlane {
    /// Starts on a free port: it enrolls whoever asks, acknowledges every report and has no work.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Vec::new()).await
    }

    /// The same with this work for every agent that asks.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start_with(work: Vec<v1::StreamWorkResponse>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind the control plane")?;
        let address = listener.local_addr()?;
        let (sender, links) = mpsc::channel(WAITING_MAX);
        let reports = Arc::<Mutex<Vec<v1::Report>>>::default();
        let acked_work = Arc::<Mutex<Vec<String>>>::default();
        let takes_hand_overs = watch::Sender::new(false);
        let api = Api {
            links: sender,
            reports: Arc::clone(&reports),
            work,
            acked_work: Arc::clone(&acked_work),
            takes_hand_overs: takes_hand_overs.subscribe(),
        };
        let service = AgentSyncServiceServer::new(api)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX * 4);
        let mut server = JoinSet::new();
        let serving = Server::builder().add_service(service);
        server.spawn(async move {
            // Ends with the test.
            drop(serving.serve_with_incoming(TcpListenerStream::new(listener)).await);
        });
        let links = AsyncMutex::new(links);
        Ok(Self { address, links, reports, acked_work, takes_hand_overs, _server: server })
    }

    /// Where agents find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next config stream that an agent opens.
    ///
    /// # Errors
    /// When none comes.
    pub async fn connected(&self) -> anyhow::Result<ConfigLink> {
        let mut links = self.links.lock().await;
        links.recv().within(DEADLINE).await?.context("wait for an agent")
    }

    /// The ids of work that agents have acknowledged so far.
    pub fn acked_work(&self) -> Vec<String> {
        self.acked_work.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the report streams; those that are opened from now on say whether hand-overs are taken. At first they do not
    /// say so, as those of earlier control planes.
    pub fn take_hand_overs(&self, takes: bool) {
        self.takes_hand_overs.send_replace(takes);
    }

    /// What agents have reported so far.
    pub fn reports(&self) -> Vec<v1::Report> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ConfigLink {
    /// Sends a response.
    ///
    /// # Errors
    /// When the agent is gone.
    pub async fn send(&self, response: v1::StreamConfigResponse) -> anyhow::Result<()> {
        self.responses.send(Ok(response)).within(DEADLINE).await?.context("send: the agent is gone")
    }

    /// The next message of the agent that is not about its health.
    ///
    /// # Errors
    /// When none comes.
    pub async fn heard(&mut self) -> anyhow::Result<Message> {
        loop {
            let request = self.requests.message().within(DEADLINE).await??;
            let message =
                request.and_then(|request| request.message).context("hear the agent: it is gone")?;
            if !matches!(message, Message::Health(_)) {
                return Ok(message);
            }
        }
    }

    /// The next word of the agent about its health.
    ///
    /// # Errors
    /// When none comes.
    pub async fn health(&mut self) -> anyhow::Result<v1::AgentHealth> {
        loop {
            let request = self.requests.message().within(DEADLINE).await??;
            let message =
                request.and_then(|request| request.message).context("hear the agent: it is gone")?;
            if let Message::Health(health) = message {
                return Ok(health);
            }
        }
    }
}

struct Api {
    links: mpsc::Sender<ConfigLink>,
    reports: Arc<Mutex<Vec<v1::Report>>>,
    work: Vec<v1::StreamWorkResponse>,
    acked_work: Arc<Mutex<Vec<String>>>,
    takes_hand_overs: watch::Receiver<bool>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentSyncService for Api {
    async fn enroll_agent(
        &self,
        request: Request<v1::EnrollAgentRequest>,
    ) -> Result<Response<v1::EnrollAgentResponse>, Status> {
        Ok(Response::new(v1::EnrollAgentResponse {
            agent_id: "agt_raw".to_owned(),
            credential: "agent_raw".to_owned(),
            region: request.into_inner().region,
            ..Default::default()
        }))
    }

    async fn renew_agent_certificate(
        &self,
        _: Request<v1::RenewAgentCertificateRequest>,
    ) -> Result<Response<v1::RenewAgentCertificateResponse>, Status> {
        Err(Status::unimplemented("this control plane knows no certificates"))
    }

    type StreamConfigStream = Streamed<v1::StreamConfigResponse>;

    async fn stream_config(
        &self,
        request: Request<Streaming<v1::StreamConfigRequest>>,
    ) -> Result<Response<Self::StreamConfigStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(Message::Hello(hello)) = first else { return Err(Status::invalid_argument("say hello")) };
        let (responses, outgoing) = mpsc::channel(WAITING_MAX);
        let link = ConfigLink { hello, requests, responses };
        self.links.try_send(link).map_err(|_| Status::unavailable("nobody waits for agents"))?;
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }

    type ReportLogsStream = Streamed<v1::ReportLogsResponse>;

    async fn report_logs(
        &self,
        request: Request<Streaming<v1::ReportLogsRequest>>,
    ) -> Result<Response<Self::ReportLogsStream>, Status> {
        let mut takes_hand_overs = self.takes_hand_overs.clone();
        let takes = *takes_hand_overs.borrow_and_update();
        let reports = Arc::clone(&self.reports);
        let acks = request.into_inner().map(move |request| {
            let request = request?;
            let acked_sequence = request.reports.last().map_or(0, |report| report.sequence);
            reports.lock().unwrap_or_else(PoisonError::into_inner).extend(request.reports);
            Ok(v1::ReportLogsResponse { buffer_id: request.buffer_id, acked_sequence })
        });
        let is_other = async move { takes_hand_overs.changed().await };
        let mut response = Response::new(acks.take_until(is_other.boxed()).boxed());
        if takes {
            response.metadata_mut().insert("gateway-takes-hand-overs", MetadataValue::from_static("true"));
        }
        Ok(response)
    }

    type StreamWorkStream = Streamed<v1::StreamWorkResponse>;

    async fn stream_work(
        &self,
        request: Request<Streaming<v1::StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        let acked_work = Arc::clone(&self.acked_work);
        // Then nothing more, for as long as the agent is there.
        let none = stream::unfold(request.into_inner(), move |mut requests| {
            let acked_work = Arc::clone(&acked_work);
            async move {
                while let Ok(Some(request)) = requests.message().await {
                    acked_work.lock().unwrap_or_else(PoisonError::into_inner).extend(request.acked_work_ids);
                }
                None
            }
        });
        let work = stream::iter(self.work.clone()).map(Ok);
        Ok(Response::new(work.chain(none).boxed()))
    }
}
