//! Callers that open more than anybody needs, or never read: memory stays bounded, others are served.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_sdk::{Client, ClientOptions};
use gateway_tests::{
    ControlPlane, DEADLINE, Within as _, World, figure,
    raw::RawAgent,
    world::{create_instance, subscribe, update},
};
use tokio::task::JoinSet;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Streams that a caller tries to open.
const STREAMS: usize = 10_000;
/// Streams that the control plane lets a key have.
const PER_KEY: usize = 64;
/// Streams that it lets a connection have.
const PER_CONNECTION: usize = 128;
/// What all of them together may cost the control plane.
const MEMORY_MAX: u64 = 200 << 20;
/// What callers that never read may cost it.
const UNREAD_MEMORY_MAX: u64 = 48 << 20;
/// Callers that never read.
const IDLE_READERS: usize = 50;
/// Another caller's answer comes within this time meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The memory that the program has now, in bytes.
fn memory(control_plane: &mut ControlPlane) -> anyhow::Result<u64> {
    let pid = control_plane.process().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("find VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

/// Another caller is answered in time.
async fn others_are_served(control_plane: &ControlPlane) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let options = ClientOptions::new(control_plane.url(), control_plane.admin_key());
    let client = Client::connect(options).await?;
    client.instances().list_instances(v1::ListInstancesRequest::default()).await?;
    client.agents().list_agents(v1::ListAgentsRequest::default()).await?;
    let took = began.elapsed();
    ensure!(took < ANSWER_MAX, "another caller waits {took:?}");
    Ok(took)
}

async fn connect(control_plane: &ControlPlane, window_bytes: u32) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(control_plane.url())?;
    Ok(endpoint.initial_stream_window_size(window_bytes).connect().await?)
}

type Watch = tonic::Streaming<v1::WatchInboundLogsResponse>;

async fn watch(channel: Channel, key: String) -> anyhow::Result<Watch> {
    let mut client = v1::inbound_log_service_client::InboundLogServiceClient::new(channel);
    let mut request = Request::new(v1::WatchInboundLogsRequest::default());
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse()?);
    Ok(client.watch_inbound_logs(request).await?.into_inner())
}

/// The key of another platform admin.
async fn new_key(control_plane: &ControlPlane) -> anyhow::Result<String> {
    let api_key = v1::ApiKey {
        role: v1::Role::PlatformAdmin.into(),
        display_name: "opens streams".to_owned(),
        ..Default::default()
    };
    let request = v1::CreateApiKeyRequest { api_key: Some(api_key), ..Default::default() };
    Ok(control_plane.client().tenants().create_api_key(request).await?.into_inner().secret)
}

/// Opens streams over one connection, all at the same time. Those that are refused are told when to come again.
async fn open_all(channel: &Channel, key: &str, streams: usize) -> anyhow::Result<Vec<Watch>> {
    let mut opening = JoinSet::new();
    for _ in 0..streams {
        opening.spawn(watch(channel.clone(), key.to_owned()));
    }
    let mut open = Vec::new();
    while let Some(watch) = opening.join_next().within(DEADLINE).await? {
        match watch? {
            Ok(watch) => open.push(watch),
            Err(refused) => {
                let status = refused.downcast::<tonic::Status>()?;
                ensure!(status.code() == tonic::Code::ResourceExhausted, "refused with {status:?}");
                ensure!(status.get_details_retry_info().is_some(), "does not say when to come again");
            }
        }
    }
    Ok(open)
}

/// A caller tries to open ten thousand streams: its key gets as many as one may have, and another caller is served.
/// With many keys and connections it has its ten thousand, which cost the control plane little, and nothing any more
/// once they are closed; more than a connection may have wait on its side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_harm_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    let before = memory(&mut control_plane).unwrap();
    let channel = connect(&control_plane, 65_535).await.unwrap();
    let open = open_all(&channel, control_plane.admin_key(), STREAMS).await.unwrap();
    assert_eq!(open.len(), PER_KEY);
    let one_key = others_are_served(&control_plane).await.unwrap();
    drop((open, channel));

    let mut open = Vec::new();
    while open.len() < STREAMS {
        let channel = connect(&control_plane, 65_535).await.unwrap();
        for _ in 0..PER_CONNECTION / PER_KEY {
            let key = new_key(&control_plane).await.unwrap();
            let of_key = open_all(&channel, &key, PER_KEY).await.unwrap();
            assert_eq!(of_key.len(), PER_KEY);
            open.extend(of_key);
        }
        if open.len() == PER_CONNECTION {
            let key = new_key(&control_plane).await.unwrap();
            let one_more = watch(channel, key).within(Duration::from_secs(1)).await;
            assert!(one_more.is_err(), "a connection has more than {PER_CONNECTION}");
        }
    }
    let many_connections = others_are_served(&control_plane).await.unwrap();
    let used = memory(&mut control_plane).unwrap().saturating_sub(before);
    figure(format_args!(
        "{} open streams cost {} MiB; another caller waits {one_key:?} and {many_connections:?}",
        open.len(),
        used >> 20
    ));
    assert!(used < MEMORY_MAX, "{used} bytes for {} streams", open.len());
    drop(open);
    others_are_served(&control_plane).await.unwrap();
}

/// Callers that open every kind of stream and never read it: nothing piles up for them while thousands of
/// changes happen, and those that read get all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_never_read_cost_nothing() {
    const CHANGES: usize = 300;
    const MESSAGES: usize = 1_000;
    let mut world = World::start().await.unwrap();
    let key = new_key(&world.control_plane).await.unwrap();
    let mut unread_logs = Vec::new();
    let mut unread_agents = Vec::new();
    for _ in 0..IDLE_READERS {
        let channel = connect(&world.control_plane, 65_535).await.unwrap();
        unread_logs.push(watch(channel, key.clone()).await.unwrap());
        let answer = world.client().agents().watch_agents(v1::WatchAgentsRequest::default()).await;
        unread_agents.push(answer.unwrap());
    }
    let raw = RawAgent::enroll(&world.control_plane, "test-region").await.unwrap();
    let unread_config = raw.open_config(raw.hello()).await.unwrap();
    let channel = connect(&world.control_plane, 1 << 20).await.unwrap();
    let mut read = watch(channel, world.control_plane.admin_key().to_owned()).await.unwrap();
    let before = memory(&mut world.control_plane).unwrap();
    let other =
        subscribe(world.client(), "http://127.0.0.1:1025/other", &["recipient.opted_in"]).await.unwrap();
    let mut posts = JoinSet::new();
    for _ in 0..4 {
        let provider = world.provider.clone();
        posts.spawn(async move { provider.say_many(MESSAGES / 4).await });
    }
    for number in 0..CHANGES {
        let display_name = format!("{number} {}", "x".repeat(80));
        let change = v1::WebhookSubscription { display_name, ..Default::default() };
        update(world.client(), &other.id, change, "display_name").await.unwrap();
    }
    while let Some(posted) = posts.join_next().await {
        posted.unwrap().unwrap();
    }
    let mut recorded = 0;
    while recorded < MESSAGES {
        let change = read.message().within(DEADLINE).await.unwrap().unwrap().unwrap();
        recorded += usize::from(change.change() == v1::InboundLogChange::Recorded);
    }
    others_are_served(&world.control_plane).await.unwrap();
    let used = memory(&mut world.control_plane).unwrap().saturating_sub(before);
    figure(format_args!(
        "{} callers that never read, {MESSAGES} messages and {CHANGES} changes: {} MiB",
        2 * IDLE_READERS + 1,
        used >> 20
    ));
    assert!(used < UNREAD_MEMORY_MAX, "{used} bytes");
    drop((unread_logs, unread_agents, unread_config));
}
