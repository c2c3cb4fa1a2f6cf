//! What operators do at the control plane's machine, and what those see who look on from outside.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{ControlPlane, DEADLINE, Within as _, database::Lock, http, programs::programs};
use prost::Message;
use tokio::process::Command;
use tonic::{client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

/// `HealthCheckRequest` (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
#[derive(Clone, PartialEq, Eq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

async fn run(arguments: &[&str], data_dir: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(&programs().await?.control_plane);
    let running = command.args(arguments).arg("--data-dir").arg(data_dir).output();
    let output = running.within(DEADLINE).await?.context("run the control plane program")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?} ended with {}: {error}", output.status);
    Ok(())
}

/// Method, type and id of what an actor did.
async fn done_by(
    control_plane: &ControlPlane,
    actor: &str,
) -> anyhow::Result<BTreeSet<(String, String, String)>> {
    let mut client = v1::audit_service_client::AuditServiceClient::with_interceptor(
        Endpoint::from_shared(control_plane.url())?.connect().await?,
        {
            let bearer: tonic::metadata::MetadataValue<_> =
                format!("Bearer {}", control_plane.admin_key()).parse()?;
            move |mut request: tonic::Request<()>| {
                request.metadata_mut().insert("authorization", bearer.clone());
                Ok(request)
            }
        },
    );
    let request = v1::ListAuditEntriesRequest { actor: actor.to_owned(), ..Default::default() };
    let entries = client.list_audit_entries(request).await?.into_inner().audit_entries;
    Ok(entries.into_iter().map(|entry| (entry.method, entry.resource_type, entry.resource_id)).collect())
}

/// Who takes all secrets of a region out of the control plane, or copies or re-keys its database, is in the audit log by
/// the number of the user, also when that is done beside a running control plane.
#[tokio::test]
async fn commands_leave_audit_entries() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let data_dir = control_plane.data_dir();
    let actor = format!("command_line:{}", fs::metadata("/proc/self").unwrap().uid());
    assert!(done_by(&control_plane, &actor).await.unwrap().is_empty());
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (output, key_file, to) = (path("eu.snapshot"), path("snapshot.key"), path("backup"));
    let export = ["export-snapshot", "--region", "eu", "--output", &output, "--key-file", &key_file];
    run(&export, &data_dir).await.unwrap();
    run(&["backup", "--to", &to], &data_dir).await.unwrap();
    let kinds = |found: BTreeSet<(String, String, String)>| {
        found.into_iter().map(|(method, kind, _)| format!("{method} {kind}")).collect::<Vec<_>>()
    };
    let found = done_by(&control_plane, &actor).await.unwrap();
    assert!(found.contains(&("ExportSnapshot".to_owned(), "snapshot_export".to_owned(), "eu".to_owned())));
    assert_eq!(kinds(found), ["Backup backup", "ExportSnapshot snapshot_export"]);
    control_plane.stop().await.unwrap();
    run(&["rewrap"], &data_dir).await.unwrap();
    control_plane.start_again().await.unwrap();
    let found = done_by(&control_plane, &actor).await.unwrap();
    assert_eq!(kinds(found), ["Backup backup", "ExportSnapshot snapshot_export", "Rewrap root_key"]);
}

/// While nothing can be stored `/readyz` and gRPC health say so, asked and watched, for the whole server and for a
/// service; once it can be stored again both are well.
#[tokio::test]
async fn grpc_health_follows_readiness() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let channel = Endpoint::from_shared(control_plane.url()).unwrap().connect().await.unwrap();
    let asked = |service: &str| tonic::Request::new(Asked { service: service.to_owned() });
    let mut watched = Vec::new();
    for service in ["", "whatsapp_gateway.v1.InstanceService"] {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = "/grpc.health.v1.Health/Watch".parse().unwrap();
        let answers =
            grpc.server_streaming(asked(service), path, ProstCodec::<Asked, Health>::default()).await;
        watched.push((service, answers.unwrap().into_inner()));
    }
    let client = reqwest::Client::new();
    let readyz = control_plane.admin_url("/readyz");
    let mut told = async |wanted: i32| {
        for (service, answers) in &mut watched {
            let told = answers.message().within(DEADLINE).await.unwrap().unwrap().unwrap();
            assert_eq!(told.status, wanted, "{service}");
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let path = "/grpc.health.v1.Health/Check".parse().unwrap();
            let answer =
                grpc.unary(asked(service), path, ProstCodec::<Asked, Health>::default()).await.unwrap();
            assert_eq!(answer.into_inner().status, wanted, "{service}");
        }
        let ready = http::expect_ok(&client, &readyz).await;
        assert_eq!(ready.is_ok(), wanted == SERVING, "{ready:?}");
    };
    told(SERVING).await;
    let lock = Lock::of(&control_plane.data_dir().join("config.db")).await.unwrap();
    told(NOT_SERVING).await;
    lock.release().await.unwrap();
    told(SERVING).await;
}
