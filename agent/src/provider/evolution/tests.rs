use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway_core::{
    event::Provider as Name,
    id::EventId,
    signature::{hmac_sha256, hmac_sha512},
    snapshot::RouteSecretKind,
};
use http::{HeaderValue, header::AUTHORIZATION};

use super::*;
use crate::provider::{
    ITEMS_MAX,
    tests::{Corpus, corpus, describe, fixtures, request, route},
};

const CORPUS: Corpus =
    Corpus { provider: Name::Evolution, number: "support", phone: "+15550783881", account: "", second: None };

/// A token that PyJWT accepts, made at 1700000000.
const TOKEN: &str = concat!(
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.",
    "eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMDYwMCwiYXBwIjoiZXZvbHV0aW9uIiwiYWN0aW9uIjoid2ViaG9vayJ9.",
    "vfFP7UMSZ_0yT43wmp0-1rveEzwRjDU5AEHPxRdjZ58"
);
const KEY: &str = "evolution-jwt-key-0123456789abcdef";
const MADE: i64 = 1_700_000_000;
const JWT_KEY: (RouteSecretKind, &str) = (RouteSecretKind::EvolutionJwtKey, KEY);

type Secrets<'a> = &'a [(RouteSecretKind, &'a str)];

fn verify(secrets: Secrets<'_>, headers: &[(&'static str, &str)], seconds: i64) -> Result<(), Refusal> {
    let mut request = request(b"{}");
    for (name, value) in headers {
        request.headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    let now = Timestamp::from_second(seconds).unwrap();
    Evolution.authenticate(&route(Name::Evolution, secrets), &request, now)
}

fn with_token(secrets: Secrets<'_>, token: &str, seconds: i64) -> Result<(), Refusal> {
    verify(secrets, &[("authorization", &format!("Bearer {token}"))], seconds)
}

fn token(claims: &str) -> String {
    let header = r#"{"alg":"HS256","typ":"JWT"}"#;
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha256(KEY.as_bytes(), message.as_bytes()));
    format!("{message}.{signature}")
}

/// The events of every payload, see [`corpus`].
#[test]
fn payloads_give_their_events() {
    corpus(&CORPUS);
}

/// Keys of the instance, what links its phone, keys of files and of encryption, our own address and files come out
/// nowhere: in no event, and in nothing that is kept.
#[test]
fn secrets_are_not_passed_on() {
    let snapshot = CORPUS.configuration(&["*"]);
    let mut planted = 0;
    for fixture in fixtures(Name::Evolution) {
        planted += usize::from(String::from_utf8_lossy(&fixture.content).contains("planted"));
        let claimed = describe(&CORPUS.normalize(&snapshot, &fixture.content).unwrap());
        let kept = Evolution.normalize(&fixture.content).unwrap();
        let kept: String = kept.iter().map(|part| part.original.concat()).collect();
        for secret in ["planted", "cGxhbnRlZA==", "gw.example.com"] {
            assert!(!claimed.contains(secret), "{}: {secret} in {claimed}", fixture.name);
            assert!(!kept.contains(secret), "{}: {secret} in {kept}", fixture.name);
        }
    }
    assert!(planted > 100);
}

/// A genuine token is accepted with any of several live keys, from its first second to an hour after its end:
/// that long a callback may be tried with it.
#[test]
fn genuine_tokens_are_accepted() {
    let other = (RouteSecretKind::EvolutionJwtKey, "another");
    for secrets in [&[JWT_KEY][..], &[other, JWT_KEY], &[JWT_KEY, other]] {
        for seconds in [MADE, MADE + 600, MADE + 1215, MADE + 600 + 3600] {
            assert_eq!(with_token(secrets, TOKEN, seconds), Ok(()), "{seconds}");
        }
    }
    assert_eq!(with_token(&[JWT_KEY], TOKEN, MADE - 3600), Ok(()));
}

/// A token of another hour, one of another key, algorithm or purpose, one with a changed byte, and none at all are refused.
#[test]
fn bad_tokens_are_refused() {
    let refusal = |token: &str| with_token(&[JWT_KEY], token, MADE).err();
    assert_eq!(with_token(&[JWT_KEY], TOKEN, MADE + 600 + 3601), Err(Refusal::Expired));
    assert_eq!(with_token(&[JWT_KEY], TOKEN, MADE - 3601), Err(Refusal::Expired));
    let other = (RouteSecretKind::EvolutionJwtKey, "evolution-jwt-key-0123456789abcdeg");
    assert_eq!(with_token(&[other], TOKEN, MADE), Err(Refusal::WrongSignature));
    assert_eq!(refusal(&TOKEN.replace("eyJpYXQiOjE3", "eyJpYXQiOjE4")), Some(Refusal::WrongSignature));
    assert_eq!(refusal(&format!("{}A", &TOKEN[..TOKEN.len() - 1])), Some(Refusal::WrongSignature));
    assert_eq!(refusal(""), Some(Refusal::MissingSignature));
    assert_eq!(refusal("a.b"), Some(Refusal::MalformedSignature));
    for claims in [
        r#"{"exp":1700000600,"app":"evolution","action":"login"}"#,
        r#"{"exp":1700000600,"app":"another","action":"webhook"}"#,
        r#"{"exp":1700000600,"app":["evolution"],"action":"webhook"}"#,
        r#"{"exp":1700000600,"app":"evolution"}"#,
        r#"{"exp":1700000600,"action":"webhook"}"#,
        r#"{"exp":1700000600}"#,
    ] {
        assert_eq!(refusal(&token(claims)), Some(Refusal::WrongCredential), "{claims}");
    }
    assert_eq!(
        refusal(&token(r#"{"app":"evolution","action":"webhook"}"#)),
        Some(Refusal::MalformedSignature)
    );
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS512"}"#),
        URL_SAFE_NO_PAD.encode(r#"{"exp":1700000600}"#)
    );
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha512(KEY.as_bytes(), message.as_bytes()));
    assert_eq!(refusal(&format!("{message}.{signature}")), Some(Refusal::WrongAlgorithm));
    assert_eq!(verify(&[JWT_KEY], &[], MADE), Err(Refusal::MissingSignature));
    let bearer = format!("Bearer {TOKEN}");
    let twice = [(AUTHORIZATION.as_str(), &*bearer); 2].map(|(_, value)| ("authorization", value));
    assert_eq!(verify(&[JWT_KEY], &twice, MADE), Err(Refusal::MalformedSignature));
}

/// A header with a secret is as good as a token; a global webhook sends neither, and then only the token in the
/// address is left.
#[test]
fn headers_are_proof_too() {
    let header = (RouteSecretKind::Header, "X-Hook: planted");
    let carried = [("x-hook", "planted")];
    for secrets in [&[header][..], &[JWT_KEY, header]] {
        assert_eq!(verify(secrets, &carried, MADE), Ok(()));
        assert_eq!(verify(secrets, &[("x-hook", "other")], MADE), Err(Refusal::WrongCredential));
    }
    assert_eq!(with_token(&[JWT_KEY, header], TOKEN, MADE), Ok(()));
    assert_eq!(with_token(&[header], TOKEN, MADE), Err(Refusal::MissingCredential));
    assert_eq!(verify(&[JWT_KEY, header], &[], MADE), Err(Refusal::MissingSignature));
    assert_eq!(verify(&[JWT_KEY], &carried, MADE), Err(Refusal::MissingSignature));
    for secrets in [&[][..], &[(RouteSecretKind::EvolutionJwtKey, "")]] {
        assert_eq!(with_token(secrets, TOKEN, MADE), Err(Refusal::MissingSecret));
    }
    let mut open = route(Name::Evolution, &[]);
    open.callback_token_suffices = true;
    assert_eq!(Evolution.authenticate(&open, &request(b"{}"), Timestamp::UNIX_EPOCH), Ok(()));
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep, without recursion.
#[test]
fn only_json_is_read() {
    for bad in [&b""[..], b"{", b"{}x", b"a=b", b"\xff", b"{\"data\":\"\xff\"}", b"{\"data\":NaN}"] {
        assert_eq!(Evolution.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let message = format!(r#"{{"event":"messages.upsert","data":{{"key":{{"id":"a"}},"message":{deep}}}}}"#);
    let wrapped =
        format!("{}{{}}{}", r#"{"viewOnceMessage":{"message":"#.repeat(50_000), "}}".repeat(50_000));
    let wrapped =
        format!(r#"{{"event":"messages.upsert","data":{{"key":{{"id":"a"}},"message":{wrapped}}}}}"#);
    for body in [deep, message, wrapped] {
        assert_eq!(Evolution.normalize(body.as_bytes()).unwrap()[0].items.len(), 1);
    }
}

/// A list of more than [`ITEMS_MAX`] is refused as a whole.
#[test]
fn lists_are_bounded() {
    let body = |count: usize| {
        let mut body = r#"{"event":"messages.update","instance":"support","data":["#.to_owned();
        for index in 0..count {
            write!(body, r#"{}{{"keyId":"{index}","fromMe":true}}"#, if index > 0 { "," } else { "" })
                .unwrap();
        }
        body + "]}"
    };
    assert_eq!(Evolution.normalize(body(ITEMS_MAX).as_bytes()).unwrap()[0].items.len(), ITEMS_MAX);
    let more = body(ITEMS_MAX + 1);
    assert_eq!(Evolution.normalize(more.as_bytes()).err(), Some(NormalizeError::TooManyItems));
}

/// What is kept without its file is the same event as with it, also when it has no id.
#[test]
fn ids_do_not_come_from_what_is_cut() {
    let snapshot = CORPUS.configuration(&[]);
    let id = |content: &[u8]| CORPUS.normalize(&snapshot, content).unwrap().entry.events[0].id;
    for data in [
        r#"{"key":{"remoteJid":"1@lid"}, "message":{"imageMessage":{},"base64":"AAAA"}}"#,
        r#"[{"key":{"remoteJid":"1@lid"}, "message":{"imageMessage":{},"base64":"AAAA"}}]"#,
        r#"[{"key":{"remoteJid":"1@lid"}, "message":{"x":{}}}, {"base64":"AAAA"}]"#,
        r#"{"message":{"x":{},"base64":"AAAA"}}"#,
    ] {
        let body = format!(r#"{{"event":"messages.upsert","instance":"support","data":{data}}}"#);
        let kept = Evolution.normalize(body.as_bytes()).unwrap().remove(0).original.concat();
        assert!(!kept.contains("AAAA"), "{kept}");
        assert_eq!(id(body.as_bytes()), id(kept.as_bytes()), "{kept}");
    }
}

fn ids(names: &[&str]) -> Vec<EventId> {
    let snapshot = CORPUS.configuration(&[]);
    let all = fixtures(Name::Evolution);
    let id = |name: &&str| {
        let fixture = all.iter().find(|fixture| fixture.name == **name).unwrap();
        CORPUS.normalize(&snapshot, &fixture.content).unwrap().entry.events[0].id
    };
    names.iter().map(id).collect()
}

/// What Evolution API tells twice is one event; what has the id of another message is not that message.
#[test]
fn repeats_are_known_and_changes_are_not_repeats() {
    for same in [
        &["text_own_web", "send_message"][..],
        &["edited_revoke", "edited_revoke_number", "deleted", "upserted_revoke"],
        &["edited", "upserted_edit"],
        &["text", "event_upper_case", "event_with_dashes"],
    ] {
        let ids = ids(same);
        assert!(ids.iter().all(|id| *id == ids[0]), "{same:?}");
    }
    let different = ids(&["text", "edited", "edited_again", "edited_revoke", "text_own_web", "edited_own"]);
    let all: std::collections::BTreeSet<_> = different.iter().map(ToString::to_string).collect();
    assert_eq!(all.len(), different.len());
}
