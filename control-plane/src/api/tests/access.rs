use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};

use super::*;

pub(super) mod world;
mod roles;
mod isolation;
mod keys;
mod created_keys;
mod key_limit;
mod callback_tokens;
mod tenants;
mod inline_routes;
mod platform_routes;
mod repeats;

async fn list_services(client: Client) -> Result<Vec<String>, Status> {
    use reflection::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(client);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    match answers.message().await?.unwrap().message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => panic!("not a list of services: {other:?}"),
    }
}

async fn describe_alpha(client: Client, symbol: &str) -> Result<usize, Status> {
    use reflection_alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let message_request = Some(MessageRequest::FileContainingSymbol(symbol.to_owned()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(client);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    match answers.message().await?.unwrap().message_response.unwrap() {
        MessageResponse::FileDescriptorResponse(files) => Ok(files.file_descriptor_proto.len()),
        other => panic!("not a file: {other:?}"),
    }
}

/// Without the key, or with a wrong one, every method of every service is UNAUTHENTICATED, reflection and
/// unknown methods included; nothing tells which of the two it was that failed.
#[tokio::test]
async fn missing_or_wrong_key_is_unauthenticated() {
    let server = Server::start().await;
    let longer = format!("{}x", server.key);
    let bearers = [
        Bearer(None),
        Bearer::new("wrong"),
        Bearer::new(&longer),
        Bearer::new(&server.key[..server.key.len() - 1]),
        Bearer(Some(server.key.parse().unwrap())),
        Bearer(Some(format!("Basic {}", server.key).parse().unwrap())),
    ];
    for bearer in bearers {
        let client = || server.with(bearer.clone());
        let expected = (Code::Unauthenticated, "UNAUTHENTICATED".to_owned());
        let list = v1::ListInstancesRequest::default();
        assert_eq!(refusal(InstanceServiceClient::new(client()).list_instances(list).await), expected);
        let list = v1::ListAgentsRequest::default();
        assert_eq!(refusal(AgentServiceClient::new(client()).list_agents(list).await), expected);
        let sync = AgentSyncServiceClient::new(client()).stream_config(tokio_stream::empty()).await;
        assert_eq!(refusal(sync.map(|_| ())), expected);
        assert_eq!(refusal(list_services(client()).await), expected);
        assert_eq!(refusal(describe_alpha(client(), "whatsapp_gateway.v1.Instance").await), expected);
    }
    server.stop().await;
}

/// With the key, both versions of reflection describe every service, so that grpcurl needs no files.
#[tokio::test]
async fn reflection_describes_every_service() {
    let server = Server::start().await;
    let services = list_services(server.admin()).await.unwrap();
    for service in crate::api::SERVICES {
        assert!(services.iter().any(|name| name == service), "{service} is missing in {services:?}");
        assert!(describe_alpha(server.admin(), service).await.unwrap() >= 1);
    }
    server.stop().await;
}

/// Health needs no key, and knows the whole server and each service.
#[tokio::test]
async fn health_is_open() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in std::iter::once("").chain(crate::api::SERVICES) {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    server.stop().await;
}

/// An agent's credential opens agents' methods only, and the admin key does not open those.
#[tokio::test]
async fn agents_and_operators_are_kept_apart() {
    let server = Server::start().await;
    let request = v1::CreateJoinTokenRequest { region: "eu-1".into(), ..Default::default() };
    let token =
        AgentServiceClient::new(server.admin()).create_join_token(request).await.unwrap().into_inner();
    let request = v1::EnrollAgentRequest {
        join_token: token.join_token,
        region: "eu-1".into(),
        build: "1.0.0".into(),
        ..Default::default()
    };
    let mut open = AgentSyncServiceClient::new(server.channel.clone());
    let credential = open.enroll_agent(request).await.unwrap().into_inner().credential;
    let denied = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
    let agent = server.with(Bearer::new(&credential));
    let list = v1::ListInstancesRequest::default();
    assert_eq!(refusal(InstanceServiceClient::new(agent.clone()).list_instances(list).await), denied);
    assert_eq!(refusal(list_services(agent).await), denied);
    let sync = AgentSyncServiceClient::new(server.admin()).stream_config(tokio_stream::empty()).await;
    assert_eq!(refusal(sync.map(|_| ())), denied);
    server.stop().await;
}

/// A stop ends open health watches too, instead of waiting for them.
#[tokio::test]
async fn stop_ends_open_streams() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.stop().await;
}
