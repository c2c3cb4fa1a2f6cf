use gateway_core::{
    event::Provider as Name,
    signature::{encode_hex, hmac_sha512},
    snapshot::RouteSecretKind,
};
use http::HeaderValue;

use super::*;
use crate::provider::tests::{Corpus, corpus, describe, fixtures, request, route};

const CORPUS: Corpus =
    Corpus { provider: Name::Waha, number: "support", phone: "+15550783881", account: "", second: None };

/// Key, body and signature: the published one, and one whose body is not ASCII.
const SIGNED: [(&str, &str, &str); 2] = [
    (
        "my-secret-key",
        r#"{"event":"message","session":"default","engine":"WEBJS"}"#,
        concat!(
            "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8",
            "097c462b2b17a6ce93b6b47a136cf2e78a33a63f6752c2c1631777076153fa89"
        ),
    ),
    (
        "waha-hmac-key",
        concat!(
            r#"{"id":"evt_01","timestamp":1741249702485,"event":"message","session":"default","payload":"#,
            r#"{"id":"false_11111111111@c.us_AAAA","timestamp":1667561485,"from":"11111111111@c.us","#,
            r#""fromMe":false,"body":"إيقاف"}}"#
        ),
        concat!(
            "fb1c49cbd67e501b533ae7dde6133c042213cc98df37aaf3a59d0bc7d2d455c3",
            "67b33e93888a5fed925e4bcdca0cb954f485fa85b6b7a7656e80bef71abe1ac8"
        ),
    ),
];

type Secrets<'a> = &'a [(RouteSecretKind, &'a str)];

fn verify(secrets: Secrets<'_>, headers: &[(&'static str, &str)], body: &str) -> Result<(), Refusal> {
    let mut request = request(body.as_bytes());
    for (name, value) in headers {
        request.headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    Waha.authenticate(&route(Name::Waha, secrets), &request, Timestamp::UNIX_EPOCH)
}

fn signed<'a>(signature: &'a str, algorithm: &'a str) -> [(&'static str, &'a str); 2] {
    [("x-webhook-hmac", signature), ("x-webhook-hmac-algorithm", algorithm)]
}

/// The events of every payload, see [`corpus`].
#[test]
fn payloads_give_their_events() {
    corpus(&CORPUS);
}

/// What links a phone comes out nowhere: in no event, and in nothing that is kept.
#[test]
fn login_is_not_passed_on() {
    let snapshots = [CORPUS.configuration(&["*"]), gateway_core::snapshot::Snapshot::default()];
    let with_route = &snapshots[0];
    let mut planted = 0;
    for fixture in fixtures(Name::Waha) {
        planted += usize::from(String::from_utf8_lossy(&fixture.content).contains("planted"));
        let claimed = describe(&CORPUS.normalize(with_route, &fixture.content).unwrap());
        let kept = Waha.normalize(&fixture.content).unwrap();
        let kept: String = kept.iter().map(|part| part.original.concat()).collect();
        assert!(!claimed.contains("planted") && !kept.contains("planted"), "{}", fixture.name);
    }
    assert!(planted > 5);
}

/// The published signature and one over UTF-8 are accepted, with any of several live keys, in either case of hex.
#[test]
fn genuine_signatures_are_accepted() {
    for (key, body, signature) in SIGNED {
        for keys in [&[key][..], &["another", key], &[key, "another"]] {
            let secrets: Vec<_> = keys.iter().map(|key| (RouteSecretKind::WahaHmacKey, *key)).collect();
            assert_eq!(verify(&secrets, &signed(signature, "sha512"), body), Ok(()));
            assert_eq!(verify(&secrets, &signed(&signature.to_uppercase(), "sha512"), body), Ok(()));
        }
    }
}

/// One changed byte, another key, a missing or doubled header, another algorithm and another form are refused.
#[test]
fn bad_signatures_are_refused() {
    let (key, body, signature) = SIGNED[1];
    let secrets: Secrets<'_> = &[(RouteSecretKind::WahaHmacKey, key)];
    let refusal = |headers: &[(&'static str, &str)]| verify(secrets, headers, body).err();
    assert_eq!(refusal(&[]), Some(Refusal::MissingSignature));
    assert_eq!(refusal(&signed(signature, "sha512")[..1]), Some(Refusal::MissingSignature));
    assert_eq!(refusal(&signed(signature, "sha512")[1..]), Some(Refusal::MissingSignature));
    for algorithm in ["sha256", "SHA512", "sha-512", ""] {
        assert_eq!(refusal(&signed(signature, algorithm)), Some(Refusal::WrongAlgorithm), "{algorithm}");
    }
    let longer = format!("{signature}00");
    for malformed in ["", "sha512=", &signature[..64], &longer, &signature.replace('f', "g")] {
        assert_eq!(refusal(&signed(malformed, "sha512")), Some(Refusal::MalformedSignature), "{malformed}");
    }
    let twice = [signed(signature, "sha512"), signed(signature, "sha512")].concat();
    assert_eq!(refusal(&twice), Some(Refusal::MalformedSignature));
    let changed = body.replace("evt_01", "evt_02");
    let headers = signed(signature, "sha512");
    assert_eq!(verify(secrets, &headers, &changed), Err(Refusal::WrongSignature));
    let escaped = body.replace('إ', r"\u0625");
    assert_eq!(verify(secrets, &headers, &escaped), Err(Refusal::WrongSignature));
    let other: Secrets<'_> = &[(RouteSecretKind::WahaHmacKey, "waha-hmac-kez")];
    assert_eq!(verify(other, &headers, body), Err(Refusal::WrongSignature));
}

/// Where HMAC is off a header with a secret is proof; where the route has a key it is not.
#[test]
fn headers_are_proof_without_a_key_only() {
    let (key, body, signature) = SIGNED[1];
    let header = (RouteSecretKind::Header, "X-Hook: planted");
    let carried = [("x-hook", "planted")];
    assert_eq!(verify(&[header], &carried, body), Ok(()));
    assert_eq!(verify(&[header], &[("x-hook", "other")], body), Err(Refusal::WrongCredential));
    assert_eq!(verify(&[header], &signed(signature, "sha512"), body), Err(Refusal::MissingCredential));
    let both: Secrets<'_> = &[header, (RouteSecretKind::WahaHmacKey, key)];
    assert_eq!(verify(both, &carried, body), Err(Refusal::MissingSignature));
    assert_eq!(verify(both, &signed(signature, "sha512"), body), Ok(()));
}

/// Without a secret nothing is genuine, unless the route says that the token in its address suffices; an empty
/// key is none, so that nobody signs with it.
#[test]
fn no_secret_means_no() {
    let (_, body, _) = SIGNED[0];
    let signature = encode_hex(&hmac_sha512(b"", body.as_bytes()));
    for secrets in [&[][..], &[(RouteSecretKind::WahaHmacKey, "")]] {
        assert_eq!(verify(secrets, &signed(&signature, "sha512"), body), Err(Refusal::MissingSecret));
    }
    let mut open = route(Name::Waha, &[]);
    open.callback_token_suffices = true;
    assert_eq!(Waha.authenticate(&open, &request(body.as_bytes()), Timestamp::UNIX_EPOCH), Ok(()));
}

/// WAHA asks no handshake.
#[test]
fn there_is_no_handshake() {
    assert_eq!(Waha.handshake(&route(Name::Waha, &[]), "a=b"), Err(Refusal::NoHandshake));
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep, without recursion.
#[test]
fn only_json_is_read() {
    for bad in [&b""[..], b"{", b"{}x", b"a=b", b"\xff", b"{\"payload\":\"\xff\"}", b"{\"payload\":NaN}"] {
        assert_eq!(Waha.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    assert_eq!(Waha.normalize(deep.as_bytes()).unwrap().len(), 1);
    let inside = SIGNED[1].1.replace(r#""إيقاف""#, &deep);
    assert_eq!(Waha.normalize(inside.as_bytes()).unwrap()[0].items.len(), 1);
}

/// Edits and revokes that have the id of their message are other events than it, and than each other.
#[test]
fn reused_ids_are_told_apart() {
    let snapshot = CORPUS.configuration(&[]);
    let names = ["edited", "edited_same_id", "edited_same_id_again", "revoked", "revoked_same_id"];
    let ids: std::collections::BTreeSet<_> = fixtures(Name::Waha)
        .iter()
        .filter(|fixture| names.contains(&fixture.name.as_str()))
        .flat_map(|fixture| CORPUS.normalize(&snapshot, &fixture.content).unwrap().entry.events)
        .map(|event| event.id.to_string())
        .collect();
    assert_eq!(ids.len(), names.len());
}

/// `message` and `message.any` tell of the same message: one event.
#[test]
fn a_message_that_is_told_twice_is_one_event() {
    let snapshot = CORPUS.configuration(&[]);
    let id = |name: &str| {
        let all = fixtures(Name::Waha);
        let fixture = all.iter().find(|fixture| fixture.name == name).unwrap();
        CORPUS.normalize(&snapshot, &fixture.content).unwrap().entry.events[0].id
    };
    assert_eq!(id("text"), id("any_received"));
}
