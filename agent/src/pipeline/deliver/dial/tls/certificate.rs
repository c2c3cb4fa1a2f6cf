//! Checking a certificate that the customer named.

use std::time::Duration;

use gateway_runtime::tls::Validity;
use jiff::Timestamp;
use rustls::{
    CertificateError, Error,
    client::{danger::ServerCertVerified, verify_server_name},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

/// Checks a certificate that the customer named, byte for byte: it needs no issuer, but name and time must be
/// right. That the server has its key is checked with the handshake, as always.
pub(super) fn verify_named(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let Validity { not_before, not_after } =
        Validity::of(certificate).ok_or(CertificateError::BadEncoding)?;
    let (not_before, not_after) = (unix(not_before), unix(not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

/// What lies before 1970 is 1970 to TLS.
fn unix(time: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// A named certificate is good for its names and from its first to its last second, in both ways to write
    /// a year.
    #[test]
    fn named_certificates_have_their_time() {
        let key = KeyPair::generate().unwrap();
        for (from, until, first, last) in
            [(2020, 2030, 1_577_836_800, 1_893_456_000), (2060, 2070, 2_840_140_800, 3_155_760_000)]
        {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
            let certificate = params.self_signed(&key).unwrap();
            let verify = |name: &str, seconds| {
                let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
                let name = ServerName::try_from(name.to_owned()).unwrap();
                verify_named(certificate.der(), &name, now).map(|_| ())
            };
            assert_eq!((verify("localhost", first), verify("localhost", last)), (Ok(()), Ok(())));
            let bad = |result| match result {
                Err(Error::InvalidCertificate(bad)) => bad,
                other => panic!("{other:?}"),
            };
            let early = bad(verify("localhost", first - 1));
            assert!(matches!(early, CertificateError::NotValidYetContext { .. }), "{early:?}");
            let late = bad(verify("localhost", last + 1));
            assert!(matches!(late, CertificateError::ExpiredContext { .. }), "{late:?}");
            let other = bad(verify("example.com", first));
            assert!(matches!(other, CertificateError::NotValidForNameContext { .. }), "{other:?}");
        }
    }
}
