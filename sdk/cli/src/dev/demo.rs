//! What the demo needs, made through the API like anybody else would, once: a later start with the same data
//! directory finds it.

use std::path::Path;

use anyhow::Context as _;
use gateway_sdk::{Client, Error, v1};
use prost_types::FieldMask;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::data::Secrets;

/// The demo instance.
pub const INSTANCE_ID: &str = "demo-support-line";
/// Its display name.
pub const INSTANCE_NAME: &str = "Demo Support Line";
/// The demo route.
pub const ROUTE_ID: &str = "demo-meta-route";
/// The demo subscription.
pub const SUBSCRIPTION_ID: &str = "demo-subscription";
/// The number's id at Meta, from Meta's own examples.
pub const PROVIDER_NUMBER_ID: &str = "106540352242922";
/// The number itself.
pub const PHONE_NUMBER: &str = "+15550783881";

/// The demo, as it stands in the control plane.
pub struct Demo {
    /// Secrets of the demo route.
    pub secrets: Secrets,
    /// The path that the provider would call.
    pub callback_path: String,
    /// Where the demo subscription delivers to.
    pub destination_url: String,
    /// Signs its webhooks.
    pub signing_secret: String,
}

impl Demo {
    /// Finds or makes everything; the subscription delivers to `receiver_url`, wherever that is this time.
    pub async fn ensure(client: &Client, data_dir: &Path, receiver_url: &str) -> anyhow::Result<Self> {
        let secrets = Secrets::ensure(data_dir)?;
        let callback_path = ensure_instance(client, &secrets).await?;
        ensure_subscription(client, receiver_url).await?;
        let request = v1::GetSigningSecretRequest { id: SUBSCRIPTION_ID.to_owned() };
        let signing = client.webhook_subscriptions().get_signing_secret(request).await.map_err(Error::from);
        let signing_secret = signing.context("get the signing secret")?.into_inner().signing_secret;
        Ok(Self { secrets, callback_path, destination_url: receiver_url.to_owned(), signing_secret })
    }
}

/// None for NOT_FOUND.
fn found<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<Option<T>, Error> {
    match answer {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn ensure_instance(client: &Client, secrets: &Secrets) -> anyhow::Result<String> {
    let request = v1::GetInstanceRequest { id: INSTANCE_ID.to_owned() };
    let instance = found(client.instances().get_instance(request).await).context("get the demo instance")?;
    if let Some(instance) = instance.and_then(|answer| answer.instance) {
        return ensure_secrets(client, instance.inbound_route_id, secrets).await;
    }
    let request = v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: INSTANCE_ID.to_owned(),
            display_name: INSTANCE_NAME.to_owned(),
            provider_number_id: PROVIDER_NUMBER_ID.to_owned(),
            phone_number: PHONE_NUMBER.to_owned(),
            ..v1::Instance::default()
        }),
        inbound_route: Some(v1::InboundRoute {
            id: ROUTE_ID.to_owned(),
            provider: v1::Provider::Meta.into(),
            display_name: "Demo Meta route".to_owned(),
            credentials: Some(v1::inbound_route::Credentials::Meta(v1::Meta {
                app_secrets: vec![secrets.app_secret.clone()],
                verify_tokens: vec![secrets.verify_token.clone()],
            })),
            ..v1::InboundRoute::default()
        }),
        request_id: String::new(),
    };
    let created = client.instances().create_instance(request).await.map_err(Error::from);
    let route = created.context("create the demo instance")?.into_inner().inbound_route;
    Ok(route.context("read the route of the demo instance: the control plane gave none")?.callback_path)
}

/// Adds the secrets to a route that does not have them: `dev.json` was removed, or the route was changed.
async fn ensure_secrets(client: &Client, route_id: String, secrets: &Secrets) -> anyhow::Result<String> {
    let request = v1::GetInboundRouteRequest { id: route_id };
    let answer = client.inbound_routes().get_inbound_route(request).await.map_err(Error::from);
    let route = answer.context("get the demo route")?.into_inner().inbound_route.unwrap_or_default();
    let wanted = [
        (v1::InboundRouteSecretKind::MetaAppSecret, &secrets.app_secret),
        (v1::InboundRouteSecretKind::MetaVerifyToken, &secrets.verify_token),
    ];
    for (kind, value) in wanted {
        let fingerprint = fingerprint(value);
        if route.secrets.iter().any(|secret| secret.kind() == kind && secret.fingerprint == fingerprint) {
            continue;
        }
        let request = v1::AddInboundRouteSecretRequest {
            id: route.id.clone(),
            kind: kind.into(),
            value: value.clone(),
        };
        let added = client.inbound_routes().add_inbound_route_secret(request).await.map_err(Error::from);
        added.context("add a secret to the demo route")?;
    }
    Ok(route.callback_path)
}

/// First 12 hex digits of the SHA-256 of the value, as `InboundRouteSecret.fingerprint` says.
fn fingerprint(value: &str) -> String {
    Sha256::digest(value).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

async fn ensure_subscription(client: &Client, receiver_url: &str) -> anyhow::Result<()> {
    let mut subscriptions = client.webhook_subscriptions();
    let request = v1::GetWebhookSubscriptionRequest { id: SUBSCRIPTION_ID.to_owned() };
    let answer = found(subscriptions.get_webhook_subscription(request).await);
    let subscription =
        answer.context("get the demo subscription")?.and_then(|answer| answer.webhook_subscription);
    match subscription {
        None => {
            let request = v1::CreateWebhookSubscriptionRequest {
                webhook_subscription: Some(v1::WebhookSubscription {
                    id: SUBSCRIPTION_ID.to_owned(),
                    instance_id: INSTANCE_ID.to_owned(),
                    display_name: "Demo subscription".to_owned(),
                    destination_url: receiver_url.to_owned(),
                    events: vec!["*".to_owned()],
                    ..v1::WebhookSubscription::default()
                }),
                request_id: String::new(),
            };
            let created = subscriptions.create_webhook_subscription(request).await.map_err(Error::from);
            created.context("create the demo subscription")?;
        }
        Some(mut subscription) if subscription.destination_url != receiver_url => {
            receiver_url.clone_into(&mut subscription.destination_url);
            let request = v1::UpdateWebhookSubscriptionRequest {
                webhook_subscription: Some(subscription),
                update_mask: Some(FieldMask { paths: vec!["destination_url".to_owned()] }),
            };
            let updated = subscriptions.update_webhook_subscription(request).await.map_err(Error::from);
            updated.context("point the demo subscription at the receiver")?;
        }
        Some(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    /// The fingerprint is the documented one.
    #[test]
    fn fingerprints_are_sha256() {
        assert_eq!(super::fingerprint("abc"), "ba7816bf8f01");
    }
}
