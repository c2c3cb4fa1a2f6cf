//! The customer's side: a real HTTP server that records every webhook and answers as scripted.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use gateway_core::signature::{VerifyError, WebhookHeaders, WebhookSecret, verify_webhook};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::interval,
};

/// Pause between the pieces of a dripping answer.
const DRIP_INTERVAL: Duration = Duration::from_millis(100);
/// Size of the pieces of an endless answer.
const FLOOD_CHUNK_BYTES: usize = 16 * 1024;

/// One webhook as it arrived.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// The path of the destination.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The raw body.
    pub body: Bytes,
    /// When it had arrived whole.
    pub receive_time: Instant,
    /// The same, by the wall clock.
    pub receive_timestamp: jiff::Timestamp,
    /// Which request with this `webhook-id` and path it is, from 1.
    pub nth: usize,
}

impl Webhook {
    /// A header's text, empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `webhook-id`.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The body as JSON; null when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A text of the body, empty when it is missing or no text.
    pub fn text(&self, key: &str) -> String {
        self.json()[key].as_str().unwrap_or_default().to_owned()
    }

    /// The event's name.
    pub fn event(&self) -> String {
        self.text("event")
    }

    /// Verifies the Standard Webhooks signature against this machine's clock.
    ///
    /// # Errors
    /// When it is not genuine.
    pub fn verify(&self, secret: &WebhookSecret) -> Result<(), VerifyError> {
        let headers = WebhookHeaders {
            id: self.id(),
            timestamp: self.header("webhook-timestamp"),
            signature: self.header("webhook-signature"),
        };
        verify_webhook(std::slice::from_ref(secret), headers, &self.body, self.receive_timestamp.as_second())
    }
}

/// What the receiver does with one webhook.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers with this status.
    Status(u16),
    /// Answers with this status and header.
    Header(u16, &'static str, String),
    /// Never answers.
    Hang,
    /// Answers with this status once the value is true, or its sender gone.
    Held(watch::Receiver<bool>, u16),
    /// Closes the connection without an answer.
    Close,
    /// Answers 200 and then a body that never ends, a byte at a time.
    Drip,
    /// Answers 200 and then a body that never ends, as fast as it is read.
    Flood,
}

type Script = Arc<dyn Fn(&Webhook) -> Reply + Send + Sync>;

/// The receiver. It ends when dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    next: AtomicUsize,
    _server: JoinSet<io::Result<()>>,
}

struct Shared {
    webhooks: Mutex<Vec<Arc<Webhook>>>,
    counts: Mutex<HashMap<(String, String), usize>>,
    open: Mutex<HashMap<String, Open>>,
    script: Mutex<Script>,
    recorded: watch::Sender<usize>,
    connections: watch::Sender<usize>,
}

/// Requests of one path that are not answered yet.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    now: usize,
    max: usize,
}

impl Receiver {
    /// Starts on a free port, answering 200.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_on(0).await
    }

    /// Starts on this port, answering 200.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn start_on(port: u16) -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], port))).await
    }

    /// Starts on this address, answering 200.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.context("bind the receiver")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            webhooks: Mutex::default(),
            counts: Mutex::default(),
            open: Mutex::default(),
            script: Mutex::new(Arc::new(|_| Reply::Status(200))),
            recorded: watch::Sender::new(0),
            connections: watch::Sender::new(0),
        });
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, next: AtomicUsize::new(0), _server: server })
    }

    /// The destination URL of a path such as `/crm`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers by this script from now on.
    pub fn answer_with(&self, script: impl Fn(&Webhook) -> Reply + Send + Sync + 'static) {
        *lock(&self.shared.script) = Arc::new(script);
    }

    /// Everything recorded so far, in the order of arrival.
    pub fn all(&self) -> Vec<Arc<Webhook>> {
        lock(&self.shared.webhooks).clone()
    }

    /// How many webhooks were recorded so far.
    pub fn count(&self) -> usize {
        lock(&self.shared.webhooks).len()
    }

    /// Waits until nobody is connected: whatever was sent before by somebody who is gone has been recorded.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn disconnected(&self) -> io::Result<()> {
        // Connections are taken in turn: when this one has come and gone, all those before it have been taken.
        let mut last = TcpStream::connect(self.address).await?;
        last.shutdown().await?;
        last.read_to_end(&mut Vec::new()).await?;
        let mut connections = self.shared.connections.subscribe();
        connections
            .wait_for(|connections| *connections == 0)
            .await
            .expect("the sender lives as long as the receiver");
        Ok(())
    }

    /// Forgets what was recorded so far. Nobody may be waiting for a webhook meanwhile.
    pub fn forget(&self) {
        lock(&self.shared.webhooks).clear();
        lock(&self.shared.counts).clear();
        self.next.store(0, Ordering::Relaxed);
        self.shared.recorded.send_replace(0);
    }

    /// Everything recorded so far, by `webhook-id`.
    pub fn by_id(&self) -> BTreeMap<String, Vec<Arc<Webhook>>> {
        let mut by_id: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for webhook in self.all() {
            by_id.entry(webhook.id().to_owned()).or_default().push(webhook);
        }
        by_id
    }

    /// The most requests of a path that were open at once.
    pub fn open_max(&self, path: &str) -> usize {
        lock(&self.shared.open).get(path).copied().unwrap_or_default().max
    }

    /// The next webhook in the order of arrival, each once.
    pub async fn next_webhook(&self) -> Arc<Webhook> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.recorded(index + 1).await;
        Arc::clone(&lock(&self.shared.webhooks)[index])
    }

    /// Waits until this many webhooks were recorded.
    pub async fn recorded(&self, count: usize) {
        let mut recorded = self.shared.recorded.subscribe();
        recorded
            .wait_for(|recorded| *recorded >= count)
            .await
            .expect("the sender lives as long as the receiver");
    }

    /// The first webhook, past or to come, that `wanted` accepts.
    pub async fn find(&self, wanted: impl Fn(&Webhook) -> bool) -> Arc<Webhook> {
        let mut recorded = self.shared.recorded.subscribe();
        let mut seen = 0;
        loop {
            recorded.borrow_and_update();
            let all = self.all();
            if let Some(webhook) = all[seen..].iter().find(|webhook| wanted(webhook)) {
                return Arc::clone(webhook);
            }
            seen = all.len();
            recorded.changed().await.expect("the sender lives as long as the receiver");
        }
    }

    /// The first webhook, past or to come, about this message of the provider.
    pub async fn message(&self, wamid: &str) -> Arc<Webhook> {
        self.find(|webhook| webhook.text("external_message_id") == wamid).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                shared.connections.send_modify(|connections| *connections += 1);
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request| handle(request, Arc::clone(&shared)));
    // A connection that breaks is the other side's affair, or was asked for by the script.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
    shared.connections.send_modify(|connections| *connections -= 1);
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn handle(request: Request<Incoming>, shared: Arc<Shared>) -> anyhow::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = parts.uri.path().to_owned();
    let id = parts.headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let nth = {
        let mut counts = lock(&shared.counts);
        let count = counts.entry((id, path.clone())).or_default();
        *count += 1;
        *count
    };
    let webhook = Arc::new(Webhook {
        path,
        headers: parts.headers,
        body,
        receive_time: Instant::now(),
        receive_timestamp: jiff::Timestamp::now(),
        nth,
    });
    let _open = OpenRequest::new(&shared, &webhook.path);
    let script = Arc::clone(&lock(&shared.script));
    lock(&shared.webhooks).push(Arc::clone(&webhook));
    shared.recorded.send_modify(|recorded| *recorded += 1);
    reply(script(&webhook)).await
}

async fn reply(reply: Reply) -> anyhow::Result<Response<Body>> {
    match reply {
        Reply::Status(status) => Ok(response(status, empty())),
        Reply::Header(status, name, value) => {
            let mut response = response(status, empty());
            response.headers_mut().insert(name, value.parse()?);
            Ok(response)
        }
        Reply::Hang => std::future::pending().await,
        Reply::Held(mut released, status) => {
            drop(released.wait_for(|released| *released).await);
            Ok(response(status, empty()))
        }
        Reply::Close => anyhow::bail!("close the connection, as the script says"),
        Reply::Drip => {
            let drops = stream::unfold(interval(DRIP_INTERVAL), |mut ticks| async move {
                ticks.tick().await;
                Some((Ok(Frame::data(Bytes::from_static(b"."))), ticks))
            });
            Ok(response(200, StreamBody::new(drops).boxed_unsync()))
        }
        Reply::Flood => {
            let chunk = Bytes::from(vec![b'.'; FLOOD_CHUNK_BYTES]);
            let chunks = stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
            Ok(response(200, StreamBody::new(chunks).boxed_unsync()))
        }
    }
}

fn empty() -> Body {
    Empty::new().boxed_unsync()
}

fn response(status: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("scripts use real statuses");
    response
}

/// Counts a request as open until it is dropped, with its connection if need be.
struct OpenRequest {
    shared: Arc<Shared>,
    path: String,
}

impl OpenRequest {
    fn new(shared: &Arc<Shared>, path: &str) -> Self {
        let mut paths = lock(&shared.open);
        let open = paths.entry(path.to_owned()).or_default();
        open.now += 1;
        open.max = open.max.max(open.now);
        Self { shared: Arc::clone(shared), path: path.to_owned() }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.shared.open).get_mut(&self.path) {
            open.now -= 1;
        }
    }
}
