use gateway_core::{event::Provider as ProviderName, snapshot::RouteSecretKind};
use http::{HeaderName, HeaderValue};

use super::*;
use crate::provider::{ITEMS_MAX, tests};

/// A Basic credential, a bearer token and two other headers.
const SECRETS: &[(RouteSecretKind, &str)] = &[
    (RouteSecretKind::BasicCredential, "hook-user:p@ss:wörd"),
    (RouteSecretKind::Header, "Authorization: Bearer planted-token"),
    (RouteSecretKind::Header, "AccountKey: planted-one"),
    (RouteSecretKind::Header, "AccountKey: planted-two"),
];
const DELIVERED: &str = concat!(
    r#"{"results":[{"messageId":"1","to":"16505551234","doneAt":"2026-05-07T09:59:58.861+0000","#,
    r#""status":{"groupName":"DELIVERED"}}]}"#
);

fn verify(secrets: &[(RouteSecretKind, &str)], headers: &[(&str, &str)]) -> Result<(), Refusal> {
    let mut request = tests::request(DELIVERED.as_bytes());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    Infobip.authenticate(&tests::route(ProviderName::Infobip, secrets), &request, Timestamp::UNIX_EPOCH)
}

fn corpus(second: Option<(&'static str, &'static str)>) -> tests::Corpus {
    tests::Corpus {
        provider: ProviderName::Infobip,
        number: "15550783881",
        phone: "+15550783881",
        account: "",
        second,
    }
}

/// The golden corpus.
#[test]
fn every_payload_gives_its_events() {
    tests::corpus(&corpus(None));
}

/// Whatever Infobip was told to send along proves the callback: Basic authentication, a bearer token, a header of
/// any name, the older as well as the newer value.
#[test]
fn any_credential_is_proof() {
    for header in [
        ("authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmQ="),
        ("authorization", "Bearer planted-token"),
        ("accountkey", "planted-one"),
        ("accountkey", "planted-two"),
    ] {
        assert_eq!(verify(SECRETS, &[header]), Ok(()), "{header:?}");
    }
}

/// Nothing, something else and the value of another credential are refused, and everything without a secret.
#[test]
fn other_callbacks_are_refused() {
    assert_eq!(verify(SECRETS, &[]), Err(Refusal::MissingCredential));
    for header in [
        ("authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmR="),
        ("authorization", "Bearer planted-tokeN"),
        ("authorization", "planted-token"),
        ("accountkey", "planted-token"),
        ("accountkey", ""),
    ] {
        assert_eq!(verify(SECRETS, &[header]), Err(Refusal::WrongCredential), "{header:?}");
    }
    assert_eq!(verify(&[], &[("accountkey", "planted-one")]), Err(Refusal::MissingSecret));
}

/// The token in the path is proof where the route says so, and nowhere else.
#[test]
fn path_token_can_suffice() {
    let mut route = tests::route(ProviderName::Infobip, &[]);
    route.callback_token_suffices = true;
    let request = tests::request(DELIVERED.as_bytes());
    assert_eq!(Infobip.authenticate(&route, &request, Timestamp::UNIX_EPOCH), Ok(()));
}

/// A report does not name the business number: it is taken where the route has one number, and where it has two
/// it is kept for the operator instead of being given to either.
#[test]
fn reports_without_number_need_a_route_with_one() {
    let events_and_unrouted = |corpus: &tests::Corpus| {
        let snapshot = corpus.configuration(&["*"]);
        let normalized = corpus.normalize(&snapshot, DELIVERED.as_bytes()).unwrap();
        (normalized.entry.events.len(), normalized.entry.unrouted.len())
    };
    assert_eq!(events_and_unrouted(&corpus(None)), (2, 0));
    assert_eq!(events_and_unrouted(&corpus(Some(("15550783882", "+15550783882")))), (0, 1));
}

/// Of a report that names both sides, whichever is a number of the route is the business, also where the route has
/// several; the other one is the contact. With both or neither of them ours the sender is.
#[test]
fn reports_find_their_side() {
    let corpus = corpus(Some(("15550783882", "+15550783882")));
    let snapshot = corpus.configuration(&["*"]);
    let told = |from: &str, to: &str, rest: &str| {
        let body = format!(r#"{{"messageId":"1","from":"{from}","to":"{to}",{rest}}}"#);
        let entry = corpus.normalize(&snapshot, body.as_bytes()).unwrap().entry;
        let log = entry.events.into_iter().next().map(|event| event.log);
        log.map(|log| [log.instance_id, log.from_phone, log.to_phone].join(" "))
    };
    for rest in [
        r#""seenAt":"2026-05-07T09:59:58.251+0000""#,
        r#""deletedAt":"2026-05-07T09:59:58.251+0000""#,
        r#""status":{"groupName":"DELIVERED"}"#,
        r#""status":null"#,
        r#""status":7,"doneAt":"2026-05-07T09:59:58.251+0000""#,
        r#""doneAt":"2026-05-07T09:59:58.251+0000""#,
    ] {
        let support = Some("support-line +15550783881 +16505551234".to_owned());
        assert_eq!(told("15550783881", "16505551234", rest), support, "{rest}");
        assert_eq!(told("16505551234", "15550783881", rest), support, "{rest}");
        let sales = Some("sales-line +15550783882 +16505551234".to_owned());
        assert_eq!(told("16505551234", "15550783882", rest), sales, "{rest}");
        let both = Some("sales-line +15550783882 +15550783881".to_owned());
        assert_eq!(told("15550783882", "15550783881", rest), both, "{rest}");
        assert_eq!(told("16505551234", "16505551235", rest), None, "{rest}");
    }
}

/// Decisions are read by whole words; a word of negation, or any other that we do not know, makes them unclear.
#[test]
fn decisions_are_read_by_whole_words() {
    use crate::provider::Item;
    let opts_out = |value: &str| {
        let body = format!(r#"{{"content":{{"from":"1","notificationMessagesStatus":"{value}"}}}}"#);
        match Infobip.normalize(body.as_bytes()).unwrap().remove(0).items.remove(0) {
            Item::Preference(item) => Some(item.opts_out),
            _ => None,
        }
    };
    for stop in [
        "STOP",
        "stopped",
        "OPT_OUT",
        "Opted-out",
        "OPTOUT",
        "DISABLED",
        "MARKETING_UNSUBSCRIBE",
        "STOPPED_BY_USER",
    ] {
        assert_eq!(opts_out(stop), Some(true), "{stop}");
    }
    for start in ["RESUME", "start", "OPT_IN", "Opted-in", "ENABLED", "SIGN_UP", "SIGNUP"] {
        assert_eq!(opts_out(start), Some(false), "{start}");
    }
    for unclear in [
        "",
        "OPT",
        "OUT",
        "IN",
        "UP",
        "UNSTOP",
        "NOT_STOPPED",
        "NOT_DISABLED",
        "OPT_IN_REVOKED",
        "NONSTOP",
        "RESTART",
        "UN-STOP",
        "STOP_START",
    ] {
        assert_eq!(opts_out(unclear), None, "{unclear}");
    }
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep.
#[test]
fn only_json_is_read() {
    for bad in
        [&b""[..], b"{", b"{}x", b"a=b", b"\xff\xfe", b"{\"results\":[NaN]}", b"{\"results\":[{\"\x01\":1}]}"]
    {
        assert_eq!(Infobip.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    let result = DELIVERED.replace(r#""DELIVERED""#, &deep);
    let list = DELIVERED.replace(r#"{"groupName":"DELIVERED"}"#, &deep);
    for body in [deep, result, list] {
        assert_eq!(Infobip.normalize(body.as_bytes()).unwrap()[0].items.len(), 1);
    }
}

/// A list that is too long is refused whole; one of very many numbers is read, each number by itself.
#[test]
fn lists_are_bounded() {
    let body = |count: usize, numbers: usize| {
        let result = |index| format!(r#"{{"to":"{}","message":{{}}}}"#, 15_550_000_000 + index % numbers);
        let results: Vec<_> = (0..count).map(result).collect();
        format!(r#"{{"results":[{}]}}"#, results.join(","))
    };
    let parts = |body: &str| Infobip.normalize(body.as_bytes()).map(|parts| parts.len());
    assert_eq!(parts(&body(ITEMS_MAX, 50)), Ok(50));
    assert_eq!(parts(&body(ITEMS_MAX, ITEMS_MAX)), Ok(ITEMS_MAX));
    assert_eq!(parts(&body(ITEMS_MAX + 1, 1)), Err(NormalizeError::TooManyItems));
}
