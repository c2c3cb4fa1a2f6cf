//! What MessageBird and Bird sign a request with: a timestamp, one more line and the hash of the body, in the headers
//! `MessageBird-Signature` and `MessageBird-Request-Timestamp`: base64 of HMAC-SHA256 of
//! `<timestamp>\n<line>\n<32 bytes of SHA-256 of the body>`. The line is the query in the older scheme of
//! MessageBird (messagebird/python-rest-api, `messagebird/signed_request.py`) and the URL in that of Bird
//! (<https://docs.bird.com/api/notifications-api/api-reference/webhooks/verifying-a-webhook>).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::{
    signature::hmac_sha256_matches,
    snapshot::{RouteConfig, RouteSecretKind},
    time::from_provider_text,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{CallbackRequest, Refusal, signature};

const SIGNATURE: &str = "messagebird-signature";
const TIMESTAMP: &str = "messagebird-request-timestamp";
/// How far the timestamp may be from our clock, in seconds. MessageBird's own library allowed 10 and no clock that
/// is ahead; clocks differ by more, and what comes twice is known by its event id anyway.
const FRESHNESS_SECONDS: u64 = 300;

/// Whether the request is signed, with any of these lines, under any live secret of the kind.
///
/// # Errors
/// Why it is not proved.
pub fn verify(
    route: &RouteConfig,
    kind: RouteSecretKind,
    request: &CallbackRequest,
    lines: &[String],
    now: Timestamp,
) -> Result<(), Refusal> {
    let given = request.single_header(SIGNATURE)?.ok_or(Refusal::MissingSignature)?;
    let timestamp = request.single_header(TIMESTAMP)?.ok_or(Refusal::MissingSignature)?;
    let given = STANDARD.decode(given).map_err(|_| Refusal::MalformedSignature)?;
    let given: [u8; 32] = given.try_into().map_err(|_| Refusal::MalformedSignature)?;
    let time = from_provider_text(timestamp).ok_or(Refusal::MalformedSignature)?;

    let digest = Sha256::digest(&request.body);
    let messages: Vec<_> =
        lines.iter().map(|line| [timestamp.as_bytes(), line.as_bytes(), &digest].join(&b'\n')).collect();
    signature::verify(route.secrets_of(kind), |secret| {
        // Every line is tried too.
        messages.iter().fold(false, |fits, message| fits | hmac_sha256_matches(secret, message, &given))
    })?;
    let age = now.as_second().abs_diff(time.as_second());
    if age <= FRESHNESS_SECONDS { Ok(()) } else { Err(Refusal::Expired) }
}

/// A URL, and the same with the scheme's own port written out, or left away if it is there: proxies, and whoever
/// configures the URL at the provider, do either. Another port is another address and has one form.
pub fn url_forms(url: String) -> Vec<String> {
    let other = other_form(&url);
    std::iter::once(url).chain(other).collect()
}

fn other_form(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if let Some(host) = authority.strip_suffix(port) {
        return Some(format!("{scheme}://{host}{target}"));
    }
    // The colons of an IPv6 address stand in brackets.
    let after_address = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    (!after_address.contains(':')).then(|| format!("{scheme}://{authority}{port}{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default port may be written or not; nothing else of a URL may differ.
    #[test]
    fn only_the_default_port_is_optional() {
        for (url, other) in [
            ("https://gw.example.com/a?b=:443", Some("https://gw.example.com:443/a?b=:443")),
            ("https://gw.example.com:443/a", Some("https://gw.example.com/a")),
            ("https://gw.example.com?x=/", Some("https://gw.example.com:443?x=/")),
            ("http://gw.example.com/", Some("http://gw.example.com:80/")),
            ("http://gw.example.com:80", Some("http://gw.example.com")),
            ("https://[::1]/a", Some("https://[::1]:443/a")),
            ("https://[::1]:443/a", Some("https://[::1]/a")),
            ("https://gw.example.com:80/a", None),
            ("https://gw.example.com:8443/a", None),
            ("http://gw.example.com:8443/a", None),
            ("https://[::1]:8443/a", None),
            ("gw.example.com/a", None),
        ] {
            assert_eq!(other_form(url).as_deref(), other, "{url}");
        }
    }
}
