//! Why an attempt did not succeed: a kind that code decides on, and words for people. The words carry no
//! address, no body, no secret and nothing of the URL.

use std::{error::Error, fmt, io, time::Duration};

use gateway_core::destination::BlockedAddress;
use gateway_proto::v1::AttemptFailure;

use super::dial::{HEAD_BYTES_MAX, Head, Meter};

mod tls;

/// Whom a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    /// The customer's destination.
    Destination,
    /// The OAuth 2.0 server that gives tokens for it.
    TokenEndpoint,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Destination => "destination",
            Self::TokenEndpoint => "token endpoint",
        })
    }
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its name is looked up.
    Resolving,
    /// The TCP connection is made.
    Connecting,
    /// The TLS handshake is made.
    Handshaking,
    /// The request is written.
    Sending,
    /// The request was written, and nothing came back yet.
    Waiting,
    /// The answer's head came.
    Reading,
}

impl Phase {
    const fn doing(self) -> &'static str {
        match self {
            Self::Resolving => "still resolving the name of",
            Self::Connecting => "still connecting to",
            Self::Handshaking => "still in the TLS handshake with",
            Self::Sending => "still sending to",
            Self::Waiting => "still waiting for the answer of",
            Self::Reading => "still reading the answer of",
        }
    }
}

/// Why an attempt did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: AttemptFailure,
    pub(super) text: String,
    /// No connection was made, or it was closed before anything came back.
    pub(super) is_unconnected: bool,
    /// The cause is on this machine: nothing was sent.
    pub(super) is_ours: bool,
    /// A token endpoint asks for fewer requests.
    pub(super) slow_down: bool,
    /// When a token endpoint wants to be asked again.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: AttemptFailure, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            is_unconnected: matches!(
                kind,
                AttemptFailure::Dns | AttemptFailure::Connect | AttemptFailure::Tls
            ),
            is_ours: false,
            slow_down: false,
            retry_after: None,
        }
    }

    /// The answer was not 2xx.
    pub(super) fn status(party: Party, status: http::StatusCode) -> Self {
        let hint = match (party, status.as_u16()) {
            (_, 300..=399) => "; redirects are not followed",
            (Party::Destination, 410) => "; the subscription is paused",
            _ => "",
        };
        Self::new(AttemptFailure::Status, format!("the {party} answered {}{hint}", status.as_u16()))
    }

    /// The whole attempt took too long.
    pub(super) fn timeout(party: Party, phase: Phase, limit: Duration) -> Self {
        let (limit, doing) = (limit.as_secs_f64(), phase.doing());
        Self::new(
            AttemptFailure::Timeout,
            format!("no complete answer within {limit} s: {doing} the {party}"),
        )
    }

    /// No connection was made in the time for it.
    pub(super) fn connect_timeout(party: Party, phase: Phase, limit: Duration) -> Self {
        let limit = limit.as_secs_f64();
        match phase {
            Phase::Resolving => Self::new(
                AttemptFailure::Dns,
                format!("the name of the {party} was not resolved within {limit} s"),
            ),
            Phase::Handshaking => Self::new(
                AttemptFailure::Tls,
                format!("the {party} did not finish the TLS handshake within {limit} s"),
            ),
            _ => Self::new(AttemptFailure::Connect, format!("no connection to the {party} within {limit} s")),
        }
    }

    /// The address may not be reached.
    pub(super) fn blocked(party: Party, blocked: BlockedAddress) -> Self {
        let whose = if party == Party::TokenEndpoint { "; it is the token endpoint's" } else { "" };
        Self::new(AttemptFailure::BlockedAddress, format!("{blocked}{whose}"))
    }

    /// The request could not be built, or the answer was none.
    pub(super) fn protocol(text: impl Into<String>) -> Self {
        Self::new(AttemptFailure::Protocol, text)
    }

    /// The credentials for the request could not be had.
    pub(super) fn authentication(text: &'static str) -> Self {
        Self::new(AttemptFailure::Authentication, text)
    }

    /// Seen by whoever needs a token: whatever the cause, there is none.
    pub(super) fn of_token(self) -> Self {
        match self.kind {
            AttemptFailure::BlockedAddress | AttemptFailure::Gateway => self,
            _ => Self { kind: AttemptFailure::Authentication, ..self },
        }
    }

    /// The name could not be looked up.
    pub(super) fn lookup(party: Party, error: &io::Error) -> Self {
        if let Some(ours) = Self::ours(error) {
            return ours;
        }
        let text = match LookupFault::of(error) {
            LookupFault::NoName => format!("the name of the {party} does not exist in the DNS"),
            LookupFault::NoAddress => format!("the name of the {party} has no address in the DNS"),
            LookupFault::Server => {
                format!("the DNS server of the {party}'s name failed, or could not be asked")
            }
        };
        Self::new(AttemptFailure::Dns, text)
    }

    /// The TCP connection could not be made.
    pub(super) fn connect(party: Party, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        if let Some(ours) = Self::ours(error) {
            return ours;
        }
        let text = match error.kind() {
            Kind::ConnectionRefused => format!("the {party} refused the connection"),
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::UnexpectedEof | Kind::NotConnected => {
                format!("the {party} closed the connection while it was being made")
            }
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable => {
                format!("the {party} cannot be reached from here")
            }
            Kind::PermissionDenied => format!("a firewall refused the connection to the {party}"),
            Kind::TimedOut => format!("no connection to the {party}: nothing answers at its address"),
            _ => format!("no connection to the {party} could be made"),
        };
        Self::new(AttemptFailure::Connect, text)
    }

    /// What this machine lacks, if that is the cause.
    fn ours(error: &io::Error) -> Option<Self> {
        use rustix::io::Errno;
        let text = match Errno::from_io_error(error)? {
            Errno::MFILE | Errno::NFILE => "the agent has no file descriptor left for a connection",
            Errno::NOBUFS | Errno::NOMEM => "the agent's machine has no memory left for a connection",
            Errno::NETDOWN => "the network of the agent's machine is down",
            _ => return None,
        };
        Some(Self { is_ours: true, ..Self::new(AttemptFailure::Gateway, text) })
    }

    /// The TLS handshake failed. `shows_certificate` when a client certificate is configured.
    pub(super) fn handshake(party: Party, error: &io::Error, shows_certificate: bool) -> Self {
        use io::ErrorKind as Kind;
        let text = match find::<rustls::Error>(error) {
            Some(fault) => tls::text(party, fault, shows_certificate),
            None => match error.kind() {
                Kind::UnexpectedEof => format!("the {party} closed the connection in the TLS handshake"),
                Kind::ConnectionReset | Kind::BrokenPipe => {
                    format!("the {party} reset the connection in the TLS handshake")
                }
                _ => format!("the TLS handshake with the {party} failed"),
            },
        };
        Self::new(AttemptFailure::Tls, text)
    }

    /// A request over a connection that was made failed.
    pub(super) fn exchange(
        party: Party,
        error: &hyper::Error,
        meter: &Meter,
        phase: Phase,
        shows_certificate: bool,
    ) -> Self {
        if let Some(fault) = find::<rustls::Error>(error) {
            // With TLS 1.3 a server judges the client's certificate after the handshake.
            return Self::new(AttemptFailure::Tls, tls::text(party, fault, shows_certificate));
        }
        match meter.head() {
            Head::Http2 => return Self::protocol(format!("the {party} speaks HTTP/2 only")),
            Head::Tls => return Self::protocol(format!("the {party} expects TLS: use https")),
            Head::Nothing | Head::Other => {}
        }
        let is_reset = find::<io::Error>(error).is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        });
        if phase == Phase::Reading {
            let fault = if is_reset {
                "reset the connection within the answer"
            } else if is_malformed(error) {
                "sent an answer that is not HTTP"
            } else {
                "ended the answer before its end"
            };
            return Self::protocol(format!("the {party} {fault}"));
        }
        let fault = if find::<HeadTooLong>(error).is_some() || error.is_parse_too_large() {
            return Self::protocol(format!(
                "the {party} sent more headers than the {} KiB that are read",
                HEAD_BYTES_MAX / 1024
            ));
        } else if error.is_parse_version_h2() {
            "speaks HTTP/2 only"
        } else if error.is_parse() {
            "answered something that is not HTTP/1.1"
        } else if meter.head() != Head::Nothing {
            "closed the connection within the headers of its answer"
        } else if is_reset {
            "reset the connection before an answer"
        } else {
            "closed the connection without an answer"
        };
        let is_unconnected = meter.head() == Head::Nothing;
        Self { is_unconnected, ..Self::protocol(format!("the {party} {fault}")) }
    }

    /// The kind's name in metrics.
    pub(super) const fn metric(&self) -> &'static str {
        match self.kind {
            AttemptFailure::Dns => "dns",
            AttemptFailure::Connect => "connect",
            AttemptFailure::Tls => "tls",
            AttemptFailure::Timeout => "timeout",
            AttemptFailure::Status => "status",
            AttemptFailure::BlockedAddress => "blocked_address",
            AttemptFailure::Authentication => "authentication",
            AttemptFailure::Gateway => "gateway",
            AttemptFailure::Protocol | AttemptFailure::Unspecified => "protocol",
        }
    }
}

/// More bytes came before the answer's head was complete than are read.
#[derive(Debug, thiserror::Error)]
#[error("read the head of an answer: it is too long")]
pub(super) struct HeadTooLong;

/// What a failed name lookup means.
#[derive(Debug, PartialEq, Eq)]
enum LookupFault {
    NoName,
    NoAddress,
    Server,
}

impl LookupFault {
    /// The standard library keeps what `getaddrinfo` returned only as text: glibc's or musl's.
    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            return Self::NoAddress;
        }
        let text = error.to_string();
        let says = |phrases: [&str; 2]| phrases.iter().any(|phrase| text.contains(phrase));
        if says(["Name or service not known", "Name does not resolve"]) {
            Self::NoName
        } else if says(["No address associated", "Name has no usable address"]) {
            Self::NoAddress
        } else {
            Self::Server
        }
    }
}

/// The first error of a type in the chain. An `io::Error` hides what it wraps from `source`, so it is
/// opened.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref::<E>())
}

/// Whether the bytes that came were no valid HTTP.
fn is_malformed(error: &hyper::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput};
    let found = find::<io::Error>(error).map(io::Error::kind);
    error.is_parse() || matches!(found, Some(InvalidData | InvalidInput))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| inner(*error))
}

fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the C libraries say is told apart; what they do not say is the server's fault.
    #[test]
    fn lookup_faults_are_told_apart() {
        let fault = |text: &str| {
            LookupFault::of(&io::Error::other(format!("failed to lookup address information: {text}")))
        };
        assert_eq!(fault("Name or service not known"), LookupFault::NoName);
        assert_eq!(fault("Name does not resolve"), LookupFault::NoName);
        assert_eq!(fault("No address associated with hostname"), LookupFault::NoAddress);
        assert_eq!(fault("Temporary failure in name resolution"), LookupFault::Server);
        assert_eq!(fault("Try again"), LookupFault::Server);
    }

    /// A machine without file descriptors is not the destination's fault; a refused connection is.
    #[test]
    fn our_faults_are_marked() {
        let errno = |errno: rustix::io::Errno| io::Error::from(errno);
        for fault in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOBUFS] {
            assert!(Failure::connect(Party::Destination, &errno(fault)).is_ours);
            assert!(Failure::lookup(Party::Destination, &errno(fault)).is_ours);
        }
        let refused = Failure::connect(Party::TokenEndpoint, &errno(rustix::io::Errno::CONNREFUSED));
        assert_eq!((refused.is_ours, refused.is_unconnected), (false, true));
        assert_eq!(refused.text, "the token endpoint refused the connection");
    }

    /// Of a time-out it is told what had not happened yet.
    #[test]
    fn timeouts_name_their_phase() {
        let text = |phase| Failure::timeout(Party::Destination, phase, Duration::from_secs(15)).text;
        assert_eq!(text(Phase::Sending), "no complete answer within 15 s: still sending to the destination");
        let kind = |phase| Failure::connect_timeout(Party::Destination, phase, Duration::from_secs(5)).kind;
        assert_eq!(kind(Phase::Resolving), AttemptFailure::Dns);
        assert_eq!(kind(Phase::Connecting), AttemptFailure::Connect);
        assert_eq!(kind(Phase::Handshaking), AttemptFailure::Tls);
    }
}
