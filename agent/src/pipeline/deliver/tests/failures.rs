//! Every way in which an attempt can fail, and what is recorded of it.

use super::*;

/// The first attempt at a destination, as it is reported.
async fn first_attempt(destination_url: &str, allowed: &[&str], schedule: Schedule) -> v1::DeliveryAttempt {
    let attempt_timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let subscription = v1::WebhookSubscription { attempt_timeout, ..subscription("sub_a", destination_url) };
    let world = World::with([subscription], allowed, schedule, &[]).await;
    world.append(1, &["sub_a"]).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    let attempt = world.reported_when("the attempt is made", is_made).await.attempts.remove(0);
    world.stop().await;
    attempt
}

const LOOPBACK: &[&str] = &["127.0.0.0/8", "::1/128"];

/// The first attempt at a receiver that behaves like this.
async fn attempt_at(script: Script) -> v1::DeliveryAttempt {
    let receiver = Receiver::start(script).await;
    first_attempt(&receiver.url(), LOOPBACK, retry::next_attempt).await
}

/// A redirect is a failure and is not followed.
#[tokio::test]
async fn redirects_are_not_followed() {
    let attempt = attempt_at(|_| Reply::Status(302, "location: /elsewhere\r\n", "")).await;
    assert_eq!((attempt.failure(), attempt.status_code), (v1::AttemptFailure::Status, 302));
    assert_eq!(attempt.error, "the destination answered 302; redirects are not followed");
}

/// The timeout covers the whole attempt: an answer that does not come, and a body that does not end.
#[tokio::test]
async fn timeout_covers_the_body() {
    let attempt = attempt_at(|_| Reply::Silence).await;
    assert_eq!((attempt.failure(), attempt.status_code), (v1::AttemptFailure::Timeout, 0));
    assert_eq!(attempt.error, "no complete answer within 1 s");
    let attempt = attempt_at(|_| Reply::StalledBody).await;
    assert_eq!((attempt.failure(), attempt.status_code), (v1::AttemptFailure::Timeout, 200));
    assert_eq!(attempt.response_excerpt.as_ref(), b"half");
}

/// Of an endless answer only the beginning is read, and less of it kept. Its status counts.
#[tokio::test]
async fn endless_answers_are_cut() {
    let attempt = attempt_at(|_| Reply::EndlessBody).await;
    assert_eq!((attempt.failure(), attempt.status_code), (v1::AttemptFailure::Unspecified, 200));
    assert_eq!(attempt.response_excerpt.len(), 16 * 1024);
}

/// A connection that breaks, or talks something else, is told apart from one that cannot be made.
#[tokio::test]
async fn broken_connections_are_named() {
    for script in [(|_| Reply::Close) as Script, |_| Reply::Nonsense] {
        assert_eq!(attempt_at(script).await.failure(), v1::AttemptFailure::Protocol);
    }
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let attempt = first_attempt(&format!("http://{unused}/"), LOOPBACK, retry::next_attempt).await;
    assert_eq!(attempt.failure(), v1::AttemptFailure::Connect);
    assert_eq!(attempt.error, "the destination refused the connection");
    let nowhere = "https://does-not-exist.invalid/";
    let attempt = first_attempt(nowhere, LOOPBACK, retry::next_attempt).await;
    assert_eq!(attempt.failure(), v1::AttemptFailure::Dns);
}

/// A private address is not dialled, by number or by name, and the report does not say which it was.
#[tokio::test]
async fn private_addresses_are_not_dialled() {
    let receiver = Receiver::start(ok).await;
    let port = receiver.address.port();
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("https://localhost:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
    ] {
        let attempt = first_attempt(&url, &["10.0.0.0/8"], retry::next_attempt).await;
        assert_eq!(attempt.failure(), v1::AttemptFailure::BlockedAddress, "{url}");
        assert!(!attempt.error.contains("127") && !attempt.error.contains("169"), "{}", attempt.error);
    }
    assert!(receiver.requests().is_empty());
}
