use serde_json::{Value, json};

use super::*;

const ID: &str = "msg_01J0QZ6K7W8X9Y0Z1A2B3C4D5E";
const TIMESTAMP: i64 = 1_735_689_600;
const BODY: &str = r#"{"type":"whatsapp.message.received","timestamp":"2025-01-01T00:00:00.000Z","data":{"from":"5511999990000","text":"olá 👋"}}"#;
const T1: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const T1_SIGNATURE: &str = "v1,5YFNYlKpt28VZVejVB9//OWgFsEGNBwl6p49kvfvNYM=";
const T2: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const T2_SIGNATURE: &str = "v1,Jxjy2oMmRnBAhbeju5lwy6brBMt9penyIbZTj4oI9s0=";
const T4: &str = "whsec_H2+m9p0YXmCG0E5zMDYb+QAaO40M5REX";
const T5: &str =
    "whsec_+LmzMnWE+jiOdLd1Wfha+5KFzQyE1MQRflZJUU3CNruMVJDr7gTMkMfScNtkBBCq+aSUJYs3UF6+Fwsj8F6aEw==";
const T6: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const T7_PUBLIC: &str = "whpk_JUO5L/EJVRFHatyDadtt3JM2ZaEZeN2hQE7hBmypVZ0=";
const V1A: &str =
    "v1a,nB7A9qGspVQAEkMi5VBkgVUAAnpISK2parr7uVnVDQdWoFjXKnnbQLTT2iEe5zFwxH12r9tgu65eykpJovqlAw==";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn headers(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(WEBHOOK_ID, id.parse().unwrap());
    headers.insert(WEBHOOK_TIMESTAMP, timestamp.parse().unwrap());
    headers.insert(WEBHOOK_SIGNATURE, signature.parse().unwrap());
    headers
}

/// Vectors on which the official Python, JavaScript and Rust libraries and OpenSSL agree.
#[test]
fn published_vectors_are_accepted() {
    let t6_body = r#"{"email":"test@example.com","username":"test_user"}"#;
    let vectors = [
        (T1, ID, TIMESTAMP, BODY, T1_SIGNATURE),
        (T2, ID, TIMESTAMP, BODY, T2_SIGNATURE),
        (T1, ID, TIMESTAMP, "", "v1,oqnmWoREW5cKZ9a5pomNOho8oRtqCI+COaZtkyY7jFo="),
        (T4, ID, TIMESTAMP, BODY, "v1,HKyXYTA8W3h+yAveti6J++fTnpxNQ9uky3Kdq4OBzX0="),
        (T5, ID, TIMESTAMP, BODY, "v1,BlIXw1RUn1WGlM/JYfOP1tNv45rqMisI3M1wpnD6Bb8="),
        (
            T6,
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            t6_body,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
    ];
    for (secret, id, seconds, body, signature) in vectors {
        let verifier = WebhookVerifier::new([secret]).unwrap();
        let headers = headers(id, &seconds.to_string(), signature);
        let verified = verifier.verify(&headers, body.as_bytes(), at(seconds)).unwrap();
        assert_eq!((verified.id(), verified.body()), (id, body.as_bytes()));
    }
}

/// A header with several signatures, as during a rotation, is accepted with either secret.
#[test]
fn a_rotation_is_survived() {
    let header = format!("{T2_SIGNATURE} {T1_SIGNATURE} {V1A}");
    assert_eq!(header.len(), 188);
    let headers = headers(ID, "1735689600", &header);
    for secrets in [vec![T1], vec![T2], vec![T4, T1]] {
        let verifier = WebhookVerifier::new(&secrets).unwrap();
        assert!(verifier.verify(&headers, BODY.as_bytes(), at(TIMESTAMP)).is_ok(), "{secrets:?}");
    }
    let other = WebhookVerifier::new([T4]).unwrap();
    let refused = other.verify(&headers, BODY.as_bytes(), at(TIMESTAMP));
    assert_eq!(refused.unwrap_err(), VerifyError::Signature);
}

/// With the public key alone, or beside secrets, the asymmetric signature proves a webhook; another key's, and
/// one over other bytes, do not.
#[test]
fn public_keys_verify() {
    let good = headers(ID, "1735689600", V1A);
    let verify = |keys: &[&str], headers: &HeaderMap, body: &str| {
        WebhookVerifier::new(keys).unwrap().verify(headers, body.as_bytes(), at(TIMESTAMP)).map(|_| ())
    };
    let other = gateway_core::signature::SigningKey::from_seed(&[7; 32]).public().to_string();
    for keys in [vec![T7_PUBLIC], vec![T4, T7_PUBLIC], vec![&other, T7_PUBLIC]] {
        assert_eq!(verify(&keys, &good, BODY), Ok(()), "{keys:?}");
    }
    let forged = Err(VerifyError::Signature);
    assert_eq!(verify(&[&other], &good, BODY), forged);
    assert_eq!(verify(&[T7_PUBLIC], &good, &BODY.replace("olá", "ola")), forged);
    assert_eq!(verify(&[T7_PUBLIC], &headers("msg_other", "1735689600", V1A), BODY), forged);
    assert_eq!(verify(&[T7_PUBLIC], &headers(ID, "1735689600", T1_SIGNATURE), BODY), forged);
    assert_eq!(verify(&[T7_PUBLIC], &headers(ID, "1735689600", &V1A[..V1A.len() - 4]), BODY), forged);
}

/// What is forged, old, ahead, incomplete, doubled or changed by one byte is refused, each for its reason.
#[test]
fn what_is_not_genuine_is_refused() {
    let verifier = WebhookVerifier::new([T1]).unwrap();
    let verify = |headers: &HeaderMap, body: &str, seconds| {
        verifier.verify(headers, body.as_bytes(), at(seconds)).map(|_| ())
    };
    let good = headers(ID, "1735689600", T1_SIGNATURE);
    assert_eq!(verify(&good, BODY, TIMESTAMP + 300), Ok(()));
    assert_eq!(verify(&good, BODY, TIMESTAMP + 302), Err(VerifyError::Timestamp));
    assert_eq!(verify(&good, BODY, TIMESTAMP - 302), Err(VerifyError::Timestamp));
    assert_eq!(verify(&good, &BODY.replace("olá", "ola"), TIMESTAMP), Err(VerifyError::Signature));
    for signature in ["v1,", "v1", "", V1A, T2_SIGNATURE, &T1_SIGNATURE[..T1_SIGNATURE.len() - 4]] {
        let headers = headers(ID, "1735689600", signature);
        assert_eq!(verify(&headers, BODY, TIMESTAMP), Err(VerifyError::Signature), "{signature}");
    }
    let milliseconds = headers(ID, "1735689600000", T1_SIGNATURE);
    assert_eq!(verify(&milliseconds, BODY, TIMESTAMP), Err(VerifyError::Timestamp));
    for name in [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE] {
        let mut missing = good.clone();
        missing.remove(name);
        assert_eq!(verify(&missing, BODY, TIMESTAMP), Err(VerifyError::Header(name)));
        let mut doubled = good.clone();
        doubled.append(name, good[name].clone());
        assert_eq!(verify(&doubled, BODY, TIMESTAMP), Err(VerifyError::Header(name)));
    }
}

/// What the official library signs we accept, and the other way round.
#[test]
fn agrees_with_the_official_library() {
    let now = Timestamp::now();
    let body = r#"{"event":"webhook.test"}"#;
    for secret in [T1, T2, T4, T5, T6] {
        let official = standardwebhooks::Webhook::new(secret).unwrap();
        let signature = official.sign("evt_1", now.as_second(), body.as_bytes()).unwrap();
        let signed = headers("evt_1", &now.as_second().to_string(), &signature);
        assert!(WebhookVerifier::new([secret]).unwrap().verify(&signed, body.as_bytes(), now).is_ok());
        let ours = WebhookSecret::parse(secret).unwrap().sign("evt_1", now.as_second(), body.as_bytes());
        let signed = headers("evt_1", &now.as_second().to_string(), &ours);
        assert!(official.verify(body.as_bytes(), &signed).is_ok());
    }
}

/// Secrets are checked when given and never printed.
#[test]
fn secrets_are_checked_and_masked() {
    assert!(WebhookVerifier::new(Vec::<String>::new()).is_err());
    assert!(WebhookVerifier::new([T1, "whsec_short"]).is_err());
    for bad in ["whpk_", "whpk_AAEC", "whsk_AAEC"] {
        assert!(WebhookVerifier::new([T1, bad]).is_err(), "{bad}");
    }
    let printed = format!("{:?}", WebhookVerifier::new([T1]).unwrap());
    assert!(!printed.contains("AAEC"), "{printed}");
}

fn bodies() -> Vec<Value> {
    let base = json!({"instance_id": "inst_1", "instance_name": "Demo", "timestamp": "2026-05-07T10:00:00Z", "event_id": "evt_1"});
    let with = |event: &str, more: Value| {
        let mut body = base.clone();
        body["event"] = event.into();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    vec![
        with(
            "message.received",
            json!({
                "from": "+966500000001", "message_text": "hello", "message_type": "text",
                "external_message_id": "wamid.1", "to": "+966110000000",
                "contact": {"name": "Zoë", "user_id": "US.1", "later": [1]},
                "media": {"id": "1", "voice": true}, "reply": {"type": "button", "id": "b", "response": {"a": 1}},
                "context": {"id": "wamid.0", "forwarded": true}, "location": {"latitude": 1.5, "longitude": 2.5},
                "reaction": {"message_id": "wamid.0", "emoji": null}, "referral": {"source_id": "9"},
                "correlation": "order-1", "whatsapp_message_id": "wamid.2",
                "raw": {"number": 9_007_199_254_740_993_u64}, "a_field_of_tomorrow": {"x": null},
            }),
        ),
        with(
            "message.received",
            json!({
                "from": null, "message_text": null, "message_type": "unsupported", "external_message_id": null,
                "raw_type": "hologram",
            }),
        ),
        with(
            "message.failed",
            json!({
                "to": "+966500000001", "status": "failed", "external_message_id": "wamid.1",
                "error": {"code": 131_026, "title": "undeliverable"}, "pricing": {"category": "service"},
                "correlation": "order-2", "whatsapp_message_id": "wamid.3",
            }),
        ),
        with(
            "message.sent",
            json!({
                "to": null, "status": "sent", "external_message_id": null, "message_text": "typed on the phone",
                "message_type": "text", "source": "app", "context": {"id": "wamid.0"},
            }),
        ),
        with("message.status_updated", json!({"to": null, "status": "in_orbit", "external_message_id": "w"})),
        with(
            "recipient.opted_out",
            json!({
                "from": "+966500000001", "reason": "recipient_requested_stop", "message_text": "STOP",
                "keyword": "stop", "scope": "non_essential",
            }),
        ),
        with("recipient.opted_in", json!({"from": null, "reason": "operator", "message_text": null})),
        with(
            "provider.event",
            json!({"provider_field": "account_update", "raw": {"event": "DISABLED_UPDATE"}}),
        ),
        with("webhook.test", json!({"subscription_id": "sub_1", "message_text": "This is a test."})),
        with("message.telepathy", json!({"thought": [1, 2, {"deep": true}]})),
    ]
}

/// Reading a body and writing it again loses nothing: known and unknown events, known and unknown fields,
/// the contract's nulls.
#[test]
fn events_survive_a_round_trip() {
    for body in bodies() {
        let event = Event::from_slice(body.to_string().as_bytes()).unwrap();
        assert_eq!(event.name(), body["event"]);
        assert_eq!(event.event_id(), "evt_1");
        assert_eq!(event.instance_id(), "inst_1");
        assert_eq!(serde_json::to_value(&event).unwrap(), body);
    }
}

/// The typed fields hold what the body says.
#[test]
fn fields_are_typed() {
    let bodies = bodies();
    let Ok(Event::MessageReceived(message)) = Event::from_slice(bodies[0].to_string().as_bytes()) else {
        panic!("message.received is known");
    };
    assert_eq!(message.from.as_deref(), Some("+966500000001"));
    assert_eq!(message.common.timestamp.as_second(), 1_778_148_000);
    assert_eq!(message.content.media.as_ref().unwrap().voice, Some(true));
    assert_eq!(
        (message.correlation.as_deref(), message.whatsapp_message_id.as_deref()),
        (Some("order-1"), Some("wamid.2"))
    );
    assert!(message.extra.contains_key("a_field_of_tomorrow"));
    let Ok(Event::MessageFailed(status)) = Event::from_slice(bodies[2].to_string().as_bytes()) else {
        panic!("message.failed is known");
    };
    assert_eq!(status.error.as_ref().unwrap().code, Some(131_026));
    assert_eq!(
        (status.correlation.as_deref(), status.whatsapp_message_id.as_deref()),
        (Some("order-2"), Some("wamid.3"))
    );
}

/// What is no event is an error, and neither errors nor events print what people wrote.
#[test]
fn nothing_prints_personal_data() {
    for bad in ["", "[]", "{}", r#"{"event":7}"#, r#"{"event":"message.received"}"#] {
        assert!(Event::from_slice(bad.as_bytes()).is_err(), "{bad}");
    }
    let planted = r#"{"event":"message.received","instance_id":{"from":"+966500000001"}}"#;
    let error = Event::from_slice(planted.as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("966"), "{error}");
    for body in bodies() {
        let event = Event::from_slice(body.to_string().as_bytes()).unwrap();
        let printed = format!("{event:?}");
        assert!(!printed.contains("966") && !printed.contains("hello"), "{printed}");
    }
}
