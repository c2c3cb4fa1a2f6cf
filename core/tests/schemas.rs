//! The JSON Schemas in `sdk/schemas/` name exactly the events and keys that webhook bodies have.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use gateway_core::{
    event::{Contact, Content, Event, EventType, Message, OptOutNotice, ProviderNotice, Status},
    id::{EventId, TenantId},
    payload::body,
};
use serde_json::{Value, value::RawValue};

fn schema(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../sdk/schemas").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).expect("every event has a schema file"))
        .expect("a schema is JSON")
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// An event of which nothing is known but that it happened.
fn bare(event_type: EventType) -> Event {
    let raw = || RawValue::from_string("{}".into()).expect("{} is JSON");
    let content = match event_type {
        EventType::MessageReceived => Content::Message(Box::default()),
        EventType::RecipientOptedOut | EventType::RecipientOptedIn => {
            Content::OptOut(Box::new(OptOutNotice { reason: "operator", ..OptOutNotice::default() }))
        }
        EventType::ProviderEvent => Content::Provider(ProviderNotice { field: "flows".into(), raw: raw() }),
        EventType::WebhookTest => Content::Test { subscription_id: "sub_1".parse().expect("a valid id") },
        _ => Content::Status(Box::<Status>::default()),
    };
    Event {
        id: EventId::from_bytes([7; 16]),
        event_type,
        tenant_id: TenantId::default_tenant(),
        instance_id: "demo-support-line".parse().expect("a valid id"),
        instance_name: Arc::from("Demo Support Line"),
        contact: Contact::default(),
        business_phone: None,
        event_time: "2026-05-08T10:00:00Z".parse().expect("RFC 3339"),
        is_time_ours: false,
        receive_time: "2026-05-08T10:00:01Z".parse().expect("RFC 3339"),
        content,
    }
}

/// What a schema requires is what a body carries when nothing is known: the customer contract.
#[test]
fn required_keys_are_the_contract() {
    for event_type in EventType::ALL {
        let schema = schema(event_type.name());
        let written: Value = serde_json::from_slice(&body(&bare(event_type))).unwrap();
        let required: BTreeSet<&str> =
            schema["required"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        assert_eq!(required, keys(&written), "{}", event_type.name());
        assert_eq!(schema["properties"]["event"]["const"], event_type.name());
    }
}

/// A time that is ours is marked in every body that tells of something at a provider's, and every such
/// schema knows the mark.
#[test]
fn times_of_ours_are_described() {
    for event_type in EventType::ALL {
        let ours = Event { is_time_ours: true, ..bare(event_type) };
        let written: Value = serde_json::from_slice(&body(&ours)).unwrap();
        let schema = schema(event_type.name());
        let known = &schema["properties"]["timestamp_source"]["const"];
        assert_eq!(written.get("timestamp_source").unwrap_or(&Value::Null), known, "{}", event_type.name());
    }
}

/// An echo is a `message.sent` that carries the message; its keys are known to that schema.
#[test]
fn echoes_are_described() {
    let echo = Event { content: Content::Message(Box::<Message>::default()), ..bare(EventType::MessageSent) };
    let written: Value = serde_json::from_slice(&body(&echo)).unwrap();
    let schema = schema("message.sent");
    let unknown: Vec<_> = keys(&written).difference(&keys(&schema["properties"])).copied().collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// `event.json` holds each of the other schemas, word for word, and nothing else.
#[test]
fn the_schema_of_any_event_is_the_sum_of_the_others() {
    let any = schema("event");
    let mut definitions = BTreeSet::new();
    for event_type in EventType::ALL {
        let mut one = schema(event_type.name());
        let own = one.as_object_mut().unwrap();
        own.remove("$schema");
        for (name, definition) in own.remove("$defs").unwrap().as_object().unwrap() {
            assert_eq!(any["$defs"][name], *definition, "{name}");
            definitions.insert(name.clone());
        }
        assert_eq!(any["$defs"][event_type.name()], one, "{}", event_type.name());
        definitions.insert(event_type.name().to_owned());
    }
    assert_eq!(keys(&any["$defs"]), definitions.iter().map(String::as_str).collect());
    assert_eq!(any["oneOf"].as_array().unwrap().len(), EventType::ALL.len());
}
