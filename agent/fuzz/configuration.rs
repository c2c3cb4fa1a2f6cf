//! A configuration for fuzz targets, benches and tests that work with every provider: one route, one number, one
//! webhook subscription to everything.

use gateway_core::{event::Provider, snapshot::Snapshot};
use gateway_proto::v1::{self, config_resource::Resource};

/// The token of the route.
pub const TOKEN: &str = "token-of-the-route";

/// The configuration of a route of `provider`, with one instance that claims `number`.
pub fn configuration(provider: Provider, number: &str) -> Snapshot {
    let route = v1::InboundRouteConfig {
        id: format!("route-{}", provider.name()),
        provider: provider.to_proto().into(),
        callback_token: TOKEN.to_owned(),
        ..v1::InboundRouteConfig::default()
    };
    let instance = v1::Instance {
        id: "support-line".to_owned(),
        tenant_id: "default".to_owned(),
        display_name: "Support Line".to_owned(),
        inbound_route_id: route.id.clone(),
        provider_number_id: number.to_owned(),
        phone_number: "+15550783881".to_owned(),
        ..v1::Instance::default()
    };
    let subscription = v1::WebhookSubscription {
        id: "sub-all".to_owned(),
        instance_id: instance.id.clone(),
        destination_url: "https://hooks.example.com/".to_owned(),
        events: vec!["*".to_owned()],
        ..v1::WebhookSubscription::default()
    };
    let secret = v1::SigningSecret {
        value: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        ..v1::SigningSecret::default()
    };
    let subscription = v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription),
        signing_secrets: vec![secret],
        ..v1::WebhookSubscriptionConfig::default()
    };
    let resources = [
        Resource::InboundRoute(route),
        Resource::Instance(instance),
        Resource::WebhookSubscription(subscription),
    ];
    let upserts = resources.map(|resource| v1::ConfigResource { version: 1, resource: Some(resource) });
    let response = v1::StreamConfigResponse {
        snapshot: true,
        version: 1,
        upserts: upserts.to_vec(),
        ..v1::StreamConfigResponse::default()
    };
    let (snapshot, refused) = Snapshot::default().apply(&response);
    assert!(refused.is_empty(), "{refused:?}");
    snapshot
}
