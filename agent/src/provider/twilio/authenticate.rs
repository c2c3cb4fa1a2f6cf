//! `X-Twilio-Signature`: the base64 of an HMAC under the account's auth token, over the URL that Twilio called
//! and the decoded parameters of the form, <https://www.twilio.com/docs/usage/security#validating-requests>. It
//! is checked as twilio/twilio-python `twilio/request_validator.py` does.
//!
//! Nothing in it ages: a repeat is known by the message's id.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::{
    signature::{hmac_sha1_matches, hmac_sha256_matches},
    snapshot::{RouteConfig, RouteSecretKind},
};
use http::Method;
use url::form_urlencoded;

use super::parameters::{is_json, pairs};
use crate::provider::{
    CallbackRequest, Refusal,
    signature::{self, is_sha256_of},
};

const HEADER: &str = "x-twilio-signature";
/// `key=…,algorithm=…`: comes with callbacks that are signed with a shared key in place of the auth token,
/// <https://www.twilio.com/docs/usage/webhooks/webhook-shared-keys>.
const SETTINGS_HEADER: &str = "x-twilio-webhooks-signature-settings";
/// The parameter of the URL with the hash of a body that is no form.
const BODY_HASH: &str = "bodySHA256";

/// Whether the signature fits the request under any live auth token of the route.
pub fn verify(route: &RouteConfig, request: &CallbackRequest) -> Result<(), Refusal> {
    let given = request.single_header(HEADER)?.ok_or(Refusal::MissingSignature)?;
    let (length, matches) = algorithm(request.single_header(SETTINGS_HEADER)?.unwrap_or_default())?;
    let given = STANDARD.decode(given).map_err(|_| Refusal::MalformedSignature)?;
    if given.len() != length {
        return Err(Refusal::MalformedSignature);
    }
    let parameters = signed_parameters(request)?;
    let messages: Vec<_> = urls(request)?.into_iter().map(|url| url + &parameters).collect();
    signature::verify(route.secrets_of(RouteSecretKind::TwilioAuthToken), |token| {
        // Every form of the URL is tried too.
        messages.iter().fold(false, |fits, message| fits | matches(token, message.as_bytes(), &given))
    })
}

/// Whether a signature is that of a message under a key, in constant time.
type Matches = fn(key: &[u8], message: &[u8], signature: &[u8]) -> bool;

/// The length of a signature in bytes, and how it is compared. Without settings it is the auth token's.
fn algorithm(settings: &str) -> Result<(usize, Matches), Refusal> {
    let named = settings.split(',').filter_map(|part| part.split_once('=')).find_map(|(name, value)| {
        (name.trim() == "algorithm" && !value.trim().is_empty()).then_some(value.trim())
    });
    match named.map(str::to_ascii_uppercase).as_deref() {
        None | Some("HMAC_SHA1") => Ok((20, hmac_sha1_matches)),
        Some("HMAC_SHA256") => Ok((32, hmac_sha256_matches)),
        Some(_) => Err(Refusal::WrongAlgorithm),
    }
}

/// What is signed behind the URL. Which rule holds is told by the body, as it is when the body is read: what was
/// proved cannot be read as something else.
fn signed_parameters(request: &CallbackRequest) -> Result<String, Refusal> {
    if request.method == Method::GET {
        // The parameters are in the URL.
        return Ok(String::new());
    }
    let query = request.uri.query().unwrap_or_default().as_bytes();
    let hash = form_urlencoded::parse(query).find(|(name, _)| name == BODY_HASH);
    let is_ours = hash.as_ref().is_some_and(|(_, hash)| is_sha256_of(hash, &request.body));
    if is_json(&request.body) {
        return if is_ours { Ok(String::new()) } else { Err(Refusal::WrongBodyHash) };
    }
    // Twilio sends no such form, and nothing is proved of it: to sort it all would be a stranger's to ask for.
    let mut pairs = pairs(&request.body).ok_or(Refusal::TooManyItems)?;
    if pairs.is_empty() && hash.is_some() && !is_ours {
        // It was signed with a body that is no form, and somebody took that away.
        return Err(Refusal::WrongBodyHash);
    }
    // By name, then by value; the same name with the same value counts once, an empty value like any other.
    pairs.sort_unstable();
    pairs.dedup();
    let mut signed = String::with_capacity(request.body.len());
    for (name, value) in pairs {
        signed.push_str(&name);
        signed.push_str(&value);
    }
    Ok(signed)
}

/// The URL in the forms in which Twilio may have signed it, which are not always those in which it was
/// configured: without a port, and with its own or the scheme's. The rest is verbatim.
///
/// Who calls without a public base URL may have called by https, which ended before us: both schemes count then.
fn urls(request: &CallbackRequest) -> Result<Vec<String>, Refusal> {
    let url = request.url()?;
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", &url));
    let mut urls = Vec::from(ports(scheme, rest));
    if request.public_base_url.is_none() {
        urls.extend(ports("https", rest));
    }
    Ok(urls)
}

/// A URL without a port and with one.
fn ports(scheme: &str, rest: &str) -> [String; 2] {
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => (host, port),
        _ => (authority, if scheme == "https" { "443" } else { "80" }),
    };
    [format!("{scheme}://{host}{target}"), format!("{scheme}://{host}:{port}{target}")]
}
