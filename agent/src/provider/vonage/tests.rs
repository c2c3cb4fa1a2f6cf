use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway_core::{
    event::Provider as ProviderName,
    signature::{hmac_sha256, hmac_sha512, sha256_hex},
    snapshot::RouteSecretKind,
};
use http::{HeaderValue, header::AUTHORIZATION};

use super::*;
use crate::provider::tests;

const SECRET: &str = "vonage-signature-secret-0123456789abcdef";
const BODY: &str = concat!(
    r#"{"channel":"whatsapp","message_uuid":"aaaaaaaa-bbbb-4ccc-8ddd-0123456789ab","to":"447700900000","#,
    r#""from":"447700900001","timestamp":"2025-02-03T12:14:25Z","message_type":"text","text":"STOP"}"#
);
/// Of `BODY` under `SECRET`; accepted by `verify_signature` of vonage-jwt 1.1.5, Vonage's own library.
const TOKEN: &str = concat!(
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJWb25hZ2UiLCJpYXQiOjE3Mzg1ODQ4NjUsImp0aSI6ImM1YmE4ZjI0LTFhMT",
    "QtNGMxMC1iZmRmLTNmYmU4Y2U1MTFiNSIsInBheWxvYWRfaGFzaCI6Ijk2MmIyMzlkZDgwODgwYjZlOTM4MjA0OWQxM2RkNjU3ZGRiYzcz",
    "ZTg2M2FlZGViMDkwZmM3M2Q2ODA1NTc5YmIiLCJhcGlfa2V5IjoiYTFiMmMzZDQiLCJhcHBsaWNhdGlvbl9pZCI6ImFhYWFhYWFhLWJiYm",
    "ItY2NjYy1kZGRkLTAxMjM0NTY3ODlhYiJ9.zIOlWBLowPBSKKC0naqogxYFs7JUeoQI6dDBWUZjrhc",
);
const ISSUED: i64 = 1_738_584_865;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn route(secrets: &[&str]) -> RouteConfig {
    let secrets: Vec<_> =
        secrets.iter().map(|secret| (RouteSecretKind::VonageSignatureSecret, *secret)).collect();
    tests::route(ProviderName::Vonage, &secrets)
}

fn request(token: Option<&str>, body: &str) -> CallbackRequest {
    let mut request = tests::request(body.as_bytes());
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        request.headers.insert(AUTHORIZATION, value);
    }
    request
}

fn verify(secrets: &[&str], token: Option<&str>, body: &str, now: Timestamp) -> Result<(), Refusal> {
    Vonage.authenticate(&route(secrets), &request(token, body), now)
}

/// A token with these claims, signed with `SECRET`.
fn signed(claims: &str) -> String {
    token(r#"{"alg":"HS256","typ":"JWT"}"#, claims, |message| {
        hmac_sha256(SECRET.as_bytes(), message).to_vec()
    })
}

fn token(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(sign(message.as_bytes())))
}

const CORPUS: tests::Corpus = tests::Corpus {
    provider: ProviderName::Vonage,
    number: "15550783881",
    phone: "+15550783881",
    account: "",
    second: None,
};

/// The golden corpus.
#[test]
fn every_payload_gives_its_events() {
    tests::corpus(&CORPUS);
}

/// `message.failed` and `message.sent` say `failed` and `sent`, as everywhere; `message.status_updated` says
/// Vonage's word.
#[test]
fn updates_keep_the_word_of_vonage() {
    let snapshot = CORPUS.configuration(&["message.*"]);
    for (word, ours) in [("submitted", "sent"), ("rejected", "failed"), ("undeliverable", "failed")] {
        let body =
            format!(r#"{{"from":"15550783881","to":"16505551234","message_uuid":"1","status":"{word}"}}"#);
        let events = CORPUS.normalize(&snapshot, body.as_bytes()).unwrap().entry.events;
        let statuses: Vec<String> = events
            .iter()
            .map(|event| serde_json::from_str::<serde_json::Value>(&event.log.payload_json).unwrap())
            .map(|body| format!("{} {}", body["event"].as_str().unwrap(), body["status"].as_str().unwrap()))
            .collect();
        assert_eq!(statuses, [format!("message.{ours} {ours}"), format!("message.status_updated {word}")]);
    }
}

/// A token that Vonage's own library accepts is accepted at its time, with any of several live secrets.
#[test]
fn genuine_tokens_are_accepted() {
    for secrets in [&[SECRET][..], &["another", SECRET], &[SECRET, "another", ""]] {
        assert_eq!(verify(secrets, Some(TOKEN), BODY, at(ISSUED)), Ok(()));
    }
}

/// A token is good for a quarter of an hour around its issue, and long after that no more.
#[test]
fn stale_tokens_are_refused() {
    let verify_at = |second| verify(&[SECRET], Some(TOKEN), BODY, at(second));
    for second in [ISSUED - 900, ISSUED + 900] {
        assert_eq!(verify_at(second), Ok(()));
    }
    for second in [ISSUED - 901, ISSUED + 901, 1_778_147_998] {
        assert_eq!(verify_at(second), Err(Refusal::Expired));
    }
}

/// Where a token says when it ends, that counts alone; where it says nothing of time it is refused.
#[test]
fn expiry_of_a_token_counts() {
    let hash = sha256_hex(BODY.as_bytes());
    let verify_with = |times: &str, second| {
        let token = signed(&format!(r#"{{"iss":"Vonage","payload_hash":"{hash}"{times}}}"#));
        verify(&[SECRET], Some(&token), BODY, at(second))
    };
    assert_eq!(verify_with(r#","iat":1000000000,"exp":1000090000"#, 1_000_089_999), Ok(()));
    assert_eq!(verify_with(r#","iat":1000000000,"exp":1000000010"#, 1_000_000_010), Err(Refusal::Expired));
    assert_eq!(verify_with(r#","iat":1000000000,"exp":null"#, 1_000_000_900), Ok(()));
    for unusable in ["", r#","iat":"1000000000""#, r#","iat":1000000000,"exp":"never""#] {
        assert_eq!(verify_with(unusable, 1_000_000_000), Err(Refusal::MalformedSignature), "{unusable}");
    }
}

/// Who says that the token is theirs proves nothing beside the secret, and is not looked at, as in Vonage's own
/// libraries.
#[test]
fn issuer_is_not_looked_at() {
    let hash = sha256_hex(BODY.as_bytes());
    for issuer in [r#""iss":"Vonage","#, r#""iss":"vonage","#, r#""iss":null,"#, ""] {
        let token = signed(&format!(r#"{{{issuer}"payload_hash":"{hash}","iat":1000000000}}"#));
        assert_eq!(verify(&[SECRET], Some(&token), BODY, at(1_000_000_000)), Ok(()), "{issuer}");
    }
}

/// A token proves its own body and no other, down to the byte; without a hash it proves none.
#[test]
fn token_of_another_body_is_refused() {
    for other in [BODY.replace("STOP", "STOQ"), BODY.replace(':', ": "), format!("{BODY}\n"), String::new()] {
        let refused = verify(&[SECRET], Some(TOKEN), &other, at(ISSUED));
        assert_eq!(refused, Err(Refusal::WrongBodyHash), "{other}");
    }
    let hash = sha256_hex(BODY.as_bytes());
    for unusable in [
        String::new(),
        r#","payload_hash":null"#.to_owned(),
        r#","payload_hash":"""#.to_owned(),
        r#","payload_hash":1"#.to_owned(),
        format!(r#","payload_hash":"{}""#, &hash[..63]),
    ] {
        let token = signed(&format!(r#"{{"iat":{ISSUED}{unusable}}}"#));
        let refused = verify(&[SECRET], Some(&token), BODY, at(ISSUED));
        assert_eq!(refused, Err(Refusal::WrongBodyHash), "{unusable}");
    }
}

/// Only HS256 counts: a token cannot choose another algorithm, nor none.
#[test]
fn other_algorithms_are_refused() {
    let claims = format!(r#"{{"iat":{ISSUED},"payload_hash":"{}"}}"#, sha256_hex(BODY.as_bytes()));
    let hs512 =
        token(r#"{"alg":"HS512"}"#, &claims, |message| hmac_sha512(SECRET.as_bytes(), message).to_vec());
    let rs256 =
        token(r#"{"alg":"RS256"}"#, &claims, |message| hmac_sha256(SECRET.as_bytes(), message).to_vec());
    let none = token(r#"{"alg":"none"}"#, &claims, |_| Vec::new());
    for forged in [hs512, rs256, none] {
        assert_eq!(verify(&[SECRET], Some(&forged), BODY, at(ISSUED)), Err(Refusal::WrongAlgorithm));
    }
}

/// A changed token, another secret, no token and no secret are refused, each for its reason.
#[test]
fn forged_tokens_are_refused() {
    let verify = |secrets: &[&str], token| verify(secrets, token, BODY, at(ISSUED));
    let (message, signature) = TOKEN.rsplit_once('.').unwrap();
    let changed = format!("{message}.{}", signature.replace('z', "y"));
    assert_eq!(verify(&[SECRET], Some(&changed)), Err(Refusal::WrongSignature));
    assert_eq!(verify(&["another"], Some(TOKEN)), Err(Refusal::WrongSignature));
    assert_eq!(verify(&[SECRET], Some("no token")), Err(Refusal::MalformedSignature));
    assert_eq!(verify(&[SECRET], None), Err(Refusal::MissingSignature));
    assert_eq!(verify(&[], Some(TOKEN)), Err(Refusal::MissingSecret));
    assert_eq!(verify(&[""], Some(TOKEN)), Err(Refusal::MissingSecret));
}

/// The token must be of the route's account, by its API key or its application, when the route has one.
#[test]
fn tokens_of_other_accounts_are_refused() {
    let mut route = route(&[SECRET]);
    let mut verify = |account: Option<&str>| {
        route.provider_account_id = account.map(Box::from);
        Vonage.authenticate(&route, &request(Some(TOKEN), BODY), at(ISSUED))
    };
    for ours in [None, Some("a1b2c3d4"), Some("aaaaaaaa-bbbb-cccc-dddd-0123456789ab")] {
        assert_eq!(verify(ours), Ok(()));
    }
    for other in ["a1b2c3d5", "A1B2C3D4", "Vonage", ""] {
        assert_eq!(verify(Some(other)), Err(Refusal::WrongAccount), "{other}");
    }
}

/// Applications that do not sign are taken by the token in the path alone, where the route says so.
#[test]
fn unsigned_applications_need_the_path_token() {
    let mut route = route(&[]);
    let request = request(None, BODY);
    assert_eq!(Vonage.authenticate(&route, &request, at(ISSUED)), Err(Refusal::MissingSecret));
    route.callback_token_suffices = true;
    assert_eq!(Vonage.authenticate(&route, &request, at(ISSUED)), Ok(()));
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep.
#[test]
fn only_json_is_read() {
    for bad in [&b""[..], b"{", b"{}x", b"a=b", b"\xff\xfe", b"{\"a\":NaN}", b"{\"\x01\":1}"] {
        assert_eq!(Vonage.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    for body in [deep.clone(), BODY.replace(r#""STOP""#, &deep)] {
        assert_eq!(Vonage.normalize(body.as_bytes()).unwrap()[0].items.len(), 1);
    }
}
