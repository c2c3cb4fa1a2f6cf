//! What the tests of the stages share: a configuration, and callbacks signed as Meta signs them.

use std::path::PathBuf;

use gateway_core::{signature::hmac_sha256, snapshot::Snapshot};
use gateway_proto::v1;

use crate::{
    metrics::Metrics,
    pipeline::{buffer::Buffer, normalize::Origin},
};

/// The app secret of the route.
pub const APP_SECRET: &str = "meta-app-secret-1";
/// The token in the route's callback path.
pub const TOKEN: &str = "token-of-the-route";
/// The account of the route.
pub const ACCOUNT: &str = "102290129340398";

/// One route for one account, with two numbers.
pub fn configuration(subscriptions: &[(&str, &[&str])]) -> Snapshot {
    use v1::config_resource::Resource;
    let secret = |id: &str, kind: v1::InboundRouteSecretKind, value: &str| v1::InboundRouteSecretValue {
        id: id.to_owned(),
        kind: kind.into(),
        value: value.to_owned(),
    };
    let route = v1::InboundRouteConfig {
        id: "route-meta".to_owned(),
        provider: v1::Provider::Meta.into(),
        callback_token: TOKEN.to_owned(),
        provider_account_id: ACCOUNT.to_owned(),
        secrets: vec![
            secret("secret-1", v1::InboundRouteSecretKind::MetaAppSecret, "an older secret"),
            secret("secret-2", v1::InboundRouteSecretKind::MetaAppSecret, APP_SECRET),
            secret("secret-3", v1::InboundRouteSecretKind::MetaVerifyToken, "verify me"),
        ],
    };
    let instance = |id: &str, name: &str, number: &str, phone: &str| v1::Instance {
        id: id.to_owned(),
        tenant_id: "default".to_owned(),
        display_name: name.to_owned(),
        inbound_route_id: "route-meta".to_owned(),
        provider_number_id: number.to_owned(),
        phone_number: phone.to_owned(),
        ..v1::Instance::default()
    };
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
    let resources = [
        Resource::InboundRoute(route),
        Resource::Instance(instance("support-line", "Support Line", "106540352242922", "+15550783881")),
        Resource::Instance(instance("sales-line", "Sales Line", "106540352242923", "+15550783882")),
    ];
    let upserts = resources.into_iter().chain(subscriptions);
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
    let digits: Vec<String> =
        hmac_sha256(APP_SECRET.as_bytes(), body).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={}", digits.concat())
}

/// The fixtures' names and bodies, in the order of the names.
pub fn fixtures() -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/meta");
    let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut fixtures: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    fixtures.sort();
    fixtures
}

/// A fixture's body.
pub fn fixture(name: &str) -> Vec<u8> {
    fixtures().into_iter().find(|(fixture, _)| fixture == name).unwrap().1
}

/// A buffer in a directory of its own.
pub async fn buffer() -> (Buffer, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config = super::buffer::Config::for_tests(directory.path());
    (Buffer::open(config, Metrics::new()).await.unwrap(), directory)
}
