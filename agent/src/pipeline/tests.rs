//! What the tests of the stages share: a configuration, and callbacks signed as Meta signs them.

use gateway_core::{
    event::Provider,
    signature::{encode_hex, hmac_sha256},
    snapshot::{RouteSecretKind, Snapshot},
};
use gateway_proto::v1;

use crate::{
    metrics::Metrics,
    pipeline::{buffer::Buffer, normalize::Origin},
    provider::tests::fixtures,
};

/// The app secret of the route.
pub const APP_SECRET: &str = "meta-app-secret-1";
/// The token in the route's callback path.
pub const TOKEN: &str = "token-of-the-route";
/// The account of the route.
pub const ACCOUNT: &str = "102290129340398";

/// One Meta route for one account, with two numbers.
pub fn configuration(subscriptions: &[(&str, &[&str])]) -> Snapshot {
    let secrets = [
        (RouteSecretKind::MetaAppSecret, "an older secret"),
        (RouteSecretKind::MetaAppSecret, APP_SECRET),
        (RouteSecretKind::MetaVerifyToken, "verify me"),
    ];
    let numbers = [("106540352242922", "+15550783881"), ("106540352242923", "+15550783882")];
    configuration_of(Provider::Meta, ACCOUNT, &secrets, &numbers, subscriptions)
}

/// One route for one account, with up to two numbers: names at the provider, and phone numbers.
pub fn configuration_of(
    provider: Provider,
    account: &str,
    secrets: &[(RouteSecretKind, &str)],
    numbers: &[(&str, &str)],
    subscriptions: &[(&str, &[&str])],
) -> Snapshot {
    use v1::config_resource::Resource;
    let secrets = secrets.iter().enumerate().map(|(index, (kind, value))| v1::InboundRouteSecretValue {
        id: format!("secret-{index}"),
        kind: kind.to_proto().into(),
        value: (*value).to_owned(),
    });
    let route = v1::InboundRouteConfig {
        id: format!("route-{}", provider.name()),
        provider: provider.to_proto().into(),
        callback_token: TOKEN.to_owned(),
        provider_account_id: account.to_owned(),
        secrets: secrets.collect(),
        callback_token_suffices: false,
    };
    let names = [("support-line", "Support Line"), ("sales-line", "Sales Line")];
    let instances = names.iter().zip(numbers).map(|((id, name), (number, phone))| v1::Instance {
        id: (*id).to_owned(),
        tenant_id: "default".to_owned(),
        display_name: (*name).to_owned(),
        inbound_route_id: route.id.clone(),
        provider_number_id: (*number).to_owned(),
        phone_number: (*phone).to_owned(),
        ..v1::Instance::default()
    });
    let instances: Vec<_> = instances.map(Resource::Instance).collect();
    let subscriptions = subscriptions.iter().map(|(id, events)| {
        let subscription = v1::WebhookSubscription {
            id: (*id).to_owned(),
            instance_id: "support-line".to_owned(),
            destination_url: "https://hooks.example.com/".to_owned(),
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            ..v1::WebhookSubscription::default()
        };
        let secret = v1::SigningSecret {
            value: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
            ..v1::SigningSecret::default()
        };
        Resource::WebhookSubscription(v1::WebhookSubscriptionConfig {
            webhook_subscription: Some(subscription),
            signing_secrets: vec![secret],
            ..Default::default()
        })
    });
    let upserts = std::iter::once(Resource::InboundRoute(route)).chain(instances).chain(subscriptions);
    let response = v1::StreamConfigResponse {
        snapshot: true,
        version: 1,
        upserts: upserts
            .map(|resource| v1::ConfigResource { version: 1, resource: Some(resource) })
            .collect(),
        ..v1::StreamConfigResponse::default()
    };
    let (snapshot, refused) = Snapshot::default().apply(&response);
    assert!(refused.is_empty(), "{refused:?}");
    snapshot
}

/// This agent.
pub fn origin() -> Origin {
    Origin { agent_id: "agt_test".to_owned(), region: "here".to_owned() }
}

/// A body as Meta signs it.
pub fn signature(body: &[u8]) -> String {
    format!("sha256={}", encode_hex(&hmac_sha256(APP_SECRET.as_bytes(), body)))
}

/// The body of one of Meta's fixtures.
pub fn fixture(name: &str) -> Vec<u8> {
    fixtures(Provider::Meta).into_iter().find(|fixture| fixture.name == name).unwrap().content
}

/// A buffer in a directory of its own.
pub async fn buffer() -> (Buffer, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config = super::buffer::Config::for_tests(directory.path());
    (Buffer::open(config, Metrics::new()).await.unwrap(), directory)
}
