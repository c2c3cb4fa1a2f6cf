use gateway_core::{event::Provider, snapshot::Snapshot};
use jiff::Timestamp;
use proptest::prelude::*;

use super::{log::LOG_TEXT_BYTES_MAX, *};
use crate::{
    pipeline::tests::{TOKEN, configuration, fixture, origin},
    provider::{NormalizeError, provider},
};

fn receive_time() -> Timestamp {
    "2026-05-07T10:00:00.5Z".parse().unwrap()
}

fn normalize(snapshot: &Snapshot, body: &[u8]) -> Result<Normalized, NormalizeError> {
    let origin = origin();
    let route = snapshot.route_by_token(TOKEN).unwrap();
    let normalizer =
        Normalizer { route, snapshot, origin: &origin, receive_time: receive_time(), replay_time: None };
    Ok(normalizer.normalize(provider(Provider::Meta).normalize(body)?))
}

/// A provider's retry names the same events, also with its JSON written in another way.
#[test]
fn ids_come_from_the_provider_alone() {
    let snapshot = configuration(&[]);
    for name in ["batch", "status_group", "echo"] {
        let body = fixture(name);
        let compact: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let ids = |body: &[u8]| -> Vec<EventId> {
            normalize(&snapshot, body).unwrap().entry.events.iter().map(|event| event.id).collect()
        };
        let all = ids(&body);
        assert_eq!(ids(compact.to_string().as_bytes()), all, "{name}");
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{name}: different facts have different ids");
    }
    let text = normalize(&snapshot, &fixture("text_escaped")).unwrap().entry.events;
    let parts = ["message.received", "meta", "support-line", "wamid.TEST1", "", "", ""];
    assert_eq!(text[0].id, EventId::derive(&parts));
    let failed = normalize(&snapshot, &fixture("status_failed")).unwrap().entry.events;
    let parts = ["message.failed", "meta", "support-line", "wamid.OURS", "failed", "16505551234", "131026"];
    assert_eq!(failed[0].id, EventId::derive(&parts));
}

/// A status that somebody selected as `message.status_updated` comes twice, under two ids; one without an
/// event of its own comes once, selected or not.
#[test]
fn status_updates_come_to_those_who_select_them() {
    let names = |events: &[&str], name| -> Vec<&'static str> {
        let snapshot = configuration(&[("sub-one", events)]);
        let events = normalize(&snapshot, &fixture(name)).unwrap().entry.events;
        events.iter().map(|event| event.event_type.name()).collect()
    };
    assert_eq!(names(&["message.delivered"], "status_delivered"), ["message.delivered"]);
    for selected in ["message.status_updated", "message.*", "*"] {
        assert_eq!(names(&[selected], "status_delivered"), ["message.delivered", "message.status_updated"]);
    }
    assert_eq!(names(&[], "status_deleted"), ["message.status_updated"]);
    assert_eq!(names(&["*"], "status_deleted"), ["message.status_updated"]);
    assert_eq!(names(&["*"], "call_status"), ["message.status_updated"]);
}

/// What is about an account of one tenant is not shown to another tenant of the same route.
#[test]
fn account_events_do_not_cross_tenants() {
    let instance = v1::Instance {
        id: "other-line".to_owned(),
        tenant_id: "another".to_owned(),
        display_name: "Other".to_owned(),
        inbound_route_id: "route-meta".to_owned(),
        provider_number_id: "1".to_owned(),
        ..v1::Instance::default()
    };
    let resource = Some(v1::config_resource::Resource::Instance(instance));
    let delta = v1::StreamConfigResponse {
        upserts: vec![v1::ConfigResource { version: 2, resource }],
        ..v1::StreamConfigResponse::default()
    };
    let alone = configuration(&[]);
    let (shared, _) = alone.apply(&delta);
    let count = |snapshot: &Snapshot| {
        let entry = normalize(snapshot, &fixture("account_review_update")).unwrap().entry;
        (entry.events.len(), entry.unrouted.len())
    };
    assert_eq!(count(&alone), (2, 0));
    assert_eq!(count(&shared), (0, 1));
}

/// On a route that several tenants share, what is about an account goes to the instances that name it; what
/// names an account of two tenants, or of nobody, to none.
#[test]
fn account_events_go_to_the_instances_of_their_account() {
    let count = |accounts: [(&str, &str); 2], number: usize| {
        let upserts = accounts.iter().zip(["support-line", "sales-line"]).zip(["1", "2"]).map(
            |(((tenant, account), id), number)| {
                let instance = v1::Instance {
                    id: id.to_owned(),
                    tenant_id: (*tenant).to_owned(),
                    display_name: id.to_owned(),
                    inbound_route_id: "route-meta".to_owned(),
                    provider_number_id: number.to_owned(),
                    provider_account_id: (*account).to_owned(),
                    ..v1::Instance::default()
                };
                let resource = Some(v1::config_resource::Resource::Instance(instance));
                v1::ConfigResource { version: 2, resource }
            },
        );
        let route = v1::InboundRouteConfig {
            id: "route-meta".to_owned(),
            provider: v1::Provider::Meta.into(),
            callback_token: TOKEN.to_owned(),
            callback_token_suffices: true,
            ..v1::InboundRouteConfig::default()
        };
        let route = v1::ConfigResource {
            version: 2,
            resource: Some(v1::config_resource::Resource::InboundRoute(route)),
        };
        let upserts = std::iter::once(route).chain(upserts).collect();
        let delta = v1::StreamConfigResponse { upserts, ..v1::StreamConfigResponse::default() };
        let (snapshot, refused) = configuration(&[]).apply(&delta);
        assert!(refused.is_empty(), "{}", refused.len());
        let entry = normalize(&snapshot, &fixture("account_review_update")).unwrap().entry;
        let of: Vec<_> = entry.events.iter().map(|event| event.log.instance_id.clone()).collect();
        assert_eq!(of.len() + entry.unrouted.len(), number);
        of
    };
    use crate::pipeline::tests::ACCOUNT;
    assert_eq!(count([("one", ACCOUNT), ("two", "another")], 1), ["support-line"]);
    assert_eq!(count([("one", "another"), ("two", ACCOUNT)], 1), ["sales-line"]);
    assert_eq!(count([("one", ACCOUNT), ("two", "")], 1), ["support-line"]);
    assert_eq!(count([("one", ACCOUNT), ("one", ACCOUNT)], 2), ["sales-line", "support-line"]);
    assert_eq!(count([("one", ACCOUNT), ("one", "")], 1), ["support-line"]);
    assert_eq!(count([("one", "another"), ("one", "")], 1), ["sales-line"]);
    for shared in
        [[("one", ACCOUNT), ("two", ACCOUNT)], [("one", "another"), ("two", "")], [("one", ""), ("two", "")]]
    {
        assert!(count(shared, 1).is_empty());
    }
    assert!(count([("one", "another"), ("one", "other")], 1).is_empty());
}

/// Changes of a shape that does not exist yet are kept whole, each under an id of its own.
#[test]
fn changes_of_another_shape_are_kept_apart() {
    let entry = normalize(&configuration(&[]), &fixture("change_other_shape")).unwrap().entry;
    let ids: std::collections::HashSet<_> = entry.events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), entry.events.len());
    let bodies: Vec<serde_json::Value> =
        entry.events.iter().map(|event| serde_json::from_str(&event.log.payload_json).unwrap()).collect();
    for important in [1, 2, 3] {
        assert!(bodies.iter().any(|body| body["raw"]["payload"]["important"] == important), "{important}");
    }
}

/// More items than any provider sends are refused before they cost memory.
#[test]
fn items_are_limited() {
    let body = |count: usize| {
        let statuses = vec!["{}"; count].join(",");
        format!(
            r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{{"field":"messages","value":{{"statuses":[{statuses}]}}}}]}}]}}"#
        )
    };
    let meta = provider(Provider::Meta);
    assert_eq!(meta.normalize(body(10_000).as_bytes()).unwrap()[0].items.len(), 10_000);
    assert!(matches!(meta.normalize(body(10_001).as_bytes()), Err(NormalizeError::TooManyItems)));
}

/// What could not be reported in one message is refused: a body that says the same twice, a part that nobody claims.
#[test]
fn events_fit_a_report() {
    let text = "x".repeat(EVENT_BYTES_MAX / 2);
    let body = String::from_utf8(fixture("button")).unwrap();
    let long = body.replace(r#""text": "Unsubscribe""#, &format!(r#""text": "{text}""#));
    assert_ne!(long, body);
    let is_too_large =
        |snapshot: &Snapshot, body: &str| normalize(snapshot, body.as_bytes()).unwrap().is_too_large();
    let snapshot = configuration(&[]);
    assert!(is_too_large(&snapshot, &long));
    assert!(!is_too_large(&snapshot, &long.replace(&text, &text[..text.len() - 1024])));
    let of_others = long.replace("106540352242922", "0");
    assert!(!is_too_large(&snapshot, &of_others));
    assert!(is_too_large(&snapshot, &of_others.replace(&text, &text.repeat(2))));
}

/// The log's text columns are cut at a character; the body has the whole text.
#[test]
fn long_texts_are_cut_in_the_column_only() {
    let text = "é".repeat(LOG_TEXT_BYTES_MAX);
    let body = String::from_utf8(fixture("text")).unwrap().replace("Does it come in another color?", &text);
    let events = normalize(&configuration(&[]), body.as_bytes()).unwrap().entry.events;
    assert_eq!(events[0].log.message_text.len(), LOG_TEXT_BYTES_MAX);
    assert!(events[0].log.payload_json.contains(&text));
    let body = body.replace("wamid.", &text);
    let events = normalize(&configuration(&[]), body.as_bytes()).unwrap().entry.events;
    assert_eq!(events[0].log.external_message_id.len(), LOG_TEXT_BYTES_MAX);
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        ".{0,12}".prop_map(serde_json::Value::from),
        Just("16505551234".into()),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            prop::collection::hash_map(key(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "object",
        "entry",
        "id",
        "time",
        "changes",
        "field",
        "value",
        "metadata",
        "contacts",
        "messages",
        "statuses",
        "errors",
        "from",
        "from_user_id",
        "type",
        "timestamp",
        "text",
        "body",
        "interactive",
        "system",
        "edit",
        "message",
        "context",
        "recipient_id",
        "status",
        "code",
        "user_preferences",
        "wa_id",
        "profile",
        "x",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    /// Bytes of any kind are read or refused, and never panic.
    #[test]
    fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..512)) {
        drop(normalize(&configuration(&[]), &body));
    }

    /// Any JSON in any place of a callback gives events, and their bodies are JSON.
    #[test]
    fn any_json_is_kept(
        value in any_json(),
        place in 0..8_usize,
        field in prop::sample::select(vec!["messages", "smb_message_echoes", "user_preferences", "calls", "x"]),
    ) {
        let metadata = serde_json::json!({"phone_number_id": "106540352242922"});
        let item = serde_json::json!({"id": "wamid.1", "type": "text", "text": value});
        let value = match place {
            0 => value,
            1 => serde_json::json!({"metadata": metadata, "messages": value, "statuses": value}),
            2 => serde_json::json!({"metadata": metadata, "messages": [value], "statuses": [value]}),
            3 => serde_json::json!({"metadata": metadata, "messages": [item]}),
            4 => serde_json::json!({"metadata": metadata, "contacts": value, "messages": [item]}),
            5 => serde_json::json!({"metadata": value, "messages": [item]}),
            6 => serde_json::json!({"metadata": metadata, "message_echoes": [value], "user_preferences": [value], "calls": value}),
            _ => serde_json::json!({"metadata": metadata, "messages": [{"type": "interactive", "interactive": value, "system": value, "errors": value}]}),
        };
        let body = serde_json::json!({
            "object": "whatsapp_business_account",
            "entry": [{"id": "102290129340398", "changes": [{"field": field, "value": value}]}],
        });
        let normalized = normalize(&configuration(&[]), body.to_string().as_bytes()).unwrap();
        let Entry { events, unrouted, .. } = normalized.entry;
        prop_assert!(!events.is_empty() || !unrouted.is_empty() || !normalized.wishes.is_empty());
        for event in events {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&event.log.payload_json).is_ok());
        }
    }
}
