//! Where a webhook may go: the URL as a customer gives it, and the addresses it may resolve to.
//!
//! A name can change its address at any time, so the URL is checked when it is given and the address again
//! at every dial ([`AddressPolicy::check`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Longest destination URL.
pub const URL_BYTES_MAX: usize = 2_048;

/// Addresses that hand out machine credentials, or that configure the machine: Amazon, Google, Azure,
/// Alibaba and Oracle, also for containers. No setting allows them.
const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];
/// Names of the same services.
const METADATA_NAMES: [&str; 2] = ["metadata.google.internal", "metadata.goog"];

/// IPv4 that is not public: the IANA special-purpose registry, multicast and reserved.
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>
const SPECIAL_V4: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The only IPv6 range of global unicast, and what in it is not public. All else (loopback, unique local,
/// link-local, multicast, translations) falls out by construction.
/// <https://www.iana.org/assignments/iana-ipv6-special-registry>
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const SPECIAL_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Why an address may not be reached. The text carries no address, so that a customer learns nothing of
/// the operator's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockedAddress {
    /// A metadata service of a cloud; nothing allows it.
    #[error("reach a cloud metadata address: these are never allowed")]
    Metadata,
    /// Loopback, private, link-local, reserved or multicast, and not in an allowed network.
    #[error(
        "reach an address that is not public: the operator can allow its network with --allow-destination-cidr"
    )]
    NotPublic,
    /// Plain http to an address outside of every allowed network.
    #[error(
        "use plain http: only https, unless the operator allows the network with --allow-destination-cidr"
    )]
    PlainHttp,
}

/// Which addresses webhooks may reach: public ones over https, and those in the networks that the
/// operator allows, there also over http.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressPolicy {
    /// Networks allowed by the operator; empty by default.
    pub allowed: Vec<IpNet>,
}

impl AddressPolicy {
    /// The policy that also allows these networks.
    pub const fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Checks an address about to be dialled, or the address of a connection just made.
    ///
    /// # Errors
    /// Why it may not be reached.
    pub fn check(&self, ip: IpAddr, scheme_is_http: bool) -> Result<(), BlockedAddress> {
        let ip = unmapped(ip);
        if is_metadata(ip) {
            return Err(BlockedAddress::Metadata);
        }
        if self.allows(ip) {
            return Ok(());
        }
        if !is_public(ip) {
            return Err(BlockedAddress::NotPublic);
        }
        if scheme_is_http { Err(BlockedAddress::PlainHttp) } else { Ok(()) }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(&ip))
    }
}

/// IPv4 written as IPv6 (`::ffff:a.b.c.d`, RFC 4291) is dialled as IPv4, so it is judged as IPv4.
fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => {
            METADATA_V6.contains(&v6) || embedded_v4(v6).is_some_and(|v4| METADATA_V4.contains(&v4))
        }
    }
}

/// The IPv4 address to which a translator would send this one: IPv4-compatible (RFC 4291), NAT64
/// (`64:ff9b::/96`, RFC 6052, and `64:ff9b:1::/48`, RFC 8215) and 6to4 (`2002::/16`, RFC 3056).
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = v6.segments();
    let joined = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        [0, 0, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => Some(joined(high, low)),
        _ => None,
    }
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !SPECIAL_V4.iter().any(|(network, prefix)| in_v4(v4, *network, *prefix)),
        IpAddr::V6(v6) => {
            in_v6(v6, PUBLIC_V6.0, PUBLIC_V6.1)
                && !SPECIAL_V6.iter().any(|(network, prefix)| in_v6(v6, *network, *prefix))
        }
    }
}

fn in_v4(ip: Ipv4Addr, network: Ipv4Addr, prefix: u8) -> bool {
    (u32::from(ip) ^ u32::from(network)) >> (32 - u32::from(prefix)) == 0
}

fn in_v6(ip: Ipv6Addr, network: Ipv6Addr, prefix: u8) -> bool {
    (u128::from(ip) ^ u128::from(network)) >> (128 - u32::from(prefix)) == 0
}

/// Why a URL cannot be a destination, with what would be right. Carries nothing of the URL, which may
/// hold a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDestination {
    /// Empty.
    #[error("must be set: an https URL such as `https://example.com/webhooks`")]
    Empty,
    /// Longer than [`URL_BYTES_MAX`].
    #[error("must be at most 2048 bytes long")]
    TooLong,
    /// Spaces and control characters are quietly dropped by URL parsers, so they are refused.
    #[error("must not contain spaces or control characters; percent-encode them")]
    Whitespace,
    /// Not an absolute URL.
    #[error("must be an absolute URL such as `https://example.com/webhooks`: {0}")]
    Malformed(url::ParseError),
    /// Neither https nor http.
    #[error("must start with `https://`")]
    Scheme,
    /// http, and the operator allowed no network.
    #[error(
        "must be https: http is possible only inside networks that the operator allows with --allow-destination-cidr"
    )]
    PlainHttp,
    /// `user:password@`.
    #[error("must not carry user info (`user:password@`); put credentials into `authentication`")]
    UserInfo,
    /// `#…`.
    #[error("must not have a fragment (`#…`): it is never sent")]
    Fragment,
    /// A port that belongs to another protocol.
    #[error("must use port 443, 8443 or one from 1024 on (80 with http)")]
    Port,
    /// A literal address, or a name that always means one, that may not be reached.
    #[error("must not name a forbidden address: {0}")]
    Blocked(BlockedAddress),
}

/// A destination URL that passed every check that needs no name resolution.
#[derive(Clone, PartialEq, Eq)]
pub struct DestinationUrl {
    text: Box<str>,
    url: Url,
}

impl DestinationUrl {
    /// Checks a URL, as WHATWG parsers read it, against the rules and the policy. Literal addresses in
    /// every spelling and `localhost` are judged here; other names at every dial.
    ///
    /// # Errors
    /// The first rule that the URL breaks.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Result<Self, InvalidDestination> {
        if text.is_empty() {
            return Err(InvalidDestination::Empty);
        }
        if text.len() > URL_BYTES_MAX {
            return Err(InvalidDestination::TooLong);
        }
        if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
            return Err(InvalidDestination::Whitespace);
        }
        let url = Url::parse(text).map_err(InvalidDestination::Malformed)?;
        let is_http = match url.scheme() {
            "https" => false,
            "http" if policy.allowed.is_empty() => return Err(InvalidDestination::PlainHttp),
            "http" => true,
            _ => return Err(InvalidDestination::Scheme),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidDestination::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(InvalidDestination::Fragment);
        }
        check_port(&url, is_http)?;
        check_host(&url, is_http, policy).map_err(InvalidDestination::Blocked)?;
        Ok(Self { text: text.into(), url })
    }

    /// The URL as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The URL as it is requested.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// Whether it is plain http.
    pub fn is_http(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// Host and port to dial.
    pub fn host_and_port(&self) -> (Host<&str>, u16) {
        let host = self.url.host().expect("http and https URLs have a host");
        let port = self.url.port_or_known_default().expect("http and https have a default port");
        (host, port)
    }
}

impl std::fmt::Debug for DestinationUrl {
    /// Scheme and host only: path and query may hold a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}/…", self.url.scheme(), self.url.host_str().unwrap_or_default())
    }
}

/// Whether two texts are the same destination once a URL parser has read them.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other || matches!((Url::parse(one), Url::parse(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether two texts name the same scheme, host and port once a URL parser has read them; a text that is no URL has
/// nothing in common with any.
pub fn is_same_origin(one: &str, other: &str) -> bool {
    let (Ok(one), Ok(other)) = (Url::parse(one), Url::parse(other)) else { return false };
    one.origin() == other.origin()
}

fn check_port(url: &Url, is_http: bool) -> Result<(), InvalidDestination> {
    match url.port_or_known_default() {
        Some(443 | 1_024..) => Ok(()),
        Some(80) if is_http => Ok(()),
        _ => Err(InvalidDestination::Port),
    }
}

fn check_host(url: &Url, is_http: bool, policy: &AddressPolicy) -> Result<(), BlockedAddress> {
    match url.host() {
        Some(Host::Ipv4(ip)) => policy.check(ip.into(), is_http),
        Some(Host::Ipv6(ip)) => policy.check(ip.into(), is_http),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            if METADATA_NAMES.contains(&name) {
                return Err(BlockedAddress::Metadata);
            }
            if name == "localhost" || name.ends_with(".localhost") {
                // RFC 6761, 6.3: the name is loopback, of either family.
                let v4 = policy.check(Ipv4Addr::LOCALHOST.into(), is_http);
                return v4.or_else(|blocked| {
                    policy.check(Ipv6Addr::LOCALHOST.into(), is_http).map_err(|_| blocked)
                });
            }
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
