//! Some providers sign the URL that they call, which is not the one that the agent sees behind a proxy.

use anyhow::ensure;
use gateway_core::event::Provider;
use gateway_proto::v1::InboundRouteSecretKind as Kind;
use gateway_tests::{Agent, World, agent::AgentOptions, meta::Answer};
use serde_json::{Value, json};

use super::{
    Line,
    dialect::{self, form},
    line::Call,
    lines,
};

/// The providers that sign the URL.
const SIGNERS: [(Provider, Kind); 3] = [
    (Provider::Twilio, Kind::TwilioAuthToken),
    (Provider::MessageBird, Kind::MessagebirdSigningKey),
    (Provider::Bird, Kind::BirdSigningKey),
];
/// As operators may set it, and what providers then sign.
const PUBLIC_BASE_URLS: [(&str, &str); 5] = [
    ("https://gw.example.com", "https://gw.example.com"),
    ("https://gw.example.com/", "https://gw.example.com"),
    ("https://gw.example.com:443", "https://gw.example.com:443"),
    ("HTTPS://GW.Example.com:8443", "https://gw.example.com:8443"),
    ("https://gw.Example.com/In/WhatsApp", "https://gw.example.com/In/WhatsApp"),
];
/// Path and query reach the signature byte for byte.
const TAIL: &str = "?tenant=7&x=%2f%C3%A9+&empty=";

/// An agent behind a proxy takes what was signed for its public base URL, whatever address the proxy calls, and
/// with every port that Twilio may add or leave out; what was signed for another URL is refused.
#[tokio::test]
async fn signatures_are_of_the_public_url() {
    let world = World::start().await.unwrap();
    let lines = lines(&world, &SIGNERS).await.unwrap();
    for (index, (setting, base)) in PUBLIC_BASE_URLS.into_iter().enumerate() {
        let directory = world.directory().join(format!("proxied-{index}"));
        let arguments = vec!["--public-base-url".to_owned(), setting.to_owned()];
        let options = AgentOptions { arguments, ..AgentOptions::default() };
        let agent = Agent::start(&directory, &world.control_plane, options).await.unwrap();
        world.config_applied().await.unwrap();
        for line in &lines {
            let check = async |public: &str, port: Value, status: u16| {
                let answered = at(line, &agent, public, port.clone()).await?;
                ensure!(answered == status, "signed for {public} ({port}): answered {answered}");
                anyhow::Ok(())
            };
            let of_line = async {
                check(base, Value::Null, 200).await?;
                if line.provider == Provider::Twilio {
                    check(base, json!("with"), 200).await?;
                    check(base, json!("without"), 200).await?;
                }
                if base == "https://gw.example.com" {
                    check("https://gw.example.com:443", Value::Null, 200).await?;
                }
                for other in [
                    "http://gw.example.com",
                    "https://other.example.com",
                    "https://gw.example.com:9443",
                    "https://gw.example.com/other",
                    &format!("http://{}", agent.callback_addr()),
                ] {
                    check(other, Value::Null, 401).await?;
                }
                anyhow::Ok(())
            };
            if let Err(error) = of_line.await {
                panic!("{} behind {base}: {error:#}", line.provider.name());
            }
        }
    }
}

/// The status of the answer to a message that was signed for this public address. What is taken is delivered.
async fn at(line: &Line<'_>, agent: &Agent, public: &str, port: Value) -> anyhow::Result<u16> {
    let (id, body) = line.message("through a proxy");
    let options = if port.is_null() { Value::Null } else { json!({"port": port}) };
    let call = Call { base: Some(public.to_owned()), tail: TAIL.to_owned(), options, ..Call::of(body) };
    let proof = line.prove(&call).await?;
    let url = agent.callback_url(proof.url.trim_start_matches(public));
    let answer = line.send_to(&url, &call, &proof.headers).await?;
    if answer.status == 200 {
        line.delivered("message.received", &id).await?;
    } else {
        ensure!(answer.body.is_empty(), "answered {:?}", answer.body);
    }
    Ok(answer.status)
}

/// Without a public base URL the URL is the request's own, by http or by https, with the ports that Twilio may
/// add or leave out.
#[tokio::test]
async fn own_url_is_used_without_a_public_one() {
    let world = World::start().await.unwrap();
    let lines = lines(&world, &SIGNERS[..1]).await.unwrap();
    let own = world.agent.callback_addr();
    for scheme in ["http", "https"] {
        for port in [Value::Null, json!("with"), json!("without")] {
            let status =
                at(&lines[0], &world.agent, &format!("{scheme}://{own}"), port.clone()).await.unwrap();
            assert_eq!(status, 200, "{scheme} {port}");
        }
    }
    let elsewhere = at(&lines[0], &world.agent, "https://gw.example.com", Value::Null).await.unwrap();
    assert_eq!(elsewhere, 401);
}

/// Twilio may be set up to call by GET: the parameters are the query, under the signature with the URL. Messages
/// are answered with TwiML, statuses with nothing, and refusals are blank.
#[tokio::test]
async fn twilio_calls_by_get() {
    let world = World::start().await.unwrap();
    let lines = lines(&world, &SIGNERS[..1]).await.unwrap();
    let line = &lines[0];
    let by_get = |body: Vec<u8>| Call { by_get: true, ..Call::of(body) };
    let twiml = |answer: &Answer| (answer.status, String::from_utf8_lossy(&answer.body).into_owned());

    let (id, body) = line.message("by GET, ça va?");
    let answer = line.call(&by_get(body)).await.unwrap();
    assert_eq!(twiml(&answer), (200, r#"<?xml version="1.0" encoding="UTF-8"?><Response/>"#.to_owned()));
    let webhook = line.delivered("message.received", &id).await.unwrap();
    assert_eq!(webhook.text("message_text"), "by GET, ça va?");
    let (id, body) = line.status(None);
    assert_eq!(twiml(&line.call(&by_get(body)).await.unwrap()), (200, String::new()));
    line.delivered("message.delivered", &id).await.unwrap();

    let (id, body) = line.message("forged");
    let proof = line.prove(&by_get(body)).await.unwrap();
    let forged = proof.url.replace("forged", "changed");
    assert_ne!(forged, proof.url);
    let answer = line.send_to(&forged, &by_get(Vec::new()), &proof.headers).await.unwrap();
    assert_eq!(twiml(&answer), (401, String::new()));
    assert!(!line.heard(&id));
}

/// Bodies of Twilio that are JSON are proved by their hash in the URL; callbacks under a shared key by the
/// algorithm that they name.
#[tokio::test]
async fn other_proofs_of_twilio_are_taken() {
    let world = World::start().await.unwrap();
    let lines = lines(&world, &SIGNERS[..1]).await.unwrap();
    let line = &lines[0];
    let id = dialect::new_id(Provider::Twilio, "");
    let body = json!({"MessageSid": id, "SmsStatus": "received", "From": "whatsapp:+966500000001",
        "To": dialect::number(Provider::Twilio), "Body": "as JSON, ça va?"});
    let call = Call::of(body.to_string());
    let proof = line.prove(&call).await.unwrap();
    assert!(proof.url.contains("bodySHA256="), "{}", proof.url);
    assert_eq!(line.send(&Call::of(format!("{body} ")), &proof).await.unwrap().status, 401);
    assert_eq!(line.send(&call, &proof).await.unwrap().status, 200);
    line.delivered("message.received", &id).await.unwrap();

    let (id, body) = line.message("under a shared key");
    let call = Call { options: json!({"algorithm": "HMAC_SHA256"}), ..Call::of(body) };
    assert_eq!(line.call(&call).await.unwrap().status, 200);
    line.delivered("message.received", &id).await.unwrap();
    // Repeated names count once, empty values as much as others.
    let id = dialect::new_id(Provider::Twilio, "");
    let repeated = [
        ("MessageSid", id.as_str()),
        ("SmsStatus", "received"),
        ("From", "whatsapp:+966500000001"),
        ("To", dialect::number(Provider::Twilio)),
        ("Body", "twice"),
        ("Digits", "1234"),
        ("Digits", "5678"),
        ("Digits", "1234"),
        ("Empty", ""),
    ];
    line.post(form(&repeated)).await.unwrap();
    line.delivered("message.received", &id).await.unwrap();
}
