use gateway_core::{event::Provider as ProviderName, snapshot::RouteSecretKind};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::*;
use crate::provider::{
    ITEMS_MAX, Item, Reply,
    tests::{Corpus, corpus, fixtures, request, route},
};

const SECRETS: &[(RouteSecretKind, &str)] = &[
    (RouteSecretKind::Header, "Authorization: Bearer planted one"),
    (RouteSecretKind::Header, "X-Hook-Secret: planted two"),
];

fn authenticate(secrets: &[(RouteSecretKind, &str)], headers: &[(&str, &str)]) -> Result<(), Refusal> {
    let mut request = request(b"{}");
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    let route = route(ProviderName::Gupshup, secrets);
    Gupshup.authenticate(&route, &request, Timestamp::UNIX_EPOCH)
}

/// What becomes of every payload. `support-line` is known by the app's name, which version 2 carries, and
/// `sales-line` by the app's id, which version 3 carries.
#[test]
fn payloads_give_their_events() {
    corpus(&Corpus {
        provider: ProviderName::Gupshup,
        number: "SupportLineApp",
        phone: "+15550783881",
        account: "",
        second: Some(("0a6f5e4d-1234-4c8b-9f21-7d3e5a9b1c40", "+15550783882")),
    });
}

/// Each of several live headers proves a callback, and nothing else does.
#[test]
fn headers_are_proof() {
    assert_eq!(authenticate(SECRETS, &[("authorization", "Bearer planted one")]), Ok(()));
    assert_eq!(authenticate(SECRETS, &[("x-hook-secret", "planted two"), ("user-agent", "gupshup")]), Ok(()));
    assert_eq!(authenticate(SECRETS, &[]), Err(Refusal::MissingCredential));
    for header in [
        ("authorization", "Bearer planted onE"),
        ("authorization", "planted one"),
        ("authorization", "Bearer planted two"),
        ("x-hook-secret", "planted one"),
        ("x-hook-secret", ""),
    ] {
        assert_eq!(authenticate(SECRETS, &[header]), Err(Refusal::WrongCredential), "{header:?}");
    }
}

/// A route without a secret takes a callback only where its token was said to suffice.
#[test]
fn token_suffices_only_when_told_so() {
    assert_eq!(authenticate(&[], &[("x-hook-secret", "planted two")]), Err(Refusal::MissingSecret));
    let mut route = route(ProviderName::Gupshup, &[]);
    route.callback_token_suffices = true;
    assert_eq!(Gupshup.authenticate(&route, &request(b"{}"), Timestamp::UNIX_EPOCH), Ok(()));
}

/// The tests that are sent when an address is saved get an empty answer, as do all others: anything else in it
/// makes saving fail. There is no other handshake.
#[test]
fn answers_are_empty() {
    for fixture in fixtures(ProviderName::Gupshup) {
        assert_eq!(Gupshup.reply(&fixture.content), Reply::EMPTY, "{}", fixture.name);
    }
    let route = route(ProviderName::Gupshup, SECRETS);
    assert_eq!(Gupshup.handshake(&route, ""), Err(Refusal::NoHandshake));
}

/// An opt-out in Gupshup's own list is one from all that is not essential; one in WhatsApp's is one from
/// marketing.
#[test]
fn scope_is_of_the_list() {
    use gateway_core::opt_out::OptOutScope;
    let scope = |name: &str| {
        let fixture =
            fixtures(ProviderName::Gupshup).into_iter().find(|fixture| fixture.name == name).unwrap();
        let items = Gupshup.normalize(&fixture.content).unwrap().remove(0).items;
        let scope = items.iter().find_map(|item| match item {
            Item::Preference(item) => Some((item.scope, item.opts_out)),
            _ => None,
        });
        scope.unwrap()
    };
    assert_eq!(scope("user_opted_out"), (OptOutScope::NonEssential, true));
    assert_eq!(scope("user_opted_in"), (OptOutScope::NonEssential, false));
    for name in
        ["v3_preference_stop", "status_failed_stopped_marketing", "v3_status_failed_stopped_marketing"]
    {
        assert_eq!(scope(name), (OptOutScope::Marketing, true), "{name}");
    }
}

/// What is not JSON in UTF-8 is refused, and so are more items than anybody sends.
#[test]
fn only_json_within_bounds_is_read() {
    for bad in
        [&b""[..], b"{", b"mobile=16505551234&text=Hello", b"\"\xff\"", br#"{"type":"message","payload":{]}"#]
    {
        assert_eq!(Gupshup.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let many = format!(
        r#"{{"gs_app_id":"x","entry":[{{"changes":[{{"field":"messages","value":{{"messages":[{}0]}}}}]}}]}}"#,
        "0,".repeat(ITEMS_MAX)
    );
    assert_eq!(Gupshup.normalize(many.as_bytes()).err(), Some(NormalizeError::TooManyItems));
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    for body in [&deep, &format!(r#"{{"type":"message","payload":{{"type":"text","payload":{deep}}}}}"#)] {
        assert_eq!(Gupshup.normalize(body.as_bytes()).unwrap()[0].items.len(), 1);
    }
}
