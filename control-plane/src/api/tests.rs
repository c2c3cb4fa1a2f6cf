//! The API over real gRPC, against a real database in a temporary directory.

use gateway_proto::v1::{
    self, agent_service_client::AgentServiceClient, agent_sync_service_client::AgentSyncServiceClient,
    inbound_route_service_client::InboundRouteServiceClient, instance_service_client::InstanceServiceClient,
    opt_out_service_client::OptOutServiceClient,
    webhook_subscription_service_client::WebhookSubscriptionServiceClient,
};
use prost_types::FieldMask;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::{
    app::{self, Running},
    config::{Config, Settings},
};

mod access;
mod damaged;
mod unwatched_commits;
mod instances;
mod inbound_routes;
mod opt_outs;
mod webhook_subscriptions;
mod destination_settings;
mod moved_destinations;
mod signing;
mod audit;
mod secrets_at_rest;
mod answer_sizes;
mod filters;
mod malformed;

type Client = InterceptedService<Channel, Bearer>;

/// Adds a credential to every call; None sends none.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn new(credential: &str) -> Self {
        Self(Some(format!("Bearer {credential}").parse().unwrap()))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A control plane on free ports.
struct Server {
    running: Option<Running>,
    stop: CancellationToken,
    channel: Channel,
    key: String,
    _directory: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_allowing(&[]).await
    }

    async fn start_allowing(networks: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let free = Some("127.0.0.1:0".parse().unwrap());
        let settings = Settings {
            data_dir: Some(directory.path().to_owned()),
            grpc_listen: free,
            admin_listen: free,
            allow_destination_cidr: networks.iter().map(|network| network.parse().unwrap()).collect(),
            ..Settings::default()
        };
        let stop = CancellationToken::new();
        let running = app::start(Config::resolve(settings, None).unwrap(), stop.clone()).await.unwrap();
        let key = running.admin_key.reveal().to_owned();
        let endpoint = Channel::from_shared(format!("http://{}", running.grpc_addr)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self { running: Some(running), stop, channel, key, _directory: directory }
    }

    fn with(&self, bearer: Bearer) -> Client {
        InterceptedService::new(self.channel.clone(), bearer)
    }

    fn admin(&self) -> Client {
        self.with(Bearer::new(&self.key))
    }

    fn instances(&self) -> InstanceServiceClient<Client> {
        InstanceServiceClient::new(self.admin())
    }

    fn routes(&self) -> InboundRouteServiceClient<Client> {
        InboundRouteServiceClient::new(self.admin())
    }

    fn subscriptions(&self) -> WebhookSubscriptionServiceClient<Client> {
        WebhookSubscriptionServiceClient::new(self.admin())
    }

    fn opt_outs(&self) -> OptOutServiceClient<Client> {
        OptOutServiceClient::new(self.admin())
    }

    /// A route with the id `route_1`.
    async fn with_route(self) -> Self {
        let request =
            v1::CreateInboundRouteRequest { inbound_route: Some(route("route_1")), ..Default::default() };
        self.routes().create_inbound_route(request).await.unwrap();
        self
    }

    /// A route `route_1` and an instance `inst_1` with the number `1001` on it.
    async fn with_instance(self) -> Self {
        let server = self.with_route().await;
        server.create_instance(instance("inst_1", "1001")).await.unwrap();
        server
    }

    async fn create_instance(&self, instance: v1::Instance) -> Result<v1::Instance, Status> {
        let request = v1::CreateInstanceRequest { instance: Some(instance), ..Default::default() };
        Ok(self.instances().create_instance(request).await?.into_inner().instance.unwrap())
    }

    async fn create_subscription(
        &self,
        subscription: v1::WebhookSubscription,
    ) -> Result<v1::WebhookSubscription, Status> {
        let webhook_subscription = Some(subscription);
        let request = v1::CreateWebhookSubscriptionRequest { webhook_subscription, ..Default::default() };
        let response = self.subscriptions().create_webhook_subscription(request).await?;
        Ok(response.into_inner().webhook_subscription.unwrap())
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.running.take().unwrap().wait().await.unwrap();
    }
}

fn route(id: &str) -> v1::InboundRoute {
    let credentials = v1::Meta {
        app_secrets: vec!["planted-app-secret".into()],
        verify_tokens: vec!["planted-token".into()],
    };
    v1::InboundRoute {
        id: id.into(),
        provider: v1::Provider::Meta.into(),
        credentials: Some(v1::inbound_route::Credentials::Meta(credentials)),
        ..Default::default()
    }
}

fn instance(id: &str, number: &str) -> v1::Instance {
    v1::Instance {
        id: id.into(),
        display_name: "Demo".into(),
        inbound_route_id: "route_1".into(),
        provider_number_id: number.into(),
        ..Default::default()
    }
}

fn subscription(id: &str) -> v1::WebhookSubscription {
    v1::WebhookSubscription {
        id: id.into(),
        instance_id: "inst_1".into(),
        destination_url: "https://example.com/hook".into(),
        events: vec!["message.received".into()],
        ..Default::default()
    }
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

async fn update(
    server: &Server,
    subscription: v1::WebhookSubscription,
    paths: &[&str],
) -> Result<v1::WebhookSubscription, Status> {
    let request = v1::UpdateWebhookSubscriptionRequest {
        webhook_subscription: Some(subscription),
        update_mask: mask(paths),
    };
    let response = server.subscriptions().update_webhook_subscription(request).await?;
    Ok(response.into_inner().webhook_subscription.unwrap())
}

/// The fields of an INVALID_ARGUMENT; every one must be explained, and the error have a stable reason.
#[track_caller]
fn bad_fields<T: std::fmt::Debug>(outcome: Result<T, Status>) -> Vec<String> {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal:?}");
    assert_eq!(refusal.get_details_error_info().unwrap().domain, "whatsapp-gateway");
    let violations = refusal.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()));
    violations.into_iter().map(|violation| violation.field).collect()
}

/// The code and stable reason of a refusal.
#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let refusal = outcome.unwrap_err();
    let reason = refusal.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    (refusal.code(), reason)
}
