//! Promises that hold whatever a provider sends: for bytes of any kind, for JSON in the provider's own words, for
//! payloads that somebody changed here and there.

use std::{collections::BTreeSet, fmt, sync::LazyLock};

use proptest::{collection::vec, prelude::*, sample};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::{check_bodies, describe, fixtures};
use crate::{
    pipeline::{
        normalize::{Normalized, Normalizer},
        tests::{TOKEN, configuration_of, origin},
    },
    provider::{ITEMS_MAX, NormalizeError, Part, Target, login::is_login, provider},
};
use gateway_core::{event::Provider as ProviderName, snapshot::Snapshot};

const NUMBER: &str = "106540352242922";

/// What a provider says: its words, and its payloads.
struct Language {
    provider: ProviderName,
    /// Names of fields, or of parameters.
    names: Vec<String>,
    /// Texts and numbers.
    scalars: Vec<Value>,
    /// The payloads that are JSON.
    payloads: Vec<Value>,
    /// All payloads as they are.
    texts: Vec<Vec<u8>>,
    /// One instance that is asked for everything.
    snapshot: Snapshot,
}

impl fmt::Debug for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.provider.name())
    }
}

/// The languages, in the order of [`ProviderName::ALL`].
static LANGUAGES: LazyLock<Vec<Language>> =
    LazyLock::new(|| ProviderName::ALL.into_iter().map(Language::of).collect());

impl Language {
    fn of(name: ProviderName) -> Self {
        let texts: Vec<_> = fixtures(name).into_iter().map(|fixture| fixture.content).collect();
        let payloads: Vec<Value> =
            texts.iter().filter_map(|text| serde_json::from_slice(text).ok()).collect();
        let (mut names, mut scalars) = (BTreeSet::new(), Vec::new());
        payloads.iter().for_each(|payload| learn(payload, &mut names, &mut scalars));
        for text in texts.iter().filter(|text| !text.starts_with(b"{") && !text.starts_with(b"[")) {
            for (name, value) in form_urlencoded::parse(text) {
                names.insert(name.into_owned());
                scalars.push(Value::String(value.into_owned()));
            }
        }
        scalars.sort_by_key(Value::to_string);
        scalars.dedup();
        let names = names.into_iter().collect();
        let snapshot = configuration_of(name, "", &[], &[(NUMBER, "+15550783881")], &[("sub-one", &["*"])]);
        Self { provider: name, names, scalars, payloads, texts, snapshot }
    }

    /// What becomes of a part, whatever number it is about.
    fn tell(&self, part: Part<'_>) -> Normalized {
        let normalizer = Normalizer {
            route: self.snapshot.route_by_token(TOKEN).unwrap(),
            snapshot: &self.snapshot,
            origin: &origin(),
            receive_time: "2026-05-07T10:00:00.5Z".parse().unwrap(),
            replay_time: None,
        };
        let target = Target { number: Some(NUMBER.into()), ..part.target };
        normalizer.normalize(vec![Part { target, ..part }])
    }
}

fn learn(value: &Value, names: &mut BTreeSet<String>, scalars: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.insert(name.clone());
                learn(value, names, scalars);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| learn(element, names, scalars)),
        scalar => scalars.push(scalar.clone()),
    }
}

fn language() -> impl Strategy<Value = &'static Language> {
    (0..LANGUAGES.len()).prop_map(|index| &LANGUAGES[index])
}

fn twilio() -> &'static Language {
    LANGUAGES.iter().find(|language| language.provider == ProviderName::Twilio).unwrap()
}

/// Normalizes, and checks what always holds: bodies are valid under their schemas, and each part that is kept gives
/// the same again. Returns how many events and wishes there are, or why there is nothing.
fn check(language: &Language, content: &[u8]) -> Result<usize, NormalizeError> {
    let name = language.provider;
    let parts = provider(name).normalize(content)?;
    assert!(parts.iter().map(|part| part.items.len()).sum::<usize>() <= ITEMS_MAX);
    let mut told = 0;
    for part in parts {
        let (kept, target) = (part.original.concat(), part.target.clone());
        let normalized = language.tell(part);
        check_bodies(name.name(), &normalized);
        told += normalized.entry.events.len() + normalized.wishes.len();
        let mut again = provider(name).normalize(kept.as_bytes()).expect("what is kept can be read");
        assert_eq!(again.len(), 1, "{kept}");
        let again = again.remove(0);
        assert!(again.target == target, "{kept}");
        assert_eq!(describe(&language.tell(again)), describe(&normalized), "{kept}");
    }
    Ok(told)
}

/// One change of a payload: what, where, and with which of the provider's words.
#[derive(Debug, Clone)]
struct Change {
    kind: Kind,
    place: sample::Index,
    word: sample::Index,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Remove,
    Rename,
    Word,
    Odd,
    Text,
    List,
    Object,
    Twice,
    Graft,
}

const KINDS: [Kind; 9] = [
    Kind::Remove,
    Kind::Rename,
    Kind::Word,
    Kind::Odd,
    Kind::Text,
    Kind::List,
    Kind::Object,
    Kind::Twice,
    Kind::Graft,
];

/// What providers were seen to send in place of something, and what none should.
static ODD: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let odd = r#"[null, "", " ", true, false, 0, -1, 1749416383, 1749416383123, "1749416383", 1749416383.75,
        18446744073709551615, 1e300, -0.0, [], {}, [[]], [{}], [null], "null", "{}", "[", "\u0000", "\ud83d\uded1",
        "STOP", "stop promotions", "US.13491208655302741918", "16505551234", 16505551234, "+1 650 555 1234",
        "16505551234@c.us", "16505551234:3@s.whatsapp.net", "236541250269@lid", "120363@g.us", "status@broadcast"]"#;
    serde_json::from_str(odd).unwrap()
});

fn change() -> impl Strategy<Value = Change> {
    (sample::select(&KINDS[..]), any::<sample::Index>(), any::<sample::Index>())
        .prop_map(|(kind, place, word)| Change { kind, place, word })
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Array(elements) => elements.iter().map(count).sum(),
        _ => 0,
    }
}

impl Change {
    /// Changes the value at this place, the places counted from the root.
    fn apply(&self, language: &Language, root: &mut Value) {
        let mut place = self.place.index(count(root));
        self.descend(language, root, &mut place);
    }

    fn descend(&self, language: &Language, value: &mut Value, place: &mut usize) -> bool {
        if *place == 0 {
            self.at(language, value);
            return true;
        }
        *place -= 1;
        match value {
            Value::Object(fields) => fields.values_mut().any(|value| self.descend(language, value, place)),
            Value::Array(elements) => elements.iter_mut().any(|value| self.descend(language, value, place)),
            _ => false,
        }
    }

    fn at(&self, language: &Language, value: &mut Value) {
        let name = || self.word.get(&language.names).clone();
        match (self.kind, &mut *value) {
            (Kind::Remove, Value::Object(fields)) if !fields.is_empty() => {
                let key = self.word.index(fields.len());
                let key = fields.keys().nth(key).cloned().unwrap();
                fields.remove(&key);
            }
            (Kind::Remove, Value::Array(elements)) if !elements.is_empty() => {
                elements.remove(self.word.index(elements.len()));
            }
            (Kind::Remove, other) => *other = Value::Null,
            (Kind::Rename, Value::Object(fields)) if !fields.is_empty() => {
                let key = fields.keys().nth(self.word.index(fields.len())).cloned().unwrap();
                let value = fields.remove(&key).unwrap();
                fields.insert(name(), value);
            }
            (Kind::Twice, Value::Array(elements)) if !elements.is_empty() => {
                let element = elements[self.word.index(elements.len())].clone();
                elements.push(element);
            }
            (Kind::Rename | Kind::Word, other) => *other = self.word.get(&language.scalars).clone(),
            (Kind::Odd, other) => *other = self.word.get(&ODD).clone(),
            (Kind::Text, other) => *other = Value::String(other.to_string()),
            (Kind::List | Kind::Twice, other) => *other = Value::Array(vec![other.take()]),
            (Kind::Object, other) => *other = Value::Object(Map::from_iter([(name(), other.take())])),
            (Kind::Graft, other) => *other = self.word.get(&language.payloads).clone(),
        }
    }
}

/// JSON of any shape in the words of a provider.
fn in_words_of(language: &'static Language) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        sample::select(&language.scalars[..]),
        sample::select(&ODD[..]),
        any::<String>().prop_map(Value::String),
        any::<f64>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        let field = (sample::select(&language.names[..]), inner.clone());
        prop_oneof![
            vec(field, 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
            vec(inner, 0..4).prop_map(Value::Array),
        ]
    })
}

/// A form of names and values, each perhaps in words of the provider, encoded in one of several ways.
fn form() -> impl Strategy<Value = Vec<u8>> {
    let twilio = twilio();
    let name = prop_oneof![4 => sample::select(&twilio.names[..]), 1 => any::<String>()];
    let value = prop_oneof![
        4 => sample::select(&twilio.scalars[..]).prop_map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        1 => any::<String>(),
    ];
    let encode = |(name, value, is_raw): (String, String, bool)| {
        let pair = form_urlencoded::Serializer::new(String::new()).append_pair(&name, &value).finish();
        if is_raw { format!("{name}={value}") } else { pair }
    };
    vec((name, value, prop::bool::weighted(0.1)), 0..40)
        .prop_map(move |pairs| pairs.into_iter().map(encode).collect::<Vec<_>>().join("&").into_bytes())
}

/// An edit is known again by what is kept of it, also when its time is no time and a secret is cut out of that.
#[test]
fn edits_are_the_same_without_their_secrets() {
    let evolution = LANGUAGES.iter().find(|language| language.provider == ProviderName::Evolution).unwrap();
    let edit = serde_json::json!({
        "key": {"remoteJid": "16505551234@s.whatsapp.net", "fromMe": false, "id": "3EB0ORIG"}, "type": "MESSAGE_EDIT",
        "editedMessage": {"conversation": "Does it come in green?"}, "timestampMs": {"apikey": "planted"},
    });
    let content = serde_json::json!({"event": "messages.edited", "instance": "support", "data": edit});
    assert_eq!(check(evolution, content.to_string().as_bytes()).unwrap(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of any kind are refused, or give valid events.
    #[test]
    fn bytes_are_harmless(language in language(), bytes in vec(any::<u8>(), 0..200)) {
        let _read_or_not = check(language, &bytes);
    }

    /// So are payloads whose bytes were changed, cut out or repeated.
    #[test]
    fn damaged_payloads_are_harmless(
        language in language(),
        which in any::<sample::Index>(),
        damages in vec((any::<sample::Index>(), 0..20_usize, vec(any::<u8>(), 0..4)), 1..4),
    ) {
        let mut bytes = which.get(&language.texts).clone();
        for (place, length, new) in damages {
            let start = place.index(bytes.len() + 1);
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, new);
        }
        let _read_or_not = check(language, &bytes);
    }

    /// JSON of any shape in the provider's words is read, gives valid events, and none of it vanishes.
    #[test]
    fn any_json_is_read(
        (language, value) in language().prop_flat_map(|language| (Just(language), in_words_of(language)))
    ) {
        let told = check(language, value.to_string().as_bytes());
        prop_assert!(told? > 0 || may_be_nothing(language.provider, &value), "{language:?} {value}");
    }

    /// So is a payload that was changed here and there.
    #[test]
    fn changed_payloads_are_read(
        language in language(),
        which in any::<sample::Index>(),
        changes in vec(change(), 1..5),
    ) {
        prop_assume!(!language.payloads.is_empty());
        let mut value = which.get(&language.payloads).clone();
        changes.iter().for_each(|change| change.apply(language, &mut value));
        let told = check(language, value.to_string().as_bytes());
        prop_assert!(told? > 0 || may_be_nothing(language.provider, &value), "{language:?} {value}");
    }

    /// Twilio's parameters, whatever they are, give valid events, and none when there are no parameters.
    #[test]
    fn any_form_is_read(form in form()) {
        // What begins like JSON is read as JSON.
        prop_assume!(!form.trim_ascii_start().starts_with(b"{") && !form.trim_ascii_start().starts_with(b"["));
        let told = check(twilio(), &form);
        prop_assert_eq!(told? == 0, form_urlencoded::parse(&form).next().is_none());
    }
}

/// Whether a genuine content may come to nothing: what `docs/providers.md` says is not passed on. Generous where
/// the exact rule is the provider's own test's.
fn may_be_nothing(provider: ProviderName, value: &Value) -> bool {
    if let Some(elements) = value.as_array().filter(|elements| !elements.is_empty()) {
        return elements.iter().all(|element| may_be_nothing(provider, element));
    }
    let name = value["event"].as_str().unwrap_or_default();
    let event = name.to_lowercase().replace(['_', '-'], ".");
    match provider {
        ProviderName::Meta => is_of_meta_nothing(value),
        ProviderName::Dialog360 => !value["event"].is_null() || is_of_meta_nothing(value),
        ProviderName::Gupshup => is_of_meta_nothing(value),
        ProviderName::Infobip => contains(value, &|name, value| name == "results" && is_empty(value)),
        ProviderName::Twilio => value.as_object().is_none_or(|fields| fields.values().all(Value::is_null)),
        // The past, the login, and what goes to everybody.
        ProviderName::Evolution => {
            ["messages.set", "messaging.history.set", "instance.create"].contains(&&*event)
                // In `qrcodeUpdated` only its capitals part the words.
                || is_login(name)
                || is_for_everybody(value)
                || contains(value, &|name, _| name == "protocolMessage" || name == "type")
                || ["messages.edited", "send.message.update"].contains(&&*event)
                || is_empty(&value["data"])
        }
        ProviderName::Waha => {
            event == "engine.event"
                || is_login(name)
                || is_for_everybody(value)
                || event == "message" && contains(value, &|name, _| ["fromMe", "id"].contains(&name))
        }
        _ => false,
    }
}

/// Another product of Meta, the past, the address book of a phone, or no changes at all.
fn is_of_meta_nothing(value: &Value) -> bool {
    value["object"].as_str().is_some_and(|object| object != "whatsapp_business_account")
        || contains(value, &|name, value| {
            name == "field" && (value == "history" || value == "smb_app_state_sync")
        })
        || contains(value, &|name, value| ["entry", "changes"].contains(&name) && is_empty(value))
}

/// Stories and channels.
fn is_for_everybody(value: &Value) -> bool {
    let text = value.to_string();
    text.contains("@broadcast") || text.contains("@newsletter")
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// Whether a field of the value, however deep, is such.
fn contains(value: &Value, is_such: &impl Fn(&str, &Value) -> bool) -> bool {
    match value {
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| is_such(name, value) || contains(value, is_such))
        }
        Value::Array(elements) => elements.iter().any(|element| contains(element, is_such)),
        _ => false,
    }
}
