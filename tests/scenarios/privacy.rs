//! No personal data and no secret in any log line or metric.

use std::fs;

use anyhow::Context as _;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Reply, Within as _, World,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually,
    meta::{Disguise, text_message, unique_wamid},
    signer::Secret,
    world::{APP_SECRET, INSTANCE_ID, VERIFY_TOKEN, WorldOptions},
};
use reqwest::header::HeaderMap;
use serde_json::json;

use crate::providers::{
    Call, all_lines,
    dialect::{self, Said, Told},
};

const PHONE: &str = "966599887766";
const TEXT: &str = "canary-text-b5b1";
const NAME: &str = "canary-name-7c02";
const HEADER: &str = "canary-header-9d4e";
const QUERY: &str = "canary-query-3f11";
/// Shortest proof of a callback in a header.
const PROOF_BYTES_MIN: usize = 20;
const USERNAME: &str = "canary-username-55aa";

/// Canaries go through everything that works and everything that fails, with debug lines of our own code
/// switched on; none of them, and no key, token or secret, is in a log or a metric.
#[tokio::test]
async fn canaries_never_reach_logs_or_metrics() {
    let filter =
        "info,gateway_agent=debug,gateway_control_plane=debug,gateway_core=debug,gateway_runtime=debug";
    let arguments = vec!["--log-filter".to_owned(), filter.to_owned()];
    let mut world = World::start_with(WorldOptions {
        events: vec!["*"],
        agent: AgentOptions { arguments: arguments.clone(), ..AgentOptions::default() },
        control_plane: ControlPlaneOptions { arguments, ..ControlPlaneOptions::default() },
    })
    .await
    .unwrap();
    world.receiver.answer_with(|webhook| match (webhook.path.as_str(), webhook.nth) {
        ("/fails", _) => Reply::Status(500),
        ("/closes", _) => Reply::Close,
        ("/gone", _) => Reply::Status(410),
        _ => Reply::Status(200),
    });
    subscribe_with_secrets(&world).await;
    exercise(&world).await;
    let of_providers = exercise_providers(&world).await.unwrap();
    world.agent.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    let metrics = [world.agent.metrics().await.unwrap(), world.control_plane.metrics().await.unwrap()];
    world.agent.stop().await.unwrap();
    world.control_plane.stop().await.unwrap();

    let logs = ["agent.log", "control-plane.log"]
        .map(|name| fs::read_to_string(world.directory().join(name)).unwrap());
    let secrets = [secrets(&world).unwrap(), of_providers].concat();
    for (place, text) in ["agent log", "control plane log", "agent metrics", "control plane metrics"]
        .into_iter()
        .zip(logs.iter().chain(&metrics))
    {
        for (kind, canary) in &secrets {
            let line = text.lines().find(|line| line.contains(canary.as_str()));
            assert!(line.is_none(), "{kind} is in the {place}: {line:?}");
        }
        assert!(!text.is_empty(), "the {place} is empty");
    }
}

/// Destinations that fail in different ways, with secrets in headers and query.
async fn subscribe_with_secrets(world: &World) {
    for path in ["/fails", "/closes", "/gone"] {
        let request = v1::CreateWebhookSubscriptionRequest {
            webhook_subscription: Some(v1::WebhookSubscription {
                instance_id: INSTANCE_ID.to_owned(),
                destination_url: format!("{}?key={QUERY}", world.receiver.url(path)),
                events: vec!["message.received".to_owned()],
                headers: [("x-api-key".to_owned(), HEADER.to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let response =
            world.client().webhook_subscriptions().create_webhook_subscription(request).await.unwrap();
        let created = response.into_inner().webhook_subscription.unwrap();
        assert_eq!(created.headers["x-api-key"], "***");
    }
    world.config_applied().await.unwrap();
}

/// Callbacks that are taken, refused, unrouted and odd, opt-outs, and calls that are refused.
async fn exercise(world: &World) {
    let provider = &world.provider;
    let wamid = unique_wamid();
    let contact = json!({"profile": {"name": NAME, "username": USERNAME}, "wa_id": PHONE});
    let value = json!({"contacts": [contact], "messages": [text_message(&wamid, PHONE, TEXT)]});
    let callback = gateway_tests::meta::envelope(&[provider.change("messages", value)]);
    assert_eq!(provider.post(&callback).await.unwrap().status, 200);
    let webhook = world.delivered(&wamid).await.unwrap();
    assert_eq!(webhook.json()["contact"]["name"], NAME);
    let headed = world.receiver.find(|webhook| webhook.path == "/fails").within(DEADLINE).await.unwrap();
    assert_eq!(headed.header("x-api-key"), HEADER);
    provider.say(PHONE, "STOP").await.unwrap();
    provider.say(PHONE, "START").await.unwrap();
    provider.with_number("777777777777777").post(&callback).await.unwrap();
    let body = serde_json::to_vec(&callback).unwrap();
    provider.with_secret("canary-wrong").post_bytes(body.clone(), Disguise::default()).await.unwrap();
    provider.post_bytes(body[..body.len() - 3].to_vec(), Disguise::default()).await.unwrap();
    let query = [("hub.mode", "subscribe"), ("hub.challenge", TEXT), ("hub.verify_token", TEXT)];
    provider.handshake(&query).await.unwrap();
    let request = v1::CheckSuppressionRequest { phone: format!("{TEXT}{PHONE}"), ..Default::default() };
    world.client().opt_outs().check_suppression(request).await.unwrap_err();
    let request = v1::CreateOptOutRequest {
        opt_out: Some(v1::OptOut {
            instance_id: INSTANCE_ID.to_owned(),
            phone: PHONE.to_owned(),
            note: TEXT.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    world.client().opt_outs().create_opt_out(request).await.unwrap();
    eventually(DEADLINE, async || {
        let log = world.log(webhook.id()).await?;
        let tried = log.deliveries.iter().all(|delivery| delivery.attempt_count > 0);
        anyhow::ensure!(tried, "not every delivery was tried");
        let shown: String = log.deliveries.iter().map(|delivery| delivery.last_error.as_str()).collect();
        assert!(!shown.contains(QUERY) && !shown.contains(TEXT) && !shown.contains(HEADER), "{shown}");
        Ok(())
    })
    .await
    .unwrap();
}

/// The same at every provider: callbacks that are taken, unrouted, unreadable, and refused for several reasons.
/// Gives what is secret of their routes.
async fn exercise_providers(world: &World) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut secrets = vec![("the key of an Evolution instance", dialect::EVOLUTION_APIKEY.to_owned())];
    for line in all_lines(world).await? {
        let provider = line.provider;
        let said = |number: &'static str, id: &str, text: &str| {
            dialect::message(provider, Said { number, id, from: PHONE, name: NAME, text })
        };
        let (id, number) = (dialect::new_id(provider, PHONE), dialect::number(provider));
        let body = said(number, &id, TEXT);
        line.post(body.clone()).await?;
        line.delivered("message.received", &id).await?;
        line.post(said(number, &dialect::new_id(provider, PHONE), "STOP")).await?;
        let told = Told { number, id: &dialect::new_own_id(provider, PHONE), to: PHONE, failure: Some(0) };
        line.post(dialect::status(provider, told)).await?;
        line.post(said(dialect::other_number(provider), &dialect::new_id(provider, PHONE), TEXT)).await?;

        let own = line.secret.clone().context("the line has a secret")?;
        let foreign = Secret { value: format!("{}: {TEXT}", own.value), ..own.clone() };
        let tail = format!("?{QUERY}={TEXT}");
        for call in [
            Call { secret: Some(foreign), tail: tail.clone(), ..Call::of(body.clone()) },
            Call { tail, ..Call::of(&body[..body.len() / 2]) },
            Call { by_get: true, ..Call::of(format!("hub.mode={TEXT}&hub.verify_token={TEXT}")) },
        ] {
            line.call(&call).await?;
        }
        let proof = line.prove(&Call::of(body.clone())).await?;
        line.send_to(&proof.url, &Call::of(body), &HeaderMap::new()).await?;
        let token = line.route.callback_path.rsplit('/').next().unwrap_or_default();
        secrets.push(("a callback token", token.to_owned()));
        secrets.push(("a secret of a provider", own.value));
        let proofs = proof.headers.values().filter_map(|value| value.to_str().ok());
        // Short ones are times and names of algorithms, which are in logs for other reasons.
        let proofs = proofs.filter(|proof| proof.len() > PROOF_BYTES_MIN);
        secrets.extend(proofs.map(|proof| ("a proof", proof.to_owned())));
    }
    Ok(secrets)
}

/// What must not be found, each with its kind.
fn secrets(world: &World) -> anyhow::Result<Vec<(&'static str, String)>> {
    let read = |path: std::path::PathBuf| {
        fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))
    };
    let credential: serde_json::Value =
        serde_json::from_str(&read(world.agent.data_dir().join("credential.json"))?)?;
    let credential = credential["credential"].as_str().context("find the credential")?;
    let token = world.inbound_route.callback_path.rsplit('/').next().unwrap_or_default();
    Ok(vec![
        ("a phone number", PHONE.to_owned()),
        ("a message text", TEXT.to_owned()),
        ("a name", NAME.to_owned()),
        ("a user name", USERNAME.to_owned()),
        ("a header of a destination", HEADER.to_owned()),
        ("a query of a destination", QUERY.to_owned()),
        ("the app secret", APP_SECRET.to_owned()),
        ("the verify token", VERIFY_TOKEN.to_owned()),
        ("the callback token", token.to_owned()),
        ("the signing secret", world.secret.reveal().trim_start_matches("whsec_").to_owned()),
        ("the admin key", world.control_plane.admin_key().to_owned()),
        ("the join token", read(world.directory().join("join-token"))?.trim().to_owned()),
        ("the agent's credential", credential.to_owned()),
    ])
}
