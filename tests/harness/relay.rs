//! A relay between agents and a control plane that keeps every message of `AgentSyncService` as it went over the
//! wire, with the call it belongs to; and the file in which such a conversation is kept.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::{Stream, StreamExt as _, future::ready};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    client::Grpc as ClientGrpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Context, Poll, Service, http},
    server::{Grpc as ServerGrpc, NamedService, StreamingService},
    transport::{Channel, Endpoint, Server},
};

use crate::proxy::Way;

/// What a file of a conversation begins with.
const FORMAT: &[u8; 8] = b"WAGWREC1";
/// As real control planes take them.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The call, from 1, in the order in which they were opened.
    pub call: u32,
    /// Its method, such as `StreamConfig`.
    pub method: String,
    /// Which way the message went.
    pub way: Way,
    /// The message as it was encoded.
    pub bytes: Bytes,
}

/// Messages as they are: neither side is decoded.
#[derive(Debug, Clone, Copy, Default)]
pub struct AsTheyAre;

impl Codec for AsTheyAre {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(input.copy_to_bytes(input.remaining())))
    }
}

/// The relay. It ends when dropped.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    target: Channel,
    calls: AtomicU32,
    recorded: Mutex<Vec<Recorded>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Recorded>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    /// A relay to the control plane at `url`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(url: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind the relay")?;
        let address = listener.local_addr()?;
        let target = Endpoint::from_shared(url.to_owned())?.connect_lazy();
        let shared = Arc::new(Shared { target, calls: AtomicU32::new(0), recorded: Mutex::default() });
        let service = RelayService { shared: Arc::clone(&shared) };
        let mut server = JoinSet::new();
        let serving = Server::builder().add_service(service);
        server.spawn(async move {
            // Ends with the test.
            drop(serving.serve_with_incoming(TcpListenerStream::new(listener)).await);
        });
        Ok(Self { address, shared, _server: server })
    }

    /// Where agents find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What went over it so far.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.shared.lock().clone()
    }
}

#[derive(Clone)]
struct RelayService {
    shared: Arc<Shared>,
}

impl NamedService for RelayService {
    const NAME: &'static str = "whatsapp_gateway.v1.AgentSyncService";
}

impl Service<http::Request<Body>> for RelayService {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.shared.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.uri().path().to_owned();
        let call = Call { shared: Arc::clone(&self.shared), call, path };
        Box::pin(async move {
            let grpc = ServerGrpc::new(AsTheyAre).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(grpc.max_encoding_message_size(MESSAGE_BYTES_MAX).streaming(call, request).await)
        })
    }
}

/// One call, of whatever shape: unary ones have one message each way.
#[derive(Clone)]
struct Call {
    shared: Arc<Shared>,
    call: u32,
    path: String,
}

impl Call {
    fn record(&self, way: Way, bytes: &Bytes) {
        let method = self.path.rsplit('/').next().unwrap_or_default().to_owned();
        self.shared.lock().push(Recorded { call: self.call, method, way, bytes: bytes.clone() });
    }

    async fn forward(self, request: Request<Streaming<Bytes>>) -> Result<Response<Answers>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let up = self.clone();
        // A broken call ends here; the other side sees its end.
        let requests = requests.take_while(|message| ready(message.is_ok())).filter_map(move |message| {
            let message = message.ok();
            message.iter().for_each(|message| up.record(Way::Up, message));
            ready(message)
        });
        let mut forwarded = Request::new(requests);
        if let Some(authorization) = metadata.get("authorization") {
            forwarded.metadata_mut().insert("authorization", authorization.clone());
        }
        let mut grpc =
            ClientGrpc::new(self.shared.target.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = self.path.parse().map_err(|_| Status::unimplemented("is no path"))?;
        let answers = grpc.streaming(forwarded, path, AsTheyAre).await?.into_inner();
        let down = self;
        let answers = answers.inspect(move |message| {
            if let Ok(message) = message {
                down.record(Way::Down, message);
            }
        });
        Ok(Response::new(answers.boxed()))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(self.clone().forward(request))
    }
}

/// Writes a conversation to a file: after 8 bytes that name the format, each message as call, way, the lengths
/// of method and message (u32, little endian), method and message.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, messages: &[Recorded]) -> anyhow::Result<()> {
    let mut bytes = FORMAT.to_vec();
    for message in messages {
        bytes.put_u32_le(message.call);
        bytes.put_u32_le(u32::from(message.way == Way::Down));
        bytes.put_u32_le(u32::try_from(message.method.len())?);
        bytes.put_u32_le(u32::try_from(message.bytes.len())?);
        bytes.extend_from_slice(message.method.as_bytes());
        bytes.extend_from_slice(&message.bytes);
    }
    fs::write(path, bytes).with_context(|| format!("write `{}`", path.display()))
}

/// Reads a conversation from a file.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn read(path: &Path) -> anyhow::Result<Vec<Recorded>> {
    let mut bytes = Bytes::from(fs::read(path).with_context(|| format!("read `{}`", path.display()))?);
    ensure!(bytes.starts_with(FORMAT), "`{}` is no recorded conversation", path.display());
    bytes.advance(FORMAT.len());
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        let (call, way) = (bytes.try_get_u32_le()?, bytes.try_get_u32_le()?);
        let way = if way == 0 { Way::Up } else { Way::Down };
        let lengths = [bytes.try_get_u32_le()?, bytes.try_get_u32_le()?].map(usize::try_from);
        let [method, message] = lengths;
        let (method, message) = (method?, message?);
        ensure!(bytes.remaining() >= method + message, "`{}` is cut off", path.display());
        let method = String::from_utf8(bytes.split_to(method).to_vec())?;
        messages.push(Recorded { call, method, way, bytes: bytes.split_to(message) });
    }
    Ok(messages)
}
