//! One side of the agents' protocol, played by the test: [`RawAgent`] towards a real control plane,
//! [`RawControlPlane`] towards a real agent. They say whatever the test wants them to.

mod agent;
mod control_plane;

use gateway_proto::v1::{self, config_resource::Resource, stream_config_request::Message};

pub use agent::{ConfigSession, RawAgent};
pub use control_plane::{ConfigLink, RawControlPlane};

use crate::world::{INSTANCE_ID, PHONE_NUMBER_ID};

/// The id of the route of [`route`].
pub const ROUTE_ID: &str = "route-test";
/// The callback path of [`route`].
pub const CALLBACK_PATH: &str = "/callbacks/meta/raw-callback-token";

fn resource(version: u64, resource: Resource) -> v1::ConfigResource {
    v1::ConfigResource { version, resource: Some(resource) }
}

/// A Meta route with these secrets, as agents get it.
pub fn route(version: u64, app_secret: &str, verify_token: &str) -> v1::ConfigResource {
    let secret = |id: &str, kind: v1::InboundRouteSecretKind, value: &str| v1::InboundRouteSecretValue {
        id: id.to_owned(),
        kind: kind.into(),
        value: value.to_owned(),
    };
    let config = v1::InboundRouteConfig {
        id: ROUTE_ID.to_owned(),
        provider: v1::Provider::Meta.into(),
        callback_token: "raw-callback-token".to_owned(),
        secrets: vec![
            secret("sec-app", v1::InboundRouteSecretKind::MetaAppSecret, app_secret),
            secret("sec-verify", v1::InboundRouteSecretKind::MetaVerifyToken, verify_token),
        ],
        ..Default::default()
    };
    resource(version, Resource::InboundRoute(config))
}

/// The instance of every world, on the route of [`route`].
pub fn instance(version: u64) -> v1::ConfigResource {
    let instance = v1::Instance {
        id: INSTANCE_ID.to_owned(),
        tenant_id: "default".to_owned(),
        display_name: "Raw Line".to_owned(),
        inbound_route_id: ROUTE_ID.to_owned(),
        provider_number_id: PHONE_NUMBER_ID.to_owned(),
        ..Default::default()
    };
    resource(version, Resource::Instance(instance))
}

/// A subscription to messages of that instance.
pub fn subscription(version: u64, id: &str, destination_url: &str, secret: &str) -> v1::ConfigResource {
    let config = v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(v1::WebhookSubscription {
            id: id.to_owned(),
            tenant_id: "default".to_owned(),
            instance_id: INSTANCE_ID.to_owned(),
            destination_url: destination_url.to_owned(),
            events: vec!["message.received".to_owned()],
            state: v1::WebhookSubscriptionState::Active.into(),
            ..Default::default()
        }),
        signing_secrets: vec![v1::SigningSecret { value: secret.to_owned(), ..Default::default() }],
        signing_keys: Vec::new(),
    };
    resource(version, Resource::WebhookSubscription(config))
}

/// A request of the config stream.
pub fn request(message: Message) -> v1::StreamConfigRequest {
    v1::StreamConfigRequest { message: Some(message) }
}
