//! Access tokens for destinations, by client credentials (RFC 6749, 4.4).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use gateway_core::{retry, snapshot::OAuth2};
use gateway_proto::v1::AttemptFailure;
use gateway_runtime::clock;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use url::form_urlencoded;

use crate::pipeline::deliver::failure::{Failure, Party};

use super::{Answer, Dialer, Progress, Site, TlsSettings, host, target};

/// How long a token is used when the server does not say.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(300);
/// Longest time that a token is used, whatever the server says.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3_600);
/// How long before its end a token is not used any more, if its life is long enough for it.
const MARGIN_MAX: Duration = Duration::from_secs(60);
/// The error codes of RFC 6749, 5.2, which may be shown. Anything else a server says may be a secret.
const ERROR_CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

/// Gives the token of one subscription, and asks for it when there is none. Asks one at a time.
pub(crate) struct TokenSource {
    settings: OAuth2,
    tls: TlsSettings,
    site: Site,
    target: Uri,
    host: HeaderValue,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Kept>,
    /// Tokens that were given so far.
    count: u64,
    /// The last refusal, for those who were waiting when it came.
    failed: Option<(Instant, Failure)>,
    way: Way,
}

struct Kept {
    header: HeaderValue,
    until: Instant,
}

/// How the client proves who it is (RFC 6749, 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Way {
    /// By the `authorization` header, which every server must support.
    #[default]
    Basic,
    /// In the body, which some support alone.
    Post,
}

/// A token, as `authorization` carries it.
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    /// Which of the source's tokens it is.
    pub(crate) number: u64,
    /// Whether it was asked for just now.
    pub(crate) is_fresh: bool,
}

#[derive(Deserialize)]
struct Grant {
    access_token: Box<str>,
    token_type: Option<Box<str>>,
    expires_in: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Refusal {
    error: Box<str>,
}

impl TokenSource {
    pub(crate) fn new(dialer: &Dialer, settings: &OAuth2, tls: TlsSettings) -> Result<Self, Failure> {
        let party = Party::TokenEndpoint;
        Ok(Self {
            site: dialer.site(party, &settings.token_url, tls.clone())?,
            target: target(party, &settings.token_url)?,
            host: host(party, &settings.token_url)?,
            settings: settings.clone(),
            tls,
            state: Mutex::default(),
        })
    }

    /// Whether it gives tokens for these settings.
    pub(crate) fn serves(&self, settings: &OAuth2, tls: &TlsSettings) -> bool {
        self.settings == *settings && self.tls == *tls
    }

    /// Closes idle connections that were kept long enough.
    pub(crate) fn sweep(&self) {
        self.site.sweep();
    }

    /// A token that is not the one with the number `refused`. Whoever comes while one is asked for waits for
    /// it, and shares its failure.
    pub(crate) async fn token(
        &self,
        dialer: &Dialer,
        refused: Option<u64>,
        progress: &mut Progress,
    ) -> Result<Token, Failure> {
        let came = Instant::now();
        progress.party = Party::TokenEndpoint;
        let mut state = self.state.lock().await;
        let number = state.count;
        if let Some(kept) = &state.token
            && refused != Some(number)
            && Instant::now() < kept.until
        {
            return Ok(Token { header: kept.header.clone(), number, is_fresh: false });
        }
        if let Some((time, failure)) = &state.failed
            && *time >= came
        {
            return Err(failure.clone());
        }
        state.token = None;
        match self.ask(dialer, &mut state.way, progress).await {
            Ok(kept) => {
                let header = kept.header.clone();
                state.count += 1;
                state.token = Some(kept);
                Ok(Token { header, number: state.count, is_fresh: true })
            }
            Err(failure) => {
                let failure = failure.of_token();
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Asks in the way that worked last, and where the client was not recognized in the other one.
    async fn ask(&self, dialer: &Dialer, way: &mut Way, progress: &mut Progress) -> Result<Kept, Failure> {
        let mut answer = Answer::default();
        let status = self.request(dialer, *way, progress, &mut answer).await?;
        let refusal = match read(status, &answer) {
            Ok(kept) => return Ok(kept),
            Err(refusal) => refusal,
        };
        let is_unknown = status == StatusCode::UNAUTHORIZED
            || (status == StatusCode::BAD_REQUEST && error_code(&answer) == Some("invalid_client"));
        if !is_unknown {
            return Err(refusal);
        }
        let other = if *way == Way::Basic { Way::Post } else { Way::Basic };
        let mut answer = Answer::default();
        let status = self.request(dialer, other, progress, &mut answer).await?;
        let kept = read(status, &answer).map_err(|_| refusal)?;
        *way = other;
        Ok(kept)
    }

    async fn request(
        &self,
        dialer: &Dialer,
        way: Way,
        progress: &mut Progress,
        answer: &mut Answer,
    ) -> Result<StatusCode, Failure> {
        let body = self.body(way);
        let authorization = match way {
            Way::Basic => Some(self.basic()?),
            Way::Post => None,
        };
        let request = || {
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = self.target.clone();
            let headers = request.headers_mut();
            headers.insert(header::HOST, self.host.clone());
            headers.insert(header::USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, form);
            if let Some(authorization) = &authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            request
        };
        dialer.send(&self.site, 1, request, progress, answer).await
    }

    fn body(&self, way: Way) -> Bytes {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !self.settings.scopes.is_empty() {
            form.append_pair("scope", &self.settings.scopes.join(" "));
        }
        if way == Way::Post {
            form.append_pair("client_id", &self.settings.client_id);
            form.append_pair("client_secret", &self.settings.client_secret);
        }
        form.finish().into()
    }

    /// Id and secret are form-encoded before they are joined (RFC 6749, 2.3.1).
    fn basic(&self) -> Result<HeaderValue, Failure> {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let (id, secret) = (encoded(&self.settings.client_id), encoded(&self.settings.client_secret));
        authorization("Basic", &STANDARD.encode(format!("{id}:{secret}")))
    }
}

/// A value of `authorization` that never prints.
pub(crate) fn authorization(scheme: &str, credentials: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {credentials}"))
        .map_err(|_| Failure::protocol("the credentials of the subscription cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The token in an answer (RFC 6749, 5.1), or what is wrong with it.
fn read(status: StatusCode, answer: &Answer) -> Result<Kept, Failure> {
    if status != StatusCode::OK {
        return Err(refusal(status, answer));
    }
    let bad = |text: &'static str| Failure::new(AttemptFailure::Protocol, text);
    let grant: Grant = serde_json::from_slice(&answer.excerpt)
        .map_err(|_| bad("the token endpoint answered without an access token"))?;
    if grant.token_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(bad("the token endpoint gave a token that is not a bearer token"));
    }
    let header = authorization("Bearer", &grant.access_token)
        .map_err(|_| bad("the token endpoint gave a token that cannot be sent"))?;
    let lifetime = lifetime(grant.expires_in.as_ref());
    Ok(Kept { header, until: Instant::now() + lifetime - MARGIN_MAX.min(lifetime / 4) })
}

/// `expires_in` in seconds; some servers send it as text.
fn lifetime(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = expires_in.and_then(|value| match value {
        serde_json::Value::Number(number) => number.as_u64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    });
    seconds.map_or(LIFETIME_DEFAULT, |seconds| Duration::from_secs(seconds).min(LIFETIME_MAX))
}

fn error_code(answer: &Answer) -> Option<&'static str> {
    let refusal: Refusal = serde_json::from_slice(&answer.excerpt).ok()?;
    ERROR_CODES.into_iter().find(|code| *code == &*refusal.error)
}

fn refusal(status: StatusCode, answer: &Answer) -> Failure {
    let mut failure = Failure::status(Party::TokenEndpoint, status);
    if let Some(code) = error_code(answer) {
        failure.text.push_str(": ");
        failure.text.push_str(code);
    }
    failure.slow_down = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    failure.retry_after = retry_after(answer);
    failure
}

/// When a server wants to be asked again, at most [`retry::RETRY_AFTER_MAX`].
pub(crate) fn retry_after(answer: &Answer) -> Option<Duration> {
    let value = answer.retry_after.as_ref()?.to_str().ok()?;
    Some(retry::parse_retry_after(value, clock::now())?.min(retry::RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(body: &str) -> Answer {
        Answer { excerpt: body.as_bytes().to_vec(), ..Answer::default() }
    }

    /// A token is read with what its life is, and nothing a server says can make it live for ever or panic.
    #[tokio::test(start_paused = true)]
    async fn grants_are_read() {
        let life = |expires_in: &str| {
            let body = format!(r#"{{"access_token":"t","token_type":"bearer"{expires_in}}}"#);
            read(StatusCode::OK, &answered(&body)).ok().unwrap().until - Instant::now()
        };
        assert_eq!(life(r#","expires_in":3600"#), Duration::from_secs(3_540));
        assert_eq!(life(r#","expires_in":"100""#), Duration::from_secs(75));
        assert_eq!(life(""), Duration::from_secs(240));
        assert_eq!(life(r#","expires_in":-1"#), Duration::from_secs(240));
        assert_eq!(life(r#","expires_in":0"#), Duration::ZERO);
        assert_eq!(life(r#","expires_in":18446744073709551615"#), LIFETIME_MAX - MARGIN_MAX);
    }

    /// What is no grant is a failure whose words carry nothing that the server said.
    #[test]
    fn refusals_are_read() {
        let text = |status, body: &str| read(status, &answered(body)).err().unwrap().text;
        assert_eq!(text(StatusCode::UNAUTHORIZED, "secret"), "the token endpoint answered 401");
        let coded = r#"{"error":"invalid_scope","error_description":"secret"}"#;
        assert_eq!(text(StatusCode::BAD_REQUEST, coded), "the token endpoint answered 400: invalid_scope");
        assert_eq!(text(StatusCode::BAD_REQUEST, r#"{"error":"secret"}"#), "the token endpoint answered 400");
        assert_eq!(text(StatusCode::OK, "{}"), "the token endpoint answered without an access token");
        let mac = r#"{"access_token":"t","token_type":"mac"}"#;
        assert!(text(StatusCode::OK, mac).contains("not a bearer token"));
        let split = r#"{"access_token":"a\r\nb"}"#;
        assert!(text(StatusCode::OK, split).contains("cannot be sent"));
    }
}
