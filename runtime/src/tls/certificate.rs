//! What has to be known of a certificate and the TLS library does not tell: its issuer, subject and validity
//! (RFC 5280, 4.1).

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, `[0]`, which is the only optional field before those that are read.
const VERSION: u8 = 0xa0;

/// When a certificate can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: Timestamp,
    /// Its last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// The validity of a certificate in DER. None when it cannot be read.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (tag, not_before, rest) = read_value(Fields::read(certificate)?.validity)?;
        let not_before = read_time(tag, not_before)?;
        let (tag, not_after, _) = read_value(rest)?;
        Some(Self { not_before, not_after: read_time(tag, not_after)? })
    }

    /// Whether the certificate can be used at `now`.
    pub fn contains(&self, now: Timestamp) -> bool {
        let now = now.as_second();
        (self.not_before.as_second()..=self.not_after.as_second()).contains(&now)
    }
}

/// Whether issuer and subject of a certificate in DER are the same bytes.
pub fn is_self_signed(certificate: &[u8]) -> bool {
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
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5).
fn read_time(tag: u8, text: &[u8]) -> Option<Timestamp> {
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
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
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
    use rand::RngExt as _;
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

    /// A certificate can be used from its first to its last second, in both ways to write a year.
    #[test]
    fn certificates_have_their_time() {
        let key = KeyPair::generate().unwrap();
        for (from, until, first, last) in
            [(2020, 2030, 1_577_836_800, 1_893_456_000), (2060, 2070, 2_840_140_800, 3_155_760_000)]
        {
            let mut params = params("one");
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
            let validity = Validity::of(params.self_signed(&key).unwrap().der()).unwrap();
            let at = |second| validity.contains(Timestamp::from_second(second).unwrap());
            assert!(at(first) && at(last) && !at(first - 1) && !at(last + 1), "{validity:?}");
        }
    }

    /// No bytes make the reader of certificates panic: random ones, and a certificate cut anywhere or changed in
    /// one byte.
    #[test]
    fn any_bytes_are_read() {
        let certificate = params("one").self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        for length in 0..certificate.len() {
            Validity::of(&certificate[..length]);
        }
        for place in 0..certificate.len() {
            for byte in [0, 0x17, 0x30, 0x7f, 0x80, 0x83, 0xff] {
                let mut changed = certificate.clone();
                changed[place] = byte;
                Validity::of(&changed);
                is_self_signed(&changed);
            }
        }
        let mut random = rand::rng();
        for _ in 0..10_000 {
            let bytes: [u8; 16] = random.random();
            Validity::of(&bytes);
            for tag in [UTC_TIME, GENERALIZED_TIME, bytes[0]] {
                read_time(tag, &bytes[..13]);
                read_time(tag, &bytes[..15]);
            }
        }
        assert_eq!(read_time(UTC_TIME, "2٣0101000000Z".as_bytes()), None);
    }
}
