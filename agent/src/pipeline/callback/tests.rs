use std::{net::SocketAddr, time::Duration};

use gateway_core::id::EventId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    control_plane::Identity,
    opt_out::OptOuts,
    pipeline::{
        Pipeline,
        buffer::Buffer,
        callback::body::BODY_BYTES_MAX,
        tests::{APP_SECRET, TOKEN, buffer, configuration, fixture, signature},
    },
    provider::{ITEMS_MAX, Refusals},
    snapshot::SnapshotHandle,
};

mod https;

const DEADLINE: Duration = Duration::from_secs(25);

/// A whole front door on a free port, with a real buffer behind it.
struct FrontDoor {
    address: SocketAddr,
    buffer: Buffer,
    refusals: Refusals,
    pipeline: Pipeline,
    snapshot: SnapshotHandle,
    stop: CancellationToken,
    server: JoinSet<anyhow::Result<()>>,
    client: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl FrontDoor {
    async fn open() -> Self {
        Self::with(SnapshotHandle::fixed(configuration(&[("sub-one", &["*"])]))).await
    }

    async fn with(snapshot: SnapshotHandle) -> Self {
        Self::behind(snapshot, Front::default()).await
    }

    async fn behind(snapshot: SnapshotHandle, front: Front) -> Self {
        let (buffer, directory) = buffer().await;
        let (metrics, refusals, stop) = (Metrics::new(), Refusals::default(), CancellationToken::new());
        let identity: Identity =
            serde_json::from_str(r#"{"agent_id":"agt_test","region":"here","credential":"agent_x"}"#)
                .unwrap();
        let pipeline = Pipeline::new(
            &identity,
            snapshot.clone(),
            buffer.clone(),
            OptOuts::new(),
            metrics,
            refusals.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(pipeline.clone().serve(listener, front, stop.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self { address, buffer, refusals, pipeline, snapshot, stop, server, client, _directory: directory }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn post(&self, body: impl Into<Vec<u8>>) -> reqwest::RequestBuilder {
        let body = body.into();
        self.client
            .post(self.url(&format!("/callbacks/meta/{TOKEN}")))
            .header("content-type", "application/json")
            .header("x-hub-signature-256", signature(&body))
            .body(body)
    }

    fn refused(&self) -> Vec<(String, String, u64)> {
        let all = self.refusals.all().into_iter();
        all.map(|entry| (entry.inbound_route_id, entry.reason, entry.count)).collect()
    }
}

async fn status(request: reqwest::RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

/// A genuine callback is answered 200 with nothing in it, and is in the buffer by then; so is its repeat.
#[tokio::test]
async fn genuine_callbacks_are_accepted() {
    let door = FrontDoor::open().await;
    let id = EventId::derive(&["message.received", "meta", "support-line", "wamid.TEST1", "", "", ""]);
    assert!(!door.buffer.contains(&id));
    for _ in 0..2 {
        let answer = door.post(fixture("text_escaped")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.bytes().await.unwrap().is_empty());
        assert!(door.buffer.contains(&id));
    }
    // The message and the opt-out that it is.
    assert_eq!(door.buffer.stats().events, 2);
}

/// A revoked agent refuses callbacks, and says when to come again: nobody would see what it takes.
#[tokio::test]
async fn revoked_agents_refuse() {
    let door = FrontDoor::open().await;
    door.snapshot.drain().revoke().unwrap();
    let answer = door.post(fixture("text_escaped")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"30".parse().unwrap()));
    assert_eq!(door.buffer.stats().events, 0);
    assert_eq!(super::super::REVOKED.outcome(), "revoked");
}

/// What has nothing in it for us is answered 200, or the provider would repeat it for days.
#[tokio::test]
async fn other_shapes_are_accepted() {
    let door = FrontDoor::open().await;
    for body in [
        "{}",
        "[]",
        "7",
        "\"x\"",
        r#"{"object":"page"}"#,
        r#"{"object":"whatsapp_business_account","entry":[]}"#,
    ] {
        assert_eq!(status(door.post(body)).await, 200, "{body}");
    }
    let deep = format!("{}{}", "[".repeat(300_000), "]".repeat(300_000));
    assert_eq!(status(door.post(deep)).await, 200);
    for name in [
        "history",
        "object_other",
        "deep",
        "huge_numbers",
        "lone_surrogate",
        "duplicate_keys",
        "envelope_odd",
    ] {
        assert_eq!(status(door.post(fixture(name))).await, 200, "{name}");
    }
}

/// Every callback that is not genuine gets the same blank 401, whatever else is wrong with it; the reason is
/// counted.
#[tokio::test]
async fn refusals_are_blank() {
    let door = FrontDoor::open().await;
    let body = fixture("text");
    let good = signature(&body);
    let address = |provider: &str, token: &str| door.url(&format!("/callbacks/{provider}/{token}"));
    let post = |url: String, signature: Option<&str>| {
        let request = door.client.post(url).header("content-type", "application/json").body(body.clone());
        match signature {
            Some(signature) => request.header("x-hub-signature-256", signature),
            None => request,
        }
    };
    let wrong = signature(b"another body");
    let requests = [
        post(address("meta", TOKEN), None),
        post(address("meta", TOKEN), Some(&wrong)),
        post(address("meta", TOKEN), Some(&good[..40])),
        post(address("meta", "unknown-token"), Some(&good)),
        post(address("meta", "unknown-token"), None),
        post(address("twilio", TOKEN), Some(&good)),
        post(address("me%74a", TOKEN), Some(&good)),
        // Not even the media type and the JSON are looked at.
        door.client.post(address("meta", TOKEN)).header("content-type", "text/html").body("no json"),
    ];
    for (index, request) in requests.into_iter().enumerate() {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 401, "{index}");
        let mut headers: Vec<_> = answer.headers().keys().map(ToString::to_string).collect();
        headers.sort();
        assert_eq!(headers, ["content-length", "date"], "{index}");
        assert!(answer.bytes().await.unwrap().is_empty());
    }
    let counted = [
        ("", "unknown_token", 4),
        ("route-meta", "missing_signature", 2),
        ("route-meta", "malformed_signature", 1),
        ("route-meta", "wrong_signature", 1),
    ];
    assert_eq!(
        door.refused(),
        counted.map(|(route, reason, count)| (route.to_owned(), reason.to_owned(), count))
    );
    assert_eq!(door.buffer.stats().events, 0);
    assert_eq!(APP_SECRET.len(), 17);
}

/// Only a genuine callback is told that it is not JSON, or not sent as JSON; the reason is counted.
#[tokio::test]
async fn genuine_but_wrong_callbacks_are_told() {
    let door = FrontDoor::open().await;
    for body in ["", "{", "hello", "a=1"] {
        assert_eq!(status(door.post(body)).await, 400, "{body}");
    }
    let body = fixture("text");
    let post = |content_type: Option<&str>| {
        let url = door.url(&format!("/callbacks/meta/{TOKEN}"));
        let request =
            door.client.post(url).header("x-hub-signature-256", signature(&body)).body(body.clone());
        match content_type {
            Some(content_type) => request.header("content-type", content_type),
            None => request,
        }
    };
    for wrong in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonp"),
        Some(""),
    ] {
        assert_eq!(status(post(wrong)).await, 415, "{wrong:?}");
    }
    let json = "Application/JSON ; charset=utf-8";
    assert_eq!(status(post(Some(json)).header("content-encoding", "gzip")).await, 415);
    assert_eq!(status(post(Some(json)).header("content-encoding", "identity")).await, 200);
    let many = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{{"field":"messages","value":{{"statuses":[{}{{}}]}}}}]}}]}}"#,
        "{},".repeat(ITEMS_MAX)
    );
    assert_eq!(status(door.post(many)).await, 413);
    let counted = [("wrong_media_type", 6), ("unreadable_body", 4), ("too_many_items", 1)];
    assert_eq!(
        door.refused(),
        counted.map(|(reason, count)| ("route-meta".to_owned(), reason.to_owned(), count))
    );
}

/// A body over the limit is answered 413, announced or not, and the caller gets to read the answer. It is counted
/// with its route if there is one, so that whoever calls makes no entries.
#[tokio::test]
async fn large_bodies_are_refused() {
    let door = FrontDoor::open().await;
    let body = vec![b' '; BODY_BYTES_MAX + 1];
    assert_eq!(status(door.post(body.clone())).await, 413);
    for path in
        ["/callbacks/meta/unknown-1", "/callbacks/meta/unknown-2", &format!("/callbacks/waha/{TOKEN}")]
    {
        assert_eq!(status(door.client.post(door.url(path)).body(body.clone())).await, 413, "{path}");
    }
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    let head = format!(
        "POST /callbacks/meta/{TOKEN} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for chunk in body.chunks(1 << 20) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.unwrap();
        stream.write_all(chunk).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let largest = [b"[".to_vec(), vec![b' '; BODY_BYTES_MAX - 2], b"]".to_vec()].concat();
    assert_eq!(status(door.post(largest)).await, 200);
    let counted = [("", 3), ("route-meta", 2)];
    assert_eq!(
        door.refused(),
        counted.map(|(route, count)| (route.to_owned(), "too_large".to_owned(), count))
    );
}

/// What a provider that calls by GET sends is a callback and no handshake: refused, it gets 401.
#[tokio::test]
async fn callbacks_by_get_are_refused_as_by_post() {
    let door = FrontDoor::open().await;
    let query = "MessageSid=SM1&Body=hello";
    assert_eq!(status(door.client.get(door.url(&format!("/callbacks/twilio/x?{query}")))).await, 401);
    assert_eq!(status(door.client.get(door.url(&format!("/callbacks/bird/x?{query}")))).await, 403);
}

/// The handshake returns the challenge as plain text that no browser takes for a page; all else is 403.
#[tokio::test]
async fn handshake_is_answered() {
    let door = FrontDoor::open().await;
    let get = |token: &str, query: &str| {
        door.client.get(door.url(&format!("/callbacks/meta/{token}?{query}"))).send()
    };
    let good = "hub.mode=subscribe&hub.challenge=%3Cscript%3E1158201444&hub.verify_token=verify%20me";
    let answer = get(TOKEN, good).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    assert_eq!(answer.text().await.unwrap(), "<script>1158201444");
    for (token, query) in [
        ("unknown-token", good),
        (TOKEN, ""),
        (TOKEN, "hub.mode=subscribe&hub.challenge=1"),
        (TOKEN, "hub.mode=subscribe&hub.challenge=1&hub.verify_token=wrong"),
        (TOKEN, "hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=verify%20me"),
    ] {
        let answer = get(token, query).await.unwrap();
        assert_eq!(answer.status(), 403, "{query}");
        assert!(answer.bytes().await.unwrap().is_empty());
    }
    let reasons: Vec<String> = door.refused().into_iter().map(|(_, reason, _)| reason).collect();
    assert_eq!(reasons, ["unknown_token", "missing_parameter", "wrong_mode", "wrong_verify_token"]);
}

/// A callback for nobody's number is accepted and kept; when it comes back, claimed, its events are taken
/// once, and while it is unclaimed it is kept again.
#[tokio::test]
async fn claimed_callbacks_are_taken() {
    let number = "106540352242922";
    let door = FrontDoor::open().await;
    let body = String::from_utf8(fixture("text_escaped")).unwrap();
    let of_nobody = body.replace(number, "777").replace("15550783881", "15550000000");
    assert_eq!(status(door.post(of_nobody.clone())).await, 200);
    let id = EventId::derive(&["message.received", "meta", "support-line", "wamid.TEST1", "", "", ""]);
    assert!(!door.buffer.contains(&id));
    let callback = |payload_json: String| gateway_proto::v1::UnroutedCallback {
        inbound_route_id: "route-meta".to_owned(),
        payload_json,
        ..gateway_proto::v1::UnroutedCallback::default()
    };
    door.pipeline.replay_unrouted(callback(of_nobody)).await.unwrap();
    assert!(!door.buffer.contains(&id));
    for _ in 0..2 {
        door.pipeline.replay_unrouted(callback(body.clone())).await.unwrap();
        assert!(door.buffer.contains(&id));
    }
    assert_eq!(door.buffer.stats().events, 2, "the message and its opt-out");
    door.pipeline.replay_unrouted(callback("no json".to_owned())).await.unwrap();
}

/// Other paths and methods are not ours.
#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let door = FrontDoor::open().await;
    for path in [
        "/",
        "/callbacks",
        "/callbacks/meta",
        "/callbacks/meta/",
        "/callbacks//x",
        "/callbacks/meta/a/b",
        "/callbacks/unknown/a/b",
        "/callbacks/evolution/a/",
        "/callbacks/evolution/a/b/c",
        "/metrics",
    ] {
        assert_eq!(status(door.client.get(door.url(path))).await, 404, "{path}");
        assert_eq!(status(door.client.post(door.url(path))).await, 404, "{path}");
    }
    let answer = door.client.put(door.url(&format!("/callbacks/meta/{TOKEN}"))).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (405, &"GET, POST".parse().unwrap()));
}

/// Without a configuration and without a buffer the answer is 503 and when to try again, never 200 or 401.
#[tokio::test]
async fn refuses_with_503_when_it_cannot_take() {
    let door = FrontDoor::with(SnapshotHandle::empty()).await;
    let answer = door.post(fixture("text")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(status(door.client.get(door.url("/callbacks/meta/x"))).await, 503);
    door.snapshot.replace(configuration(&[]));
    assert_eq!(status(door.post(fixture("text"))).await, 200);
    door.buffer.close().await;
    let answer = door.post(fixture("status_read")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    // What is not genuine is refused as ever, and what has nothing to keep needs no buffer.
    assert_eq!(status(door.post("{}").header("x-hub-signature-256", "x")).await, 401);
    assert_eq!(status(door.post(fixture("history"))).await, 200);
}

/// At the stop a request that has begun is answered, new connections are not taken, and the server ends.
#[tokio::test]
async fn drains_at_the_stop() {
    let mut door = FrontDoor::open().await;
    let body = fixture("text");
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    let head = format!(
        "POST /callbacks/meta/{TOKEN} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n\
         x-hub-signature-256: {}\r\ncontent-length: {}\r\n\r\n",
        signature(&body),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body, so the request has begun.
    let mut interim = [0; 25];
    timeout(DEADLINE, stream.read_exact(&mut interim)).await.unwrap().unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100"));
    door.stop.cancel();
    stream.write_all(&body).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    timeout(DEADLINE, door.server.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(door.address).await.is_err());
}

/// Who sends headers too slowly, or none, loses the connection; a body too slow is answered 503.
#[tokio::test(start_paused = true)]
async fn slow_callers_are_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::new();
    let server = CallbackServer { listener, accept: Nobody, front: Front::default(), metrics };
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));
    for (sent, answer) in [
        ("", ""),
        ("POST /callbacks/meta/x HTTP/1.1\r\nhost:", ""),
        ("POST /callbacks/meta/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{", "HTTP/1.1 503 "),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(got.starts_with(answer), "{sent}: {got}");
        assert!(!got.contains(" 200 "), "{sent}: {got}");
    }
}

/// Bodies that would not fit in memory together are refused at once, and room comes back.
#[tokio::test]
async fn bodies_have_a_budget() {
    let budget = BodyBudget::default();
    let mut rooms = Vec::new();
    loop {
        let mut room = None;
        if !budget.take(BODY_BYTES_MAX, &mut room) {
            break;
        }
        rooms.push(room);
    }
    assert_eq!(rooms.len(), body::BODIES_BYTES_MAX / BODY_BYTES_MAX);
    rooms.pop();
    assert!(budget.take(BODY_BYTES_MAX, &mut None));
}

/// Takes nothing.
#[derive(Clone)]
struct Nobody;

impl Accept for Nobody {
    fn is_ready(&self) -> bool {
        true
    }

    fn handshake(&self, _: Address<'_>, _: &str) -> Answer {
        Answer::HandshakeRefused
    }

    fn refuse_too_large(&self, _: Address<'_>) -> Answer {
        Answer::TooLarge
    }

    async fn accept(&self, _: Address<'_>, _: CallbackRequest) -> Answer {
        Answer::Accepted(Reply::EMPTY)
    }

    async fn drain(&self) {}
}
