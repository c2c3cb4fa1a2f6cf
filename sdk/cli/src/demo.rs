//! Demo numbers: an instance with its inbound route and a webhook subscription, made through the API like anybody else
//! would, once: a later start with the same data directory finds them. `gateway dev` makes that of Meta, `gateway
//! trigger --provider` those of the others.

mod secrets;

use anyhow::Context as _;
use gateway_core::{
    event::Provider,
    inbound_route::{RouteSecretKind, SecretValue},
};
use gateway_sdk::{Client, Error, v1};
use prost_types::FieldMask;
use tonic::Code;
use v1::inbound_route::Credentials;

pub use secrets::{MetaSecrets, route_secret};

/// The business number of every demo.
pub const PHONE_NUMBER: &str = "+15550783881";

/// The names of a demo.
pub struct Demo {
    pub provider: Provider,
    pub instance_id: String,
    pub instance_name: String,
    pub route_id: String,
    pub subscription_id: String,
    /// What names the number at the provider.
    pub provider_number_id: &'static str,
}

/// The secrets of a demo's route, each with what it is for.
pub type Secrets<'a> = &'a [(RouteSecretKind, &'a str)];

impl Demo {
    /// The demo of a provider.
    pub fn of(provider: Provider) -> Self {
        let name = provider.name();
        let (instance_id, instance_name, subscription_id) = match provider {
            Provider::Meta => (
                "demo-support-line".to_owned(),
                "Demo Support Line".to_owned(),
                "demo-subscription".to_owned(),
            ),
            _ => (
                format!("demo-{name}-line"),
                format!("Demo {} Line", title(provider)),
                format!("demo-{name}-subscription"),
            ),
        };
        Self {
            provider,
            instance_id,
            instance_name,
            route_id: format!("demo-{name}-route"),
            subscription_id,
            provider_number_id: provider_number_id(provider),
        }
    }

    /// Finds or makes everything and gives the callback path; the subscription delivers to `receiver_url`, wherever
    /// that is this time.
    pub async fn ensure(
        &self,
        client: &Client,
        secrets: Secrets<'_>,
        receiver_url: &str,
    ) -> anyhow::Result<String> {
        let callback_path = self.ensure_instance(client, secrets).await?;
        self.ensure_subscription(client, receiver_url).await?;
        Ok(callback_path)
    }

    async fn ensure_instance(&self, client: &Client, secrets: Secrets<'_>) -> anyhow::Result<String> {
        if let Some(instance) = self.instance(client).await? {
            return self.ensure_secrets(client, instance.inbound_route_id, secrets).await;
        }
        let request = v1::CreateInstanceRequest {
            instance: Some(v1::Instance {
                id: self.instance_id.clone(),
                display_name: self.instance_name.clone(),
                provider_number_id: self.provider_number_id.to_owned(),
                phone_number: PHONE_NUMBER.to_owned(),
                ..v1::Instance::default()
            }),
            inbound_route: Some(v1::InboundRoute {
                id: self.route_id.clone(),
                provider: self.provider.to_proto().into(),
                display_name: format!("Demo {} route", title(self.provider)),
                credentials: Some(credentials(self.provider, secrets)),
                ..v1::InboundRoute::default()
            }),
            request_id: String::new(),
        };
        let created = match client.instances().create_instance(request).await {
            // Somebody else made it at the same time.
            Err(status) if status.code() == Code::AlreadyExists => {
                let instance = self.instance(client).await?;
                let instance = instance.with_context(|| {
                    format!("create instance `{}`: {}", self.instance_id, status.message())
                })?;
                return self.ensure_secrets(client, instance.inbound_route_id, secrets).await;
            }
            created => created.map_err(Error::from),
        };
        let created = created.with_context(|| format!("create instance `{}`", self.instance_id))?;
        let route = created.into_inner().inbound_route;
        Ok(route.context("read the route of the demo instance: the control plane gave none")?.callback_path)
    }

    async fn instance(&self, client: &Client) -> anyhow::Result<Option<v1::Instance>> {
        let request = v1::GetInstanceRequest { id: self.instance_id.clone() };
        let answer = found(client.instances().get_instance(request).await);
        let answer = answer.with_context(|| format!("get instance `{}`", self.instance_id))?;
        Ok(answer.and_then(|answer| answer.instance))
    }

    /// Adds the secrets to a route that does not have them: their file was removed, or the route was changed.
    async fn ensure_secrets(
        &self,
        client: &Client,
        route_id: String,
        secrets: Secrets<'_>,
    ) -> anyhow::Result<String> {
        let request = v1::GetInboundRouteRequest { id: route_id };
        let answer = client.inbound_routes().get_inbound_route(request).await.map_err(Error::from);
        let route = answer.context("get the demo route")?.into_inner().inbound_route.unwrap_or_default();
        for (kind, value) in secrets {
            let (kind, fingerprint) = (kind.to_proto(), SecretValue::new(value).fingerprint());
            if route.secrets.iter().any(|secret| secret.kind() == kind && secret.fingerprint == fingerprint) {
                continue;
            }
            let request = v1::AddInboundRouteSecretRequest {
                id: route.id.clone(),
                kind: kind.into(),
                value: (*value).to_owned(),
                ..Default::default()
            };
            let added = client.inbound_routes().add_inbound_route_secret(request).await.map_err(Error::from);
            added.context("add a secret to the demo route")?;
        }
        Ok(route.callback_path)
    }

    async fn ensure_subscription(&self, client: &Client, receiver_url: &str) -> anyhow::Result<()> {
        let mut subscriptions = client.webhook_subscriptions();
        let request = v1::GetWebhookSubscriptionRequest { id: self.subscription_id.clone() };
        let answer = found(subscriptions.get_webhook_subscription(request).await);
        let subscription =
            answer.context("get the demo subscription")?.and_then(|answer| answer.webhook_subscription);
        match subscription {
            None => {
                let request = v1::CreateWebhookSubscriptionRequest {
                    webhook_subscription: Some(v1::WebhookSubscription {
                        id: self.subscription_id.clone(),
                        instance_id: self.instance_id.clone(),
                        display_name: "Demo subscription".to_owned(),
                        destination_url: receiver_url.to_owned(),
                        events: vec!["*".to_owned()],
                        ..v1::WebhookSubscription::default()
                    }),
                    request_id: String::new(),
                };
                match subscriptions.create_webhook_subscription(request).await {
                    Err(status) if status.code() == Code::AlreadyExists => {}
                    created => {
                        created.map_err(Error::from).context("create the demo subscription")?;
                    }
                }
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
}

/// Whether an agent is online and uses the newest configuration.
pub async fn is_in_use(client: &Client) -> anyhow::Result<bool> {
    let fleet = client.agents().list_agents(v1::ListAgentsRequest::default()).await.map_err(Error::from);
    let fleet = fleet.context("list agents")?.into_inner();
    let is_current = |agent: &v1::Agent| {
        agent.state() == v1::AgentState::Online && agent.applied_version >= fleet.config_version
    };
    Ok(fleet.agents.iter().any(is_current))
}

/// The provider's name as people write it.
pub const fn title(provider: Provider) -> &'static str {
    match provider {
        Provider::Meta => "Meta",
        Provider::Dialog360 => "360dialog",
        Provider::Twilio => "Twilio",
        Provider::Vonage => "Vonage",
        Provider::Infobip => "Infobip",
        Provider::Gupshup => "Gupshup",
        Provider::MessageBird => "MessageBird",
        Provider::Bird => "Bird",
        Provider::Waha => "WAHA",
        Provider::Evolution => "Evolution API",
    }
}

/// What names the demo number at each provider.
const fn provider_number_id(provider: Provider) -> &'static str {
    match provider {
        // Of Meta's own examples.
        Provider::Meta | Provider::Dialog360 => "106540352242922",
        Provider::Twilio | Provider::Vonage | Provider::Infobip => PHONE_NUMBER,
        Provider::Gupshup => "DemoApp",
        // Channel ids.
        Provider::MessageBird => "619747f69cf940a98fb443140ce9aed2",
        Provider::Bird => "9dfeb8b3-2b61-4b1b-9d0c-6e2a5c1a7f10",
        // A session, and an instance of Evolution API.
        Provider::Waha | Provider::Evolution => "demo",
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

/// The credentials message of a provider.
fn credentials(provider: Provider, secrets: Secrets<'_>) -> Credentials {
    use RouteSecretKind as Kind;
    let of = |wanted: Kind| -> Vec<String> {
        let values = secrets.iter().filter(|(kind, _)| *kind == wanted);
        values.map(|(_, value)| (*value).to_owned()).collect()
    };
    match provider {
        Provider::Meta => Credentials::Meta(v1::Meta {
            app_secrets: of(Kind::MetaAppSecret),
            verify_tokens: of(Kind::MetaVerifyToken),
        }),
        Provider::Dialog360 => Credentials::Dialog360(v1::Dialog360 {
            basic_credentials: of(Kind::BasicCredential),
            headers: of(Kind::Header),
        }),
        Provider::Twilio => Credentials::Twilio(v1::Twilio { auth_tokens: of(Kind::TwilioAuthToken) }),
        Provider::Vonage => {
            Credentials::Vonage(v1::Vonage { signature_secrets: of(Kind::VonageSignatureSecret) })
        }
        Provider::Infobip => Credentials::Infobip(v1::Infobip {
            basic_credentials: of(Kind::BasicCredential),
            headers: of(Kind::Header),
        }),
        Provider::Gupshup => Credentials::Gupshup(v1::Gupshup { headers: of(Kind::Header) }),
        Provider::MessageBird => {
            Credentials::Messagebird(v1::MessageBird { signing_keys: of(Kind::MessageBirdSigningKey) })
        }
        Provider::Bird => Credentials::Bird(v1::Bird { signing_keys: of(Kind::BirdSigningKey) }),
        Provider::Waha => {
            Credentials::Waha(v1::Waha { hmac_keys: of(Kind::WahaHmacKey), headers: of(Kind::Header) })
        }
        Provider::Evolution => Credentials::Evolution(v1::Evolution {
            jwt_keys: of(Kind::EvolutionJwtKey),
            headers: of(Kind::Header),
        }),
    }
}
