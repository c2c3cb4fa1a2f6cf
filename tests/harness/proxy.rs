//! A line between two programs that counts, records, goes dead and breaks.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Bytes forwarded at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the side that connected.
    Up,
    /// To the side that connected.
    Down,
}

/// The proxy. It ends, with its connections, when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<std::io::Result<()>>,
}

struct Shared {
    target: SocketAddr,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    /// Connections of this number and older are dead or broken.
    dead: watch::Sender<u64>,
    broken: watch::Sender<u64>,
    connections: watch::Sender<Connections>,
    recorded: Option<Mutex<Vec<Chunk>>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Connections {
    made: u64,
    open: usize,
    /// How many the side that is connected to has ended.
    given_up: u64,
}

/// Bytes that a recording proxy saw.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The connection, from 1.
    pub connection: u64,
    /// Which way they went.
    pub way: Way,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Proxy {
    /// A line to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        Self::start_with(target, None).await
    }

    /// The same, keeping everything that goes over it.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn recording(target: SocketAddr) -> anyhow::Result<Self> {
        Self::start_with(target, Some(Mutex::default())).await
    }

    async fn start_with(target: SocketAddr, recorded: Option<Mutex<Vec<Chunk>>>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind the proxy")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            dead: watch::Sender::new(0),
            broken: watch::Sender::new(0),
            connections: watch::Sender::default(),
            recorded,
        });
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _server: server })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as `http://…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many bytes went this way so far, over all connections.
    pub fn bytes(&self, way: Way) -> u64 {
        self.shared.count(way).load(Ordering::Relaxed)
    }

    /// Every open connection stays open and forwards nothing any more, as when a machine between loses its
    /// table. New connections are as before.
    pub fn go_dead(&self) {
        self.shared.dead.send_replace(self.shared.connections.borrow().made);
    }

    /// Every open connection breaks. New connections are as before.
    pub fn break_off(&self) {
        self.shared.broken.send_replace(self.shared.connections.borrow().made);
    }

    /// How many connections were made so far.
    pub fn made(&self) -> u64 {
        self.shared.connections.borrow().made
    }

    /// Waits until this many connections were made.
    pub async fn until_made(&self, count: u64) {
        let mut connections = self.shared.connections.subscribe();
        let waited = connections.wait_for(|connections| connections.made >= count).await;
        waited.expect("the sender lives as long as the proxy");
    }

    /// Waits until the side that is connected to has ended this many connections.
    pub async fn until_given_up(&self, count: u64) {
        let mut connections = self.shared.connections.subscribe();
        let waited = connections.wait_for(|connections| connections.given_up >= count).await;
        waited.expect("the sender lives as long as the proxy");
    }

    /// Waits until both sides have ended all but this many connections.
    pub async fn until_open(&self, count: usize) {
        let mut connections = self.shared.connections.subscribe();
        let waited = connections.wait_for(|connections| connections.open <= count).await;
        waited.expect("the sender lives as long as the proxy");
    }

    /// What went over a recording proxy so far, in its order.
    pub fn recorded(&self) -> Vec<Chunk> {
        self.shared.recorded.as_ref().map(|recorded| lock(recorded).clone()).unwrap_or_default()
    }
}

impl Shared {
    fn count(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Up => &self.up_bytes,
            Way::Down => &self.down_bytes,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> std::io::Result<()> {
    let mut lines = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (near, _) = accepted?;
                near.set_nodelay(true)?;
                shared.connections.send_modify(|connections| {
                    connections.made += 1;
                    connections.open += 1;
                });
                let number = shared.connections.borrow().made;
                lines.spawn(serve(number, near, Arc::clone(&shared)));
            }
            Some(_) = lines.join_next() => {}
        }
    }
}

async fn serve(number: u64, near: TcpStream, shared: Arc<Shared>) {
    let mut broken = shared.broken.subscribe();
    let both = async {
        // A side that is away or goes away is what tests are about.
        let Ok(far) = TcpStream::connect(shared.target).await else { return };
        drop(far.set_nodelay(true));
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let up = forward(number, Way::Up, near_read, far_write, &shared);
        let down = forward(number, Way::Down, far_read, near_write, &shared);
        // The end of one way is the end of the other: no side here goes on after half an end. But a dead line
        // ends only when each side has given it up.
        tokio::join!(up, down);
    };
    tokio::select! {
        () = both => {}
        _ = broken.wait_for(|broken| *broken >= number) => {}
    }
    shared.connections.send_modify(|connections| connections.open -= 1);
}

async fn forward(number: u64, way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        if *shared.dead.borrow() >= number {
            continue;
        }
        shared.count(way).fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(recorded) = &shared.recorded {
            lock(recorded).push(Chunk { connection: number, way, bytes: chunk[..length].to_vec() });
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            break;
        }
    }
    if way == Way::Down {
        shared.connections.send_modify(|connections| connections.given_up += 1);
    }
    if *shared.dead.borrow() < number {
        drop(to.shutdown().await);
    } else {
        // A dead line does not tell the other side of the end.
        to.forget();
    }
}
