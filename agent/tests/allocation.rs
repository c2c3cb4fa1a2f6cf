//! What a hostile callback costs in memory, by the worst that can be written in it: it is refused, or its memory
//! stays within a multiple of its bytes and so much per item.

use std::{collections::HashSet, fs, path::Path};

use allocation_counter::measure;
use gateway_agent::{
    pipeline::normalize::{Normalizer, Origin},
    provider::{ITEMS_MAX, provider},
};
use gateway_core::{event::Provider, snapshot::Snapshot};
use jiff::Timestamp;
use serde_json::Value;

#[path = "../fuzz/configuration.rs"]
mod configuration;

use configuration::{TOKEN, configuration};

/// The longest body that is taken, in bytes.
const BODY_BYTES_MAX: usize = 4 << 20;
/// Most bytes of memory at once for each byte of a content: control characters in a form, each of which takes six
/// bytes in JSON, while the JSON is moved to a larger place.
const BYTES_PER_BYTE: usize = 16;
/// Most bytes of memory at once for each item and part: the item, its event with its log and body, and the list of
/// them while it is moved to a larger place.
const BYTES_PER_ITEM: usize = 6 << 10;
/// Most bytes of memory at once in any case: a list of [`ITEMS_MAX`] elements that are read beside the items.
const BYTES_ANYWAY: usize = 2 << 20;

/// A text that would be noticed if it was repeated with each of as many elements.
const LONG_TEXT_BYTES: usize = 64 << 10;
/// Elements of a list beside it.
const MANY_ELEMENTS: usize = 200;

/// The memory that a content costs at once, and its limit.
fn cost(provider_name: Provider, snapshot: &Snapshot, content: &[u8]) -> (usize, usize) {
    let mut items = 0;
    let origin = Origin { agent_id: "agt_test".to_owned(), region: "here".to_owned() };
    let normalizer = Normalizer {
        route: snapshot.route_by_token(TOKEN).expect("it is in the configuration"),
        snapshot,
        origin: &origin,
        receive_time: Timestamp::UNIX_EPOCH,
        replay_time: None,
    };
    let cost = measure(|| {
        if let Ok(parts) = provider(provider_name).normalize(content) {
            items = parts.iter().map(|part| 1 + part.items.len()).sum();
            drop(normalizer.normalize(parts));
        }
    });
    let limit = BYTES_PER_BYTE * content.len() + BYTES_PER_ITEM * items + BYTES_ANYWAY;
    (usize::try_from(cost.bytes_max).expect("it fits the memory"), limit)
}

/// As many of these as fit into `bytes`, with commas between them.
fn list_of(bytes: usize, element: &str) -> String {
    let count = (bytes / (element.len() + 1)).saturating_sub(1);
    vec![element; count].join(",")
}

/// JSON and forms that are as long as can be, and consist of what costs most.
#[test]
fn longest_bodies_are_affordable() {
    let max = BODY_BYTES_MAX - 64;
    let contents = [
        "[".repeat(max),
        "[".repeat(max / 2) + &"]".repeat(max / 2),
        r#"{"a":"#.repeat(max / 5),
        r#"{"a":"#.repeat(max / 6) + "1" + &"}".repeat(max / 6),
        format!("[{}]", list_of(max, "0")),
        format!("[{}]", list_of(max, "{}")),
        format!("{{{}}}", list_of(max, r#""":0"#)),
        format!("{{{}}}", list_of(max, r#""\n":0"#)),
        format!(r#"{{"a":"{}"}}"#, "x".repeat(max)),
        format!(r#"{{"a":"{}"}}"#, r"\u0001".repeat(max / 6)),
        format!(r#"{{"a":"{}"}}"#, "\\\"".repeat(max / 2)),
        "a&".repeat(max / 2),
        "a=b&".repeat(9_999),
        format!("a={}", "%01".repeat(max / 3)),
        format!("MessageSid=SM1&From=a&To=b&Body={}", "\u{1}".repeat(max - 40)),
        format!(
            "MessageSid=SM1&Memory={}&ChannelMetadata={{{}}}",
            "&".repeat(9_000),
            list_of(max - 10_000, r#""":0"#)
        ),
    ];
    for name in Provider::ALL {
        let snapshot = configuration(name, "106540352242922");
        for content in &contents {
            assert!(content.len() <= BODY_BYTES_MAX);
            let (cost, limit) = cost(name, &snapshot, content.as_bytes());
            let (head, length) = (&content[..20], content.len());
            assert!(cost <= limit, "{}: {cost} of {limit} bytes for {length} of {head}…", name.name());
        }
    }
}

/// Every list of every documented payload, with as many elements as are taken, and with as many as there can be.
#[test]
fn longest_lists_are_affordable() {
    for name in Provider::ALL {
        let snapshot = configuration(name, "106540352242922");
        let mut seen = HashSet::new();
        for payload in payloads(name) {
            for list in places(&payload, &Value::is_array) {
                if !seen.insert(shape(&list)) {
                    continue;
                }
                for (element, count) in
                    [("null", ITEMS_MAX), ("{}", ITEMS_MAX), ("\"\"", ITEMS_MAX), ("{}", BODY_BYTES_MAX / 16)]
                {
                    let mut payload = payload.clone();
                    *payload.pointer_mut(&list).unwrap() = Value::from("the list");
                    let elements = vec![element; count].join(",");
                    let content = payload.to_string().replace("\"the list\"", &format!("[{elements}]"));
                    let (cost, limit) = cost(name, &snapshot, content.as_bytes());
                    assert!(cost <= limit, "{} {list}: {cost} of {limit} bytes", name.name());
                }
            }
        }
    }
}

/// What stands once in a payload and is about each element of a list is not multiplied: each text of every
/// documented payload is made long, beside each list with many elements.
#[test]
fn shared_texts_are_affordable() {
    for name in Provider::ALL {
        let mut seen = HashSet::new();
        for payload in payloads(name) {
            let number = "106540352242922";
            let snapshot = configuration(name, number);
            for list in places(&payload, &Value::is_array) {
                for text in places(&payload, &|value| value.is_string() || value.is_number()) {
                    if text.starts_with(&list) || !seen.insert((shape(&list), shape(&text))) {
                        continue;
                    }
                    let mut payload = payload.clone();
                    *payload.pointer_mut(&text).unwrap() = Value::String("x".repeat(LONG_TEXT_BYTES));
                    let elements = payload.pointer_mut(&list).unwrap().as_array_mut().unwrap();
                    let Some(element) = elements.first().cloned() else { continue };
                    elements.resize(MANY_ELEMENTS, element);
                    let content = payload.to_string();
                    let (cost, limit) = cost(name, &snapshot, content.as_bytes());
                    assert!(cost <= limit, "{} {text} of {list}: {cost} of {limit} bytes", name.name());
                }
            }
        }
    }
}

/// The documented payloads of a provider that are JSON.
fn payloads(name: Provider) -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name.name());
    let entries = fs::read_dir(directory).expect("there are fixtures");
    let files = entries.map(|entry| entry.and_then(|entry| fs::read(entry.path())).expect("it can be read"));
    files.filter_map(|file| serde_json::from_slice(&file).ok()).collect()
}

/// Where values of a kind are, as JSON pointers.
fn places(value: &Value, is_such: &impl Fn(&Value) -> bool) -> Vec<String> {
    let below = |key: String, value| {
        let key = key.replace('~', "~0").replace('/', "~1");
        places(value, is_such).into_iter().map(move |place| format!("/{key}{place}"))
    };
    let mut places: Vec<_> = match value {
        Value::Object(fields) => fields.iter().flat_map(|(key, value)| below(key.clone(), value)).collect(),
        Value::Array(elements) => {
            elements.iter().enumerate().flat_map(|(index, value)| below(index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    places.extend(is_such(value).then(String::new));
    places
}

/// A place without the positions in lists.
fn shape(place: &str) -> String {
    place.split('/').filter(|key| key.parse::<usize>().is_err()).collect::<Vec<_>>().join("/")
}
