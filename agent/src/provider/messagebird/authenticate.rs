//! `MessageBird-Signature-JWT`: a JWT signed with the account's signing key that holds hashes of the URL and of the
//! body, <https://developers.messagebird.com/docs/verify-http-requests>; rules as in messagebird/python-rest-api,
//! `messagebird/request_validator.py`. Requests of before 2021 have `MessageBird-Signature` instead, which is looked
//! at only where there is no JWT.

use gateway_core::snapshot::{RouteConfig, RouteSecretKind};
use jiff::Timestamp;
use url::form_urlencoded;

use crate::provider::{
    CallbackRequest, Refusal,
    jwt::{self, Algorithm},
    signature::is_sha256_of,
    signed_request::{self, url_forms},
};

const HEADER: &str = "messagebird-signature-jwt";
const ISSUER: &str = "MessageBird";
const ALGORITHMS: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
/// How far the provider's clock may be from ours, in seconds.
const LEEWAY_SECONDS: i64 = 1;

/// Whether the account made the request.
pub fn verify(route: &RouteConfig, request: &CallbackRequest, now: Timestamp) -> Result<(), Refusal> {
    let kind = RouteSecretKind::MessageBirdSigningKey;
    let Some(token) = request.single_header(HEADER)? else {
        let query = [sorted_query(request.uri.query().unwrap_or_default())];
        return signed_request::verify(route, kind, request, &query, now);
    };
    let claims = jwt::verify(token, route.secrets_of(kind), &ALGORITHMS)?;
    if claims.text("iss") != Some(ISSUER) {
        return Err(Refusal::MalformedSignature);
    }
    let time = |name| claims.seconds(name).ok_or(Refusal::MalformedSignature);
    let (not_before, expiry, now) = (time("nbf")?, time("exp")?, now.as_second());
    if not_before > now.saturating_add(LEEWAY_SECONDS) || expiry <= now.saturating_sub(LEEWAY_SECONDS) {
        return Err(Refusal::Expired);
    }
    let url_hash = claims.text("url_hash").ok_or(Refusal::WrongUrlHash)?;
    if !url_forms(request.url()?).iter().any(|url| is_sha256_of(url_hash, url.as_bytes())) {
        return Err(Refusal::WrongUrlHash);
    }
    // An empty hash is none.
    let body_fits = match claims.text("payload_hash").filter(|hash| !hash.is_empty()) {
        Some(hash) => !request.body.is_empty() && is_sha256_of(hash, &request.body),
        None => request.body.is_empty(),
    };
    if body_fits { Ok(()) } else { Err(Refusal::WrongBodyHash) }
}

/// The query's parameters, sorted by name and encoded anew, as the older scheme signs them. Parameters of one name
/// keep their order.
fn sorted_query(query: &str) -> String {
    let mut parameters: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    parameters.sort_by(|(one, _), (other, _)| one.cmp(other));
    let parameters = parameters.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
    parameters.collect::<Vec<_>>().join("&")
}

/// As `urlencode` of Python and `url.QueryEscape` of Go do it; the encoder of browsers treats `*` and `~` the other way.
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes())
        .collect::<String>()
        .replace('*', "%2A")
        .replace("%7E", "~")
}

#[cfg(test)]
mod tests {
    use super::sorted_query;

    /// The query is signed sorted and encoded in one way, however it was written.
    #[test]
    fn query_is_signed_in_one_form() {
        for (query, signed) in [
            ("", ""),
            ("tenant=7&id=9", "id=9&tenant=7"),
            ("b=2&a=2&b=1", "a=2&b=2&b=1"),
            ("a", "a="),
            ("x=%2f%2F+%20~*-._", "x=%2F%2F++~%2A-._"),
            ("n=%C3%A9", "n=%C3%A9"),
        ] {
            assert_eq!(sorted_query(query), signed, "{query}");
        }
    }
}
