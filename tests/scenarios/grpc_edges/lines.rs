//! Lines that go dead or break, callers that hang up at once, and connections that are too old.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_sdk::{Client, ClientOptions};
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, Proxy, Within as _, World,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually, figure,
    raw::RawAgent,
    world::{WorldOptions, subscribe, update},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const FROM: &str = "966500000001";
/// An idle connection is probed after 30 s, and the answer may take 10 s.
const KEEPALIVE_MAX: Duration = Duration::from_secs(40);
/// For everything else.
const MARGIN: Duration = Duration::from_secs(15);
/// Calls that are given up at once.
const RESETS: u32 = 20_000;

/// A line goes dead: nobody closes it, nothing goes over it any more. The control plane gives up an agent within
/// 13 s and every other caller by its keepalive; an agent gives up the control plane by its own, connects again,
/// and gets the change that it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_lines_end_within_the_keepalive() {
    let world = World::start().await.unwrap();
    let proxy = Proxy::start(world.control_plane.grpc_addr()).await.unwrap();
    let options = AgentOptions { control_plane_url: Some(proxy.url()), ..AgentOptions::default() };
    let directory = world.directory().join("behind-proxy");
    let agent = Agent::start(&directory, &world.control_plane, options).await.unwrap();
    let provider = world.provider.with_url(agent.callback_url(&world.inbound_route.callback_path));

    let watched = Proxy::start(world.control_plane.grpc_addr()).await.unwrap();
    let options = ClientOptions::new(watched.url(), world.control_plane.admin_key());
    let client = Client::connect(options).await.unwrap();
    let mut watch =
        client.inbound_logs().watch_inbound_logs(v1::WatchInboundLogsRequest::default()).await.unwrap();
    let raw_line = Proxy::start(world.control_plane.grpc_addr()).await.unwrap();
    let raw = RawAgent::enroll(&world.control_plane, "test-region").await.unwrap().at(raw_line.url());
    let _session = raw.open_config(raw.hello()).await.unwrap();

    let made = proxy.made();
    for line in [&proxy, &watched, &raw_line] {
        line.go_dead();
    }
    let began = Instant::now();
    let moved =
        v1::WebhookSubscription { destination_url: world.receiver.url("/moved"), ..Default::default() };
    update(world.client(), &world.subscription.id, moved, "destination_url").await.unwrap();
    let wamid = provider.say(FROM, "over a dead line").await.unwrap();
    world.receiver.message(&wamid).within(DEADLINE).await.unwrap();
    proxy.until_made(made + 1).within(KEEPALIVE_MAX + MARGIN).await.unwrap();
    let reconnected = began.elapsed();
    eventually(DEADLINE, async || {
        let wamid = provider.say(FROM, "where to?").await?;
        let webhook = world.receiver.message(&wamid).within(DEADLINE).await?;
        ensure!(webhook.path == "/moved", "delivered to {}", webhook.path);
        Ok(())
    })
    .await
    .unwrap();
    watched.until_given_up(1).within(KEEPALIVE_MAX + MARGIN).await.unwrap();
    raw_line.until_given_up(1).within(KEEPALIVE_MAX + MARGIN).await.unwrap();
    figure(format_args!(
        "dead lines: the agent connected again after {reconnected:?}, the control plane gave up all after {:?}",
        began.elapsed()
    ));
    let request = v1::GetAgentRequest { id: raw.id.clone() };
    let shown = world.client().agents().get_agent(request).await.unwrap().into_inner().agent.unwrap();
    assert_eq!(shown.state(), v1::AgentState::Offline);
    // This side notices as well.
    let ended = watch.get_mut().message().within(KEEPALIVE_MAX + MARGIN).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
}

/// A frame of HTTP/2: <https://www.rfc-editor.org/rfc/rfc9113#section-4.1>.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("tests make short frames").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a call, each as a literal: <https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2>.
fn headers(path: &str, authority: &str, bearer: &str) -> Vec<u8> {
    let authorization = format!("Bearer {bearer}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", &authorization),
    ];
    let text = |text: &str| {
        let length = u8::try_from(text.len()).expect("tests send short headers");
        [&[length], text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A caller opens calls and gives each up at once, as fast as it can ("rapid reset", CVE-2023-44487): its
/// connection is ended, the control plane neither works nor grows, and others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let address = control_plane.grpc_addr().to_string();
    let path = "/whatsapp_gateway.v1.InstanceService/ListInstances";
    let fields = headers(path, &address, control_plane.admin_key());
    let cpu_before = control_plane.usage().unwrap().cpu;
    let (mut read, mut write) = TcpStream::connect(&address).await.unwrap().into_split();
    let attack = async {
        write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        write.write_all(&frame(0x4, 0, 0, &[])).await?;
        for number in 0..RESETS {
            let stream = 2 * number + 1;
            let cancel = 8_u32.to_be_bytes();
            let open_and_reset = [frame(0x1, 0x4, stream, &fields), frame(0x3, 0, stream, &cancel)].concat();
            write.write_all(&open_and_reset).await?;
        }
        // Nobody has ended it: that is the failure.
        std::future::pending::<std::io::Result<()>>().await
    };
    let watch = async {
        let mut received = Vec::new();
        let mut chunk = [0; 4_096];
        while let Ok(length @ 1..) = read.read(&mut chunk).await {
            received.extend_from_slice(&chunk[..length]);
        }
        received
    };
    let others = async {
        for _ in 0..20 {
            let request = v1::ListInstancesRequest::default();
            control_plane.client().instances().list_instances(request).within(DEADLINE).await??;
        }
        anyhow::Ok(())
    };
    let attack = async {
        // A write that fails says what the reader sees as well.
        let _ = attack.await;
        std::future::pending::<()>().await
    };
    let both = async {
        tokio::select! {
            (received, others) = async { tokio::join!(watch, others) } => (received, others),
            () = attack => unreachable!("it never ends"),
        }
    };
    let (received, others) =
        both.within(DEADLINE).await.context("wait for the end of the connection").unwrap();
    others.unwrap();
    // The last frame is GOAWAY with ENHANCE_YOUR_CALM, unless the close overtook it.
    let calm = 0xb_u32.to_be_bytes();
    let said_why = received.windows(4).any(|window| window == calm);
    let cpu = control_plane.usage().unwrap().cpu.saturating_sub(cpu_before);
    figure(format_args!("rapid resets: {cpu:?} of the control plane's processor, said why: {said_why}"));
    assert!(cpu < Duration::from_secs(5), "{cpu:?}");
}

/// Connections end at their age, so that agents spread over several control planes again: an agent comes back
/// by itself, misses no change, and nothing is lost or logged twice.
#[tokio::test]
async fn old_connections_end_without_a_gap() {
    let control_plane = ControlPlaneOptions {
        arguments: vec!["--grpc-connection-age-max".to_owned(), "1s".to_owned()],
        ..ControlPlaneOptions::default()
    };
    let options = WorldOptions { control_plane, ..WorldOptions::default() };
    // A call of an operator may meet the end of its connection.
    let world = eventually(DEADLINE, async || World::start_with(options.clone()).await).await.unwrap();
    let token = async || world.control_plane.join_token("test-region").await;
    let join_token = Some(eventually(DEADLINE, token).await.unwrap());
    let proxy = Proxy::start(world.control_plane.grpc_addr()).await.unwrap();
    let options =
        AgentOptions { control_plane_url: Some(proxy.url()), join_token, ..AgentOptions::default() };
    let directory = world.directory().join("behind-proxy");
    let agent = Agent::start(&directory, &world.control_plane, options).await.unwrap();
    let provider = world.provider.with_url(agent.callback_url(&world.inbound_route.callback_path));
    let made = proxy.made();
    let mut wamids = std::collections::BTreeSet::new();
    let mut number = 0;
    let replaced = async {
        while proxy.made() < made + 3 {
            let wamid = provider.say(FROM, "while connections end").await?;
            world.delivered(&wamid).await?;
            wamids.insert(wamid);
            number += 1;
            let destination = format!("http://127.0.0.1:1025/{number}");
            let create = async || subscribe(world.client(), &destination, &["recipient.opted_in"]).await;
            eventually(DEADLINE, create).await?;
        }
        anyhow::Ok(())
    };
    replaced.within(DEADLINE * 2).await.unwrap().unwrap();
    eventually(DEADLINE, async || {
        let answer =
            world.client().agents().list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
        let behind = answer.agents.iter().filter(|agent| agent.applied_version < answer.config_version);
        ensure!(behind.count() == 0, "an agent is behind {}", answer.config_version);
        Ok(())
    })
    .await
    .unwrap();
    eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        ensure!(logs.len() >= wamids.len(), "{} of {} are logged", logs.len(), wamids.len());
        let logged: std::collections::BTreeSet<_> =
            logs.iter().map(|log| log.external_message_id.clone()).collect();
        ensure!(logged == wamids && logs.len() == wamids.len(), "logs are missing or repeat");
        Ok(())
    })
    .await
    .unwrap();
    assert!(wamids.len() > 2);
}
