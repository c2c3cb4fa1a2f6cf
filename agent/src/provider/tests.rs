//! What the tests of all providers share: a request, a route, and the golden corpus: payloads as providers
//! document them, `tests/fixtures/<provider>/`, with what becomes of each in `snapshots/<provider>/`.

use std::{collections::HashMap, error::Error, fmt::Write as _, fs, path::PathBuf, sync::LazyLock};

use bytes::Bytes;
use gateway_core::{
    event::Provider as ProviderName,
    opt_out::ContactRef,
    phone::Phone,
    snapshot::{RouteConfig, RouteSecret, RouteSecretKind, Snapshot},
};
use gateway_proto::v1;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use jsonschema::{Retrieve, Uri, Validator};
use serde_json::Value;

mod hostile;
mod persons;

use super::{CallbackRequest, NormalizeError, provider};
use crate::{
    opt_out::WishKind,
    pipeline::{
        buffer::NewUnrouted,
        normalize::{Normalized, Normalizer},
        tests::{TOKEN, configuration_of, origin},
    },
};

const EVERYTHING_BUT_UPDATES: &[&str] = &[
    "message.received",
    "message.sent",
    "message.delivered",
    "message.read",
    "recipient.*",
    "provider.event",
];

/// A callback with this body and no headers.
pub fn request(body: &[u8]) -> CallbackRequest {
    CallbackRequest {
        method: Method::POST,
        headers: HeaderMap::new(),
        uri: "/callbacks/provider/token".parse().unwrap(),
        body: Bytes::copy_from_slice(body),
        public_base_url: None,
    }
}

/// A route with these secrets.
pub fn route(provider: ProviderName, secrets: &[(RouteSecretKind, &str)]) -> RouteConfig {
    let secret =
        |(kind, value): &(RouteSecretKind, &str)| RouteSecret { kind: *kind, value: (*value).into() };
    RouteConfig {
        id: format!("route-{}", provider.name()).parse().unwrap(),
        provider,
        callback_token: TOKEN.into(),
        provider_account_id: None,
        secrets: secrets.iter().map(secret).collect(),
        callback_token_suffices: false,
    }
}

/// One of a provider's payloads.
pub struct Fixture {
    /// The file's name without its extension.
    pub name: String,
    /// The file.
    pub content: Vec<u8>,
}

/// A provider's payloads, in the order of their names.
pub fn fixtures(provider: ProviderName) -> Vec<Fixture> {
    let paths = fs::read_dir(directory(provider)).unwrap().map(|entry| entry.unwrap().path());
    let is_payload = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "json" || kind == "form");
    let mut fixtures: Vec<Fixture> = paths
        .filter(is_payload)
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let mut content = fs::read(&path).unwrap();
            if path.extension().is_some_and(|kind| kind == "form") {
                content.truncate(content.trim_ascii_end().len());
            }
            Fixture { name, content }
        })
        .collect();
    fixtures.sort_by(|one, two| one.name.cmp(&two.name));
    fixtures
}

fn directory(provider: ProviderName) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(provider.name())
}

/// The payloads of a provider, and whom they are for.
pub struct Corpus {
    /// The provider.
    pub provider: ProviderName,
    /// Its name of the number of `support-line`.
    pub number: &'static str,
    /// The phone number of `support-line`.
    pub phone: &'static str,
    /// The account of the route; empty for any.
    pub account: &'static str,
    /// Name and phone number of `sales-line`, if there is one.
    pub second: Option<(&'static str, &'static str)>,
}

impl Corpus {
    /// The configuration, with a subscription of `support-line` to these events.
    pub fn configuration(&self, events: &[&str]) -> Snapshot {
        let numbers: Vec<_> = std::iter::once((self.number, self.phone)).chain(self.second).collect();
        configuration_of(self.provider, self.account, &[], &numbers, &[("sub-one", events)])
    }

    /// What a payload comes to.
    pub fn normalize(&self, snapshot: &Snapshot, content: &[u8]) -> Result<Normalized, NormalizeError> {
        self.normalize_with(snapshot, snapshot.route_by_token(TOKEN).unwrap(), content)
    }

    fn normalize_with(
        &self,
        snapshot: &Snapshot,
        route: &RouteConfig,
        content: &[u8],
    ) -> Result<Normalized, NormalizeError> {
        let origin = origin();
        let receive_time: Timestamp = "2026-05-07T10:00:00.5Z".parse().unwrap();
        let normalizer = Normalizer { route, snapshot, origin: &origin, receive_time, replay_time: None };
        Ok(normalizer.normalize(provider(self.provider).normalize(content)?))
    }
}

/// What becomes of every payload: events, logs, unrouted parts and wishes as in the snapshots. Every webhook body
/// is valid under the JSON Schema of its event; a part that was kept because nobody claimed its number gives,
/// once claimed, the very events that it would have given at first; README.md says where each payload is from.
pub fn corpus(corpus: &Corpus) {
    let snapshot = corpus.configuration(EVERYTHING_BUT_UPDATES);
    let readme = fs::read_to_string(directory(corpus.provider).join("README.md")).unwrap();
    let fixtures = fixtures(corpus.provider);
    assert!(!fixtures.is_empty());
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path(format!(
        "{}/src/provider/snapshots/{}",
        env!("CARGO_MANIFEST_DIR"),
        corpus.provider.name()
    ));
    settings.bind(|| {
        for Fixture { name, content } in fixtures {
            let normalized =
                corpus.normalize(&snapshot, &content).unwrap_or_else(|error| panic!("{name}: {error}"));
            let described = describe(&normalized);
            insta::assert_snapshot!(name.as_str(), described);
            check_bodies(&name, &normalized);
            assert_eq!(describe(&kept_and_claimed(corpus, &snapshot, &content)), described, "{name}");
            assert!(readme.contains(&format!("`{name}.")), "README.md names {name}");
        }
    });
}

fn check_bodies(name: &str, normalized: &Normalized) {
    for event in &normalized.entry.events {
        let body: Value = serde_json::from_str(&event.log.payload_json).unwrap();
        let errors: Vec<_> = SCHEMAS[event.event_type.name()]
            .iter_errors(&body)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?} in {body}");
    }
}

/// What a payload comes to when at first nobody claims its numbers.
fn kept_and_claimed(corpus: &Corpus, snapshot: &Snapshot, content: &[u8]) -> Normalized {
    let route = snapshot.route_by_token(TOKEN).unwrap();
    let kept = corpus.normalize_with(&Snapshot::default(), route, content).unwrap();
    assert!(kept.entry.events.is_empty() && kept.wishes.is_empty());
    let mut later = Normalized::default();
    for unrouted in &kept.entry.unrouted {
        let again = corpus.normalize(snapshot, unrouted.callback.payload_json.as_bytes()).unwrap();
        later.entry.events.extend(again.entry.events);
        later.entry.unrouted.extend(again.entry.unrouted);
        later.entry.marks.extend(again.entry.marks);
        later.wishes.extend(again.wishes);
    }
    later
}

static SCHEMAS: LazyLock<HashMap<String, Validator>> = LazyLock::new(|| {
    let paths = fs::read_dir(schema_directory()).unwrap().map(|entry| entry.unwrap().path());
    let schemas = paths.filter(|path| path.extension().is_some_and(|kind| kind == "json")).map(|path| {
        let schema: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let validator = jsonschema::options().with_retriever(Neighbours).build(&schema).unwrap();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), validator)
    });
    schemas.collect()
});

fn schema_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../sdk/schemas")
}

/// Schemas that others refer to are files beside them; nothing is fetched.
struct Neighbours;

impl Retrieve for Neighbours {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let name = uri.as_str().rsplit('/').next().unwrap_or_default();
        Ok(serde_json::from_slice(&fs::read(schema_directory().join(name))?)?)
    }
}

/// In a form for snapshots: bodies byte for byte.
pub fn describe(normalized: &Normalized) -> String {
    let mut text = String::new();
    for event in &normalized.entry.events {
        let log = &event.log;
        assert_eq!(
            (log.event_id.as_str(), log.event.as_str()),
            (&*event.id.to_string(), event.event_type.name())
        );
        writeln!(text, "{}", log.payload_json).unwrap();
        writeln!(
            text,
            "    log: {} | from {:?} to {:?} user {:?} | {:?} {:?} {:?} | for {:?}",
            log.instance_id,
            log.from_phone,
            log.to_phone,
            log.contact_user_id,
            log.message_type,
            log.message_text,
            log.external_message_id,
            event.subscriptions
        )
        .unwrap();
    }
    for NewUnrouted { callback, .. } in &normalized.entry.unrouted {
        let v1::UnroutedCallback { provider_number_id, provider_account_id, payload_json, .. } = callback;
        writeln!(
            text,
            "unrouted: number {provider_number_id:?}, account {provider_account_id:?}: {payload_json}"
        )
        .unwrap();
    }
    for wish in &normalized.wishes {
        let keys = |contact: &ContactRef| {
            format!("{:?}/{:?}", contact.phone.as_ref().map(Phone::as_str), contact.user_id)
        };
        let kind = match &wish.kind {
            WishKind::Decide(decision) => format!(
                "{:?} of {:?} by {} at {}, {:?}, keyword {:?}",
                decision.direction,
                decision.scope,
                keys(&decision.contact),
                decision.event_time,
                decision.reason,
                decision.keyword
            ),
            WishKind::Follow { from, to } => format!("{} is now {}", keys(from), keys(to)),
        };
        writeln!(
            text,
            "wish: {} {kind} (text {:?}, with an event: {})",
            wish.instance.id,
            wish.message_text,
            normalized.entry.events.iter().any(|event| Some(event.id) == wish.mark)
        )
        .unwrap();
    }
    for mark in &normalized.entry.marks {
        writeln!(text, "mark: {mark}").unwrap();
    }
    if text.is_empty() { "nothing\n".to_owned() } else { text }
}

/// Every provider has payloads and a page of its own.
#[test]
fn every_provider_has_a_corpus() {
    for name in ProviderName::ALL {
        assert!(fixtures(name).len() >= 10, "{}", name.name());
    }
}
