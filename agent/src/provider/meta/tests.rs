use gateway_core::{
    event::Provider as ProviderName,
    snapshot::{RouteConfig, RouteSecretKind},
};
use http::HeaderValue;

use super::*;
use crate::provider::tests;

const SIGNED: &[(&str, &str)] = &[
    (
        r#"{"object":"whatsapp_business_account","entry":[]}"#,
        "sha256=591c61d5cd8d82edc4fb053624ca097fc176aaec975b0f10930eeac6416f14ae",
    ),
    (
        concat!(
            r#"{"object":"whatsapp_business_account","entry":[{"id":"102290129340398","changes":[{"value":"#,
            r#"{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550783881","#,
            r#""phone_number_id":"106540352242922"},"contacts":[{"profile":{"name":"Zo\u00eb"},"#,
            r#""wa_id":"16505551234"}],"messages":[{"from":"16505551234","id":"wamid.TEST1","#,
            r#""timestamp":"1749416383","type":"text","text":{"body":"STOP \ud83d\uded1"}}]},"#,
            r#""field":"messages"}]}]}"#
        ),
        "sha256=7a15522da38ea78e433b81d52c9b0415195ad4cbce882b2258b624c43e3e4ea0",
    ),
];

fn route(secrets: &[(RouteSecretKind, &str)]) -> RouteConfig {
    tests::route(ProviderName::Meta, secrets)
}

fn verify(secrets: &[&str], signature: Option<&str>, body: &str) -> Result<(), Refusal> {
    let secrets: Vec<_> = secrets.iter().map(|secret| (RouteSecretKind::MetaAppSecret, *secret)).collect();
    let mut request = tests::request(body.as_bytes());
    if let Some(signature) = signature {
        request.headers.insert("x-hub-signature-256", HeaderValue::from_str(signature).unwrap());
    }
    authenticate::verify(&route(&secrets), &request)
}

/// The golden corpus.
#[test]
fn every_payload_gives_its_events() {
    tests::corpus(&tests::Corpus {
        provider: ProviderName::Meta,
        number: "106540352242922",
        phone: "+15550783881",
        account: "102290129340398",
        second: Some(("106540352242923", "+15550783882")),
    });
}

/// The signatures that another implementation made are accepted, with any of several live secrets.
#[test]
fn genuine_signatures_are_accepted() {
    for (body, signature) in SIGNED {
        for secrets in
            [&["meta-app-secret-1"][..], &["another", "meta-app-secret-1"], &["meta-app-secret-1", "x"]]
        {
            assert_eq!(verify(secrets, Some(signature), body), Ok(()));
        }
    }
    assert_eq!(SIGNED[1].0.len(), 430);
}

/// The signature covers the bytes, not the JSON: the same JSON written again in UTF-8 is refused.
#[test]
fn rewritten_json_is_refused() {
    let (body, signature) = SIGNED[1];
    let rewritten = body.replace(r"Zo\u00eb", "Zoë").replace(r"\ud83d\uded1", "🛑");
    assert_eq!(rewritten.len(), 418);
    let parsed = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
    assert_eq!(parsed(body), parsed(&rewritten));
    assert_eq!(verify(&["meta-app-secret-1"], Some(signature), &rewritten), Err(Refusal::WrongSignature));
    let of_rewritten = "sha256=42f7c42c39f3cbd87907ef7fa8e571695eca78455631d2711badc77289d401c9";
    assert_eq!(verify(&["meta-app-secret-1"], Some(of_rewritten), &rewritten), Ok(()));
}

/// Missing, cut, longer, unprefixed and not hexadecimal signatures are refused, each for its reason.
#[test]
fn bad_signatures_are_refused() {
    let (body, signature) = SIGNED[0];
    let secrets = &["meta-app-secret-1"];
    assert_eq!(verify(secrets, None, body), Err(Refusal::MissingSignature));
    let digits = signature.strip_prefix("sha256=").unwrap();
    let not_hex = signature.replace('5', "g");
    for malformed in [
        "",
        "sha256=",
        digits,
        &signature[..70],
        &format!("{signature}0"),
        &not_hex,
        &format!("sha1={digits}"),
        &format!("SHA256={digits}"),
        &format!(" {signature}x"),
    ] {
        assert_eq!(verify(secrets, Some(malformed), body), Err(Refusal::MalformedSignature), "{malformed}");
    }
    let wrong = signature.replace('0', "1");
    assert_eq!(verify(secrets, Some(&wrong), body), Err(Refusal::WrongSignature));
    assert_eq!(verify(&["meta-app-secret-2"], Some(signature), body), Err(Refusal::WrongSignature));
    assert_eq!(verify(secrets, Some(signature), &body.replace(':', ": ")), Err(Refusal::WrongSignature));
}

/// Without a secret nothing is genuine; an empty secret is none, so that nobody signs with it.
#[test]
fn no_secret_means_no() {
    let (body, _) = SIGNED[0];
    let empty_key: Vec<String> = gateway_core::signature::hmac_sha256(b"", body.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let signature = format!("sha256={}", empty_key.concat());
    assert_eq!(verify(&[], Some(&signature), body), Err(Refusal::MissingSecret));
    assert_eq!(verify(&[""], Some(&signature), body), Err(Refusal::MissingSecret));
}

/// Two signatures in one request are one too many.
#[test]
fn ambiguous_signatures_are_refused() {
    let (body, signature) = SIGNED[0];
    let mut request = tests::request(body.as_bytes());
    request.headers.append("x-hub-signature-256", HeaderValue::from_static("sha256=00"));
    request.headers.append("x-hub-signature-256", HeaderValue::from_str(signature).unwrap());
    let route = route(&[(RouteSecretKind::MetaAppSecret, "meta-app-secret-1")]);
    assert_eq!(authenticate::verify(&route, &request), Err(Refusal::MalformedSignature));
}

/// The challenge comes back verbatim, percent-escapes decoded once; everything else is refused.
#[test]
fn handshake_answers_the_right_token_only() {
    let route = route(&[
        (RouteSecretKind::MetaVerifyToken, "first"),
        (RouteSecretKind::MetaVerifyToken, "a b+c&d"),
        (RouteSecretKind::MetaVerifyToken, ""),
        (RouteSecretKind::MetaAppSecret, "app-secret"),
    ]);
    let answer = |query: &str| handshake::answer(&route, query);
    assert_eq!(
        answer("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=first").as_deref(),
        Ok("1158201444")
    );
    assert_eq!(
        answer("hub.verify_token=a%20b%2Bc%26d&hub.challenge=%253Cb%3E&hub.mode=subscribe").as_deref(),
        Ok("%3Cb>")
    );
    for (query, reason) in [
        ("", Refusal::MissingParameter),
        ("hub.mode=subscribe&hub.challenge=1", Refusal::MissingParameter),
        ("hub.mode=subscribe&hub.verify_token=first", Refusal::MissingParameter),
        ("hub.challenge=1&hub.verify_token=first", Refusal::MissingParameter),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=", Refusal::MissingParameter),
        ("hub_mode=subscribe&hub_challenge=1&hub_verify_token=first", Refusal::MissingParameter),
        ("hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=first", Refusal::WrongMode),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=second", Refusal::WrongVerifyToken),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=app-secret", Refusal::WrongVerifyToken),
    ] {
        assert_eq!(answer(query), Err(reason), "{query}");
    }
    let without = super::tests::route(&[]);
    let query = "hub.mode=subscribe&hub.challenge=1&hub.verify_token=first";
    assert_eq!(handshake::answer(&without, query), Err(Refusal::MissingSecret));
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep, without recursion.
#[test]
fn only_json_is_read() {
    for bad in [
        &b""[..],
        b"{",
        b"{}x",
        b"hello",
        b"a=b&c=d",
        b"{'a':1}",
        b"[1,]",
        b"\xff\xfe",
        b"\"\xff\"",
        b"{\"a\":NaN}",
    ] {
        assert_eq!(Meta.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    assert_eq!(Meta.normalize(deep.as_bytes()).unwrap().len(), 1);
    let inside = SIGNED[1].0.replace(r#""STOP \ud83d\uded1""#, &deep);
    assert_eq!(Meta.normalize(inside.as_bytes()).unwrap()[0].items.len(), 1);
}
