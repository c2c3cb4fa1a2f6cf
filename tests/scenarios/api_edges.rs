//! The API refuses what it should, in the documented way, and answers everything that it declares.

mod refusals;
mod reflection;
mod error_info;

use std::time::Duration;

use anyhow::Context as _;
use gateway_proto::DESCRIPTORS;
use gateway_tests::{ControlPlane, DEADLINE, Within as _};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// A watch that has not answered by then is open and waits for something to tell.
const OPEN_STREAM: Duration = Duration::from_secs(2);
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// The path of every method that the contract declares.
fn declared_methods() -> anyhow::Result<Vec<String>> {
    let files = FileDescriptorSet::decode(DESCRIPTORS)?;
    let mut paths = Vec::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    Ok(paths)
}

/// Calls a method with an empty message; gives the status, or None when it is a watch that goes on.
async fn call(channel: &Channel, path: &str, authorization: Option<&str>) -> anyhow::Result<Option<Status>> {
    if !path.contains("/Watch") {
        return refusal(channel, path, authorization).await.map(Some);
    }
    match refusal(channel, path, authorization).within(OPEN_STREAM).await {
        Ok(status) => status.map(Some),
        Err(_) => Ok(None),
    }
}

/// Calls a method with an empty message, however long the answer takes; gives the status.
async fn refusal(channel: &Channel, path: &str, authorization: Option<&str>) -> anyhow::Result<Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let mut request = Request::new(futures_util::stream::iter([()]));
    if let Some(authorization) = authorization {
        request.metadata_mut().insert("authorization", MetadataValue::try_from(authorization)?);
    }
    let answer = async {
        let codec: ProstCodec<(), ()> = ProstCodec::default();
        let mut answers =
            grpc.streaming(request, path.parse().context("parse the path")?, codec).await?.into_inner();
        while answers.message().await?.is_some() {}
        anyhow::Ok(Status::ok(""))
    };
    match answer.within(DEADLINE).await? {
        Ok(status) => Ok(status),
        Err(error) => Ok(error.downcast::<Status>()?),
    }
}

async fn channel(control_plane: &ControlPlane) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(control_plane.url())?.connect().await?)
}

/// Without a key, with a wrong one and with other schemes every declared method and both reflections answer
/// UNAUTHENTICATED; health answers everybody.
#[tokio::test]
async fn every_method_needs_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let channel = channel(&control_plane).await.unwrap();
    let key = control_plane.admin_key();
    let wrong = [
        None,
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some("Bearer wrong-key-wrong-key".to_owned()),
        Some(format!("Bearer {key}x")),
        Some(format!("Bearer {}", &key[..key.len() - 1])),
        Some(format!("Basic {key}")),
        Some(key.to_owned()),
    ];
    let mut paths = declared_methods().unwrap();
    assert!(paths.len() >= 40, "{paths:?}");
    paths.extend(REFLECTION.map(str::to_owned));
    for path in &paths {
        for authorization in &wrong {
            let status = refusal(&channel, path, authorization.as_deref()).await.unwrap();
            assert_eq!(status.code(), Code::Unauthenticated, "{path} with {authorization:?}: {status:?}");
        }
    }
    for authorization in [None, Some("Bearer wrong-key-wrong-key")] {
        let status = refusal(&channel, HEALTH, authorization).await.unwrap();
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
}

/// With the key nothing answers UNIMPLEMENTED, and no empty request makes anything fail INTERNAL; methods of
/// agents are closed to people.
#[tokio::test]
async fn every_declared_method_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let channel = channel(&control_plane).await.unwrap();
    let bearer = format!("Bearer {}", control_plane.admin_key());
    for path in declared_methods().unwrap() {
        let status = call(&channel, &path, Some(&bearer)).await.unwrap();
        let code = status.as_ref().map(Status::code);
        assert!(
            !matches!(code, Some(Code::Unimplemented | Code::Internal | Code::Unknown)),
            "{path}: {status:?}"
        );
        if path.contains("AgentSyncService") && !path.ends_with("EnrollAgent") {
            assert_eq!(code, Some(Code::PermissionDenied), "{path}: {status:?}");
        }
    }
    let unknown =
        call(&channel, "/whatsapp_gateway.v1.InstanceService/Unheard", Some(&bearer)).await.unwrap();
    assert_eq!(unknown.map(|status| status.code()), Some(Code::Unimplemented));
}
