//! How callbacks come in: over plain HTTP or HTTPS, directly or through proxies, and what URL the provider
//! called then.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, header, uri::Authority};
use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

/// Headers of proxies (<https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/X-Forwarded-Proto>).
const FORWARDED_PROTO: &str = "x-forwarded-proto";
const FORWARDED_HOST: &str = "x-forwarded-host";

/// How callbacks come in. The default is plain HTTP without a proxy.
#[derive(Clone, Default)]
pub struct Front {
    /// The address that providers call, without a slash at its end, when it is not the request's own.
    pub public_base_url: Option<Arc<str>>,
    /// HTTPS with this; None for plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// Proxies that may say by their headers what the provider called.
    pub trusted_proxies: Arc<[IpNet]>,
}

/// Where one connection comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    is_tls: bool,
    is_trusted_proxy: bool,
}

impl Front {
    /// What is known of a connection from `peer`.
    pub(super) fn origin(&self, peer: IpAddr) -> Origin {
        // An IPv4 peer of a listener on every address may be spelled as IPv6.
        let peer = peer.to_canonical();
        let is_trusted_proxy = self.trusted_proxies.iter().any(|network| network.contains(&peer));
        Origin { is_tls: self.tls.is_some(), is_trusted_proxy }
    }

    /// The base of the URL that the provider called. None when it is `http` and the request's own host, or when
    /// the request does not say: then nobody can prove its URL genuine.
    pub(super) fn base_url(&self, origin: Origin, headers: &HeaderMap) -> Option<Arc<str>> {
        if let Some(base) = &self.public_base_url {
            return Some(Arc::clone(base));
        }
        let forwarded = |name| if origin.is_trusted_proxy { first_value(headers, name) } else { None };
        let scheme = match forwarded(FORWARDED_PROTO) {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => "http",
            _ if origin.is_tls => "https",
            _ => "http",
        };
        let host = forwarded(FORWARDED_HOST).filter(|host| is_host(host));
        if host.is_none() && scheme == "http" {
            return None;
        }
        let host = host.or_else(|| own_host(headers))?;
        Some(format!("{scheme}://{host}").into())
    }
}

/// The first value of a list header, which is what the proxy nearest to the provider saw.
fn first_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    value.split(',').next().map(str::trim).filter(|value| !value.is_empty())
}

fn is_host(text: &str) -> bool {
    text.parse::<Authority>().is_ok_and(|authority| authority.as_str() == text && !text.contains('@'))
}

fn own_host(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    host.to_str().ok().map(str::trim).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)))
            .collect()
    }

    fn front(proxies: &[&str]) -> Front {
        let trusted_proxies = proxies.iter().map(|network| network.parse().unwrap()).collect();
        Front { trusted_proxies, ..Front::default() }
    }

    fn base(
        front: &Front,
        is_tls: bool,
        peer: &str,
        pairs: &[(&'static str, &'static str)],
    ) -> Option<String> {
        let origin = Origin { is_tls, ..front.origin(peer.parse().unwrap()) };
        front.base_url(origin, &headers(pairs)).map(|base| base.to_string())
    }

    const FORWARDED: [(&str, &str); 3] = [
        ("host", "10.0.0.5:8090"),
        ("x-forwarded-proto", "https, http"),
        ("x-forwarded-host", "gw.example.com, inner"),
    ];

    /// Only a named proxy says what the provider called, by the first value of each header; from anybody else
    /// the headers count for nothing.
    #[test]
    fn forwarded_headers_count_from_named_proxies_only() {
        let front = front(&["10.1.0.0/16", "fd00::/8"]);
        for proxy in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            assert_eq!(base(&front, false, proxy, &FORWARDED).as_deref(), Some("https://gw.example.com"));
        }
        for stranger in ["10.2.0.1", "127.0.0.1", "2001:db8::1"] {
            assert_eq!(base(&front, false, stranger, &FORWARDED), None, "{stranger}");
            assert_eq!(base(&front, true, stranger, &FORWARDED).as_deref(), Some("https://10.0.0.5:8090"));
        }
        let scheme_only = [("host", "gw.example.com"), ("x-forwarded-proto", "https")];
        assert_eq!(base(&front, false, "10.1.0.1", &scheme_only).as_deref(), Some("https://gw.example.com"));
        let to_http = [("host", "a"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "b:81")];
        assert_eq!(base(&front, true, "10.1.0.1", &to_http).as_deref(), Some("http://b:81"));
    }

    /// What is no scheme or host is left out; without a host of its own a request has no URL.
    #[test]
    fn odd_headers_are_left_out() {
        let front = front(&["10.1.0.0/16"]);
        for odd in ["user@evil", "a/b", "a?b", "", ",", "a b"] {
            let pairs = [("host", "own"), ("x-forwarded-proto", "gopher"), ("x-forwarded-host", odd)];
            assert_eq!(base(&front, true, "10.1.0.1", &pairs).as_deref(), Some("https://own"), "{odd}");
        }
        assert_eq!(base(&front, true, "10.1.0.1", &[]), None);
        assert_eq!(base(&front, true, "10.1.0.1", &[("host", "a"), ("host", "b")]), None);
    }

    /// A public base URL wins over everything.
    #[test]
    fn public_base_url_wins() {
        let front = Front { public_base_url: Some("https://public/in".into()), ..front(&["10.1.0.0/16"]) };
        assert_eq!(base(&front, true, "10.1.0.1", &FORWARDED).as_deref(), Some("https://public/in"));
    }
}
