//! Only genuine callbacks are taken, and odd ones do no harm. Answers as in the table of the providers.

use anyhow::ensure;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Within as _, World, eventually, http,
    meta::{Disguise, SIGNATURE_HEADER, text_message, unique_wamid},
    world::{INSTANCE_ID, VERIFY_TOKEN},
};
use serde_json::json;

const FROM: &str = "966500000001";
/// The largest callback body that is taken: Meta's is 3 MB at most.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Whatever is wrong with the signature or the token, the answer is the same blank 401, also for bodies
/// that are no JSON and for other content types; nothing of it is delivered or logged.
#[tokio::test]
async fn forged_callbacks_are_refused_without_detail() {
    let world = World::start().await.unwrap();
    let provider = &world.provider;
    let body =
        serde_json::to_vec(&provider.messages(&[text_message(&unique_wamid(), FROM, "forged")])).unwrap();
    let good = provider.sign(&body);
    let reserialized =
        serde_json::to_vec_pretty(&serde_json::from_slice::<serde_json::Value>(&body).unwrap());
    let signatures = [
        None,
        Some(String::new()),
        Some("sha256=".to_owned()),
        Some(good[..good.len() - 1].to_owned()),
        Some(good.trim_start_matches("sha256=").to_owned()),
        Some(good.replace("sha256=", "sha1=")),
        Some(format!("{good}00")),
        Some(format!("sha256={}", "z".repeat(64))),
        Some(format!("sha256={}", "0".repeat(64))),
        Some(provider.with_secret("another-app-secret").sign(&body)),
        Some(provider.sign(&reserialized.unwrap())),
    ];
    for signature in signatures {
        let disguise = Disguise { signature: Some(signature.clone()), content_type: None };
        let answer = provider.post_bytes(body.clone(), disguise).await.unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (401, b"".as_slice()), "{signature:?}");
    }
    let path = &world.inbound_route.callback_path;
    let unknown = [
        format!("{}x", path),
        path[..path.len() - 1].to_owned(),
        "/callbacks/meta/unknown".to_owned(),
        path.replace("/meta/", "/twilio/"),
    ];
    for path in unknown {
        let stranger = provider.with_url(world.agent.callback_url(&path));
        let answer = stranger.post_bytes(body.clone(), Disguise::default()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (401, b"".as_slice()), "{path}");
    }
    let unsigned = || Disguise { signature: Some(None), content_type: Some("text/plain".to_owned()) };
    for body in [b"no json".to_vec(), Vec::new()] {
        assert_eq!(provider.post_bytes(body, unsigned()).await.unwrap().status, 401);
    }
    let genuine = provider.say(FROM, "genuine").await.unwrap();
    world.delivered(&genuine).await.unwrap();
    assert_eq!(world.receiver.count(), 1);
    // What the answer does not say, the operator can see.
    eventually(DEADLINE, async || {
        let request = v1::DiagnoseInstanceRequest { id: INSTANCE_ID.to_owned() };
        let diagnosis = world.client().instances().diagnose_instance(request).await?.into_inner();
        let refused: u64 = diagnosis.callback_refusals.iter().map(|refusal| refusal.count).sum();
        ensure!(refused >= 11, "{refused} refused callbacks in {:?}", diagnosis.callback_refusals);
        Ok(())
    })
    .await
    .unwrap();
}

/// The vectors of Meta's format: escaped Unicode is hashed as it came, and its re-serialized twin is refused.
#[tokio::test]
async fn signature_is_over_the_raw_bytes() {
    const BODY: &str = r#"{"object":"whatsapp_business_account","entry":[{"id":"102290129340398","changes":[{"value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"},"contacts":[{"profile":{"name":"Zo\u00eb"},"wa_id":"16505551234"}],"messages":[{"from":"16505551234","id":"wamid.TEST1","timestamp":"1749416383","type":"text","text":{"body":"STOP \ud83d\uded1"}}]},"field":"messages"}]}]}"#;
    const SIGNATURE: &str = "sha256=7a15522da38ea78e433b81d52c9b0415195ad4cbce882b2258b624c43e3e4ea0";
    let world = World::start().await.unwrap();
    let signed = || Disguise { signature: Some(Some(SIGNATURE.to_owned())), content_type: None };
    let reserialized: serde_json::Value = serde_json::from_str(BODY).unwrap();
    let answer =
        world.provider.post_bytes(serde_json::to_vec(&reserialized).unwrap(), signed()).await.unwrap();
    assert_eq!(answer.status, 401);
    let answer = world.provider.post_bytes(BODY.into(), signed()).await.unwrap();
    assert_eq!(answer.status, 200);
    let webhook = world.delivered("wamid.TEST1").await.unwrap();
    assert_eq!(webhook.text("message_text"), "STOP 🛑");
    assert_eq!(webhook.json()["contact"]["name"], "Zoë");
    let opted_out = world.receiver.find(|webhook| webhook.event() == "recipient.opted_out");
    opted_out.within(DEADLINE).await.unwrap();
}

/// The handshake gives the challenge back to whoever knows the verify token, and 403 to everybody else.
#[tokio::test]
async fn handshake_needs_the_verify_token() {
    let world = World::start().await.unwrap();
    let mode = ("hub.mode", "subscribe");
    let token = ("hub.verify_token", VERIFY_TOKEN);
    let challenge = ("hub.challenge", "<b>1158201444</b>");
    let answer = world.provider.handshake(&[mode, challenge, token]).await.unwrap();
    assert_eq!((answer.status, answer.body.as_ref()), (200, challenge.1.as_bytes()));
    assert!(
        answer.headers["content-type"].to_str().unwrap().starts_with("text/plain"),
        "{:?}",
        answer.headers
    );
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    let refused: [&[(&str, &str)]; 7] = [
        &[],
        &[mode, challenge],
        &[mode, token],
        &[challenge, token],
        &[mode, challenge, ("hub.verify_token", "wrong")],
        &[mode, challenge, ("hub.verify_token", "")],
        &[("hub.mode", "unsubscribe"), challenge, token],
    ];
    for query in refused {
        assert_eq!(world.provider.handshake(query).await.unwrap().status, 403, "{query:?}");
    }
    let stranger = world.provider.with_url(world.agent.callback_url("/callbacks/meta/unknown"));
    assert_eq!(stranger.handshake(&[mode, challenge, token]).await.unwrap().status, 403);
}

/// Several app secrets are live during a rotation; a removed one is refused, and the last one stays.
#[tokio::test]
async fn app_secrets_rotate_without_a_gap() {
    let world = World::start().await.unwrap();
    let (old, new) = (&world.provider, world.provider.with_secret("meta-app-secret-2"));
    let callback = || new.messages(&[text_message(&unique_wamid(), FROM, "new secret")]);
    assert_eq!(new.post(&callback()).await.unwrap().status, 401);
    let mut routes = world.client().inbound_routes();
    let request = v1::AddInboundRouteSecretRequest {
        id: world.inbound_route.id.clone(),
        kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
        value: "meta-app-secret-2".to_owned(),
        ..Default::default()
    };
    routes.add_inbound_route_secret(request).await.unwrap();
    world.config_applied().await.unwrap();
    for provider in [old, &new] {
        let wamid = provider.say(FROM, "both are live").await.unwrap();
        world.delivered(&wamid).await.unwrap();
    }
    let secrets = world.inbound_route.secrets.iter();
    let first = secrets.into_iter().find(|secret| secret.kind() == v1::InboundRouteSecretKind::MetaAppSecret);
    let remove = |secret_id: &str| v1::RemoveInboundRouteSecretRequest {
        id: world.inbound_route.id.clone(),
        secret_id: secret_id.to_owned(),
    };
    let response = routes.remove_inbound_route_secret(remove(&first.unwrap().id)).await.unwrap().into_inner();
    world.config_applied().await.unwrap();
    assert_eq!(old.post(&callback()).await.unwrap().status, 401);
    assert_eq!(new.post(&callback()).await.unwrap().status, 200);
    let left = response.inbound_route.unwrap().secrets;
    let last = left.iter().find(|secret| secret.kind() == v1::InboundRouteSecretKind::MetaAppSecret).unwrap();
    let refused = routes.remove_inbound_route_secret(remove(&last.id)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

/// Too large is 413, before the body is read and before authentication, by the announced length and by what
/// comes; a body of exactly the limit is taken.
#[tokio::test]
async fn oversized_bodies_are_refused() {
    let world = World::start().await.unwrap();
    let path = &world.inbound_route.callback_path;
    let head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n");
    let announced = format!("{head}content-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
    let (status, text) = http::send_raw(world.agent.callback_addr(), announced.as_bytes()).await.unwrap();
    assert_eq!(status, 413, "{text}");
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    let chunk = vec![b'x'; 64 * 1024];
    for _ in 0..=BODY_BYTES_MAX / chunk.len() {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(&chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    let (status, text) = http::send_raw(world.agent.callback_addr(), &chunked).await.unwrap();
    assert_eq!(status, 413, "{text}");
    let wamid = unique_wamid();
    let mut body =
        serde_json::to_vec(&world.provider.messages(&[text_message(&wamid, FROM, "large")])).unwrap();
    body.resize(BODY_BYTES_MAX, b' ');
    let answer = world.provider.post_bytes(body, Disguise::default()).await.unwrap();
    assert_eq!(answer.status, 200);
    world.delivered(&wamid).await.unwrap();
}

/// Genuine but odd: no JSON is 400, another content type 415, another shape is taken; deep nesting, huge
/// numbers, wrong types and broken surrogates neither hurt nor get lost; what follows is served.
#[tokio::test]
async fn genuine_oddities_are_taken_without_harm() {
    let world = World::selecting(&["*"]).await.unwrap();
    let provider = &world.provider;
    for body in ["", "{", "no json", "{\"object\":\"whatsapp_business_account\"", "\u{0}"] {
        let answer = provider.post_bytes(body.into(), Disguise::default()).await.unwrap();
        assert_eq!(answer.status, 400, "{body:?}");
    }
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
    {
        let disguise = Disguise { signature: None, content_type: Some(content_type.to_owned()) };
        let answer = provider.post_bytes(b"{}".to_vec(), disguise).await.unwrap();
        assert_eq!(answer.status, 415, "{content_type:?}");
    }
    let disguise =
        Disguise { content_type: Some("Application/JSON; charset=UTF-8".to_owned()), ..Disguise::default() };
    assert_eq!(provider.post_bytes(b"{}".to_vec(), disguise).await.unwrap().status, 200);
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let inside = |value: &str| {
        let change = provider.change("messages", json!({"messages": ["PLACE"]})).to_string();
        let change = change.replace("\"PLACE\"", value);
        format!(r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{change}]}}]}}"#)
    };
    let oddities = [
        "[]".to_owned(),
        "null".to_owned(),
        "17".to_owned(),
        r#"{"object":"page","entry":[{"id":"1"}]}"#.to_owned(),
        r#"{"object":"whatsapp_business_account","entry":{"id":7,"changes":null}}"#.to_owned(),
        r#"{"object":"whatsapp_business_account","entry":[null,7,"x",{"changes":[[],{}]}]}"#.to_owned(),
        deep(200),
        deep(100_000),
        inside(&deep(5_000)),
        inside(
            r#"{"id":"wamid.huge","from":"966500000001","timestamp":1e999,"type":"text","text":{"body":123456789012345678901234567890e99999}}"#,
        ),
        inside(r#"{"id":"wamid.wrong","from":["966500000001"],"timestamp":{},"type":7,"text":null}"#),
        inside(
            r#"{"id":"wamid.surrogate","from":"966500000001","timestamp":"1749416383","type":"text","text":{"body":"\ud83d alone"}}"#,
        ),
        inside("null"),
    ];
    for body in oddities {
        let shown: String = body.chars().take(80).collect();
        let answer = provider.post_bytes(body.into_bytes(), Disguise::default()).await.unwrap();
        assert_eq!(answer.status, 200, "{shown}");
    }
    for wamid in ["wamid.huge", "wamid.wrong", "wamid.surrogate"] {
        world.delivered(wamid).await.unwrap();
    }
    let wamid = provider.say(FROM, "still serving").await.unwrap();
    world.delivered(&wamid).await.unwrap();
    let metrics = world.agent.metrics().await.unwrap();
    assert!(metrics.contains("gateway_callbacks"), "{metrics}");
}

/// Other methods, other paths and broken HTTP get an answer or a closed connection, and the agent goes on.
#[tokio::test]
async fn broken_requests_do_no_harm() {
    let world = World::start().await.unwrap();
    let path = &world.inbound_route.callback_path;
    let address = world.agent.callback_addr();
    for request in [
        format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"),
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "POST /callbacks/../../etc HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".to_owned(),
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: nonsense\r\n\r\n"),
        format!("POST {path} HTTP/1.1\r\n{SIGNATURE_HEADER}: \u{1}\r\n\r\n"),
    ] {
        if let Ok((status, _)) = http::send_raw(address, request.as_bytes()).await {
            assert!((400..500).contains(&status), "{request:?} answers {status}");
        }
    }
    let wamid = world.provider.say(FROM, "still serving").await.unwrap();
    world.delivered(&wamid).await.unwrap();
}
