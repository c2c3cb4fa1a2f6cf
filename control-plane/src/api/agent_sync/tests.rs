//! Agents against a whole control plane: real gRPC, real files.

use std::time::Duration;

use gateway_core::id::EventId;
use gateway_proto::v1::{
    agent_service_client::AgentServiceClient, agent_sync_service_client::AgentSyncServiceClient,
    inbound_log_service_client::InboundLogServiceClient,
    inbound_route_service_client::InboundRouteServiceClient, instance_service_client::InstanceServiceClient,
    stream_config_request::Message, webhook_subscription_service_client::WebhookSubscriptionServiceClient,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::*;
use crate::{
    app::{self, Running},
    config::{Config, Settings},
};

mod config;
mod fleet;
mod enroll;
mod export;
mod report;
mod hand_over;
mod tenant;

const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Bearer(String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = MetadataValue::try_from(format!("Bearer {}", self.0)).unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

type Calls = InterceptedService<Channel, Bearer>;

struct ControlPlane {
    running: Running,
    stop: CancellationToken,
    channel: Channel,
    _dir: TempDir,
}

impl ControlPlane {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let free = Some("127.0.0.1:0".parse().unwrap());
        let settings = Settings {
            data_dir: Some(dir.path().to_owned()),
            grpc_listen: free,
            admin_listen: free,
            ..Settings::default()
        };
        let stop = CancellationToken::new();
        let running = app::start(Config::resolve(settings, None).unwrap(), stop.clone()).await.unwrap();
        let url = format!("http://{}", running.grpc_addr);
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        Self { running, stop, channel, _dir: dir }
    }

    fn admin(&self) -> Calls {
        InterceptedService::new(self.channel.clone(), Bearer(self.running.admin_key.reveal().to_owned()))
    }

    async fn join_token(&self, region: &str) -> String {
        let request = v1::CreateJoinTokenRequest { region: region.into(), ..Default::default() };
        AgentServiceClient::new(self.admin())
            .create_join_token(request)
            .await
            .unwrap()
            .into_inner()
            .join_token
    }

    async fn enroll(&self, join_token: &str, region: &str) -> Result<v1::EnrollAgentResponse, Status> {
        let request = v1::EnrollAgentRequest {
            join_token: join_token.into(),
            build: "1.2.3".into(),
            region: region.into(),
            ..Default::default()
        };
        let mut client = AgentSyncServiceClient::new(self.channel.clone());
        client.enroll_agent(request).await.map(Response::into_inner)
    }

    async fn agent(&self, region: &str) -> TestAgent {
        let enrolled = self.enroll(&self.join_token(region).await, region).await.unwrap();
        let calls = InterceptedService::new(self.channel.clone(), Bearer(enrolled.credential));
        TestAgent { id: enrolled.agent_id, region: region.into(), client: AgentSyncServiceClient::new(calls) }
    }

    async fn create_instance(
        &self,
        id: &str,
        number: &str,
        route_id: Option<&str>,
        regions: &[&str],
    ) -> v1::Instance {
        let meta = v1::Meta { app_secrets: vec!["app-secret".into()], verify_tokens: vec!["verify".into()] };
        let inline = v1::InboundRoute {
            provider: v1::Provider::Meta.into(),
            credentials: Some(v1::inbound_route::Credentials::Meta(meta)),
            ..Default::default()
        };
        let request = v1::CreateInstanceRequest {
            instance: Some(v1::Instance {
                id: id.into(),
                display_name: id.into(),
                inbound_route_id: route_id.unwrap_or_default().into(),
                provider_number_id: number.into(),
                regions: regions.iter().map(|region| (*region).to_owned()).collect(),
                ..Default::default()
            }),
            inbound_route: route_id.is_none().then_some(inline),
            ..Default::default()
        };
        let response = InstanceServiceClient::new(self.admin()).create_instance(request).await.unwrap();
        response.into_inner().instance.unwrap()
    }

    async fn create_subscription(&self, id: &str, instance_id: &str) {
        let request = v1::CreateWebhookSubscriptionRequest {
            webhook_subscription: Some(v1::WebhookSubscription {
                id: id.into(),
                instance_id: instance_id.into(),
                destination_url: "https://example.com/hook".into(),
                events: vec!["*".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        WebhookSubscriptionServiceClient::new(self.admin())
            .create_webhook_subscription(request)
            .await
            .unwrap();
    }

    /// The agent, once it is as wanted.
    async fn agent_when(&self, id: &str, wanted: impl Fn(&v1::Agent) -> bool) -> v1::Agent {
        let mut client = AgentServiceClient::new(self.admin());
        let look = async {
            loop {
                let request = v1::GetAgentRequest { id: id.into() };
                let agent = client.get_agent(request).await.unwrap().into_inner().agent.unwrap();
                if wanted(&agent) {
                    return agent;
                }
                // The server has the same thread.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, look).await.unwrap()
    }

    fn data_dir(&self) -> &std::path::Path {
        self._dir.path()
    }

    async fn stop(self) {
        self.stop_and_keep().await;
    }

    /// Stops it, and keeps what it leaves behind.
    async fn stop_and_keep(self) -> TempDir {
        self.stop.cancel();
        self.running.wait().await.unwrap();
        self._dir
    }
}

struct TestAgent {
    id: String,
    region: String,
    client: AgentSyncServiceClient<Calls>,
}

/// Both sides of a stream. Dropping it ends the call.
struct Call<Q, R> {
    requests: mpsc::Sender<Q>,
    responses: Streaming<R>,
}

impl<Q, R> Call<Q, R> {
    async fn send(&self, request: Q) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<R>, Status> {
        tokio::time::timeout(DEADLINE, self.responses.message()).await.unwrap()
    }

    async fn response(&mut self) -> R {
        self.next().await.unwrap().unwrap()
    }
}

impl TestAgent {
    fn hello(&self) -> v1::ConfigHello {
        v1::ConfigHello {
            agent_id: self.id.clone(),
            region: self.region.clone(),
            build: "1.2.4".into(),
            ..Default::default()
        }
    }

    async fn config(
        &mut self,
        hello: v1::ConfigHello,
    ) -> Call<v1::StreamConfigRequest, v1::StreamConfigResponse> {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(message(Message::Hello(hello))).await.unwrap();
        let responses = self.client.stream_config(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Call { requests, responses }
    }

    async fn reports(&mut self) -> Call<v1::ReportLogsRequest, v1::ReportLogsResponse> {
        let (requests, receiver) = mpsc::channel(16);
        let responses = self.client.report_logs(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Call { requests, responses }
    }

    async fn work(&mut self) -> Call<v1::StreamWorkRequest, v1::StreamWorkResponse> {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(v1::StreamWorkRequest::default()).await.unwrap();
        let responses = self.client.stream_work(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Call { requests, responses }
    }
}

fn message(message: Message) -> v1::StreamConfigRequest {
    v1::StreamConfigRequest { message: Some(message) }
}

fn report(sequence: u64, report: v1::report::Report) -> v1::Report {
    v1::Report { sequence, report: Some(report) }
}

fn reports(reports: Vec<v1::Report>) -> v1::ReportLogsRequest {
    v1::ReportLogsRequest { buffer_id: "buf_1".into(), reports }
}

fn event(instance_id: &str, number: u32) -> v1::report::Report {
    let event_id = EventId::derive(&[instance_id, &number.to_string()]).to_string();
    let attempt = v1::DeliveryAttempt {
        event_id: event_id.clone(),
        subscription_id: "sub_1".into(),
        attempt_number: 1,
        status_code: 200,
        ..Default::default()
    };
    let log = v1::InboundLog {
        event_id,
        instance_id: instance_id.into(),
        event: "message.received".into(),
        from_phone: "+966500000001".into(),
        external_message_id: format!("wamid.{number}"),
        receive_time: Some(prost_types::Timestamp { seconds: 1_700_000_000 + i64::from(number), nanos: 0 }),
        deliveries: vec![v1::Delivery {
            subscription_id: "sub_1".into(),
            state: v1::DeliveryState::Delivered.into(),
            attempt_count: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    v1::report::Report::Event(v1::EventReport { inbound_log: Some(log), attempts: vec![attempt] })
}

fn unrouted(route_id: &str, number: &str, payload: &str) -> v1::report::Report {
    v1::report::Report::UnroutedCallback(v1::UnroutedCallback {
        inbound_route_id: route_id.into(),
        provider_number_id: number.into(),
        payload_json: payload.into(),
        ..Default::default()
    })
}

fn payloads(response: &v1::StreamWorkResponse) -> Vec<&str> {
    let payload = |work: &'_ v1::Work| match &work.work {
        Some(v1::work::Work::UnroutedCallback(_)) => true,
        other => panic!("{other:?}"),
    };
    assert!(response.work.iter().all(payload));
    response
        .work
        .iter()
        .filter_map(|work| match &work.work {
            Some(v1::work::Work::UnroutedCallback(callback)) => Some(callback.payload_json.as_str()),
            _ => None,
        })
        .collect()
}
