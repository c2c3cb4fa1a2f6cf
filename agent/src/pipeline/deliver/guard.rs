//! The only way out to customers' destinations: no address is dialled that the policy does not allow.
//!
//! Names are resolved here and every address checked; if any is forbidden, all are, so that an answer that
//! mixes public and private addresses gains nothing. The connection then goes to one of the checked
//! addresses, and a pooled one stays with the address it was made to. Literal addresses never reach the
//! resolver, so they are checked before the request, and the peer's address again after it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use gateway_core::destination::{AddressPolicy, BlockedAddress};
use reqwest::{
    Client, ClientBuilder,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tracing::warn;
use url::{Host, Url};

/// Longest time for name resolution, TCP and TLS together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept per destination: as many as one subscription may use at once.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The destination's name does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("resolve destination name")]
pub(super) struct Unresolved(#[source] io::Error);

/// HTTP clients for webhooks cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("set up the HTTP client for webhooks")]
pub struct ClientError(#[source] reqwest::Error);

/// Dials destinations. Cheap to clone.
#[derive(Clone)]
pub(super) struct Guard {
    policy: Arc<AddressPolicy>,
    http: Client,
    https: Client,
}

impl Guard {
    /// Dials what `policy` allows. `roots` are trusted beside those of the system.
    pub(super) fn new(policy: AddressPolicy, roots: &[reqwest::Certificate]) -> Result<Self, ClientError> {
        let policy = Arc::new(policy);
        let http = builder(&policy, true).build().map_err(ClientError)?;
        let trusting = |builder: ClientBuilder| {
            if roots.is_empty() { builder } else { builder.tls_certs_merge(roots.to_vec()) }
        };
        let https = trusting(builder(&policy, false)).https_only(true).build().or_else(|failure| {
            // A machine without any root certificate can still deliver to plain http destinations.
            warn!(
                error = &failure as &dyn std::error::Error,
                "no root certificates found: every https destination will be refused; \
                 install the package ca-certificates"
            );
            builder(&policy, false)
                .https_only(true)
                .tls_certs_only(roots.to_vec())
                .build()
                .map_err(ClientError)
        })?;
        Ok(Self { policy, http, https })
    }

    /// The client for a URL, if its host is no forbidden literal address.
    pub(super) fn client_for(&self, url: &Url) -> Result<&Client, BlockedAddress> {
        let is_http = url.scheme() == "http";
        match url.host() {
            Some(Host::Ipv4(ip)) => self.policy.check(IpAddr::V4(ip), is_http)?,
            Some(Host::Ipv6(ip)) => self.policy.check(IpAddr::V6(ip), is_http)?,
            Some(Host::Domain(_)) | None => {}
        }
        Ok(if is_http { &self.http } else { &self.https })
    }

    /// Checks the address that answered.
    pub(super) fn check_peer(&self, url: &Url, peer: Option<SocketAddr>) -> Result<(), BlockedAddress> {
        match peer {
            Some(peer) => self.policy.check(peer.ip(), url.scheme() == "http"),
            None => Ok(()),
        }
    }
}

fn builder(policy: &Arc<AddressPolicy>, is_http: bool) -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .dns_resolver(Arc::new(GuardedResolver { policy: Arc::clone(policy), is_http }))
}

struct GuardedResolver {
    policy: Arc<AddressPolicy>,
    is_http: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, is_http) = (Arc::clone(&self.policy), self.is_http);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await.map_err(Unresolved)?.collect();
            if addresses.is_empty() {
                return Err(Unresolved(io::ErrorKind::NotFound.into()).into());
            }
            for address in &addresses {
                policy.check(address.ip(), is_http)?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        let allowed = allowed.iter().map(|network| network.parse().unwrap()).collect();
        Guard::new(AddressPolicy::new(allowed), &[]).unwrap()
    }

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    /// Literal addresses are refused in every spelling before anything is dialled.
    #[test]
    fn literal_addresses_are_checked() {
        let guard = guard(&[]);
        for text in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/",
            "https://10.0.0.1/",
            "https://[fd00::1]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://0.0.0.0/",
            "https://[::]/",
            "https://①②⑦.0.0.1/",
            "http://93.184.215.14/",
        ] {
            assert!(guard.client_for(&url(text)).is_err(), "{text}");
        }
        assert!(guard.client_for(&url("https://93.184.215.14/")).is_ok());
    }

    /// An allowed network lets private addresses and http through, and metadata addresses never.
    #[test]
    fn allowed_networks_pass() {
        let guard = guard(&["127.0.0.0/8", "169.254.0.0/16"]);
        assert!(guard.client_for(&url("http://127.0.0.1:8080/")).is_ok());
        assert_eq!(guard.client_for(&url("http://169.254.169.254/")).unwrap_err(), BlockedAddress::Metadata);
        let peer = Some(SocketAddr::from(([10, 0, 0, 1], 443)));
        assert_eq!(guard.check_peer(&url("https://example.com/"), peer), Err(BlockedAddress::NotPublic));
    }

    /// A name that resolves to a private address is refused at the resolver.
    #[tokio::test]
    async fn names_are_checked_after_resolution() {
        let resolve = |allowed: &[&str]| {
            let guard = guard(allowed);
            let resolver = GuardedResolver { policy: guard.policy, is_http: true };
            resolver.resolve("localhost".parse().unwrap())
        };
        let Err(refusal) = resolve(&[]).await else { panic!("a loopback address passed") };
        assert_eq!(refusal.downcast_ref(), Some(&BlockedAddress::NotPublic));
        assert!(resolve(&["127.0.0.0/8", "::1/128"]).await.is_ok());
    }
}
