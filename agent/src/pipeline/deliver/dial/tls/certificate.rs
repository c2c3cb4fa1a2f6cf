//! What has to be known of a certificate and the TLS library does not tell: its issuer, subject and validity
//! (RFC 5280, 4.1).

use std::time::Duration;

use jiff::{civil::DateTime, tz::TimeZone};
use rustls::{
    CertificateError, Error,
    client::{danger::ServerCertVerified, verify_server_name},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, `[0]`, which is the only optional field before those that are read.
const VERSION: u8 = 0xa0;

/// Checks a certificate that the customer named, byte for byte: it needs no issuer, but name and time must be
/// right. That the server has its key is checked with the handshake, as always.
pub(super) fn verify_named(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let fields = Fields::read(certificate).ok_or(CertificateError::BadEncoding)?;
    let (not_before, not_after) = fields.validity().ok_or(CertificateError::BadEncoding)?;
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

/// Whether issuer and subject of a certificate are the same bytes.
pub(super) fn is_self_signed(certificate: &[u8]) -> bool {
    Fields::read(certificate).is_some_and(|fields| fields.issuer == fields.subject)
}

struct Fields<'a> {
    issuer: &'a [u8],
    validity: &'a [u8],
    subject: &'a [u8],
}

impl<'a> Fields<'a> {
    fn read(certificate: &'a [u8]) -> Option<Self> {
        let (_, certificate, _) = read_value(certificate)?;
        let (_, to_be_signed, _) = read_value(certificate)?;
        let (tag, first, rest) = read_value(to_be_signed)?;
        let (_serial, rest) = if tag == VERSION { read_content(rest)? } else { (first, rest) };
        let (_algorithm, rest) = read_content(rest)?;
        let (issuer, rest) = read_content(rest)?;
        let (validity, rest) = read_content(rest)?;
        let (subject, _) = read_content(rest)?;
        Some(Self { issuer, validity, subject })
    }

    /// Its first and its last moment.
    fn validity(&self) -> Option<(UnixTime, UnixTime)> {
        let (tag, not_before, rest) = read_value(self.validity)?;
        let not_before = read_time(tag, not_before)?;
        let (tag, not_after, _) = read_value(rest)?;
        Some((not_before, read_time(tag, not_after)?))
    }
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5).
fn read_time(tag: u8, text: &[u8]) -> Option<UnixTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let is_whole = text.bytes().all(|byte| byte.is_ascii_digit());
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) if is_whole => {
            let year: i16 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 14) if is_whole => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |from: usize| rest[from..from + 2].parse::<i8>().ok();
    let time = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    let seconds = time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
}

fn read_content(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    read_value(bytes).map(|(_, content, rest)| (content, rest))
}

/// Tag and content of the first DER value, and what follows it.
fn read_value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        0..0x80 => (usize::from(length), rest),
        0x80 | 0x84.. => return None,
        _ => {
            let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, Issuer, KeyPair, date_time_ymd};

    use super::*;

    fn params(common_name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params
    }

    /// A certificate that names itself as its issuer is told from one that another signed.
    #[test]
    fn self_signed_certificates_are_told_apart() {
        let key = KeyPair::generate().unwrap();
        assert!(is_self_signed(params("one").self_signed(&key).unwrap().der()));
        let issuer = Issuer::new(params("issuer"), KeyPair::generate().unwrap());
        assert!(!is_self_signed(params("one").signed_by(&key, &issuer).unwrap().der()));
    }

    /// A named certificate is good for its names and from its first to its last second, in both ways to write
    /// a year.
    #[test]
    fn named_certificates_have_their_time() {
        let key = KeyPair::generate().unwrap();
        for (from, until, first, last) in
            [(2020, 2030, 1_577_836_800, 1_893_456_000), (2060, 2070, 2_840_140_800, 3_155_760_000)]
        {
            let mut params = params("one");
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

    proptest! {
        /// No bytes make the reader of certificates panic.
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), tag: u8) {
            if let Some(fields) = Fields::read(&bytes) {
                fields.validity();
            }
            read_time(tag, &bytes);
            read_time(UTC_TIME, &bytes);
        }
    }
}
