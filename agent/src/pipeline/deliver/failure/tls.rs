//! TLS faults in words: which fault of the certificate, or what the alert means.

use gateway_runtime::clock;
use jiff::{Timestamp, tz::TimeZone};
use rustls::{AlertDescription, CertificateError as Bad, pki_types::UnixTime};

use crate::pipeline::deliver::{
    dial::{NoRoots, SelfSigned},
    failure::Party,
};

/// Most names of a certificate that are listed.
const NAMES_MAX: usize = 5;
/// Longest name that is listed: the longest name of the DNS.
const NAME_BYTES_MAX: usize = 253;

/// What went wrong. `shows_certificate` when a client certificate is configured.
pub(super) fn text(party: Party, error: &rustls::Error, shows_certificate: bool) -> String {
    match error {
        rustls::Error::InvalidCertificate(bad) => certificate(party, bad),
        rustls::Error::PeerIncompatible(_) => no_common_version(party),
        rustls::Error::NoApplicationProtocol => http2_only(party),
        rustls::Error::AlertReceived(alert) => alert_text(party, *alert, shows_certificate),
        rustls::Error::InvalidMessage(_) => {
            format!("the {party} answered something that is not TLS: is it plain http on this port?")
        }
        rustls::Error::PeerMisbehaved(_) => format!("the {party} broke the rules of the TLS handshake"),
        _ => format!("the TLS handshake with the {party} failed"),
    }
}

fn certificate(party: Party, bad: &Bad) -> String {
    let whose = format!("the certificate of the {party}");
    match bad {
        Bad::ExpiredContext { not_after, .. } => format!("{whose} expired on {}", date(*not_after)),
        Bad::Expired => format!("{whose} has expired"),
        Bad::NotValidYetContext { not_before, .. } => {
            format!("{whose} is not valid until {}", date(*not_before))
        }
        Bad::NotValidYet => format!("{whose} is not valid yet"),
        Bad::UnknownIssuer => {
            format!("{whose} comes from an unknown issuer, or intermediate certificates are missing")
        }
        Bad::NotValidForNameContext { presented, .. } => {
            format!("{whose} is for another name: {}", names(presented))
        }
        Bad::NotValidForName => format!("{whose} is for another name"),
        Bad::Revoked => format!("{whose} was revoked"),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            format!("{whose} is not meant for servers")
        }
        Bad::BadSignature => format!("{whose} has a wrong signature"),
        Bad::BadEncoding => format!("{whose} cannot be read"),
        Bad::UnsupportedSignatureAlgorithmContext { .. }
        | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            format!("{whose} is signed in a way that is not supported")
        }
        Bad::Other(other) if other.0.is::<SelfSigned>() => {
            format!("{whose} is self-signed: give it, or its issuer, as extra CA")
        }
        Bad::Other(other) if other.0.is::<NoRoots>() => {
            "the agent's machine has no root certificates: install the package ca-certificates".to_owned()
        }
        _ => format!("{whose} is not valid"),
    }
}

fn alert_text(party: Party, alert: AlertDescription, shows_certificate: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::NoApplicationProtocol => http2_only(party),
        Alert::ProtocolVersion | Alert::InsufficientSecurity => no_common_version(party),
        Alert::CertificateRequired => format!("the {party} demands a client certificate"),
        Alert::HandshakeFailure => format!(
            "the {party} ended the TLS handshake with the alert HandshakeFailure: no TLS version or cipher \
             suite in common, or it demands a client certificate"
        ),
        Alert::UnrecognisedName => {
            format!("the {party} does not serve its name over TLS (alert {})", name(alert))
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::DecryptError
            if shows_certificate =>
        {
            format!("the {party} refused the client certificate (alert {})", name(alert))
        }
        Alert::BadCertificate => format!("the {party} demands a client certificate (alert BadCertificate)"),
        alert => format!("the {party} ended the TLS handshake with the alert {}", name(alert)),
    }
}

fn name(alert: AlertDescription) -> String {
    alert.as_str().map_or_else(|| u8::from(alert).to_string(), str::to_owned)
}

fn http2_only(party: Party) -> String {
    format!("the {party} speaks HTTP/2 only: it refused HTTP/1.1 in the TLS handshake")
}

fn no_common_version(party: Party) -> String {
    format!(
        "the {party} offers no TLS version or cipher suite in common: TLS 1.3, or TLS 1.2 with ECDHE and AEAD, \
         is needed"
    )
}

/// The host names among the names of a certificate, which come as `DnsName("example.com")`.
fn names(presented: &[String]) -> String {
    let is_name = |name: &&str| {
        name.len() <= NAME_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte))
    };
    let found: Vec<&str> = presented
        .iter()
        .filter_map(|name| name.strip_prefix("DnsName(\"")?.strip_suffix("\")"))
        .filter(is_name)
        .collect();
    if found.is_empty() {
        return "it names no host".to_owned();
    }
    let rest = match found.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed: Vec<String> = found.iter().take(NAMES_MAX).map(|name| format!("`{name}`")).collect();
    format!("{}{rest}", listed.join(", "))
}

/// The day, in UTC.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let time = Timestamp::from_second(seconds).unwrap_or_else(|_| clock::now());
    time.to_zoned(TimeZone::UTC).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are listed, but neither addresses nor what could break a line.
    #[test]
    fn names_are_listed_safely() {
        let presented = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let listed =
            presented(&["DnsName(\"a.example\")", "IpAddress(10.0.0.1)", "DnsName(\"*.b.example\")"]);
        assert_eq!(names(&listed), "`a.example`, `*.b.example`");
        assert_eq!(names(&presented(&["IpAddress(10.0.0.1)", "DnsName(\"\n\")"])), "it names no host");
        let many: Vec<String> = (0..9).map(|number| format!("DnsName(\"n{number}.example\")")).collect();
        assert!(names(&many).ends_with("`n4.example` and 4 more"));
    }
}
