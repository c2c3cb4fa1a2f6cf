//! Every way in which a destination can be bad, and what is recorded of it. None may cost more than the
//! attempt's time and a bounded amount of memory.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::OwnedSemaphorePermit,
};
use v1::AttemptFailure as Kind;

use super::{
    bench::{LOOPBACK, attempt_at, attempter, failure, impatient, is_quick, owed, policy, settings},
    receiver::{Raw, hold, respond},
    *,
};
use crate::pipeline::deliver::{
    attempt::Verdict,
    dial::{Resolve, Resolving},
};

/// The first attempt at a destination that writes these bytes after the request and then waits.
async fn attempt_answered(bytes: &'static [u8]) -> attempt::Made {
    let raw = Raw::start(move |stream, _| async move { hold(respond(stream, bytes).await).await }).await;
    attempt_at(&raw.url()).await
}

/// The same, but it closes the connection after them.
async fn attempt_cut(bytes: &'static [u8]) -> attempt::Made {
    let raw = Raw::start(move |stream, _| async move { drop(respond(stream, bytes).await) }).await;
    attempt_at(&raw.url()).await
}

/// A redirect is a failure and is not followed.
#[tokio::test]
async fn redirects_are_not_followed() {
    let receiver = Receiver::start(|_| Reply::Status(302, "location: /elsewhere\r\n", "")).await;
    let made = attempt_at(&receiver.url()).await;
    assert_eq!(failure(&made), (Kind::Status, "the destination answered 302; redirects are not followed"));
    assert_eq!(made.attempt.status_code, 302);
    assert_eq!(receiver.requests().len(), 1);
}

/// The timeout covers the whole attempt, and what had not happened is told: an answer that does not come, one
/// that drips, and a body that does not end.
#[tokio::test]
async fn timeout_covers_the_whole_answer() {
    let made = attempt_answered(b"").await;
    let waiting = "no complete answer within 1 s: still waiting for the answer of the destination";
    assert_eq!(failure(&made), (Kind::Timeout, waiting));
    assert_eq!(made.attempt.status_code, 0);

    let drip = Raw::start(|stream, _| async move {
        let mut stream = respond(stream, b"").await;
        for byte in b"HTTP/1.1 200 OK\r\n" {
            stream.write_all(&[*byte]).await.unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert_eq!(failure(&attempt_at(&drip.await.url()).await), (Kind::Timeout, waiting));

    let drip = Raw::start(|stream, _| async move {
        let mut stream = respond(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let made = attempt_at(&drip.await.url()).await;
    let reading = "no complete answer within 1 s: still reading the answer of the destination";
    assert_eq!(failure(&made), (Kind::Timeout, reading));
    assert_eq!(made.attempt.status_code, 200);
    assert!(made.attempt.response_excerpt.starts_with(b"xx"), "{:?}", made.attempt.response_excerpt);

    let made = attempt_answered(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    assert_eq!(failure(&made), (Kind::Timeout, reading));
    assert_eq!(made.attempt.response_excerpt.as_ref(), b"x");
}

/// An answer that is a refusal counts as that, also when its body does not end.
#[tokio::test]
async fn refusals_need_no_body() {
    let made = attempt_answered(b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 9\r\n\r\nx").await;
    assert_eq!(failure(&made), (Kind::Status, "the destination answered 503"));
    let retry_after = Some(Duration::from_secs(7));
    let verdict = Verdict::Failed { retry_after, slow_down: true, quick: false, ours: false };
    assert_eq!(made.verdict, verdict);
    let made = attempt_cut(b"HTTP/1.1 410 Gone\r\ncontent-length: 9\r\n\r\nx").await;
    assert_eq!((made.verdict, made.attempt.status_code), (Verdict::Gone, 410));
}

/// Of ten gigabytes, announced or in chunks without end, only the beginning is read, and less of it kept. The
/// status counts, and the connection is not used again.
#[tokio::test]
async fn endless_answers_are_cut() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        let (sent, mut was_sent) = tokio::sync::mpsc::channel(1);
        let raw = Raw::start(move |stream, _| {
            let sent = sent.clone();
            async move {
                let mut stream = respond(stream, head.as_bytes()).await;
                // Chunks as they are in the chunked form, bytes like others in the other two.
                let chunk = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat();
                let mut bytes_sent = 0_usize;
                while stream.write_all(&chunk).await.is_ok() {
                    bytes_sent += chunk.len();
                }
                sent.send(bytes_sent).await.unwrap();
            }
        })
        .await;
        let made = attempt_at(&raw.url()).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        assert_eq!(made.attempt.response_excerpt.len(), 16 * 1024);
        let bytes_sent = tokio::time::timeout(DEADLINE, was_sent.recv()).await.unwrap().unwrap();
        assert!(bytes_sent < 64 << 20, "{bytes_sent} bytes were taken");
    }
}

/// What is not HTTP/1.1 is told from a connection that breaks, and that from one that cannot be made.
#[tokio::test]
async fn broken_connections_are_named() {
    let no_http = "the destination answered something that is not HTTP/1.1";
    assert_eq!(failure(&attempt_cut(b"220 smtp.example.com ESMTP\r\n").await), (Kind::Protocol, no_http));
    assert_eq!(failure(&attempt_answered(b"\0\xff\0\xff\r\n\r\n").await), (Kind::Protocol, no_http));
    let http2 = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    let made = attempt_answered(http2).await;
    assert_eq!(failure(&made), (Kind::Protocol, "the destination speaks HTTP/2 only"));
    let made = attempt_answered(b"\x15\x03\x01\0\x02\x02\x46").await;
    assert_eq!(failure(&made), (Kind::Protocol, "the destination expects TLS: use https"));

    let closed = attempt_cut(b"").await;
    let no_answer = "the destination closed the connection without an answer";
    assert_eq!((failure(&closed), is_quick(&closed)), ((Kind::Protocol, no_answer), true));
    let made = attempt_cut(b"HTTP/1.1 200 OK\r\ncontent-").await;
    let within = "the destination closed the connection within the headers of its answer";
    assert_eq!((failure(&made), is_quick(&made)), ((Kind::Protocol, within), false));
    let reset = Raw::start(|stream, _| async move {
        respond(stream, b"").await.set_zero_linger().unwrap();
    })
    .await;
    let made = attempt_at(&reset.url()).await;
    assert_eq!(failure(&made), (Kind::Protocol, "the destination reset the connection before an answer"));

    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let made = attempt_at(&format!("http://{unused}/")).await;
    let refused = (Kind::Connect, "the destination refused the connection");
    assert_eq!((failure(&made), is_quick(&made)), (refused, true));
    let made = attempt_at("https://does-not-exist.invalid/").await;
    assert_eq!(made.attempt.failure(), Kind::Dns, "{}", made.attempt.error);
}

/// A server that closes as soon as it is connected to gets the next try at once.
#[tokio::test]
async fn closing_at_once_is_quick() {
    let raw = Raw::start(|stream, _| async move { drop(stream) }).await;
    let made = attempt_at(&raw.url()).await;
    assert_eq!((made.attempt.failure(), is_quick(&made)), (Kind::Protocol, true), "{}", made.attempt.error);
}

/// A length that is not the body's: too long is a failure, too short is an answer and the end of the
/// connection.
#[tokio::test]
async fn lying_lengths_are_seen() {
    let made = attempt_cut(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let ended = (Kind::Protocol, "the destination ended the answer before its end");
    assert_eq!((failure(&made), made.attempt.response_excerpt.as_ref()), (ended, b"half".as_slice()));
    let made = attempt_cut(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n").await;
    assert_eq!(failure(&made), (Kind::Protocol, "the destination sent an answer that is not HTTP"));

    let raw = Raw::start(|stream, _| async move {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok, and more of it";
        hold(respond(stream, bytes).await).await;
    })
    .await;
    let (attempter, config) = (attempter(LOOPBACK), settings(impatient(&raw.url())));
    for connections in 1..=3 {
        let made = attempter.attempt(&owed(), &config).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        assert_eq!((made.attempt.response_excerpt.as_ref(), raw.accepted()), (&b"ok"[..], connections));
    }
}

/// Heads are read as far as any honest one goes: not too long, not too many headers, and not interim answers
/// for ever. Some of them are fine.
#[tokio::test]
async fn heads_are_limited() {
    let too_many = (Kind::Protocol, "the destination sent more headers than the 16 KiB that are read");
    let raw = Raw::start(|stream, _| async move {
        let mut stream = respond(stream, b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"x-header: with a value that is quite long\r\n").await.is_ok() {}
    })
    .await;
    assert_eq!(failure(&attempt_at(&raw.url()).await), too_many);
    let raw = Raw::start(|stream, _| async move {
        let headers = "x: y\r\n".repeat(65);
        let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n");
        hold(respond(stream, head.as_bytes()).await).await;
    })
    .await;
    assert_eq!(failure(&attempt_at(&raw.url()).await), too_many);
    let raw = Raw::start(|stream, _| async move {
        let mut stream = respond(stream, b"").await;
        while stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await.is_ok() {}
    })
    .await;
    assert_eq!(failure(&attempt_at(&raw.url()).await), too_many);
    let made = attempt_answered(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    )
    .await;
    assert_eq!((made.verdict, made.attempt.status_code), (Verdict::Delivered, 204));
    let made = attempt_answered(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n").await;
    assert_eq!(failure(&made), (Kind::Status, "the destination answered 101"));
}

/// `Retry-After` in both forms is handed on, cut to a day, and nonsense is none.
#[tokio::test]
async fn retry_after_is_read() {
    for (header, expected) in [
        ("retry-after: 120\r\n", Some(120)),
        ("retry-after: 1000000000000\r\n", Some(86_400)),
        ("retry-after: 99999999999999999999999999\r\n", Some(86_400)),
        ("retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n", Some(0)),
        ("retry-after: Tue, 31 Dec 2999 23:59:59 GMT\r\n", Some(86_400)),
        ("retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n", None),
        ("retry-after: -5\r\n", None),
        ("retry-after: soon\r\n", None),
        ("retry-after: \r\n", None),
        ("retry-after: \u{fffd}\u{1f}\r\n", None),
        ("", None),
    ] {
        let raw = Raw::start(move |stream, _| async move {
            let head = format!("HTTP/1.1 429 Busy\r\n{header}content-length: 0\r\n\r\n");
            hold(respond(stream, head.as_bytes()).await).await;
        })
        .await;
        let made = attempt_at(&raw.url()).await;
        if made.attempt.failure() == Kind::Protocol {
            assert!(header.contains('\u{1f}'), "{header}: {}", made.attempt.error);
            continue;
        }
        let Verdict::Failed { retry_after, slow_down, .. } = made.verdict else { panic!("{header}") };
        assert_eq!((retry_after, slow_down), (expected.map(Duration::from_secs), true), "{header}");
    }
}

struct Stalled;

impl Resolve for Stalled {
    fn resolve(&self, _name: &str, turn: OwnedSemaphorePermit) -> Resolving {
        Box::pin(async move {
            let _kept = turn;
            std::future::pending().await
        })
    }
}

/// A name that is never resolved, a connection that is never made, a handshake that is never answered and a
/// request that is never read: each ends with the attempt, and is named.
#[tokio::test]
async fn stalls_are_named_by_their_phase() {
    let text = |made: &attempt::Made| {
        assert_eq!(made.attempt.failure(), Kind::Timeout, "{}", made.attempt.error);
        assert!(!is_quick(made));
        made.attempt.error.strip_prefix("no complete answer within 1 s: ").unwrap().to_owned()
    };
    let stalled =
        Attempter::with_resolver(policy(LOOPBACK), "agt_1", Metrics::new(), Arc::new(Stalled)).unwrap();
    let made = stalled.attempt(&owed(), &settings(impatient("https://example.com/"))).await;
    assert_eq!(text(&made), "still resolving the name of the destination");

    let (full, _kept) = full_listener().await;
    let made = attempt_at(&format!("http://{full}/")).await;
    assert_eq!(text(&made), "still connecting to the destination");

    let silent = Raw::start(|stream, _| hold(stream)).await;
    let made = attempt_at(&format!("https://{}/", silent.address)).await;
    assert_eq!(text(&made), "still in the TLS handshake with the destination");

    let deaf = Raw::start(|stream, _| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let log = v1::InboundLog { payload_json: "x".repeat(32 << 20), ..event(1, &[]).log };
    let large = Owed { log: log.into(), attempts: 0 };
    let made = attempter(LOOPBACK).attempt(&large, &settings(impatient(&deaf.url()))).await;
    assert_eq!(text(&made), "still sending to the destination");
}

/// A listener that answers no connection any more, because nobody takes those that wait.
async fn full_listener() -> (std::net::SocketAddr, Vec<Box<dyn std::any::Any + Send>>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept: Vec<Box<dyn std::any::Any + Send>> = vec![Box::new(listener)];
    let connect = || tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address));
    while let Ok(connected) = connect().await {
        kept.push(Box::new(connected.unwrap()));
    }
    (address, kept)
}

/// A dead first address leaves time for the second: each has its share.
#[tokio::test]
async fn the_second_address_is_tried() {
    let receiver = Receiver::start(ok).await;
    let resolver =
        bench::Scripted::new(|_, _| vec!["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
    let attempter = Attempter::with_resolver(policy(LOOPBACK), "agt_1", Metrics::new(), resolver).unwrap();
    let url = format!("http://two.example:{}/", receiver.address.port());
    let made = attempter.attempt(&owed(), &settings(impatient(&url))).await;
    assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
    let host = receiver.requests()[0].header("host").unwrap().to_owned();
    assert_eq!(host, format!("two.example:{}", receiver.address.port()));
}

/// An idle connection that the destination closed is no failure: before the request it is seen, and if it is
/// closed on the request, that goes out once more over a new one. On a new connection it is a failure.
#[tokio::test]
async fn closed_idle_connections_cost_nothing() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let raw = Raw::start(|stream, _| async move { drop(respond(stream, ANSWER).await) }).await;
    let (attempter, config) = (attempter(LOOPBACK), settings(impatient(&raw.url())));
    for _ in 0..5 {
        let made = attempter.attempt(&owed(), &config).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
    }
    assert_eq!(raw.accepted(), 5);

    // Answers the first request of each connection, and closes on the second.
    let raw = Raw::start(|stream, connection| async move {
        let stream = respond(stream, ANSWER).await;
        let mut stream = respond(stream, b"").await;
        if connection == 1 {
            stream.read_to_end(&mut Vec::new()).await.unwrap_or_default();
        }
    })
    .await;
    let config = settings(impatient(&raw.url()));
    for connections in [1, 2] {
        let made = attempter.attempt(&owed(), &config).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        assert_eq!(raw.accepted(), connections);
    }

    let raw = Raw::start(|stream, _| async move { drop(respond(stream, b"").await) }).await;
    let made = attempter.attempt(&owed(), &settings(impatient(&raw.url()))).await;
    assert_eq!((made.attempt.failure(), raw.accepted()), (Kind::Protocol, 1));
}

/// A connection serves many attempts, also when settings change that do not concern it. Where it goes and how
/// TLS is done concern it.
#[tokio::test]
async fn connections_belong_to_their_settings() {
    let receiver = Receiver::start(ok).await;
    let attempter = attempter(LOOPBACK);
    let plain = impatient(&receiver.url());
    let headers = [("x-new".to_owned(), "header".to_owned())].into();
    let with_header = v1::WebhookSubscription { headers, ..plain.clone() };
    let with_ca = v1::WebhookSubscription { extra_ca_pem: "other".to_owned(), ..plain.clone() };
    let elsewhere = v1::WebhookSubscription {
        destination_url: format!("http://127.0.0.2:{}/", receiver.address.port()),
        ..plain.clone()
    };
    let other_subscription = v1::WebhookSubscription { id: "sub_b".to_owned(), ..plain.clone() };
    let configs = [plain.clone(), plain.clone(), with_header, with_ca, plain, other_subscription];
    for config in configs {
        let made = attempter.attempt(&owed(), &settings(config)).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
    }
    let used: Vec<usize> = receiver.requests().iter().map(|request| request.connection).collect();
    assert_eq!(used, [0, 0, 0, 1, 2, 3]);
    let made = attempter.attempt(&owed(), &settings(elsewhere)).await;
    assert_eq!(made.attempt.failure(), Kind::Connect, "an old connection was used");
}

/// Attempts at once use a connection each, and no more are kept than may be used at once.
#[tokio::test]
async fn idle_connections_are_bounded() {
    let receiver = Receiver::start(ok).await;
    let attempter = attempter(LOOPBACK);
    let config = settings(v1::WebhookSubscription { concurrency_max: 2, ..impatient(&receiver.url()) });
    for round in 1..=2 {
        let mut running = JoinSet::new();
        for _ in 0..2 {
            let (attempter, config) = (attempter.clone(), Arc::clone(&config));
            running.spawn(async move { attempter.attempt(&owed(), &config).await.verdict });
        }
        while let Some(verdict) = running.join_next().await {
            assert_eq!(verdict.unwrap(), Verdict::Delivered);
        }
        let connections: std::collections::BTreeSet<usize> =
            receiver.requests().iter().map(|request| request.connection).collect();
        assert!(connections.len() <= 2, "round {round}: {connections:?}");
    }
}
