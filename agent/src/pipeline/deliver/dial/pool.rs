//! Connections of one site: one that is used, and those that are idle.

use std::{
    future::Future as _,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use gateway_core::destination::BlockedAddress;
use http_body_util::Full;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore, time::Instant};
use url::Host;

use crate::pipeline::deliver::failure::{Failure, Party};

use super::{
    exchange::{BUFFER_BYTES_MAX, HEADERS_MAX, Meter, Stream, Wire},
    tls::{TlsClient, TlsSettings},
};

/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection is used at most, so that a change in the DNS is followed also by a busy one.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Where connections go, and the idle ones that were made to it. It belongs to one subscription and one set
/// of connection settings: changed settings make a new site, so they never meet an old connection.
pub(crate) struct Site {
    pub(super) party: Party,
    pub(super) host: Host<String>,
    pub(super) port: u16,
    tls: Option<TlsClient>,
    settings: TlsSettings,
    pub(super) lookups: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    wired: Box<Wired>,
    since: Instant,
}

impl Idle {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.since) < IDLE_TIMEOUT && now.duration_since(self.wired.made) < AGE_MAX
    }
}

impl Site {
    pub(super) const fn new(
        party: Party,
        host: Host<String>,
        port: u16,
        tls: Option<TlsClient>,
        settings: TlsSettings,
        lookups: Arc<Semaphore>,
    ) -> Self {
        Self { party, host, port, tls, settings, lookups, idle: Mutex::new(Vec::new()) }
    }

    /// Whether it is where `url` with these settings goes.
    pub(crate) fn serves(&self, url: &url::Url, settings: &TlsSettings) -> bool {
        let is_http = url.scheme() == "http";
        is_http == self.is_http()
            && url.host().map(|host| host.to_owned()).as_ref() == Some(&self.host)
            && url.port_or_known_default() == Some(self.port)
            && *settings == self.settings
    }

    pub(super) const fn is_http(&self) -> bool {
        self.tls.is_none()
    }

    pub(super) fn shows_certificate(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.shows_certificate)
    }

    /// Makes the TLS handshake, if the site has TLS.
    pub(super) async fn secure(&self, stream: TcpStream) -> Result<Stream, Failure> {
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(stream)) };
        match tls.connector.connect(tls.name.clone(), stream).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
            Err(error) => Err(Failure::handshake(self.party, &error, tls.shows_certificate)),
        }
    }

    /// The idle connection that was used last, if it is still open and `check` lets its address pass.
    pub(super) async fn take_idle(
        &self,
        check: impl Fn(IpAddr) -> Result<(), BlockedAddress>,
    ) -> Option<Box<Wired>> {
        let now = Instant::now();
        loop {
            let Idle { mut wired, .. } = self.pop_fresh(now)?;
            let is_open = std::future::poll_fn(|cx| Poll::Ready(wired.is_open(cx))).await;
            if is_open && check(wired.peer).is_ok() {
                wired.meter.begin();
                return Some(wired);
            }
        }
    }

    fn pop_fresh(&self, now: Instant) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(newest) = idle.pop() {
            if newest.is_fresh(now) {
                return Some(newest);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if it can take one.
    pub(super) fn put_back(&self, mut wired: Box<Wired>, idle_max: usize) {
        if !wired.can_be_reused() {
            return;
        }
        let since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < idle_max {
            idle.push(Idle { wired, since });
        }
    }

    /// Closes idle connections that were kept long enough, or that the other side closed.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain_mut(|idle| idle.is_fresh(now) && idle.wired.is_open(&mut cx));
    }
}

/// A connection with the machine that drives it. There is no task: whoever uses it polls both, and nobody
/// polls it while it is idle.
pub(crate) struct Wired {
    pub(super) sender: SendRequest<Full<Bytes>>,
    driver: Connection<TokioIo<Wire>, Full<Bytes>>,
    has_ended: bool,
    pub(super) is_spent: bool,
    pub(super) meter: Arc<Meter>,
    peer: IpAddr,
    made: Instant,
}

impl Wired {
    pub(super) async fn new(stream: Stream, peer: IpAddr) -> hyper::Result<Box<Self>> {
        let meter = Arc::new(Meter::default());
        meter.begin();
        let wire = TokioIo::new(Wire::new(stream, Arc::clone(&meter)));
        let mut builder = Builder::new();
        builder.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX);
        let (sender, driver) = builder.handshake(wire).await?;
        let made = Instant::now();
        Ok(Box::new(Self { sender, driver, has_ended: false, is_spent: false, meter, peer, made }))
    }

    /// Lets the connection do what it can. Its end is told to whoever waits for an answer.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.has_ended {
            self.has_ended = std::pin::Pin::new(&mut self.driver).poll(cx).is_ready();
        }
    }

    /// Whether the driver stopped.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn is_open(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.has_ended && self.sender.is_ready()
    }

    fn can_be_reused(&mut self) -> bool {
        if self.is_spent || self.has_ended {
            return false;
        }
        if !self.sender.is_ready() {
            // It takes note of the end of the answer when it is driven.
            self.drive(&mut Context::from_waker(Waker::noop()));
        }
        !self.has_ended && self.sender.is_ready()
    }
}
