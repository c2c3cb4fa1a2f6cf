//! What stands in the control plane when `gateway dev` is ready: the demo of Meta.

use std::path::Path;

use anyhow::Context as _;
use gateway_core::{event::Provider, inbound_route::RouteSecretKind};
use gateway_sdk::{Client, Error, v1};

use crate::demo::{Demo, MetaSecrets};

/// The demo of Meta, as it stands in the control plane.
pub struct Standing {
    /// Its names.
    pub demo: Demo,
    /// Secrets of its route.
    pub secrets: MetaSecrets,
    /// The path that the provider would call.
    pub callback_path: String,
    /// Where its subscription delivers to.
    pub destination_url: String,
    /// Signs its webhooks.
    pub signing_secret: String,
}

impl Standing {
    /// Finds or makes everything; the subscription delivers to `receiver_url`, wherever that is this time.
    pub async fn ensure(client: &Client, data_dir: &Path, receiver_url: &str) -> anyhow::Result<Self> {
        let (demo, secrets) = (Demo::of(Provider::Meta), MetaSecrets::ensure(data_dir)?);
        let wanted = [
            (RouteSecretKind::MetaAppSecret, secrets.app_secret.as_str()),
            (RouteSecretKind::MetaVerifyToken, &secrets.verify_token),
        ];
        let callback_path = demo.ensure(client, &wanted, receiver_url).await?;
        let request = v1::GetSigningSecretRequest { id: demo.subscription_id.clone() };
        let signing = client.webhook_subscriptions().get_signing_secret(request).await.map_err(Error::from);
        let signing_secret = signing.context("get the signing secret")?.into_inner().signing_secret;
        let destination_url = receiver_url.to_owned();
        Ok(Self { demo, secrets, callback_path, destination_url, signing_secret })
    }
}
