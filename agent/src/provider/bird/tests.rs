use gateway_core::{event::Provider as ProviderName, snapshot::RouteSecretKind};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::Bird;
use crate::provider::{
    CallbackRequest, NormalizeError, Provider as _, Refusal,
    tests::{Corpus, corpus, request, route},
};

const KEY: &str = "bird-signing-key";
const TIMESTAMP: &str = "1719823259";
const TIME: i64 = 1_719_823_259;
const SIGNATURE: &str = "CNWKgs3/XWIiDTuNyDmyn6Zuz/pWU/ReXkm7tQ/6jhc=";
const BODY: &str = concat!(
    r#"{"service":"channels","event":"whatsapp.inbound","#,
    r#""payload":{"id":"404544c5-9920-45f1-8990-0855634ab7ac"}}"#
);

/// Every payload gives the events of its snapshot.
#[test]
fn payloads_give_their_events() {
    corpus(&Corpus {
        provider: ProviderName::Bird,
        number: "52ad151f-f7b4-46f9-a5c6-d3318e650c84",
        phone: "+15550783881",
        account: "",
        second: Some(("15550783882", "+15550783882")),
    });
}

fn callback(base: &str, target: &str, body: &[u8], headers: &[(&str, &str)]) -> CallbackRequest {
    let mut request = request(body);
    request.uri = target.parse().unwrap();
    request.public_base_url = Some(base.into());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

fn genuine(base: &str) -> CallbackRequest {
    let headers = [("messagebird-signature", SIGNATURE), ("messagebird-request-timestamp", TIMESTAMP)];
    callback(base, "/in/bird/abc", BODY.as_bytes(), &headers)
}

fn verify(keys: &[&str], request: &CallbackRequest, now: i64) -> Result<(), Refusal> {
    let secrets: Vec<_> = keys.iter().map(|key| (RouteSecretKind::BirdSigningKey, *key)).collect();
    let route = route(ProviderName::Bird, &secrets);
    Bird.authenticate(&route, request, Timestamp::from_second(now).unwrap())
}

/// A signature made after Bird's own samples is accepted with any of several live keys, behind a proxy that writes the
/// default port too.
#[test]
fn genuine_signatures_are_accepted() {
    for base in ["https://gw.example.com", "https://gw.example.com:443"] {
        for keys in [&[KEY][..], &["another", KEY], &[KEY, "another", ""]] {
            assert_eq!(verify(keys, &genuine(base), TIME), Ok(()), "{base}");
        }
    }
}

/// The signature is good for five minutes, whichever clock is ahead.
#[test]
fn old_signatures_are_refused() {
    for (age, expected) in [
        (300, Ok(())),
        (301, Err(Refusal::Expired)),
        (86_400, Err(Refusal::Expired)),
        (-300, Ok(())),
        (-301, Err(Refusal::Expired)),
    ] {
        assert_eq!(verify(&[KEY], &genuine("https://gw.example.com"), TIME + age), expected, "{age}");
    }
}

/// Timestamp, URL, every byte of the body and the key are signed.
#[test]
fn changed_callbacks_are_refused() {
    let base = "https://gw.example.com";
    let headers = [("messagebird-signature", SIGNATURE), ("messagebird-request-timestamp", TIMESTAMP)];
    for target in ["/in/bird/abd", "/in/bird/abc?", "/in/bird/abc?a=b", "/in/bird/abc/"] {
        let request = callback(base, target, BODY.as_bytes(), &headers);
        assert_eq!(verify(&[KEY], &request, TIME), Err(Refusal::WrongSignature), "{target}");
    }
    for base in ["http://gw.example.com", "https://gw.example.org", "https://gw.example.com:8443"] {
        assert_eq!(verify(&[KEY], &genuine(base), TIME), Err(Refusal::WrongSignature), "{base}");
    }
    for index in 0..BODY.len() {
        let mut body = BODY.as_bytes().to_vec();
        body[index] ^= 1;
        let request = callback(base, "/in/bird/abc", &body, &headers);
        assert_eq!(verify(&[KEY], &request, TIME), Err(Refusal::WrongSignature), "{index}");
    }
    let later = [headers[0], ("messagebird-request-timestamp", "1719823260")];
    let request = callback(base, "/in/bird/abc", BODY.as_bytes(), &later);
    assert_eq!(verify(&[KEY], &request, TIME), Err(Refusal::WrongSignature));
    assert_eq!(verify(&["bird-signing-kez"], &genuine(base), TIME), Err(Refusal::WrongSignature));
}

/// Missing, doubled and malformed headers are refused, and so is everything without a key.
#[test]
fn incomplete_callbacks_are_refused() {
    let base = "https://gw.example.com";
    for name in ["messagebird-signature", "messagebird-request-timestamp"] {
        let mut request = genuine(base);
        let value = request.headers.remove(name).unwrap();
        assert_eq!(verify(&[KEY], &request, TIME), Err(Refusal::MissingSignature), "{name}");
        for _ in 0..2 {
            request.headers.append(name, value.clone());
        }
        assert_eq!(verify(&[KEY], &request, TIME), Err(Refusal::MalformedSignature), "{name}");
        for malformed in ["", "x", "=", "0x1"] {
            request.headers.insert(name, HeaderValue::from_str(malformed).unwrap());
            assert_eq!(
                verify(&[KEY], &request, TIME),
                Err(Refusal::MalformedSignature),
                "{name} {malformed}"
            );
        }
    }
    assert_eq!(verify(&[], &genuine(base), TIME), Err(Refusal::MissingSecret));
    assert_eq!(verify(&[""], &genuine(base), TIME), Err(Refusal::MissingSecret));
    let route = route(ProviderName::Bird, &[(RouteSecretKind::MessageBirdSigningKey, KEY)]);
    let now = Timestamp::from_second(TIME).unwrap();
    assert_eq!(Bird.authenticate(&route, &genuine(base), now), Err(Refusal::MissingSecret));
    let mut nowhere = genuine(base);
    nowhere.public_base_url = None;
    assert_eq!(verify(&[KEY], &nowhere, TIME), Err(Refusal::MissingHost));
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep, without recursion.
#[test]
fn only_json_is_read() {
    for bad in [&b""[..], b"{", b"{}x", b"hello", b"[1,]", b"\xff\xfe", b"\"\xff\"", b"{\"event\":NaN}"] {
        assert_eq!(Bird.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    let inside = format!(r#"{{"event":"whatsapp.inbound","payload":{{"body":{deep}}}}}"#);
    for body in [deep, inside] {
        assert_eq!(Bird.normalize(body.as_bytes()).unwrap()[0].items.len(), 1);
    }
}
