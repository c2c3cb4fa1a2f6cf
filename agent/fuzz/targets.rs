//! What the fuzz targets do with an input. Compiled twice: as a library of the fuzz crate, with a nightly, and by
//! `agent/tests/fuzz_corpora.rs`, which runs them over their corpora.

use std::{collections::HashMap, sync::LazyLock};

use gateway_agent::{
    opt_out::{Wish, WishKind},
    pipeline::normalize::{Normalizer, Origin},
    provider::{CallbackRequest, ITEMS_MAX, Part, Target, provider},
};
use gateway_core::{
    event::Provider,
    opt_out::ContactRef,
    phone::Phone,
    signature::sha256_hex,
    snapshot::{RouteConfig, RouteSecret, RouteSecretKind, Snapshot},
};
use gateway_proto::v1;
use jiff::Timestamp;

mod configuration;
mod exchange;
mod proof;

use configuration::{TOKEN, configuration};
use exchange::Exchange;
use proof::Proof;

/// The number of the instance that everything is for.
const NUMBER: &str = "106540352242922";
/// Longest text in a column of the log, in bytes; the body has the whole text.
const LOG_TEXT_BYTES_MAX: usize = 64 * 1024;

/// Normalizes a content. Whatever it is: its items are bounded, every body is JSON, and each part, kept because
/// nobody claimed its number, later gives the very events and wishes that it would have given at first.
pub fn normalize(name: Provider, content: &[u8]) {
    let Ok(parts) = provider(name).normalize(content) else { return };
    assert!(parts.iter().map(|part| part.items.len()).sum::<usize>() <= ITEMS_MAX);
    for part in parts {
        let (kept, target) = (part.original.concat(), part.target.clone());
        let told = tell(name, part);
        let mut again = provider(name).normalize(kept.as_bytes()).expect("what is kept can be read");
        assert_eq!(again.len(), 1, "one part is kept");
        let again = again.remove(0);
        assert!(again.target == target, "a kept part is about the same number");
        let told_again = tell(name, again);
        assert_eq!(told.0, told_again.0, "a kept part gives the same events");
        assert_eq!(told.1, told_again.1, "a kept part gives the same wishes");
    }
}

/// The events and wishes of a part, for the instance, whatever number it names.
fn tell(name: Provider, part: Part<'_>) -> (Vec<v1::InboundLog>, Vec<String>) {
    static SNAPSHOTS: LazyLock<HashMap<Provider, Snapshot>> =
        LazyLock::new(|| Provider::ALL.into_iter().map(|name| (name, configuration(name, NUMBER))).collect());
    let snapshot = &SNAPSHOTS[&name];
    let normalizer = Normalizer {
        route: snapshot.route_by_token(TOKEN).expect("it is in the configuration"),
        snapshot,
        origin: &Origin { agent_id: "agt_fuzz".to_owned(), region: "here".to_owned() },
        receive_time: now(),
        replay_time: None,
    };
    let target = Target { number: Some(NUMBER.into()), ..part.target };
    let normalized = normalizer.normalize(vec![Part { target, ..part }]);
    assert!(normalized.entry.unrouted.is_empty(), "the instance claims its number");
    let logs: Vec<_> = normalized.entry.events.into_iter().map(|event| event.log).collect();
    logs.iter().for_each(check);
    (logs, normalized.wishes.iter().map(describe).collect())
}

fn check(log: &v1::InboundLog) {
    let body: serde_json::Value =
        serde_json::from_str(&log.payload_json).expect("every receiver can parse a body");
    for (key, value) in
        [("event", &log.event), ("event_id", &log.event_id), ("instance_id", &log.instance_id)]
    {
        assert_eq!(body[key], **value, "{key}");
    }
    for text in [&log.message_text, &log.message_type, &log.external_message_id, &log.contact_user_id] {
        assert!(text.len() <= LOG_TEXT_BYTES_MAX);
    }
    for phone in [&log.from_phone, &log.to_phone] {
        assert!(phone.is_empty() || phone.starts_with('+') && (8..=16).contains(&phone.len()), "{phone}");
    }
}

fn describe(wish: &Wish) -> String {
    let keys = |contact: &ContactRef| {
        format!("{:?} {:?}", contact.phone.as_ref().map(Phone::as_str), contact.user_id)
    };
    match &wish.kind {
        WishKind::Follow { from, to } => format!("{} is {}", keys(from), keys(to)),
        WishKind::Decide(decision) => format!(
            "{} {:?} {:?} {} {:?}",
            keys(&decision.contact),
            decision.direction,
            decision.scope,
            decision.event_time,
            wish.mark
        ),
    }
}

/// Authenticates a request, written as in [`Exchange::read`]. Nobody who does not know the secret is believed; who
/// does is, and is not any more when one byte of what is proved changes.
pub fn authenticate(name: Provider, input: &[u8]) {
    let exchange = Exchange::read(input);
    // Depends on all of the input, so that no input can have it.
    let secret = sha256_hex(input);
    for kinds in RouteSecretKind::of(name).iter().map(std::slice::from_ref).chain([RouteSecretKind::of(name)])
    {
        let route = route(name, kinds, &secret);
        assert!(provider(name).authenticate(&route, &exchange.request(), now()).is_err(), "nobody signed");
        assert!(provider(name).handshake(&route, exchange.query()).is_err(), "nobody knows the token");
    }
    for proof in Proof::of(name) {
        let route = route(name, &[proof.kind()], &secret);
        let is_genuine =
            |request: &CallbackRequest| provider(name).authenticate(&route, request, now()).is_ok();
        let Some(genuine) = proof.prove(&exchange, &secret, now()) else { continue };
        assert!(is_genuine(&genuine.request()), "{proof:?} is proof");
        for forged in proof.forged(&genuine, secret.as_bytes()) {
            assert!(!is_genuine(&forged.request()), "{proof:?} proves nothing else");
        }
    }
}

fn route(provider: Provider, kinds: &[RouteSecretKind], secret: &str) -> RouteConfig {
    let secret =
        |kind: &RouteSecretKind| RouteSecret { kind: *kind, value: proof::value(*kind, secret).into() };
    RouteConfig {
        id: "route".parse().expect("it matches the pattern of ids"),
        provider,
        callback_token: TOKEN.into(),
        provider_account_id: None,
        secrets: kinds.iter().map(secret).collect(),
        callback_token_suffices: false,
    }
}

/// The time of everything here: corpora would rot if time went on.
fn now() -> Timestamp {
    Timestamp::from_second(1_778_148_000).expect("it is in range")
}
