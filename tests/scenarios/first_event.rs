//! A genuine callback becomes signed webhooks and inbound logs, in the documented form.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::{event::EventType, id::EventId, signature::WebhookSecret};
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Webhook, Within as _, World, eventually,
    meta::{self, Disguise, envelope, status, text_message_at, unique_wamid},
    programs::workspace_root,
    python,
    schemas::Schemas,
    world::{INSTANCE_ID, signing_secret, update},
};
use serde_json::json;

/// 2026-05-08T10:00:00Z.
const MORNING: i64 = 1_778_234_400;
const FROM: &str = "966500000001";
/// A log is visible within a second of its delivery.
const LOG_VISIBLE_MAX: Duration = Duration::from_secs(1);
/// A shared machine may stand still at any one message, not at each of so many.
const TIMED_MAX: usize = 8;

/// One text message: the answer is 200, the webhook has exactly the documented headers and body, and the
/// log shows event and delivery within a second.
#[tokio::test]
async fn text_message_becomes_a_signed_webhook_and_a_log() {
    let world = World::start().await.unwrap();
    let wamid = unique_wamid();
    let message = text_message_at(&wamid, FROM, "Inbound user text message", MORNING);
    let answer = world.provider.post(&world.provider.messages(&[message])).await.unwrap();
    assert_eq!(answer.status, 200);

    let webhook = world.delivered(&wamid).await.unwrap();
    let id = EventId::derive(&["message.received", "meta", INSTANCE_ID, &wamid, "", "", ""]).to_string();
    let body = format!(
        r#"{{"event":"message.received","instance_id":"inst-test","instance_name":"Test Line","from":"+966500000001","message_text":"Inbound user text message","message_type":"text","external_message_id":"{wamid}","timestamp":"2026-05-08T10:00:00Z","event_id":"{id}","to":"+966110000000","contact":{{"name":"Zoë"}}}}"#
    );
    assert_eq!(String::from_utf8_lossy(&webhook.body), body);
    assert_eq!(webhook.id(), id);
    assert_eq!(webhook.header("content-type"), "application/json");
    assert!(webhook.header("user-agent").starts_with("WhatsApp-Gateway/"), "{:?}", webhook.headers);
    assert!(is_traceparent(webhook.header("traceparent")), "{:?}", webhook.headers);

    let log = world.log_in(&id, v1::DeliveryState::Delivered).await.unwrap();
    assert_log(&world, &log, &wamid, &body);
    let attempts = world.attempts(&id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].attempt_number, attempts[0].status_code), (1, 200));
    assert_eq!(attempts[0].failure(), v1::AttemptFailure::Unspecified);
    let listed = world.logs().await.unwrap();
    assert_eq!(listed, [log]);
    assert_soon_visible(&world).await;
}

/// The log shows a delivery in time after the webhook has come.
async fn assert_soon_visible(world: &World) {
    let mut took = Vec::new();
    while took.len() < TIMED_MAX {
        let wamid = world.provider.say(FROM, "how soon is it shown?").await.unwrap();
        let webhook = world.delivered(&wamid).await.unwrap();
        world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
        let visible = webhook.receive_time.elapsed();
        if visible < LOG_VISIBLE_MAX {
            return;
        }
        took.push(visible);
    }
    panic!("logs came so long after their webhooks: {took:?}");
}

fn assert_log(world: &World, log: &v1::InboundLog, wamid: &str, body: &str) {
    assert_eq!(log.instance_id, INSTANCE_ID);
    assert_eq!(log.tenant_id, "default");
    assert_eq!(log.event, "message.received");
    assert_eq!(log.from_phone, "+966500000001");
    assert_eq!(log.to_phone, "+966110000000");
    assert_eq!(log.message_type, "text");
    assert_eq!(log.message_text, "Inbound user text message");
    assert_eq!(log.external_message_id, wamid);
    assert_eq!(log.event_time.map(|time| time.seconds), Some(MORNING));
    assert!(log.receive_time.is_some() && log.record_time.is_some());
    assert_eq!(log.region, "test-region");
    assert_eq!(log.duplicate_count, 0);
    assert_eq!(log.payload_json, body);
    assert_eq!(log.deliveries.len(), 1);
    let delivery = &log.deliveries[0];
    assert_eq!(delivery.subscription_id, world.subscription.id);
    assert_eq!((delivery.attempt_count, delivery.last_status_code), (1, 200));
    assert!(delivery.last_error.is_empty() && delivery.next_attempt_time.is_none());
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, <https://www.w3.org/TR/trace-context/#traceparent-header>.
fn is_traceparent(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [2, 32, 16, 2] && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Every kind of event, one callback each: the contract's keys come first and in order, unknown ones are
/// null, statuses give their specific event and `message.status_updated`, and every body fits its schema.
#[tokio::test]
async fn every_kind_of_event_has_its_documented_body() {
    let world = World::selecting(&["*"]).await.unwrap();
    let id = |kind: &str| format!("wamid.{kind}");
    let provider = &world.provider;
    let mut failed = status(&id("failed"), "966500000009", "failed");
    failed["errors"] = json!([{"code": 131_026, "title": "Message undeliverable"}]);
    let callbacks = [
        provider
            .statuses(&[status(&id("delivered"), FROM, "delivered"), status(&id("orbit"), FROM, "in_orbit")]),
        provider.statuses(&[failed, status(&id("played"), FROM, "played")]),
        provider.messages(&[text_message_at(&id("stop"), FROM, "STOP", MORNING)]),
        provider.messages(&[
            json!({"id": id("poll"), "from_user_id": "US.1", "timestamp": "1778234400", "type": "poll"}),
        ]),
        provider.preference("966500000002", "stop", MORNING),
        envelope(&[provider.change("calls", json!({"calls": [{"id": "wacid.1", "event": "connect"}]}))]),
    ];
    for callback in &callbacks {
        assert_eq!(provider.post(callback).await.unwrap().status, 200, "{callback}");
    }
    let request = v1::SendTestEventRequest { id: world.subscription.id.clone() };
    let test = world.client().webhook_subscriptions().send_test_event(request).await.unwrap().into_inner();

    let body = async |event: &str, key: &str, value: &str| {
        let webhook = world.receiver.find(|webhook| webhook.event() == event && webhook.text(key) == value);
        let webhook =
            webhook.within(DEADLINE).await.with_context(|| format!("receive {event} {value}")).unwrap();
        String::from_utf8(webhook.body.to_vec()).unwrap()
    };
    let delivered = body("message.delivered", "external_message_id", &id("delivered")).await;
    let start = r#"{"event":"message.delivered","instance_id":"inst-test","instance_name":"Test Line","to":"+966500000001","status":"delivered","external_message_id":"wamid.delivered","timestamp":""#;
    assert!(delivered.starts_with(start), "{delivered}");
    let updated = body("message.status_updated", "external_message_id", &id("delivered")).await;
    assert!(updated.starts_with(&start.replace("message.delivered", "message.status_updated")), "{updated}");
    body("message.status_updated", "status", "in_orbit").await;
    body("message.read", "status", "played").await;
    let failed = body("message.failed", "external_message_id", &id("failed")).await;
    assert!(failed.contains(r#""error":{"code":131026,"title":"Message undeliverable""#), "{failed}");
    let stop = body("recipient.opted_out", "message_text", "STOP").await;
    assert!(stop.starts_with(r#"{"event":"recipient.opted_out","instance_id":"inst-test","instance_name":"Test Line","from":"+966500000001","reason":"recipient_requested_stop","message_text":"STOP","timestamp":"2026-05-08T10:00:00Z","event_id":"evt_"#), "{stop}");
    let preference = body("recipient.opted_out", "from", "+966500000002").await;
    assert!(preference.contains(r#""from":"+966500000002","reason":"provider_preference","message_text":null,"timestamp":"2026-05-08T10:00:00Z""#), "{preference}");
    let poll = body("message.received", "external_message_id", &id("poll")).await;
    assert!(poll.contains(r#""from":null,"message_text":null,"message_type":"unsupported","external_message_id":"wamid.poll""#), "{poll}");
    assert!(poll.contains(r#""user_id":"US.1""#) && poll.contains(r#""raw_type":"poll""#), "{poll}");
    body("provider.event", "provider_field", "calls").await;
    let tested = body("webhook.test", "event_id", &test.event_id).await;
    assert!(tested.starts_with(r#"{"event":"webhook.test","instance_id":"inst-test""#), "{tested}");

    world.log_in(&test.event_id, v1::DeliveryState::Delivered).await.unwrap();
    let names: BTreeSet<String> = world.receiver.all().iter().map(|webhook| webhook.event()).collect();
    assert!(!names.contains("message.sent"), "{names:?}");
    assert_valid(&world).unwrap();
}

/// Every webhook recorded fits the published schema, is signed, and has its own id in header and body.
fn assert_valid(world: &World) -> anyhow::Result<()> {
    let schemas = Schemas::load()?;
    for webhook in world.receiver.all() {
        schemas.check(&webhook)?;
        webhook.verify(&world.secret)?;
        assert_eq!(webhook.id(), webhook.text("event_id"));
    }
    for (id, webhooks) in world.receiver.by_id() {
        assert_eq!(webhooks.len(), 1, "{id} was delivered more than once");
    }
    Ok(())
}

/// One status item gives its specific event and, to those who selected it, `message.status_updated`, each
/// with its own id and log; whoever did not select it gets none and no log of it.
#[tokio::test]
async fn status_updated_comes_only_where_selected() {
    let world = World::selecting(&["message.delivered"]).await.unwrap();
    let first = unique_wamid();
    let post = async |wamid: &str| {
        let callback = world.provider.statuses(&[status(wamid, FROM, "delivered")]);
        assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
        world.delivered(wamid).await.unwrap()
    };
    let webhook = post(&first).await;
    world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    let events: Vec<String> = world.logs().await.unwrap().into_iter().map(|log| log.event).collect();
    assert_eq!(events, ["message.delivered"]);

    world.subscribe("/all", &["message.*"]).await.unwrap();
    let second = unique_wamid();
    post(&second).await;
    let updated = world.receiver.find(|webhook| {
        webhook.event() == "message.status_updated" && webhook.text("external_message_id") == second
    });
    let updated = updated.within(DEADLINE).await.unwrap();
    assert_eq!(updated.path, "/all");
    let specific =
        world.receiver.find(|webhook| webhook.path == "/all" && webhook.event() == "message.delivered");
    assert_ne!(specific.within(DEADLINE).await.unwrap().id(), updated.id());
    let log = world.log_in(updated.id(), v1::DeliveryState::Delivered).await.unwrap();
    assert_eq!(log.event, "message.status_updated");
    assert_eq!(log.to_phone, "+966500000001");
}

/// The official Python package accepts every webhook as sent and refuses it with a changed byte; during a
/// rotation it accepts with the old secret and with the new one.
#[tokio::test]
async fn official_python_package_accepts_webhooks() {
    let world = World::start().await.unwrap();
    let wamid = world.provider.say(FROM, "olá 👋 \u{0661} \"quoted\" \\ / STOP?").await.unwrap();
    let first = world.delivered(&wamid).await.unwrap();
    let request = v1::RotateSigningSecretRequest { id: world.subscription.id.clone(), grace_period: None };
    world.client().webhook_subscriptions().rotate_signing_secret(request).await.unwrap();
    let rotated = signing_secret(world.client(), &world.subscription.id).await.unwrap();
    assert_ne!(rotated, world.secret);
    world.config_applied().await.unwrap();
    let wamid = world.provider.say(FROM, "after the rotation").await.unwrap();
    let second = world.delivered(&wamid).await.unwrap();
    assert_eq!(second.header("webhook-signature").split(' ').count(), 2);

    let pairs = [(&first, &world.secret), (&second, &world.secret), (&second, &rotated)];
    let webhooks: Vec<_> = pairs.map(|(webhook, secret)| as_python_sees_it(webhook, secret)).into();
    python_accepts(&world, &webhooks).await.unwrap();
}

/// With asymmetric signatures on, webhooks carry `v1` and `v1a`; the official Python package accepts the one
/// with the secret, libsodium the other with the public key that the API gives; after a rotation the old pair
/// and the new one.
#[tokio::test]
async fn independent_library_accepts_asymmetric_signatures() {
    let world = World::start().await.unwrap();
    let id = || world.subscription.id.clone();
    let plain = world.provider.say(FROM, "without").await.unwrap();
    let plain = world.delivered(&plain).await.unwrap();
    assert!(!plain.header("webhook-signature").contains("v1a,"), "{:?}", plain.headers);
    let change = v1::WebhookSubscription { asymmetric_signature: true, ..Default::default() };
    update(world.client(), &id(), change, "asymmetric_signature").await.unwrap();
    world.config_applied().await.unwrap();
    let public_key = async || {
        let request = v1::GetSigningSecretRequest { id: id() };
        let mut subscriptions = world.client().webhook_subscriptions();
        subscriptions.get_signing_secret(request).await.unwrap().into_inner().public_key
    };
    let old_key = public_key().await;
    assert!(old_key.starts_with("whpk_"), "{old_key}");
    let first = world.provider.say(FROM, "with both, ñ 👋").await.unwrap();
    let first = world.delivered(&first).await.unwrap();
    let request = v1::RotateSigningSecretRequest { id: id(), grace_period: None };
    world.client().webhook_subscriptions().rotate_signing_secret(request).await.unwrap();
    let (new, new_key) = (signing_secret(world.client(), &id()).await.unwrap(), public_key().await);
    assert_ne!(new_key, old_key);
    world.config_applied().await.unwrap();
    let second = world.provider.say(FROM, "after the rotation").await.unwrap();
    let second = world.delivered(&second).await.unwrap();
    let versions: Vec<&str> =
        second.header("webhook-signature").split(' ').filter_map(|token| token.split(',').next()).collect();
    assert_eq!(versions.iter().filter(|version| **version == "v1a").count(), 2, "{versions:?}");

    let pairs =
        [(&first, &world.secret, &old_key), (&second, &world.secret, &old_key), (&second, &new, &new_key)];
    let webhooks = pairs.map(|(webhook, secret, public_key)| {
        let mut seen = as_python_sees_it(webhook, secret);
        seen["public_key"] = json!(public_key);
        seen
    });
    python_accepts(&world, &webhooks).await.unwrap();
}

/// Has the official package verify every one of them.
async fn python_accepts(world: &World, webhooks: &[serde_json::Value]) -> anyhow::Result<()> {
    let file = world.directory().join("webhooks.json");
    fs::write(&file, serde_json::to_vec(webhooks)?)?;
    let python = python::python_env().await?.join("python");
    let script = python::script("webhook_verify/verify.py");
    let verified = python::run(python, [script.as_os_str(), file.as_os_str()]).await?;
    ensure!(verified.trim() == webhooks.len().to_string(), "{verified}");
    Ok(())
}

/// Every callback body of the collection: answered 200, each of its events delivered once, in a form that
/// fits the schemas, that the log repeats byte for byte, and that the official package accepts.
#[tokio::test]
async fn every_known_callback_gives_valid_webhooks() {
    let world = World::selecting(&["*"]).await.unwrap();
    let fixtures = workspace_root().join("tests/fixtures/meta");
    let mut count = 0;
    for entry in fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let body = fs::read(&path).unwrap();
            let answer = world.provider.post_bytes(body, Disguise::default()).await.unwrap();
            assert_eq!(answer.status, 200, "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 100, "only {count} fixtures");
    // Reports come in order: when the last event is logged, all of them are.
    let last = world.provider.say(FROM, "the last one").await.unwrap();
    let logs = eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        ensure!(logs.iter().any(|log| log.external_message_id == last), "the last event is not logged yet");
        let open =
            logs.iter().flat_map(|log| &log.deliveries).find(|delivery| delivery.last_status_code != 200);
        ensure!(open.is_none(), "{open:?}");
        ensure!(logs.iter().all(|log| !log.deliveries.is_empty()), "not every log shows its delivery yet");
        Ok(logs)
    });
    let logs = logs.await.unwrap();
    assert_valid(&world).unwrap();
    let webhooks = world.receiver.by_id();
    assert_eq!(webhooks.len(), logs.len());
    for log in &logs {
        assert_eq!(log.payload_json.as_bytes(), webhooks[&log.event_id][0].body.as_ref());
    }
    let seen: Vec<_> =
        webhooks.values().map(|webhooks| as_python_sees_it(&webhooks[0], &world.secret)).collect();
    python_accepts(&world, &seen).await.unwrap();
    let names: BTreeSet<String> = logs.into_iter().map(|log| log.event).collect();
    let never = EventType::SELECTABLE.into_iter().find(|event| {
        // Which contacts were opted out before depends on the order of the files.
        *event != EventType::RecipientOptedIn && !names.contains(event.name())
    });
    assert!(never.is_none(), "{never:?} never came");
}

fn as_python_sees_it(webhook: &Arc<Webhook>, secret: &WebhookSecret) -> serde_json::Value {
    let headers: serde_json::Map<_, _> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .map(|name| (name.to_owned(), json!(webhook.header(name))))
        .into_iter()
        .collect();
    let body = STANDARD.encode(&webhook.body);
    json!({"secret": secret.reveal(), "public_key": null, "headers": headers, "body": body})
}

/// One callback with two entries, several changes and several items in each: every item becomes its event.
#[tokio::test]
async fn every_item_of_a_batch_is_delivered() {
    let world = World::selecting(&["message.received", "message.sent", "message.read"]).await.unwrap();
    let wamids: Vec<String> = std::iter::repeat_with(unique_wamid).take(6).collect();
    let message = |index: usize| meta::text_message(&wamids[index], FROM, "one of many");
    let provider = &world.provider;
    let messages = |items: &[serde_json::Value]| provider.change("messages", json!({"messages": items}));
    let echo = json!({
        "from": "966110000000", "to": FROM, "id": wamids[4], "timestamp": "1778234400",
        "type": "text", "text": {"body": "typed on the phone"},
    });
    let read = provider.change("messages", json!({"statuses": [status(&wamids[5], FROM, "read")]}));
    let mut body = envelope(&[messages(&[message(0), message(1)]), messages(&[message(2)]), read]);
    let echoes = provider.change("smb_message_echoes", json!({"message_echoes": [echo]}));
    let second = json!({"id": "102290129340399", "changes": [messages(&[message(3)]), echoes]});
    body["entry"].as_array_mut().unwrap().push(second);
    assert_eq!(provider.post(&body).await.unwrap().status, 200);
    for wamid in &wamids {
        world.delivered(wamid).await.unwrap();
    }
    let echo = world.receiver.message(&wamids[4]).within(DEADLINE).await.unwrap();
    assert_eq!((echo.event(), echo.text("to")), ("message.sent".to_owned(), "+966500000001".to_owned()));
    eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        ensure!(logs.len() == wamids.len(), "{} of {} logs", logs.len(), wamids.len());
        Ok(())
    })
    .await
    .unwrap();
    assert_valid(&world).unwrap();
}
