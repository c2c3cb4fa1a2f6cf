//! Everything joined: a control plane, an agent, a Meta route with one instance, a receiver that one
//! subscription delivers to.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use gateway_core::signature::WebhookSecret;
use gateway_proto::v1;
use gateway_sdk::Client;
use tempfile::TempDir;

use crate::{
    agent::{Agent, AgentOptions},
    condition::{DEADLINE, Within as _, eventually},
    control_plane::{ControlPlane, ControlPlaneOptions},
    meta::MetaProvider,
    receiver::{Receiver, Webhook},
};

/// The instance of every world.
pub const INSTANCE_ID: &str = "inst-test";
/// Its name.
pub const INSTANCE_NAME: &str = "Test Line";
/// Its number at Meta.
pub const PHONE_NUMBER_ID: &str = "106540352242922";
/// The app secret of its route.
pub const APP_SECRET: &str = "meta-app-secret-1";
/// The verify token of its route.
pub const VERIFY_TOKEN: &str = "verify-token-1";
/// The path of its first subscription's destination.
pub const PATH: &str = "/crm";

/// How a world is made; the default is a plain one.
#[derive(Debug, Clone, Default)]
pub struct WorldOptions {
    /// What the subscription selects; empty means `message.received` and the opt-out events.
    pub events: Vec<&'static str>,
    /// How the agent is started.
    pub agent: AgentOptions,
    /// How the control plane is started.
    pub control_plane: ControlPlaneOptions,
}

/// A whole gateway under test.
pub struct World {
    /// The agent.
    pub agent: Agent,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The customer's side.
    pub receiver: Receiver,
    /// The provider's side.
    pub provider: MetaProvider,
    /// The instance's inbound route.
    pub inbound_route: v1::InboundRoute,
    /// The subscription that delivers to the receiver's [`PATH`].
    pub subscription: v1::WebhookSubscription,
    /// Its signing secret.
    pub secret: WebhookSecret,
    directory: TempDir,
}

impl World {
    /// A plain world.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(WorldOptions::default()).await
    }

    /// A world whose subscription selects these events.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub async fn selecting(events: &[&'static str]) -> anyhow::Result<Self> {
        Self::start_with(WorldOptions { events: events.to_vec(), ..WorldOptions::default() }).await
    }

    /// A world as `options` say.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub async fn start_with(options: WorldOptions) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let receiver = Receiver::start().await?;
        let control_plane = ControlPlane::start_with(directory.path(), options.control_plane).await?;
        let inbound_route = create_instance(control_plane.client()).await?;
        let events = match options.events.as_slice() {
            [] => &["message.received", "recipient.opted_out", "recipient.opted_in"],
            events => events,
        };
        let subscription = subscribe(control_plane.client(), &receiver.url(PATH), events).await?;
        let secret = signing_secret(control_plane.client(), &subscription.id).await?;
        let agent = Agent::start(directory.path(), &control_plane, options.agent).await?;
        let callback_url = agent.callback_url(&inbound_route.callback_path);
        let provider = MetaProvider::new(callback_url, APP_SECRET, PHONE_NUMBER_ID)?;
        let world =
            Self { agent, control_plane, receiver, provider, inbound_route, subscription, secret, directory };
        world.config_applied().await?;
        Ok(world)
    }

    /// A client with the admin key.
    pub const fn client(&self) -> &Client {
        self.control_plane.client()
    }

    /// The directory with everything that the programs keep and log.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until every agent that is online uses the newest configuration, and at least one is online.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn config_applied(&self) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            let response = self.client().agents().list_agents(v1::ListAgentsRequest::default()).await?;
            let response = response.into_inner();
            let online = |agent: &&v1::Agent| agent.state() == v1::AgentState::Online;
            let online: Vec<_> = response.agents.iter().filter(online).collect();
            ensure!(!online.is_empty(), "none is online of {:?}", response.agents);
            let newest = response.config_version;
            for agent in online {
                let applied = agent.applied_version;
                ensure!(applied >= newest, "agent {} uses version {applied} of {newest}", agent.id);
            }
            Ok(())
        })
        .await
    }

    /// A further subscription of the instance, in use on the agent.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn subscribe(&self, path: &str, events: &[&str]) -> anyhow::Result<v1::WebhookSubscription> {
        let subscription = subscribe(self.client(), &self.receiver.url(path), events).await?;
        self.config_applied().await?;
        Ok(subscription)
    }

    /// The webhook about a message, verified.
    ///
    /// # Errors
    /// When it does not arrive, or is not signed by the first subscription.
    pub async fn delivered(&self, wamid: &str) -> anyhow::Result<Arc<Webhook>> {
        let webhook = self.receiver.message(wamid).within(DEADLINE).await;
        let webhook = webhook.with_context(|| format!("receive the webhook about {wamid}"))?;
        if webhook.path == PATH {
            webhook.verify(&self.secret)?;
        }
        Ok(webhook)
    }

    /// The inbound log of an event.
    ///
    /// # Errors
    /// When there is none.
    pub async fn log(&self, event_id: &str) -> anyhow::Result<v1::InboundLog> {
        let request = v1::GetInboundLogRequest { event_id: event_id.to_owned() };
        let response = self.client().inbound_logs().get_inbound_log(request).await?;
        response.into_inner().inbound_log.context("the response has no inbound log")
    }

    /// The inbound log of an event, once every delivery of it is in `state`.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn log_in(&self, event_id: &str, state: v1::DeliveryState) -> anyhow::Result<v1::InboundLog> {
        eventually(DEADLINE, async || {
            let log = self.log(event_id).await?;
            let states: Vec<_> = log.deliveries.iter().map(v1::Delivery::state).collect();
            let all = !states.is_empty() && states.iter().all(|found| *found == state);
            ensure!(all, "its deliveries are {states:?}, not {state:?}");
            Ok(log)
        })
        .await
    }

    /// Whether a marketing message to this contact is allowed.
    ///
    /// # Errors
    /// When the control plane does not say.
    pub async fn is_allowed(&self, phone: &str) -> anyhow::Result<bool> {
        let request = v1::CheckSuppressionRequest {
            instance_id: INSTANCE_ID.to_owned(),
            phone: phone.to_owned(),
            purpose: v1::Purpose::Marketing.into(),
            ..Default::default()
        };
        Ok(self.client().opt_outs().check_suppression(request).await?.into_inner().allowed)
    }

    /// Waits until [`Self::is_allowed`] gives `allowed`.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn becomes_allowed(&self, phone: &str, allowed: bool) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            ensure!(
                self.is_allowed(phone).await? == allowed,
                "marketing to {phone} is not what it should be"
            );
            Ok(())
        })
        .await
    }

    /// All inbound logs, newest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn logs(&self) -> anyhow::Result<Vec<v1::InboundLog>> {
        let request = v1::ListInboundLogsRequest { page_size: 1_000, ..Default::default() };
        Ok(self.client().list(request).try_collect().await?)
    }

    /// The attempts of an event, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn attempts(&self, event_id: &str) -> anyhow::Result<Vec<v1::DeliveryAttempt>> {
        let request = v1::ListDeliveryAttemptsRequest { event_id: event_id.to_owned(), ..Default::default() };
        Ok(self.client().list(request).try_collect().await?)
    }
}

/// Creates the instance of every world with its route.
///
/// # Errors
/// When it is refused.
pub async fn create_instance(client: &Client) -> anyhow::Result<v1::InboundRoute> {
    let request = v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: INSTANCE_ID.to_owned(),
            display_name: INSTANCE_NAME.to_owned(),
            provider_number_id: PHONE_NUMBER_ID.to_owned(),
            ..Default::default()
        }),
        inbound_route: Some(v1::InboundRoute {
            id: "route-test".to_owned(),
            ..meta_route(APP_SECRET, VERIFY_TOKEN)
        }),
        ..Default::default()
    };
    let response = client.instances().create_instance(request).await?.into_inner();
    response.inbound_route.context("the response has no inbound route")
}

/// A Meta route with these secrets, as it is asked for.
pub fn meta_route(app_secret: &str, verify_token: &str) -> v1::InboundRoute {
    v1::InboundRoute {
        provider: v1::Provider::Meta.into(),
        credentials: Some(v1::inbound_route::Credentials::Meta(v1::Meta {
            app_secrets: vec![app_secret.to_owned()],
            verify_tokens: vec![verify_token.to_owned()],
        })),
        ..Default::default()
    }
}

/// A further instance on a route.
///
/// # Errors
/// When it is refused.
pub async fn add_instance(
    client: &Client,
    id: &str,
    inbound_route_id: &str,
    provider_number_id: &str,
) -> anyhow::Result<()> {
    let instance = v1::Instance {
        id: id.to_owned(),
        display_name: id.to_owned(),
        inbound_route_id: inbound_route_id.to_owned(),
        provider_number_id: provider_number_id.to_owned(),
        ..Default::default()
    };
    let request = v1::CreateInstanceRequest { instance: Some(instance), ..Default::default() };
    client.instances().create_instance(request).await?;
    Ok(())
}

/// Creates a subscription of the instance of every world.
///
/// # Errors
/// When it is refused.
pub async fn subscribe(
    client: &Client,
    destination_url: &str,
    events: &[&str],
) -> anyhow::Result<v1::WebhookSubscription> {
    subscribe_instance(client, INSTANCE_ID, destination_url, events).await
}

/// Creates a subscription of any instance.
///
/// # Errors
/// When it is refused.
pub async fn subscribe_instance(
    client: &Client,
    instance_id: &str,
    destination_url: &str,
    events: &[&str],
) -> anyhow::Result<v1::WebhookSubscription> {
    let request = v1::CreateWebhookSubscriptionRequest {
        webhook_subscription: Some(v1::WebhookSubscription {
            instance_id: instance_id.to_owned(),
            destination_url: destination_url.to_owned(),
            events: events.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let response = client.webhook_subscriptions().create_webhook_subscription(request).await?.into_inner();
    response.webhook_subscription.context("the response has no webhook subscription")
}

/// Changes one field of a subscription, `path`, to what it is in `change`.
///
/// # Errors
/// When it is refused.
pub async fn update(
    client: &Client,
    id: &str,
    change: v1::WebhookSubscription,
    path: &str,
) -> anyhow::Result<()> {
    let request = v1::UpdateWebhookSubscriptionRequest {
        webhook_subscription: Some(v1::WebhookSubscription { id: id.to_owned(), ..change }),
        update_mask: Some(prost_types::FieldMask { paths: vec![path.to_owned()] }),
    };
    client.webhook_subscriptions().update_webhook_subscription(request).await?;
    Ok(())
}

/// The signing secret of a subscription.
///
/// # Errors
/// When there is none.
pub async fn signing_secret(client: &Client, subscription_id: &str) -> anyhow::Result<WebhookSecret> {
    let request = v1::GetSigningSecretRequest { id: subscription_id.to_owned() };
    let response = client.webhook_subscriptions().get_signing_secret(request).await?.into_inner();
    Ok(WebhookSecret::parse(&response.signing_secret)?)
}
