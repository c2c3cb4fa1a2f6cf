//! `gateway trigger --provider`: what holds for the samples of every provider.

use std::fs;

use super::*;

const PROVIDERS: [&str; 10] = [
    "meta",
    "dialog360",
    "twilio",
    "vonage",
    "infobip",
    "gupshup",
    "messagebird",
    "bird",
    "waha",
    "evolution",
];
const CONTACT: &str = "+966500000001";

/// Runs `gateway trigger …`, which must fail; gives its exit code and what it complains about.
async fn complaint(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(gateway(directory).arg("trigger").args(arguments)).await;
    assert!(!output.status.success(), "{arguments:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A secret that has the form which the provider's routes want, and that none has.
fn wrong_secret(provider: &str) -> &'static str {
    match provider {
        "dialog360" | "infobip" => "demo:wrong",
        "gupshup" => "x-demo-secret: wrong",
        _ => "wrong",
    }
}

/// Message, each status and opt-out of every provider go in at the front door, proved as the provider proves them,
/// and come out as webhooks of a demo that the first one makes.
#[tokio::test]
async fn samples_of_every_provider_come_out_as_webhooks() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &[]).await;
    for (index, provider) in PROVIDERS.into_iter().enumerate() {
        let of = |arguments: &[&'static str]| [&["--provider", provider], arguments].concat();
        let received = trigger(directory.path(), &of(&["message.received", "--text", "hello ñ & 1+1"])).await;
        assert_eq!(received["callback"]["status_code"], 200);
        assert_eq!(events(&received), ["message.received"], "{provider}");
        let event = &received["events"][0];
        let body = &event["webhook"]["body"];
        let instance =
            if provider == "meta" { "demo-support-line".into() } else { format!("demo-{provider}-line") };
        assert_eq!((&body["instance_id"], &body["from"]), (&instance.into(), &CONTACT.into()), "{body}");
        assert_eq!((&body["message_text"], &body["message_type"]), (&"hello ñ & 1+1".into(), &"text".into()));
        assert_eq!(body["to"], "+15550783881", "{body}");
        // Nothing in the sample is strange to the agent.
        assert!(body["raw"].is_null() && body["raw_type"].is_null(), "{body}");
        assert_eq!(body["contact"]["name"], "Sample Contact", "{body}");
        assert_eq!(event["webhook"]["headers"]["webhook-id"], event["event_id"]);
        assert_eq!(event["deliveries"][0]["attempts"][0]["status_code"], 204);
        for status in ["sent", "delivered", "read", "failed"] {
            let report = trigger(directory.path(), &of(&["status", "--status", status])).await;
            let expected = [format!("message.{status}"), "message.status_updated".to_owned()];
            assert_eq!(events(&report), expected, "{provider}");
            let body = &report["events"][0]["webhook"]["body"];
            assert_eq!((&body["to"], &body["status"]), (&CONTACT.into(), &status.into()), "{body}");
        }
        let contact = format!("+9665000001{index:02}");
        let opt_out = ["--provider", provider, "opt-out", "--from", &contact];
        let stop = trigger(directory.path(), &opt_out).await;
        assert_eq!(events(&stop), ["message.received", "recipient.opted_out"], "{provider}");
        assert_eq!(stop["suppression"]["marketing_allowed"], false);
        let again = trigger(directory.path(), &opt_out).await;
        assert_eq!(events(&again), ["message.received"], "{provider}");
    }
    assert_eq!(dev.interrupt().await, Some(0));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// The agent takes no provider's callback with a wrong secret, and none without; the message says what to look at.
#[tokio::test]
async fn samples_without_proof_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &[]).await;
    for provider in PROVIDERS {
        let arguments = ["message.received", "--provider", provider, "--secret", wrong_secret(provider)];
        let (code, text) = complaint(directory.path(), &arguments).await;
        assert!(code == Some(1) && text.contains("401") && text.contains("DiagnoseInstance"), "{text}");
        let arguments = ["status", "--provider", provider, "--proof", "token"];
        let (code, text) = complaint(directory.path(), &arguments).await;
        let always_signs = ["meta", "twilio", "messagebird", "bird"].contains(&provider);
        let expected = if always_signs { (Some(64), "signature") } else { (Some(1), "401") };
        assert!(code == expected.0 && text.contains(expected.1), "{provider}: {text}");
    }
    assert_eq!(dev.interrupt().await, Some(0));
}

/// Any route can be named by flags; a second start finds the demos of the first, with their secrets and paths.
#[tokio::test]
async fn other_routes_are_named_by_flags() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let arguments = ["--data-dir", data.to_str().unwrap()];
    let first = Dev::start(directory.path(), &arguments).await;
    let report = trigger(directory.path(), &["message.received", "--provider", "waha"]).await;
    let url = report["callback"]["url"].as_str().unwrap().to_owned();
    let file: Value = serde_json::from_slice(&fs::read(data.join("dev-waha.json")).unwrap()).unwrap();
    let flags = [
        "message.received",
        "--provider=waha",
        "--callback-url",
        &url,
        "--secret",
        file["secret"].as_str().unwrap(),
        "--provider-number-id=demo",
        "--phone-number=+15550783881",
    ];
    assert_eq!(events(&trigger(directory.path(), &flags).await), ["message.received"]);
    let (code, text) = complaint(directory.path(), &flags[..4]).await;
    assert_eq!(code, Some(64));
    assert!(text.contains("--secret, --provider-number-id, --phone-number"), "{text}");
    let other: Vec<_> =
        flags.iter().map(|flag| if *flag == "--provider=waha" { "--provider=bird" } else { flag }).collect();
    let (code, text) = complaint(directory.path(), &other).await;
    assert!(code == Some(64) && text.contains("--provider waha"), "{text}");
    let (code, text) =
        complaint(directory.path(), &["status", "--provider", "waha", "--proof", "header"]).await;
    assert!(code == Some(64) && text.contains("--callback-url"), "{text}");
    assert_eq!(first.interrupt().await, Some(0));
    let second = Dev::start(directory.path(), &arguments).await;
    let report = trigger(directory.path(), &["message.received", "--provider", "waha"]).await;
    let path = |url: &str| url.rsplit('/').next().map(str::to_owned);
    assert_eq!(path(report["callback"]["url"].as_str().unwrap()), path(&url));
    assert!(report["events"][0]["webhook"]["headers"].is_object());
    assert_eq!(second.interrupt().await, Some(0));
}

/// The providers are named by `--help`, and by the complaint about a name that is none.
#[tokio::test]
async fn providers_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let help = run(gateway(directory.path()).args(["trigger", "--help"])).await;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let (code, text) = complaint(directory.path(), &["status", "--provider", "list"]).await;
    assert_eq!(code, Some(64));
    for provider in PROVIDERS {
        assert!(help.contains(&format!("- {provider}:")) && text.contains(provider), "{help}\n{text}");
    }
}
