//! WAHA and Evolution API link a phone: their paths, their repeats, and what must never be passed on.

use std::{fs, path::Path};

use anyhow::ensure;
use futures_util::TryStreamExt as _;
use gateway_core::event::Provider;
use gateway_proto::v1::{self, InboundRouteSecretKind as Kind};
use gateway_tests::{DEADLINE, World, eventually};
use serde_json::{Value, json};

use super::{
    all_lines,
    dialect::{self, EVOLUTION_APIKEY, MORNING, evolution, waha},
    line::{Call, FROM},
    lines,
};

/// A word in whatever links a phone.
const LOGIN: &str = "canary-login-93be5f";
/// A word in what may be kept.
const HARMLESS: &str = "canary-harmless-17aa";

/// Evolution API may append its event to the path; nobody else may.
#[tokio::test]
async fn evolution_extends_the_path() {
    let world = World::start().await.unwrap();
    for line in all_lines(&world).await.unwrap() {
        let (id, body) = line.message("with a longer path");
        let call = Call { tail: "/messages-upsert".to_owned(), ..Call::of(body) };
        let answer = line.call(&call).await.unwrap();
        if line.provider == Provider::Evolution {
            assert_eq!(answer.status, 200);
            line.delivered("message.received", &id).await.unwrap();
            for tail in ["/messages-upsert/", "/messages-upsert/more", "/"] {
                let call = Call { tail: tail.to_owned(), ..call.clone() };
                assert_eq!(line.call(&call).await.unwrap().status, 404, "{tail}");
            }
        } else {
            assert_eq!(
                (answer.status, answer.body.as_ref()),
                (404, b"".as_slice()),
                "{}",
                line.provider.name()
            );
            assert!(!line.heard(&id));
        }
    }
}

/// WAHA sends a message as `message` and as `message.any` when both are subscribed, and Evolution API what its
/// own API sent as two events: each pair is one event.
#[tokio::test]
async fn the_same_message_under_two_events_is_one() {
    let world = World::start().await.unwrap();
    let wanted = [(Provider::Waha, Kind::WahaHmacKey), (Provider::Evolution, Kind::EvolutionJwtKey)];
    let lines = lines(&world, &wanted).await.unwrap();
    let id = dialect::new_id(Provider::Waha, FROM);
    let payload = json!({"id": id, "timestamp": MORNING, "from": format!("{FROM}@c.us"), "fromMe": false,
        "to": "15550783881@c.us", "body": "twice", "hasMedia": false});
    let own = json!({"key": {"remoteJid": format!("{FROM}@s.whatsapp.net"), "fromMe": true, "id": "3EB0OWN"},
        "pushName": "Você", "status": "PENDING", "message": {"conversation": "Hello"},
        "messageType": "conversation", "messageTimestamp": MORNING, "source": "web"});
    let pairs = [
        (
            &lines[0],
            ["message", "message.any"].map(|event| waha(dialect::number(Provider::Waha), event, &payload)),
            id.as_str(),
            "message.received",
        ),
        (
            &lines[1],
            ["messages.upsert", "send.message"]
                .map(|event| evolution(dialect::number(Provider::Evolution), event, &own)),
            "3EB0OWN",
            "message.sent",
        ),
    ];
    for (line, bodies, id, event) in pairs {
        for body in &bodies {
            line.post(body.to_string().into_bytes()).await.unwrap();
        }
        line.delivered(event, id).await.unwrap();
        eventually(DEADLINE, async || {
            let logs = world.logs().await?;
            let counts: Vec<u32> = logs
                .iter()
                .filter(|log| log.external_message_id == id)
                .map(|log| log.duplicate_count)
                .collect();
            ensure!(counts == [1], "{id} is logged with these repeats: {counts:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// What links a phone gives whoever has it the account: QR codes, pairing codes, keys. It is in no webhook, no
/// inbound log, no list, no log line, no metric, and in no file of agent and control plane; nor is the token in
/// each callback of Evolution API. Events beside it are kept.
#[tokio::test]
async fn login_material_goes_nowhere() {
    let world = World::start().await.unwrap();
    let wanted = [(Provider::Waha, Kind::WahaHmacKey), (Provider::Evolution, Kind::EvolutionJwtKey)];
    let lines = lines(&world, &wanted).await.unwrap();
    for (line, bodies) in lines.iter().zip([of_waha(), of_evolution()]) {
        for body in bodies {
            line.post(body.to_string().into_bytes()).await.unwrap();
            // The same of a number that nobody claims.
            let (session, number) = (dialect::number(line.provider), dialect::other_number(line.provider));
            line.post(body.to_string().replace(session, number).into_bytes()).await.unwrap();
        }
        let (id, body) = line.message(HARMLESS);
        line.post(body).await.unwrap();
        line.delivered("message.received", &id).await.unwrap();
    }
    eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let harmless = logs.iter().filter(|log| log.message_text == HARMLESS).count();
        ensure!(harmless == 2, "{harmless} of 2 messages are logged");
        Ok(())
    })
    .await
    .unwrap();
    let kept =
        [(&lines[0], "session.status", "SCAN_QR_CODE"), (&lines[1], "connection.update", "connecting")];
    for (line, field, word) in kept {
        let event =
            line.told("provider.event", |webhook| webhook.text("provider_field") == field).await.unwrap();
        assert!(event.json()["raw"].to_string().contains(word), "{}", event.json());
    }
    let mut places: Vec<(String, String)> = Vec::new();
    for webhook in world.receiver.all() {
        places.push(("a webhook".to_owned(), String::from_utf8_lossy(&webhook.body).into_owned()));
    }
    for log in world.logs().await.unwrap() {
        places.push(("an inbound log".to_owned(), format!("{log:?}")));
    }
    let all: Vec<v1::UnroutedCallback> =
        world.client().list(v1::ListUnroutedCallbacksRequest::default()).try_collect().await.unwrap();
    assert!(!all.is_empty(), "nothing of the other number is listed");
    places.extend(all.into_iter().map(|callback| ("a list".to_owned(), callback.payload_json)));
    for metrics in [world.agent.metrics().await.unwrap(), world.control_plane.metrics().await.unwrap()] {
        places.push(("a metric".to_owned(), metrics));
    }
    files(world.directory(), &mut places);
    for (place, text) in &places {
        for canary in [LOGIN, EVOLUTION_APIKEY] {
            assert!(!text.contains(canary), "{canary} is in {place}");
        }
    }
    for program in ["/agent/", "/control-plane/"] {
        let mut files = places.iter().filter(|(place, _)| place.contains(program));
        assert!(files.any(|(_, text)| text.contains(HARMLESS)), "files of {program} are not searched");
    }
}

fn of_waha() -> Vec<Value> {
    let session = dialect::number(Provider::Waha);
    vec![
        waha(
            session,
            "session.status",
            &json!({"name": session, "status": "SCAN_QR_CODE",
            "data": {"qr": LOGIN, "code": LOGIN}, "statuses": [{"status": "SCAN_QR_CODE", "timestamp": MORNING}]}),
        ),
        waha(session, "state.change", &json!({"connection": "connecting", "qr": LOGIN})),
        waha(session, "auth.qr", &json!({"value": LOGIN})),
        waha(session, "engine.event", &json!({"event": "connection.update", "data": {"qr": LOGIN}})),
    ]
}

fn of_evolution() -> Vec<Value> {
    let instance = dialect::number(Provider::Evolution);
    let code =
        json!({"qrcode": {"instance": instance, "pairingCode": LOGIN, "code": LOGIN, "base64": LOGIN}});
    vec![
        evolution(instance, "qrcode.updated", &code),
        evolution(instance, "QRCODE_UPDATED", &code),
        evolution(instance, "creds.update", &json!({"noiseKey": LOGIN})),
        evolution(
            instance,
            "connection.update",
            &json!({"instance": instance, "state": "connecting",
            "statusReason": 200, "qr": LOGIN}),
        ),
        evolution(instance, "contacts.update", &json!([{"remoteJid": "966500000001@s.whatsapp.net"}])),
    ]
}

/// Every file below a directory, with its content.
fn files(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(bytes) = fs::read(&path) {
            // A file may go while it is read: it was there for a moment only.
            found.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
}
