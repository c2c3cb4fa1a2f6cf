use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{Kind, MessageDescriptor};

use super::{
    diff::{CHANGES_MAX, TEXT_BYTES_MAX},
    fields::FIELDS,
    *,
};

/// Files of messages that are no resources whose changes are audited: their own entries, and what came in.
const OTHER_FILES: [&str; 3] = ["audit.proto", "inbound_log.proto", "snapshot_export.proto"];

fn messages_below(message: MessageDescriptor, found: &mut BTreeMap<String, MessageDescriptor>) {
    if message.package_name() != "whatsapp_gateway.v1"
        || found.insert(message.full_name().to_owned(), message.clone()).is_some()
    {
        return;
    }
    for field in message.fields() {
        let kind = field.kind();
        // The entry of a map counts as the map's field.
        if let Some(inner) = kind.as_message().filter(|inner| !inner.is_map_entry()) {
            messages_below(inner.clone(), found);
        }
    }
}

/// Every message of a resource's file, and every message that an audited resource holds.
fn resource_messages() -> BTreeMap<String, MessageDescriptor> {
    let mut found = BTreeMap::new();
    for message in diff::pool().all_messages().filter(|message| !message.is_map_entry()) {
        let file = message.parent_file();
        let file = file.name().rsplit('/').next().unwrap_or_default();
        let audited = [
            v1::Instance::MESSAGE,
            v1::InboundRoute::MESSAGE,
            v1::WebhookSubscriptionConfig::MESSAGE,
            v1::OptOut::MESSAGE,
            v1::OptOutPolicy::MESSAGE,
            v1::Tenant::MESSAGE,
            v1::ApiKey::MESSAGE,
            v1::Agent::MESSAGE,
            NewJoinToken::MESSAGE,
            v1::SnapshotExportHeader::MESSAGE,
        ];
        let is_resource = !file.ends_with("_service.proto") && !OTHER_FILES.contains(&file);
        if is_resource || audited.contains(&message.name()) {
            messages_below(message, &mut found);
        }
    }
    found
}

/// Somebody has decided of every text or bytes field of a resource whether it may be shown, and the list names
/// nothing else. A new field fails this until it is listed; until then it is hidden.
#[test]
fn every_text_is_shown_or_hidden_on_purpose() {
    let mut texts = BTreeSet::new();
    for field in resource_messages().values().flat_map(MessageDescriptor::fields) {
        let kind = match field.kind() {
            Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
            kind => kind,
        };
        if matches!(kind, Kind::String | Kind::Bytes) {
            texts.insert(field.full_name().trim_start_matches("whatsapp_gateway.v1.").to_owned());
        }
    }
    let listed: BTreeSet<_> = FIELDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(listed.len(), FIELDS.len(), "a field is listed twice");
    let unlisted: Vec<_> = texts.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&texts).collect();
    assert!(
        unlisted.is_empty() && unknown.is_empty(),
        "not listed: {unlisted:?}; listed for nothing: {unknown:?}"
    );
}

fn changed<R: Resource>(before: &R, after: &R) -> Vec<(String, String, String)> {
    let audited = Audited::changed("M/M", before, after);
    audited.changes.into_iter().map(|change| (change.field, change.before, change.after)).collect()
}

fn change(field: &str, before: &str, after: &str) -> (String, String, String) {
    (field.to_owned(), before.to_owned(), after.to_owned())
}

/// Only what changed is told, leaf by leaf; entries of maps by their keys; times and enums as people read them.
#[test]
fn only_changed_leaves_are_told() {
    let before = v1::WebhookSubscription {
        id: "sub_1".into(),
        tenant_id: "acme".into(),
        display_name: "Orders".into(),
        events: vec!["*".into()],
        state: v1::WebhookSubscriptionState::Active.into(),
        headers: [("X-Kept".into(), "kept".into()), ("X-Gone".into(), "planted-1".into())].into(),
        etag: "1-a".into(),
        ..Default::default()
    };
    let after = v1::WebhookSubscription {
        events: vec!["message.received".into(), "message.status".into()],
        state: v1::WebhookSubscriptionState::Paused.into(),
        pause_reason: "too slow".into(),
        headers: [("X-Kept".into(), "kept".into()), ("X-New".into(), "planted-2".into())].into(),
        attempt_timeout: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
        ordering: 99,
        etag: "2-a".into(),
        ..before.clone()
    };
    let config = |subscription: &v1::WebhookSubscription| v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription.clone()),
        ..Default::default()
    };
    let audited = Audited::changed("M/M", &config(&before), &config(&after));
    assert_eq!((audited.tenant_id.as_str(), audited.resource_id.as_str()), ("acme", "sub_1"));
    assert_eq!(
        changed(&config(&before), &config(&after)),
        [
            change("events", r#"["*"]"#, r#"["message.received","message.status"]"#),
            change(
                "state",
                r#""WEBHOOK_SUBSCRIPTION_STATE_ACTIVE""#,
                r#""WEBHOOK_SUBSCRIPTION_STATE_PAUSED""#
            ),
            change("pause_reason", r#""""#, r#""too slow""#),
            change("headers[X-Gone]", r#""(hidden)""#, ""),
            change("headers[X-New]", "", r#""(hidden)""#),
            change("attempt_timeout", "", r#""1.5s""#),
            change("ordering", r#""DELIVERY_ORDERING_UNSPECIFIED""#, "99"),
        ]
    );
    assert_eq!(changed(&config(&after), &config(&after)), []);
}

/// What is made or removed is told field by field, without what was never set.
#[test]
fn created_and_deleted_are_told() {
    let instance = v1::Instance {
        id: "inst_1".into(),
        tenant_id: "acme".into(),
        display_name: "Demo".into(),
        provider_number_id: "+4915112345678".into(),
        labels: [("team".into(), "sales".into())].into(),
        ..Default::default()
    };
    let shown = |audited: Audited| -> Vec<_> {
        audited.changes.into_iter().map(|change| (change.field, change.before, change.after)).collect()
    };
    let made = [
        change("display_name", "", r#""Demo""#),
        change("provider_number_id", "", r#""(hidden)""#),
        change("labels[team]", "", r#""sales""#),
    ];
    assert_eq!(shown(Audited::created("M/M", &instance)), made);
    let removed = made.map(|(field, before, after)| (field, after, before));
    assert_eq!(shown(Audited::deleted("M/M", &instance)), removed);
    assert_eq!(shown(Audited::seen("M/M", &instance)), []);
}

/// Messages in a list are told apart by their ids: one secret more is one change.
#[test]
fn one_more_secret_is_one_change() {
    let secret = |id: &str| v1::InboundRouteSecret {
        id: id.into(),
        kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
        fingerprint: "ba7816bf8f01".into(),
        create_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
    };
    let before = v1::InboundRoute { secrets: vec![secret("key_1"), secret("key_2")], ..Default::default() };
    let after = v1::InboundRoute { secrets: vec![secret("key_2"), secret("key_3")], ..Default::default() };
    let shown = |id: &str| {
        format!(
            r#"{{"create_time":"2023-11-14T22:13:20Z","fingerprint":"(hidden)","id":"{id}","kind":"INBOUND_ROUTE_SECRET_KIND_META_APP_SECRET"}}"#
        )
    };
    assert_eq!(
        changed(&before, &after),
        [change("secrets[key_1]", &shown("key_1"), ""), change("secrets[key_3]", "", &shown("key_3")),]
    );
}

/// A hidden value that changes shows that it did, and nothing of it; in nested messages and lists too.
#[test]
fn secrets_are_never_shown() {
    let with = |planted: &str| {
        let bearer = v1::BearerAuthentication { token: planted.into() };
        let method = v1::destination_authentication::Method::Bearer(bearer);
        let subscription = v1::WebhookSubscription {
            destination_url: format!("https://{planted}@example.com:8443/hook?key={planted}#{planted}"),
            authentication: Some(v1::DestinationAuthentication { method: Some(method) }),
            client_certificate: Some(v1::ClientCertificate {
                certificate_chain_pem: planted.into(),
                private_key_pem: planted.into(),
            }),
            ..Default::default()
        };
        let secret = v1::SigningSecret { value: planted.into(), ..Default::default() };
        v1::WebhookSubscriptionConfig {
            webhook_subscription: Some(subscription),
            signing_secrets: vec![secret],
            signing_keys: vec![],
        }
    };
    let url = r#""https://example.com:8443/hook?(hidden)""#;
    let hidden = r#""(hidden)""#;
    let list = r#"[{"value":"(hidden)"}]"#;
    assert_eq!(
        changed(&with("planted-1"), &with("planted-2")),
        [
            change("destination_url", url, url),
            change("authentication.bearer.token", hidden, hidden),
            change("client_certificate.certificate_chain_pem", hidden, hidden),
            change("client_certificate.private_key_pem", hidden, hidden),
            change("signing_secrets", list, list),
        ]
    );
}

/// An entry is bounded: long values and paths are cut at a character, and of many changes the last tells how many are left out.
#[test]
fn entries_are_bounded() {
    let labels = (0..100).map(|number| (format!("{number:03}"), "x".to_owned())).collect();
    let instance = v1::Instance { display_name: "é".repeat(1_000), labels, ..Default::default() };
    let changes = Audited::created("M/M", &instance).changes;
    assert_eq!(changes.len(), CHANGES_MAX);
    let name = &changes[0].after;
    assert!(name.len() <= TEXT_BYTES_MAX && name.len() > TEXT_BYTES_MAX - 4, "{}", name.len());
    assert!(name.starts_with("\"éé") && name.ends_with('…'), "{name}");
    let last = changes.last().unwrap();
    assert_eq!((last.field.as_str(), last.before.as_str(), last.after.as_str()), ("…", "", "\"70 more\""));
    let labels = [("k".repeat(1_000), "x".to_owned())].into();
    let changes = Audited::created("M/M", &v1::Instance { labels, ..Default::default() }).changes;
    assert_eq!(changes[0].field.len(), TEXT_BYTES_MAX);
}
