//! A configuration of many webhook subscriptions, in parts as a control plane sends them. Also used by
//! `tests/snapshot_memory.rs`.

use gateway_proto::v1::{self, config_resource::Resource};

/// Subscriptions of one instance.
const PER_INSTANCE: u64 = 10;

fn resource(resource: Resource) -> v1::ConfigResource {
    v1::ConfigResource { version: 1, resource: Some(resource) }
}

fn route() -> v1::ConfigResource {
    let secret = v1::InboundRouteSecretValue {
        id: "secret_1".to_owned(),
        kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
        value: "0123456789abcdef0123456789abcdef".to_owned(),
    };
    resource(Resource::InboundRoute(v1::InboundRouteConfig {
        id: "route_1".to_owned(),
        provider: v1::Provider::Meta.into(),
        callback_token: "a-token-of-some-length".to_owned(),
        secrets: vec![secret],
        ..Default::default()
    }))
}

fn instance(number: u64) -> v1::ConfigResource {
    resource(Resource::Instance(v1::Instance {
        id: format!("inst_{number:020}"),
        tenant_id: "default".to_owned(),
        display_name: format!("Shop number {number}"),
        inbound_route_id: "route_1".to_owned(),
        provider_number_id: format!("1{number:014}"),
        ..Default::default()
    }))
}

/// One webhook subscription, as it was changed in `version`.
pub fn subscription(number: u64, version: u64) -> v1::ConfigResource {
    let subscription = v1::WebhookSubscription {
        id: format!("sub_{number:020}"),
        tenant_id: "default".to_owned(),
        instance_id: format!("inst_{:020}", number / PER_INSTANCE),
        destination_url: format!("https://hooks.example.com/customers/{number}/whatsapp"),
        events: vec!["message.received".to_owned(), "recipient.opted_out".to_owned()],
        state: v1::WebhookSubscriptionState::Active.into(),
        ..Default::default()
    };
    let secret = v1::SigningSecret {
        value: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        ..Default::default()
    };
    let config = v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription),
        signing_secrets: vec![secret],
        signing_keys: Vec::new(),
    };
    v1::ConfigResource { version, resource: Some(Resource::WebhookSubscription(config)) }
}

/// A snapshot of `count` subscriptions and their instances, in parts of `per_part`: all but the last have version 0.
pub fn parts(count: u64, per_part: u64) -> impl Iterator<Item = v1::StreamConfigResponse> {
    let last = count.div_ceil(per_part) - 1;
    (0..=last).map(move |part| {
        let numbers = part * per_part..count.min((part + 1) * per_part);
        let mut upserts = Vec::from_iter((part == 0).then(route));
        upserts.extend(
            numbers
                .clone()
                .filter(|number| number % PER_INSTANCE == 0)
                .map(|number| instance(number / PER_INSTANCE)),
        );
        upserts.extend(numbers.map(|number| subscription(number, 1)));
        v1::StreamConfigResponse {
            nonce: part.to_string(),
            version: if part == last { 1 } else { 0 },
            store_epoch: "epoch".to_owned(),
            snapshot: part == 0,
            upserts,
            ..Default::default()
        }
    })
}
