use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use gateway_core::{
    event::Provider as ProviderName,
    signature::{hmac_sha256, sha256_hex},
    snapshot::RouteSecretKind,
};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::provider::{
    CallbackRequest, Provider as _, Refusal,
    messagebird::MessageBird,
    tests::{request, route},
};

const KEY: &str = "mb-signing-key-0123456789abcdef0123";
const BODY: &str = r#"{"type":"message.created","message":{"id":"mesid"}}"#;
const BASE: &str = "https://gw.example.com";
/// Where a token of [`claims`] is for, and when.
const TARGET: &str = "/callbacks/messagebird/abc";
const NOW: i64 = 1_700_000_030;

fn callback(target: &str, body: &str, headers: &[(&str, &str)]) -> CallbackRequest {
    let mut request = request(body.as_bytes());
    request.uri = target.parse().unwrap();
    request.public_base_url = Some(BASE.into());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

fn verify(keys: &[&str], request: &CallbackRequest, now: i64) -> Result<(), Refusal> {
    let secrets: Vec<_> = keys.iter().map(|key| (RouteSecretKind::MessageBirdSigningKey, *key)).collect();
    let route = route(ProviderName::MessageBird, &secrets);
    MessageBird.authenticate(&route, request, Timestamp::from_second(now).unwrap())
}

fn verify_jwt(token: &str, target: &str, body: &str, now: i64) -> Result<(), Refusal> {
    verify(&[KEY], &callback(target, body, &[("MessageBird-Signature-JWT", token)]), now)
}

/// The claims of a token for [`BODY`] at [`TARGET`], with some of them set otherwise; null leaves one out.
fn claims(other: Value) -> Value {
    let mut claims = json!({
        "iss": "MessageBird",
        "nbf": 1_700_000_000,
        "exp": 1_700_000_060,
        "jti": "11111111-2222-3333-4444-555555555555",
        "url_hash": sha256_hex(format!("{BASE}{TARGET}").as_bytes()),
        "payload_hash": sha256_hex(BODY.as_bytes()),
    });
    let Value::Object(other) = other else { panic!("claims are an object") };
    claims.as_object_mut().unwrap().extend(other);
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn signed(claims: &Value) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", encode(r#"{"alg":"HS256","typ":"JWT"}"#), encode(&claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha256(KEY.as_bytes(), message.as_bytes()));
    format!("{message}.{signature}")
}

/// A token that the official library (messagebird 2.2.0 for Python) accepts is accepted with the key that signed it,
/// for its URL and its body, and in no other case.
#[test]
fn official_vector_is_accepted() {
    let token = concat!(
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJNZXNzYWdlQmlyZCIsIm5iZiI6MTcwMDAwMDAwMCwiZXhwIjo0MTAyNDQ0ODA",
        "wLCJqdGkiOiIxMTExMTExMS0yMjIyLTMzMzMtNDQ0NC01NTU1NTU1NTU1NTUiLCJ1cmxfaGFzaCI6IjZmMTE2YTRiMWZiZmNhYWQyZjEyMzl",
        "lOTU1YTBiZTNlOTYyNGU2OWZkMThlMDdjMTIyNGFmYmRhODMzNjk3MGQiLCJwYXlsb2FkX2hhc2giOiJhMDBjNTJlZmZkMDMwZjZhZWUxZWI",
        "3Yzg3MjljY2MyMDQ1MDBiZTc3MTY2NjJlMzEyZmY2MjNkMzUzNDdlMDMwIn0.X-EQqhhSy6X2OdMhnuneuk8JtIYkSaAe98NjJLpWkNg",
    );
    let target = "/in/messagebird/abc?tenant=7";
    let header = [("MessageBird-Signature-JWT", token)];
    let genuine = callback(target, BODY, &header);
    for keys in [&[KEY][..], &["another", KEY], &[KEY, "another", ""]] {
        assert_eq!(verify(keys, &genuine, NOW), Ok(()));
    }
    assert_eq!(verify(&["another"], &genuine, NOW), Err(Refusal::WrongSignature));
    assert_eq!(verify(&[""], &genuine, NOW), Err(Refusal::MissingSecret));
    assert_eq!(verify(&[], &genuine, NOW), Err(Refusal::MissingSecret));
    assert_eq!(verify_jwt(token, &format!("{target}x"), BODY, NOW), Err(Refusal::WrongUrlHash));
    assert_eq!(verify_jwt(token, target, &format!("{BODY} "), NOW), Err(Refusal::WrongBodyHash));
    assert_eq!(verify_jwt(token, target, "", NOW), Err(Refusal::WrongBodyHash));
    let mut elsewhere = callback(target, BODY, &header);
    elsewhere.public_base_url = Some("https://gw.example.org".into());
    assert_eq!(verify(&[KEY], &elsewhere, NOW), Err(Refusal::WrongUrlHash));
    elsewhere.public_base_url = None;
    assert_eq!(verify(&[KEY], &elsewhere, NOW), Err(Refusal::MissingHost));
    // The key of another provider is no key here.
    let route = route(ProviderName::MessageBird, &[(RouteSecretKind::BirdSigningKey, KEY)]);
    let now = Timestamp::from_second(NOW).unwrap();
    assert_eq!(MessageBird.authenticate(&route, &genuine, now), Err(Refusal::MissingSecret));
}

/// Tokens of each of the algorithms that the official library allows, made by PyJWT.
#[test]
fn three_algorithms_are_accepted() {
    let claims = concat!(
        ".eyJpc3MiOiJNZXNzYWdlQmlyZCIsIm5iZiI6MTcwMDAwMDAwMCwiZXhwIjoxNzAwMDAwMDYwLCJqdGkiOiJqIiwidXJsX2hhc2giOiJmMTV",
        "kMjg0YTNhYTY2NDBjNzg0Y2UwYTE5MjNlZmJjZTk1ZTRmZDA5NmFhMDYwOGMwM2QxZDhkMzNkOWQwZDY4IiwicGF5bG9hZF9oYXNoIjoiYTA",
        "wYzUyZWZmZDAzMGY2YWVlMWViN2M4NzI5Y2NjMjA0NTAwYmU3NzE2NjYyZTMxMmZmNjIzZDM1MzQ3ZTAzMCJ9.",
    );
    for (header, signature) in [
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "xDWQgTz1bFylRqlFqGQt6wgtDvFt91uTOrSZcJhzYbo"),
        (
            "eyJhbGciOiJIUzM4NCIsInR5cCI6IkpXVCJ9",
            "YkqynPRq-mkWQPH-OhN_UdNToiuiLCWfEn24hb9udLGb5ONnIDecCLp8WyX5WdKK",
        ),
        (
            "eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9",
            "7fN_s-R6JqiCyhQgFM9lmROoThbWmoG6h6Cgh6gh1u5v--hu7XoAVPuPWNPfHW_cAH1l0fVmlwoXU-JsT5ZU4w",
        ),
    ] {
        let token = format!("{header}{claims}{signature}");
        assert_eq!(verify_jwt(&token, TARGET, BODY, NOW), Ok(()), "{header}");
        assert_eq!(verify_jwt(&token, "/callbacks/messagebird/abd", BODY, NOW), Err(Refusal::WrongUrlHash));
        let changed =
            token.replace("XIiOiJNZXNzYWdlQmlyZCI", "XIiOiJNZXNzYWdlQmlyZSI").replace("Jpc3", "Jpc2");
        assert!(verify_jwt(&changed, TARGET, BODY, NOW).is_err());
    }
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0{claims}");
    assert_eq!(verify_jwt(&none, TARGET, BODY, NOW), Err(Refusal::WrongAlgorithm));
}

/// What the official library accepts and refuses of claims, bodies, URLs and times. Beyond it, a hash may be in capitals,
/// and the default port may be written or not.
#[test]
fn claims_are_judged_as_the_official_library_does() {
    let url_hash = |url: &str| json!({"url_hash": sha256_hex(url.as_bytes())});
    let query = "/callbacks/messagebird/abc?foo=2&bar=1";
    let of_query = url_hash(&format!("{BASE}{query}"));
    let nothing = sha256_hex(b"");
    for (other, target, body, now, expected) in [
        (json!({}), TARGET, BODY, NOW, Ok(())),
        (json!({"jti": null, "more": [1]}), TARGET, BODY, NOW, Ok(())),
        // The query is signed as it was sent: neither sorted nor left away.
        (of_query.clone(), query, BODY, NOW, Ok(())),
        (of_query.clone(), "/callbacks/messagebird/abc?bar=1&foo=2", BODY, NOW, Err(Refusal::WrongUrlHash)),
        (of_query, TARGET, BODY, NOW, Err(Refusal::WrongUrlHash)),
        (json!({}), "/callbacks/messagebird/abc?", BODY, NOW, Err(Refusal::WrongUrlHash)),
        (json!({}), "/callbacks/messagebird/abc/", BODY, NOW, Err(Refusal::WrongUrlHash)),
        (json!({"url_hash": null}), TARGET, BODY, NOW, Err(Refusal::WrongUrlHash)),
        (json!({"url_hash": ""}), TARGET, BODY, NOW, Err(Refusal::WrongUrlHash)),
        (url_hash("https://gw.example.com:443/callbacks/messagebird/abc"), TARGET, BODY, NOW, Ok(())),
        (
            url_hash("https://gw.example.com:8443/callbacks/messagebird/abc"),
            TARGET,
            BODY,
            NOW,
            Err(Refusal::WrongUrlHash),
        ),
        (
            url_hash("http://gw.example.com/callbacks/messagebird/abc"),
            TARGET,
            BODY,
            NOW,
            Err(Refusal::WrongUrlHash),
        ),
        // A hash of the body if and only if there is a body.
        (json!({"payload_hash": null}), TARGET, "", NOW, Ok(())),
        (json!({"payload_hash": ""}), TARGET, "", NOW, Ok(())),
        (json!({"payload_hash": nothing}), TARGET, "", NOW, Err(Refusal::WrongBodyHash)),
        (json!({"payload_hash": null}), TARGET, BODY, NOW, Err(Refusal::WrongBodyHash)),
        (json!({"payload_hash": ""}), TARGET, BODY, NOW, Err(Refusal::WrongBodyHash)),
        (json!({"payload_hash": 7}), TARGET, BODY, NOW, Err(Refusal::WrongBodyHash)),
        (json!({"payload_hash": "A00C"}), TARGET, BODY, NOW, Err(Refusal::WrongBodyHash)),
        (json!({"payload_hash": sha256_hex(BODY.as_bytes()).to_uppercase()}), TARGET, BODY, NOW, Ok(())),
        // One second of leeway on either side.
        (json!({}), TARGET, BODY, 1_699_999_998, Err(Refusal::Expired)),
        (json!({}), TARGET, BODY, 1_699_999_999, Ok(())),
        (json!({}), TARGET, BODY, 1_700_000_060, Ok(())),
        (json!({}), TARGET, BODY, 1_700_000_061, Err(Refusal::Expired)),
        (json!({"nbf": null}), TARGET, BODY, NOW, Err(Refusal::MalformedSignature)),
        (json!({"exp": null}), TARGET, BODY, NOW, Err(Refusal::MalformedSignature)),
        (json!({"exp": "never"}), TARGET, BODY, NOW, Err(Refusal::MalformedSignature)),
        (json!({"exp": i64::MAX, "nbf": i64::MIN}), TARGET, BODY, NOW, Ok(())),
        (json!({"iss": "Messagebird"}), TARGET, BODY, NOW, Err(Refusal::MalformedSignature)),
        (json!({"iss": null}), TARGET, BODY, NOW, Err(Refusal::MalformedSignature)),
    ] {
        let token = signed(&claims(other.clone()));
        assert_eq!(verify_jwt(&token, target, body, now), expected, "{other} {target} {body:?} {now}");
    }
}

/// A token for one body proves no other.
#[test]
fn token_cannot_be_used_again_for_another_body() {
    let token = signed(&claims(json!({})));
    assert_eq!(verify_jwt(&token, TARGET, BODY, NOW), Ok(()));
    for index in 0..BODY.len() {
        let mut body = BODY.as_bytes().to_vec();
        body[index] ^= 1;
        let mut request = callback(TARGET, "", &[("MessageBird-Signature-JWT", &token)]);
        request.body = Bytes::from(body);
        assert_eq!(verify(&[KEY], &request, NOW), Err(Refusal::WrongBodyHash), "{index}");
    }
}

const OLD_SIGNATURE: &str = "04sKo1ykqcfAgUUCfAyHOTVBi0rN0QeKs6QNgW6/r8Q=";
const OLD_TIMESTAMP: &str = "1544544948";

fn old(target: &str, body: &str, signature: &str, timestamp: &str) -> CallbackRequest {
    let headers = [("MessageBird-Signature", signature), ("MessageBird-Request-Timestamp", timestamp)];
    callback(target, body, &headers)
}

/// The signature of before the JWT is accepted for its query, in any order, its body and its time.
#[test]
fn older_signature_is_accepted() {
    let now = 1_544_544_948;
    for target in ["/in/messagebird/abc?id=9&tenant=7", "/elsewhere?tenant=7&id=9"] {
        let request = old(target, BODY, OLD_SIGNATURE, OLD_TIMESTAMP);
        for keys in [&[KEY][..], &["another", KEY]] {
            assert_eq!(verify(keys, &request, now), Ok(()), "{target}");
        }
        for (age, expected) in
            [(300, Ok(())), (301, Err(Refusal::Expired)), (-300, Ok(())), (-301, Err(Refusal::Expired))]
        {
            assert_eq!(verify(&[KEY], &request, now + age), expected, "{age}");
        }
        assert_eq!(verify(&["another"], &request, now), Err(Refusal::WrongSignature));
        assert_eq!(verify(&["", "  "], &request, now), Err(Refusal::WrongSignature));
        assert_eq!(verify(&[""], &request, now), Err(Refusal::MissingSecret));
    }
}

/// Whatever is not as it was signed is refused, each for its reason.
#[test]
fn other_older_signatures_are_refused() {
    let (target, now) = ("/in/messagebird/abc?id=9&tenant=7", 1_544_544_948);
    for (target, body, signature, timestamp, reason) in [
        ("/a?id=9&tenant=8", BODY, OLD_SIGNATURE, OLD_TIMESTAMP, Refusal::WrongSignature),
        ("/a", BODY, OLD_SIGNATURE, OLD_TIMESTAMP, Refusal::WrongSignature),
        (target, "{}", OLD_SIGNATURE, OLD_TIMESTAMP, Refusal::WrongSignature),
        (target, BODY, OLD_SIGNATURE, "1544544949", Refusal::WrongSignature),
        (target, BODY, OLD_SIGNATURE, "1544544948.0", Refusal::WrongSignature),
        (target, BODY, OLD_SIGNATURE, "now", Refusal::MalformedSignature),
        (target, BODY, OLD_SIGNATURE, "", Refusal::MalformedSignature),
        (target, BODY, "", OLD_TIMESTAMP, Refusal::MalformedSignature),
        (
            target,
            BODY,
            "04sKo1ykqcfAgUUCfAyHOTVBi0rN0QeKs6QNgW6/r8",
            OLD_TIMESTAMP,
            Refusal::MalformedSignature,
        ),
        (target, BODY, "not base64!", OLD_TIMESTAMP, Refusal::MalformedSignature),
        (
            target,
            BODY,
            "14sKo1ykqcfAgUUCfAyHOTVBi0rN0QeKs6QNgW6/r8Q=",
            OLD_TIMESTAMP,
            Refusal::WrongSignature,
        ),
    ] {
        let request = old(target, body, signature, timestamp);
        assert_eq!(verify(&[KEY], &request, now), Err(reason), "{target} {body} {signature} {timestamp}");
    }
    for headers in [
        &[][..],
        &[("MessageBird-Signature", OLD_SIGNATURE)],
        &[("MessageBird-Request-Timestamp", OLD_TIMESTAMP)],
    ] {
        assert_eq!(verify(&[KEY], &callback(target, BODY, headers), now), Err(Refusal::MissingSignature));
    }
}

/// Whoever sends a JWT is judged by it, and every header may come once.
#[test]
fn older_signature_is_no_way_around_the_jwt() {
    let (target, now) = ("/in/messagebird/abc?id=9&tenant=7", 1_544_544_948);
    for (token, reason) in [
        ("", Refusal::MalformedSignature),
        ("x", Refusal::MalformedSignature),
        (&signed(&claims(json!({}))), Refusal::Expired),
    ] {
        let mut request = old(target, BODY, OLD_SIGNATURE, OLD_TIMESTAMP);
        assert_eq!(verify(&[KEY], &request, now), Ok(()));
        request.headers.append("messagebird-signature-jwt", HeaderValue::from_str(token).unwrap());
        assert_eq!(verify(&[KEY], &request, now), Err(reason), "{token}");
    }
    for name in ["messagebird-signature", "messagebird-request-timestamp"] {
        let mut request = old(target, BODY, OLD_SIGNATURE, OLD_TIMESTAMP);
        let value = request.headers[name].clone();
        request.headers.append(name, value);
        assert_eq!(verify(&[KEY], &request, now), Err(Refusal::MalformedSignature), "{name}");
    }
    let token = signed(&claims(json!({})));
    let header = ("MessageBird-Signature-JWT", token.as_str());
    let twice = callback(TARGET, BODY, &[header, header]);
    assert_eq!(verify(&[KEY], &twice, NOW), Err(Refusal::MalformedSignature));
}
