//! How webhooks prove who sends them: signatures, headers, and tokens of an OAuth 2.0 server.

use gateway_core::signature::SigningKey;
use v1::{AttemptFailure as Kind, destination_authentication::Method};

use super::{
    bench::{LOOPBACK, attempter, failure, impatient, owed, settings},
    receiver::Raw,
    *,
};
use crate::pipeline::deliver::attempt::{Made, Verdict};

fn with(method: Method, destination_url: &str) -> v1::WebhookSubscription {
    let authentication = Some(v1::DestinationAuthentication { method: Some(method) });
    v1::WebhookSubscription { authentication, ..impatient(destination_url) }
}

fn oauth2(token_url: &str) -> Method {
    Method::Oauth2(v1::OAuth2Authentication {
        token_url: token_url.to_owned(),
        client_id: "the client".to_owned(),
        client_secret: "the:secret".to_owned(),
        scopes: vec!["webhooks:write".to_owned(), "other".to_owned()],
    })
}

fn granting(before: usize) -> Reply {
    const JSON: &str = "content-type: application/json\r\n";
    match before {
        0 => Reply::Status(200, JSON, r#"{"access_token":"first","token_type":"Bearer","expires_in":3600}"#),
        _ => Reply::Status(200, JSON, r#"{"access_token":"second","token_type":"Bearer","expires_in":3600}"#),
    }
}

fn authorizations(receiver: &Receiver) -> Vec<String> {
    let of = |request: &receiver::Request| request.header("authorization").unwrap_or_default().to_owned();
    receiver.requests().iter().map(of).collect()
}

/// A header of one's own, a password and a fixed token are sent as their standards say.
#[tokio::test]
async fn credentials_are_sent() {
    let receiver = Receiver::start(ok).await;
    let header = v1::HeaderAuthentication { name: "X-Api-Key".to_owned(), value: "a secret".to_owned() };
    let basic =
        v1::BasicAuthentication { username: "Aladdin".to_owned(), password: "open sesame".to_owned() };
    let bearer = v1::BearerAuthentication { token: "mF_9.B5f-4.1JqM".to_owned() };
    let methods = [Method::Header(header), Method::Basic(basic), Method::Bearer(bearer)];
    for method in methods {
        let config = settings(with(method, &receiver.url()));
        let made = attempter(LOOPBACK).attempt(&owed(), &config).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
    }
    let requests = receiver.requests();
    assert_eq!(requests[0].header("x-api-key"), Some("a secret"));
    // The examples of RFC 7617 and RFC 6750.
    assert_eq!(requests[1].header("authorization"), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
    assert_eq!(requests[2].header("authorization"), Some("Bearer mF_9.B5f-4.1JqM"));
}

/// One token serves many attempts, also those that begin at once; it is asked for as RFC 6749 says.
#[tokio::test]
async fn tokens_are_asked_for_once() {
    let (tokens, receiver) = (Receiver::start(granting).await, Receiver::start(ok).await);
    let config = settings(with(oauth2(&tokens.url()), &receiver.url()));
    let attempter = attempter(LOOPBACK);
    let mut running = JoinSet::new();
    for _ in 0..8 {
        let (attempter, config) = (attempter.clone(), Arc::clone(&config));
        running.spawn(async move { attempter.attempt(&owed(), &config).await.verdict });
    }
    while let Some(verdict) = running.join_next().await {
        assert_eq!(verdict.unwrap(), Verdict::Delivered);
    }
    assert_eq!(attempter.attempt(&owed(), &config).await.verdict, Verdict::Delivered);
    assert_eq!(authorizations(&receiver), ["Bearer first"; 9]);

    let request = tokens.requests().remove(0);
    assert_eq!(tokens.requests().len(), 1);
    assert_eq!(request.line, "POST /webhooks?source=gateway HTTP/1.1");
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    // "the+client:the%3Asecret"
    assert_eq!(request.header("authorization"), Some("Basic dGhlK2NsaWVudDp0aGUlM0FzZWNyZXQ="));
    assert_eq!(request.body, b"grant_type=client_credentials&scope=webhooks%3Awrite+other");

    // Other credentials need another token; other headers do not.
    let headers = [("x-new".to_owned(), "header".to_owned())].into();
    let subscription = v1::WebhookSubscription { headers, ..with(oauth2(&tokens.url()), &receiver.url()) };
    attempter.attempt(&owed(), &settings(subscription)).await;
    assert_eq!(tokens.requests().len(), 1);
    let Method::Oauth2(other) = oauth2(&tokens.url()) else { unreachable!() };
    let other = Method::Oauth2(v1::OAuth2Authentication { client_secret: "new".to_owned(), ..other });
    attempter.attempt(&owed(), &settings(with(other, &receiver.url()))).await;
    assert_eq!(tokens.requests().len(), 2);
}

/// A token that the destination refuses is replaced once, within the attempt; a fresh one that is refused is
/// a failure.
#[tokio::test]
async fn refused_tokens_are_replaced_once() {
    let tokens = Receiver::start(granting).await;
    let receiver = Receiver::start(|before| match before {
        0 | 2 => Reply::Status(200, "", ""),
        _ => Reply::Status(401, "", ""),
    })
    .await;
    let config = settings(with(oauth2(&tokens.url()), &receiver.url()));
    let attempter = attempter(LOOPBACK);
    for _ in 0..2 {
        assert_eq!(attempter.attempt(&owed(), &config).await.verdict, Verdict::Delivered);
    }
    assert_eq!(authorizations(&receiver), ["Bearer first", "Bearer first", "Bearer second"]);
    let made = attempter.attempt(&owed(), &config).await;
    assert_eq!(failure(&made), (Kind::Status, "the destination answered 401"));
    assert_eq!((receiver.requests().len(), tokens.requests().len()), (5, 3));
}

/// A server that takes the credentials only in the body is found out, and asked so from then on.
#[tokio::test]
async fn credentials_may_go_into_the_body() {
    let tokens = Receiver::start(|before| match before {
        0 => Reply::Status(401, "", r#"{"error":"invalid_client"}"#),
        _ => Reply::Status(200, "", r#"{"access_token":"first","expires_in":0}"#),
    })
    .await;
    let receiver = Receiver::start(ok).await;
    let config = settings(with(oauth2(&tokens.url()), &receiver.url()));
    let attempter = attempter(LOOPBACK);
    for _ in 0..2 {
        assert_eq!(attempter.attempt(&owed(), &config).await.verdict, Verdict::Delivered);
    }
    let requests = tokens.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests[1..] {
        assert_eq!(request.header("authorization"), None);
        let body = String::from_utf8(request.body.clone()).unwrap();
        assert!(body.ends_with("&client_id=the+client&client_secret=the%3Asecret"), "{body}");
    }
}

/// Without a token nothing is sent, the cause is told, and no secret with it. What the token endpoint says
/// about itself is not said of the destination.
#[tokio::test]
async fn token_failures_are_explained() {
    async fn attempt(script: Script) -> Made {
        let (tokens, receiver) = (Receiver::start(script).await, Receiver::start(ok).await);
        let config = settings(with(oauth2(&tokens.url()), &receiver.url()));
        let made = attempter(LOOPBACK).attempt(&owed(), &config).await;
        assert_eq!(receiver.requests().len(), 0);
        assert_eq!((made.attempt.status_code, made.attempt.response_excerpt.len()), (0, 0));
        assert!(!made.attempt.error.contains("secret"), "{}", made.attempt.error);
        made
    }
    let made = attempt(|_| Reply::Status(401, "", r#"{"error":"secret"}"#)).await;
    assert_eq!(failure(&made), (Kind::Authentication, "the token endpoint answered 401"));
    let made = attempt(|_| Reply::Status(400, "", r#"{"error":"invalid_scope"}"#)).await;
    assert_eq!(failure(&made), (Kind::Authentication, "the token endpoint answered 400: invalid_scope"));
    let made = attempt(|_| Reply::Status(200, "", "secret")).await;
    assert_eq!(failure(&made), (Kind::Authentication, "the token endpoint answered without an access token"));
    let made = attempt(|_| Reply::Status(302, "location: /secret\r\n", "")).await;
    let redirected = "the token endpoint answered 302; redirects are not followed";
    assert_eq!(failure(&made), (Kind::Authentication, redirected));
    let made = attempt(|_| Reply::Status(410, "", "")).await;
    assert!(matches!(made.verdict, Verdict::Failed { slow_down: false, .. }), "{made:?}");
    let made = attempt(|_| Reply::Status(503, "retry-after: 9\r\n", "")).await;
    let retry_after = Some(Duration::from_secs(9));
    let busy = Verdict::Failed { retry_after, slow_down: true, quick: false, ours: false };
    assert_eq!(made.verdict, busy);
    let made = attempt(|_| Reply::Silence).await;
    let silent = "no complete answer within 1 s: still waiting for the answer of the token endpoint";
    assert_eq!(failure(&made), (Kind::Timeout, silent));
}

/// The token endpoint is reached through the same guard: a private one is not.
#[tokio::test]
async fn token_endpoints_are_guarded() {
    let receiver = Receiver::start(ok).await;
    let trap = Raw::start(|stream, _| async move { drop(stream) }).await;
    let private = trap.url().replace("127.0.0.1", "127.0.0.9");
    let config = settings(with(oauth2(&private), &receiver.url()));
    let made = attempter(&["127.0.0.1/32"]).attempt(&owed(), &config).await;
    assert_eq!(made.attempt.failure(), Kind::BlockedAddress);
    assert!(made.attempt.error.ends_with("; it is the token endpoint's"), "{}", made.attempt.error);
    assert_eq!((receiver.requests().len(), trap.accepted()), (0, 0));
}

/// The header carries a signature of every live secret, newest first, then one of every live key: one space
/// between them and none that is empty.
#[tokio::test]
async fn every_live_secret_and_key_signs() {
    let receiver = Receiver::start(ok).await;
    let keys = [SigningKey::from_seed(&[7; 32]), SigningKey::from_seed(&[8; 32])];
    let mut config = settings(impatient(&receiver.url()));
    let expired = clock::now() - Duration::from_secs(1);
    Arc::get_mut(&mut config).unwrap_or_else(|| panic!("it is shared")).signing_keys =
        vec![(SigningKey::from_seed(&[7; 32]), None), (SigningKey::from_seed(&[8; 32]), Some(expired))];
    let made = attempter(LOOPBACK).attempt(&owed(), &config).await;
    assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
    let request = receiver.requests().remove(0);
    let header = |name| request.header(name).unwrap();
    let (id, time) = (header("webhook-id"), header("webhook-timestamp").parse().unwrap());
    let secret = |value| WebhookSecret::parse(value).unwrap().sign(id, time, &request.body);
    let expected = [secret(NEW_SECRET), secret(OLD_SECRET), keys[0].sign(id, time, &request.body)];
    assert_eq!(header("webhook-signature"), expected.join(" "));
    let v1a = |key: &SigningKey| key.sign(id, time, &request.body);
    assert!(!header("webhook-signature").contains(&v1a(&keys[1])));
}

/// A subscription whose secrets have all expired sends nothing that nobody could verify.
#[tokio::test]
async fn nothing_is_sent_unsigned() {
    let receiver = Receiver::start(ok).await;
    let mut config = settings(impatient(&receiver.url()));
    let unsigned = Arc::get_mut(&mut config).unwrap_or_else(|| panic!("it is shared"));
    unsigned.signing_secrets.retain(|(_, expire)| expire.is_some_and(|expire| expire < clock::now()));
    assert_eq!(unsigned.signing_secrets.len(), 1);
    let made = attempter(LOOPBACK).attempt(&owed(), &config).await;
    assert_eq!(made.attempt.failure(), Kind::Authentication, "{}", made.attempt.error);
    assert!(receiver.requests().is_empty());
}

/// Headers that would change how the request is framed are not sent, and the subscription is told.
#[tokio::test]
async fn framing_is_not_the_customers() {
    let receiver = Receiver::start(ok).await;
    for name in ["Transfer-Encoding", "content-length", "connection", "expect", "bad name", "bad\nname"] {
        let headers = [(name.to_owned(), "1".to_owned())].into();
        let config = settings(v1::WebhookSubscription { headers, ..impatient(&receiver.url()) });
        let made = attempter(LOOPBACK).attempt(&owed(), &config).await;
        let bad = (Kind::Protocol, "a header of the subscription cannot be sent");
        assert_eq!(failure(&made), bad, "{name}");
    }
    assert!(receiver.requests().is_empty());
}
