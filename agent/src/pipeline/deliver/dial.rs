//! The only way out to customers' servers: destinations and the token endpoints that belong to them. No
//! address is dialled that the policy does not allow.
//!
//! ```text
//!  Site: host, port, TLS ──▶ pool ──idle──▶ exchange ──▶ Answer
//!                              │               ▲
//!                              └─none──▶ resolve ──▶ check ──▶ connect ──▶ check the peer ──▶ TLS
//! ```
//!
//! For every new connection the name is resolved anew and every address checked; if any is forbidden, all
//! are, so that an answer that mixes public and private addresses gains nothing. The connection then goes to
//! one of the checked addresses, by number; the name is kept for `Host` and TLS. An idle connection stays
//! with the address it was made to, which is checked again when it is used again. There is no proxy, no
//! redirect, no cookie and no decompression, and nothing else in the agent makes connections to customers.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use gateway_core::destination::AddressPolicy;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use url::{Host, Position, Url};

use super::failure::{Failure, Party, Phase};

mod resolve;
mod connect;
mod tls;
mod pool;
mod exchange;
mod oauth2;

pub(super) use exchange::{Answer, HEAD_BYTES_MAX, Head, Meter};
pub(super) use oauth2::{TokenSource, authorization, retry_after};
pub(super) use pool::Site;
#[cfg(test)]
pub(super) use resolve::Resolving;
pub(super) use resolve::{Resolve, SystemResolver};
pub use tls::ClientError;
pub(super) use tls::{NoRoots, SelfSigned, TlsSettings, Trust};

use exchange::Broken;
use pool::Wired;

/// Longest time for name resolution, TCP and TLS together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What webhooks call their sender.
pub(super) const USER_AGENT: &str = concat!("WhatsApp-Gateway/", env!("CARGO_PKG_VERSION"));
/// Lookups of one site's name that run at once. One that hangs keeps its thread until the C library gives
/// up, so a dead name must not take the threads of the others.
const SITE_LOOKUPS_MAX: usize = 2;

/// How far a request has come; it outlives the request, so that a time-out can be explained.
pub(super) struct Progress {
    /// Whom the request goes to.
    pub(super) party: Party,
    phase: Phase,
    meter: Option<Arc<Meter>>,
}

impl Progress {
    pub(super) const fn new() -> Self {
        Self { party: Party::Destination, phase: Phase::Connecting, meter: None }
    }

    /// What was being done.
    pub(super) fn phase(&self) -> Phase {
        match (self.phase, &self.meter) {
            (Phase::Sending, Some(meter)) if !meter.is_stuck() => Phase::Waiting,
            (phase, _) => phase,
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }
}

/// Dials sites and sends requests to them.
pub(super) struct Dialer {
    policy: AddressPolicy,
    resolver: Arc<dyn Resolve>,
    trust: Trust,
    #[cfg(test)]
    pub(super) dialled: std::sync::atomic::AtomicUsize,
}

impl Dialer {
    /// Dials what `policy` allows.
    pub(super) fn new(policy: AddressPolicy, resolver: Arc<dyn Resolve>) -> Result<Self, ClientError> {
        Ok(Self {
            policy,
            resolver,
            trust: Trust::new()?,
            #[cfg(test)]
            dialled: std::sync::atomic::AtomicUsize::new(0),
        })
    }

    /// Where connections for `url` go, and how.
    pub(super) fn site(&self, party: Party, url: &Url, settings: TlsSettings) -> Result<Site, Failure> {
        let is_http = match url.scheme() {
            "http" => true,
            "https" => false,
            _ => return Err(Failure::protocol(format!("the URL of the {party} is neither https nor http"))),
        };
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(Failure::protocol(format!("the URL of the {party} names no host")));
        };
        let tls = if is_http { None } else { Some(self.trust.client(&host, &settings)?) };
        let lookups = Arc::new(Semaphore::new(SITE_LOOKUPS_MAX));
        Ok(Site::new(party, host.to_owned(), port, tls, settings, lookups))
    }

    /// Sends a request to a site, over an idle connection if there is one. An idle connection that turns out
    /// to be closed before anything came back is replaced once by a new one. What came is in `answer`, also
    /// when it fails or is dropped.
    pub(super) async fn send(
        &self,
        site: &Site,
        idle_max: usize,
        request: impl Fn() -> Request<Full<Bytes>>,
        progress: &mut Progress,
        answer: &mut Answer,
    ) -> Result<StatusCode, Failure> {
        progress.party = site.party;
        self.check_literal(site)?;
        if let Some(mut wired) = site.take_idle(|peer| self.policy.check(peer, site.is_http())).await {
            match self.exchange(&mut wired, request(), progress, answer).await {
                Ok(status) => {
                    site.put_back(wired, idle_max);
                    return Ok(status);
                }
                Err(broken) if broken.was_not_answered(&wired.meter) => {}
                Err(broken) => return self.explain(site, broken, &wired, progress, answer),
            }
        }
        let mut wired = self.connect(site, progress).await?;
        match self.exchange(&mut wired, request(), progress, answer).await {
            Ok(status) => {
                site.put_back(wired, idle_max);
                Ok(status)
            }
            Err(broken) => self.explain(site, broken, &wired, progress, answer),
        }
    }

    /// An answer that is a failure stays that one, also when its body did not end well.
    fn explain(
        &self,
        site: &Site,
        broken: Broken,
        wired: &Wired,
        progress: &Progress,
        answer: &Answer,
    ) -> Result<StatusCode, Failure> {
        match answer.status {
            Some(status) if !status.is_success() => Ok(status),
            _ => Err(broken.explain(site.party, &wired.meter, progress.phase, site.shows_certificate())),
        }
    }

    async fn exchange(
        &self,
        wired: &mut Wired,
        request: Request<Full<Bytes>>,
        progress: &mut Progress,
        answer: &mut Answer,
    ) -> Result<StatusCode, Broken> {
        progress.meter = Some(Arc::clone(&wired.meter));
        progress.enter(Phase::Sending);
        let (status, body) = wired.send(request, answer).await?;
        progress.enter(Phase::Reading);
        wired.read(body, answer).await?;
        Ok(status)
    }

    /// A new connection to a site.
    async fn connect(&self, site: &Site, progress: &mut Progress) -> Result<Box<Wired>, Failure> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        progress.meter = None;
        progress.enter(Phase::Resolving);
        // Cancel safe: dropping it closes what was opened.
        match timeout_at(deadline, self.connect_by(deadline, site, progress)).await {
            Ok(connected) => connected,
            Err(_elapsed) => Err(Failure::connect_timeout(site.party, progress.phase, CONNECT_TIMEOUT)),
        }
    }

    async fn connect_by(
        &self,
        deadline: Instant,
        site: &Site,
        progress: &mut Progress,
    ) -> Result<Box<Wired>, Failure> {
        let addresses = self.addresses(site).await?;
        progress.enter(Phase::Connecting);
        #[cfg(test)]
        self.dialled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stream = connect::connect(site.party, &addresses, site.port, deadline).await?;
        let peer = self.check_peer(site, &stream)?;
        progress.enter(Phase::Handshaking);
        let stream = site.secure(stream).await?;
        Wired::new(stream, peer)
            .await
            .map_err(|error| Failure::exchange(site.party, &error, &Meter::default(), Phase::Sending, false))
    }

    /// The addresses to dial, each of them allowed.
    async fn addresses(&self, site: &Site) -> Result<Vec<IpAddr>, Failure> {
        let addresses = match &site.host {
            Host::Ipv4(ip) => vec![IpAddr::V4(*ip)],
            Host::Ipv6(ip) => vec![IpAddr::V6(*ip)],
            Host::Domain(name) => {
                let lookup_permit = Arc::clone(&site.lookups).acquire_owned().await;
                let turn = lookup_permit.expect("the semaphore of a site is never closed");
                let found = self.resolver.resolve(name, turn).await;
                found.map_err(|error| Failure::lookup(site.party, &error))?
            }
        };
        if addresses.is_empty() {
            return Err(Failure::lookup(site.party, &std::io::ErrorKind::NotFound.into()));
        }
        for address in &addresses {
            self.check(site, *address)?;
        }
        Ok(addresses)
    }

    /// A literal address is judged before anything else is done.
    fn check_literal(&self, site: &Site) -> Result<(), Failure> {
        match &site.host {
            Host::Ipv4(ip) => self.check(site, IpAddr::V4(*ip)),
            Host::Ipv6(ip) => self.check(site, IpAddr::V6(*ip)),
            Host::Domain(_) => Ok(()),
        }
    }

    fn check(&self, site: &Site, address: IpAddr) -> Result<(), Failure> {
        self.policy.check(address, site.is_http()).map_err(|blocked| Failure::blocked(site.party, blocked))
    }

    /// The address that answered, which must be allowed as well.
    fn check_peer(&self, site: &Site, stream: &TcpStream) -> Result<IpAddr, Failure> {
        let peer = stream.peer_addr().map_err(|error| Failure::connect(site.party, &error))?.ip();
        self.check(site, peer)?;
        Ok(peer)
    }
}

/// What a request asks for at its site: path and query.
pub(super) fn target(party: Party, url: &Url) -> Result<Uri, Failure> {
    url[Position::BeforePath..Position::AfterQuery]
        .parse()
        .map_err(|_| Failure::protocol(format!("the URL of the {party} cannot be requested")))
}

/// The `Host` of a request: without the port if it is the scheme's own (RFC 9110, 7.2).
pub(super) fn host(party: Party, url: &Url) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort])
        .map_err(|_| Failure::protocol(format!("the URL of the {party} cannot be requested")))
}
