use gateway_core::{event::Provider as ProviderName, snapshot::RouteSecretKind};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::*;
use crate::provider::tests::{Corpus, corpus, request, route};

/// `hook-user` and `p@ss:wörd` in UTF-8, as an independent implementation encodes them.
const AUTHORIZATION: (&str, &str) = ("authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmQ=");
const SECRETS: &[(RouteSecretKind, &str)] = &[
    (RouteSecretKind::BasicCredential, "somebody:else"),
    (RouteSecretKind::BasicCredential, "hook-user:p@ss:wörd"),
    (RouteSecretKind::Header, "X-Hook-Secret: planted secret"),
];

fn authenticate(secrets: &[(RouteSecretKind, &str)], headers: &[(&str, &str)]) -> Result<(), Refusal> {
    let mut request = request(b"{}");
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    let route = route(ProviderName::Dialog360, secrets);
    Dialog360.authenticate(&route, &request, Timestamp::UNIX_EPOCH)
}

/// What becomes of every payload.
#[test]
fn payloads_give_their_events() {
    corpus(&Corpus {
        provider: ProviderName::Dialog360,
        number: "106540352242922",
        phone: "+15550783881",
        account: "",
        second: None,
    });
}

/// The Basic credential and the header are alternatives; each of several live ones proves a callback.
#[test]
fn any_credential_is_proof() {
    assert_eq!(authenticate(SECRETS, &[AUTHORIZATION]), Ok(()));
    assert_eq!(authenticate(&SECRETS[1..2], &[AUTHORIZATION]), Ok(()));
    assert_eq!(authenticate(SECRETS, &[("x-hook-secret", "planted secret")]), Ok(()));
}

/// No credential, one changed byte, another password, a password cut at its second colon and a forwarded
/// signature of Meta's are refused.
#[test]
fn other_callbacks_are_refused() {
    assert_eq!(authenticate(SECRETS, &[]), Err(Refusal::MissingCredential));
    let of_meta =
        ("x-hub-signature-256", "sha256=591c61d5cd8d82edc4fb053624ca097fc176aaec975b0f10930eeac6416f14ae");
    assert_eq!(authenticate(SECRETS, &[of_meta]), Err(Refusal::MissingCredential));
    for value in [
        "Basic aG9vay11c2VyOnBAc3M6d8O2cmR=",
        "Basic aG9vay11c2VyOnBAc3M=",
        "Basic aG9vay11c2VyOnBAc3M6d/ZyZA==",
        "Bearer aG9vay11c2VyOnBAc3M6d8O2cmQ=",
    ] {
        assert_eq!(
            authenticate(SECRETS, &[("authorization", value)]),
            Err(Refusal::WrongCredential),
            "{value}"
        );
    }
    assert_eq!(authenticate(SECRETS, &[("x-hook-secret", "planted secreT")]), Err(Refusal::WrongCredential));
    assert_eq!(authenticate(&SECRETS[..1], &[AUTHORIZATION]), Err(Refusal::WrongCredential));
}

/// A route without a secret takes a callback only where its token was said to suffice.
#[test]
fn token_suffices_only_when_told_so() {
    assert_eq!(authenticate(&[], &[AUTHORIZATION]), Err(Refusal::MissingSecret));
    let mut route = route(ProviderName::Dialog360, &[]);
    route.callback_token_suffices = true;
    assert_eq!(Dialog360.authenticate(&route, &request(b"{}"), Timestamp::UNIX_EPOCH), Ok(()));
}

/// Nobody asks whether the address is ours.
#[test]
fn there_is_no_handshake() {
    let route = route(ProviderName::Dialog360, SECRETS);
    assert_eq!(Dialog360.handshake(&route, "hub.mode=subscribe&hub.challenge=1"), Err(Refusal::NoHandshake));
}

/// What is not JSON in UTF-8 is refused, and so are more items than anybody sends, in either shape.
#[test]
fn only_json_within_bounds_is_read() {
    for bad in [&b""[..], b"{", b"messages=1", b"\"\xff\"", br#"{"messages":[}"#] {
        assert_eq!(Dialog360.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let many = format!(r#"{{"messages":[{}0]}}"#, "0,".repeat(crate::provider::ITEMS_MAX));
    assert_eq!(Dialog360.normalize(many.as_bytes()).err(), Some(NormalizeError::TooManyItems));
    let enveloped = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"changes":[{{"field":"messages","value":{many}}}]}}]}}"#
    );
    assert_eq!(Dialog360.normalize(enveloped.as_bytes()).err(), Some(NormalizeError::TooManyItems));
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(Dialog360.normalize(deep.as_bytes()).unwrap().len(), 1);
}
