//! A destination that records what it gets and behaves as told, also badly.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// One request, as it came in.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) line: String,
    /// Names in lower case, in the order of arrival.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Counts the connections, from 0.
    pub(super) connection: usize,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// What it does with a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// Answers with a status, header lines and a body.
    Status(u16, &'static str, &'static str),
    /// Never answers.
    Silence,
}

/// Decides by how many requests came before.
pub(super) type Script = fn(usize) -> Reply;

pub(super) fn ok(_before: usize) -> Reply {
    Reply::Status(200, "", "thanks")
}

pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    count: watch::Receiver<usize>,
    _server: JoinSet<()>,
}

impl Receiver {
    pub(super) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (counted, count) = watch::channel(0);
        let mut server = JoinSet::new();
        let seen = Arc::clone(&requests);
        server.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (seen, counted) = (Arc::clone(&seen), counted.clone());
                connections.spawn(serve(stream, connection, script, seen, counted));
            }
        });
        Self { address, requests, count, _server: server }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/webhooks?source=gateway", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until this many requests came.
    pub(super) async fn wait_for(&self, count: usize) -> Vec<Request> {
        let mut counter = self.count.clone();
        let came = counter.wait_for(|came| *came >= count);
        tokio::time::timeout(super::DEADLINE, came).await.expect("requests come").unwrap();
        self.requests()
    }
}

/// A destination below HTTP: every connection is served by a function that can do anything with it.
pub(super) struct Raw {
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Raw {
    /// `serve` gets the connection and its number, from 0.
    pub(super) async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, usize) -> F + Send + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0", serve).await
    }

    pub(super) async fn start_at<F: Future<Output = ()> + Send + 'static>(
        address: &str,
        serve: impl Fn(TcpStream, usize) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                connections.spawn(serve(stream, count.fetch_add(1, Ordering::Relaxed)));
            }
        });
        Self { address, accepted, _server: server }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Connections so far.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Reads one request and writes these bytes; what follows is the caller's.
pub(super) async fn respond(stream: TcpStream, bytes: &[u8]) -> TcpStream {
    let mut stream = BufReader::new(stream);
    read_request(&mut stream, 0).await;
    let mut stream = stream.into_inner();
    // The other side may be gone already; that is what some tests are about.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Keeps a connection open until the other side closes it.
pub(super) async fn hold(mut stream: TcpStream) {
    let mut sink = [0; 4096];
    while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
}

async fn serve(
    stream: TcpStream,
    connection: usize,
    script: Script,
    seen: Arc<Mutex<Vec<Request>>>,
    counted: watch::Sender<usize>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream, connection).await {
        let before = {
            let mut seen = seen.lock().unwrap();
            seen.push(request);
            seen.len() - 1
        };
        counted.send_modify(|count| *count += 1);
        if answer(stream.get_mut(), script(before)).await.is_none() {
            return;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>, connection: usize) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut request = Request { line: line.trim_end().to_owned(), headers, body: Vec::new(), connection };
    let length: usize = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

/// None when the connection is over.
async fn answer(stream: &mut TcpStream, reply: Reply) -> Option<()> {
    const FOR_EVER: Duration = Duration::from_secs(3_600);
    match reply {
        Reply::Status(status, headers, body) => {
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} Whatever\r\n{headers}content-length: {length}\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).await.ok()
        }
        Reply::Silence => {
            tokio::time::sleep(FOR_EVER).await;
            None
        }
    }
}
