//! Tenants with keys, and any method called by its name.

use bytes::{Buf as _, BufMut as _};
use futures_util::stream;
use gateway_proto::v1::{
    inbound_log_service_client::InboundLogServiceClient, tenant_service_client::TenantServiceClient,
};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tonic::{
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming},
};

use super::*;

/// How long anything may take that is to happen.
pub(in crate::api::tests) const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// Every method that operators call.
pub(in crate::api::tests) fn operators_methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(gateway_proto::DESCRIPTORS).unwrap();
    let services: Vec<_> = pool.services().filter(|service| service.name() != "AgentSyncService").collect();
    services.iter().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// `InstanceService/GetInstance`.
pub(in crate::api::tests) fn name(method: &MethodDescriptor) -> String {
    format!("{}/{}", method.parent_service().name(), method.name())
}

/// Messages as bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining()).to_vec()))
    }
}

/// Calls a method, whatever streams it has, with one message.
pub(in crate::api::tests) async fn open(
    client: Client,
    method: &MethodDescriptor,
    request: Vec<u8>,
) -> Result<Streaming<Vec<u8>>, Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut grpc = Grpc::new(client);
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let request = Request::new(stream::iter([request]));
    Ok(grpc.streaming(request, path.parse().unwrap(), Raw).await?.into_inner())
}

/// Calls a method; of a stream the first answer.
pub(in crate::api::tests) async fn call(
    client: Client,
    method: &MethodDescriptor,
    request: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let answer = async { open(client, method, request).await?.message().await };
    let answer = tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time")?;
    Ok(answer.unwrap_or_default())
}

/// A key that may be asked for.
pub(in crate::api::tests) fn key_of(tenant_id: &str, role: v1::Role) -> v1::ApiKey {
    v1::ApiKey {
        tenant_id: tenant_id.into(),
        role: role.into(),
        display_name: "test".into(),
        ..Default::default()
    }
}

pub(in crate::api::tests) fn tenants(client: Client) -> TenantServiceClient<Client> {
    TenantServiceClient::new(client)
}

pub(in crate::api::tests) fn logs(client: Client) -> InboundLogServiceClient<Client> {
    InboundLogServiceClient::new(client)
}

/// Makes a key as `client`; gives it and its secret.
pub(in crate::api::tests) async fn create_key(
    client: Client,
    key: v1::ApiKey,
) -> Result<(v1::ApiKey, String), Status> {
    let request = v1::CreateApiKeyRequest { api_key: Some(key), ..Default::default() };
    let made = tenants(client).create_api_key(request).await?.into_inner();
    Ok((made.api_key.unwrap(), made.secret))
}

impl Server {
    pub(in crate::api::tests) async fn create_tenant(&self, id: &str) -> Result<v1::Tenant, Status> {
        let tenant = Some(v1::Tenant { id: id.into(), ..Default::default() });
        let request = v1::CreateTenantRequest { tenant, ..Default::default() };
        Ok(tenants(self.admin()).create_tenant(request).await?.into_inner().tenant.unwrap())
    }

    /// A caller with a key of its own.
    pub(in crate::api::tests) async fn caller(&self, tenant_id: &str, role: v1::Role) -> Client {
        let (_, secret) = create_key(self.admin(), key_of(tenant_id, role)).await.unwrap();
        self.with(Bearer::new(&secret))
    }

    /// Reports as an agent, and waits until they are recorded.
    pub(in crate::api::tests) async fn report(&self, reports: Vec<v1::report::Report>) {
        self.report_as("", reports).await;
    }

    /// Reports as an agent of a tenant.
    pub(in crate::api::tests) async fn report_as(&self, tenant_id: &str, reports: Vec<v1::report::Report>) {
        let request = v1::CreateJoinTokenRequest {
            region: "eu-1".into(),
            tenant_id: tenant_id.into(),
            ..Default::default()
        };
        let token = AgentServiceClient::new(self.admin()).create_join_token(request).await.unwrap();
        let join_token = token.into_inner().join_token;
        let request = v1::EnrollAgentRequest {
            join_token,
            region: "eu-1".into(),
            build: "1.0.0".into(),
            ..Default::default()
        };
        let enrolled = AgentSyncServiceClient::new(self.channel.clone()).enroll_agent(request).await.unwrap();
        let agent = self.with(Bearer::new(&enrolled.into_inner().credential));
        let reports: Vec<_> = (1..)
            .zip(reports)
            .map(|(sequence, report)| v1::Report { sequence, report: Some(report) })
            .collect();
        let last = u64::try_from(reports.len()).unwrap();
        let request = v1::ReportLogsRequest { buffer_id: "buf_1".into(), reports };
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), stream::pending());
        let mut acks = AgentSyncServiceClient::new(agent).report_logs(requests).await.unwrap().into_inner();
        let acked = tokio::time::timeout(DEADLINE, acks.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(acked.acked_sequence, last);
    }
}

/// A log of an instance with one attempt.
pub(in crate::api::tests) fn event(instance_id: &str, event_id: &str) -> v1::report::Report {
    let subscription_id = format!("{instance_id}-sub");
    let attempt = v1::DeliveryAttempt {
        event_id: event_id.into(),
        subscription_id: subscription_id.clone(),
        attempt_number: 1,
        status_code: 200,
        ..Default::default()
    };
    let delivery = v1::Delivery {
        subscription_id,
        state: v1::DeliveryState::Delivered.into(),
        attempt_count: 1,
        ..Default::default()
    };
    let log = v1::InboundLog {
        event_id: event_id.into(),
        instance_id: instance_id.into(),
        event: "message.received".into(),
        from_phone: "+966500000001".into(),
        receive_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        deliveries: vec![delivery],
        ..Default::default()
    };
    v1::report::Report::Event(v1::EventReport { inbound_log: Some(log), attempts: vec![attempt] })
}

/// A callback that nobody claims.
pub(in crate::api::tests) fn unrouted(inbound_route_id: &str, payload: &str) -> v1::report::Report {
    v1::report::Report::UnroutedCallback(v1::UnroutedCallback {
        inbound_route_id: inbound_route_id.into(),
        provider_number_id: "9999".into(),
        payload_json: payload.into(),
        ..Default::default()
    })
}
