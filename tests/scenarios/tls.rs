//! TLS on the gRPC port, enrolment with certificates, renewal, revocation, and agents whose certificate expires
//! while the control plane is away.

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, World,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually,
    meta::{text_message, unique_wamid},
    process::Process,
    programs::programs,
    world::WorldOptions,
};

use tokio::process::Command;

mod authority;
mod calls;
mod cli;
mod files;

/// A control plane with its own authority, and certificates of this life.
fn own_ca(lifetime: &str) -> ControlPlaneOptions {
    let arguments = ["--tls-own-ca", "--agent-certificate-lifetime", lifetime].map(str::to_owned);
    ControlPlaneOptions { arguments: arguments.into(), ..Default::default() }
}

async fn world(lifetime: &str) -> World {
    World::start_with(WorldOptions { control_plane: own_ca(lifetime), ..Default::default() }).await.unwrap()
}

/// The world's first agent, as the control plane sees it.
async fn agent(world: &World) -> anyhow::Result<v1::Agent> {
    let response = world.client().agents().list_agents(v1::ListAgentsRequest::default()).await?;
    response.into_inner().agents.into_iter().next().context("find the agent")
}

/// A callback is accepted, and its webhook delivered.
async fn works(world: &World) {
    let wamid = unique_wamid();
    let callback = world.provider.messages(&[text_message(&wamid, "966500000001", "hello")]);
    assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
    world.delivered(&wamid).await.unwrap();
}

async fn is_online(world: &World) -> anyhow::Result<v1::Agent> {
    let agent = agent(world).await?;
    ensure!(agent.state() == v1::AgentState::Online, "the agent is {:?}", agent.state());
    Ok(agent)
}

/// The authority of a control plane is trusted through the join token alone. Keys and credentials on disk are
/// closed to others, and a second start needs no token.
#[tokio::test]
async fn join_tokens_say_whom_to_trust() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = world("24h").await;
    works(&world).await;
    let expires = agent(&world).await.unwrap().certificate_expire_time.unwrap().seconds;
    // What the programs show of their certificates, for whoever watches them.
    let shown = |name| format!("gateway_tls_certificate_expire_time_seconds{{certificate=\"{name}\"}}");
    assert_eq!(
        world.agent.metric(&shown("client")).await.unwrap(),
        f64::from(u32::try_from(expires).unwrap())
    );
    let served = world.control_plane.metric(&shown("grpc")).await.unwrap();
    assert!(served > f64::from(u32::try_from(expires).unwrap()), "{served} is before {expires}");
    for (directory, file) in [
        (world.agent.data_dir(), "certificate.json"),
        (world.agent.data_dir(), "credential.json"),
        (world.control_plane.data_dir(), "ca.key"),
    ] {
        let mode = std::fs::metadata(directory.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    world.agent.kill().await.unwrap();
    std::fs::write(world.directory().join("join-token"), "").unwrap();
    world.agent.start_again().await.unwrap();
    eventually(DEADLINE, async || is_online(&world).await).await.unwrap();
    works(&world).await;
}

/// An agent whose join token names another authority ends with an error that says so, and its token is not used
/// up: the right one still works.
#[tokio::test]
async fn other_authorities_are_refused() {
    let world = world("24h").await;
    let token = world.control_plane.join_token("test-region").await.unwrap();
    let (secret, pin) = token.split_once('.').unwrap();
    let other_pin: String = pin.chars().rev().collect();
    // The last of 43 characters has two bits of padding, so the first may not be one that would need more.
    let other_pin = format!("{}A", &other_pin[..42]);
    let options = |join_token: String| AgentOptions { join_token: Some(join_token), ..Default::default() };
    let directory = world.directory().join("misled");
    let wrong = options(format!("{secret}.{other_pin}"));
    let mut misled = Agent::launch(&directory, &world.control_plane, wrong).await.unwrap();
    let status = misled.process().ended().await.unwrap();
    let log = misled.log_text().unwrap();
    assert!(!status.success() && log.contains("the authority that the join token named"), "{status}: {log}");
    drop(misled);
    let directory = world.directory().join("right");
    Agent::start(&directory, &world.control_plane, options(token)).await.unwrap();
}

/// A join token is for one region and one agent.
#[tokio::test]
async fn tokens_are_for_one_agent_of_one_region() {
    let world = world("24h").await;
    let token = world.control_plane.join_token("elsewhere").await.unwrap();
    let options = |region: &str| AgentOptions {
        region: region.to_owned(),
        join_token: Some(token.clone()),
        ..Default::default()
    };
    let refused = async |name: &str, region: &str, words: &str| {
        let directory = world.directory().join(name);
        let mut agent = Agent::launch(&directory, &world.control_plane, options(region)).await.unwrap();
        assert!(!agent.process().ended().await.unwrap().success());
        let log = agent.log_text().unwrap();
        assert!(log.contains(words), "{log}");
    };
    refused("lost", "test-region", "the join token is for region `elsewhere`").await;
    let directory = world.directory().join("right");
    let _right = Agent::start(&directory, &world.control_plane, options("elsewhere")).await.unwrap();
    refused("late", "elsewhere", "unknown, used or expired").await;
}

/// Certificates are renewed before they expire, again and again, without the agent noticing; connections made
/// after that show the new one.
#[tokio::test]
async fn certificates_are_renewed() {
    let mut world = world("10s").await;
    let mut expires = agent(&world).await.unwrap().certificate_expire_time.unwrap().seconds;
    for _ in 0..2 {
        expires = eventually(DEADLINE, async || {
            let seconds = agent(&world).await?.certificate_expire_time.context("it has one")?.seconds;
            ensure!(seconds > expires, "the certificate is not renewed");
            Ok(seconds)
        })
        .await
        .unwrap();
    }
    eventually(DEADLINE, async || {
        let expired = world.agent.metric("gateway_certificate_expired").await?;
        ensure!(expired == 0.0, "the renewed certificate has expired");
        Ok(())
    })
    .await
    .unwrap();
    world.control_plane.kill().await.unwrap();
    world.control_plane.start_again().await.unwrap();
    eventually(DEADLINE, async || is_online(&world).await).await.unwrap();
    works(&world).await;
}

/// The control plane is away until the agent's certificate has expired: the agent takes callbacks and delivers,
/// is ready and says that it is degraded, also after a restart; once the control plane is back it renews with
/// its credential and reports.
#[tokio::test]
async fn expired_agents_go_on_serving() {
    let mut world = world("10s").await;
    world.control_plane.stop().await.unwrap();
    let expired = async |world: &World| {
        eventually(DEADLINE, async || {
            let expired = world.agent.metric("gateway_certificate_expired").await?;
            ensure!(expired == 1.0, "the certificate has not expired");
            Ok(())
        })
        .await
        .unwrap();
    };
    expired(&world).await;
    works(&world).await;
    let readyz = world.agent.admin_url("/readyz");
    let answer = reqwest::get(&readyz).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().starts_with("ready, degraded: "));
    assert_eq!(world.agent.log_text().unwrap().matches("certificate of this agent has expired").count(), 1);
    world.agent.stop().await.unwrap();
    world.agent.start_again().await.unwrap();
    expired(&world).await;
    works(&world).await;
    world.control_plane.start_again().await.unwrap();
    eventually(DEADLINE, async || is_online(&world).await).await.unwrap();
    eventually(DEADLINE, async || {
        ensure!(world.agent.metric("gateway_certificate_expired").await? == 0.0, "it is still expired");
        ensure!(world.logs().await?.len() == 2, "reports are missing");
        Ok(())
    })
    .await
    .unwrap();
    let answer = reqwest::get(&readyz).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "ready\n");
}

/// A revoked agent is cut at once and stays out, also after a restart; it cannot renew. Others go on, and it may
/// enroll anew as another agent.
#[tokio::test]
async fn revoked_agents_stay_out() {
    let mut world = world("10s").await;
    let id = agent(&world).await.unwrap().id;
    let request = v1::RevokeAgentRequest { id: id.clone() };
    let before = std::time::Instant::now();
    world.client().agents().revoke_agent(request).await.unwrap();
    let is_out = async || {
        let agent = agent(&world).await?;
        ensure!(agent.state() != v1::AgentState::Online && agent.revoke_time.is_some(), "{agent:?}");
        Ok(agent)
    };
    let out = eventually(DEADLINE, is_out).await.unwrap();
    assert!(before.elapsed().as_secs() < 30);
    // It tries to renew, and is refused, until it knows that its certificate has expired.
    eventually(DEADLINE, async || {
        let expired = world.agent.metric("gateway_certificate_expired").await?;
        ensure!(expired == 1.0, "it has a valid certificate");
        Ok(())
    })
    .await
    .unwrap();
    world.agent.stop().await.unwrap();
    world.agent.launch_again().unwrap();
    let readyz = world.agent.admin_url("/readyz");
    eventually(DEADLINE, async || {
        let says = reqwest::get(&readyz).await?.text().await?;
        ensure!(says.contains("revoked"), "it does not know that it was revoked: {says}");
        Ok(())
    })
    .await
    .unwrap();
    let after = agent(&world).await.unwrap();
    assert_ne!(after.state(), v1::AgentState::Online);
    assert_eq!(after.certificate_expire_time, out.certificate_expire_time);
    let directory = world.directory().join("anew");
    let _anew = Agent::start(&directory, &world.control_plane, AgentOptions::default()).await.unwrap();
}

/// Two agents with one identity, as a copied data directory makes them: one is connected, the other is refused,
/// shown and logged with both addresses; neither drives the other out again and again.
#[tokio::test]
async fn twins_do_not_drive_each_other_out() {
    let mut world = world("24h").await;
    world.agent.stop().await.unwrap();
    let copy = world.directory().join("copy");
    std::fs::create_dir_all(copy.join("agent")).unwrap();
    for file in ["credential.json", "certificate.json"] {
        std::fs::copy(world.agent.data_dir().join(file), copy.join("agent").join(file)).unwrap();
    }
    world.agent.start_again().await.unwrap();
    eventually(DEADLINE, async || is_online(&world).await).await.unwrap();
    let _twin = Agent::start(&copy, &world.control_plane, AgentOptions::default()).await.unwrap();
    eventually(DEADLINE, async || {
        let agent = is_online(&world).await?;
        ensure!(!agent.twin_address.is_empty(), "no twin is shown");
        Ok(())
    })
    .await
    .unwrap();
    let log = world.control_plane.log_text().unwrap();
    let warnings = log.lines().filter(|line| line.contains("two processes use the identity")).count();
    assert_eq!(warnings, 1, "{log}");
    let connections = log.matches("agent connected").count();
    // The first start, the second, and the twin's; a fourth is the first one's if it was quick.
    assert!(connections <= 5, "{connections} connections");
}

/// Without TLS the control plane listens on loopback only, and an agent calls loopback only.
#[tokio::test]
async fn plain_text_stays_on_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(&programs().await.unwrap().control_plane);
    command.args(["--grpc-listen", "0.0.0.0:0", "--data-dir"]).arg(directory.path().join("control-plane"));
    let log = directory.path().join("control-plane.log");
    let mut control_plane = Process::spawn("control plane", command, &log).unwrap();
    assert_eq!(control_plane.ended().await.unwrap().code(), Some(64));
    let failure = control_plane.log_text().unwrap();
    assert!(failure.contains("in plain text") && failure.contains("--tls-own-ca"), "{failure}");
    let options = AgentOptions {
        join_token: Some("join_x".to_owned()),
        control_plane_url: Some("http://control-plane.example.com:50051".to_owned()),
        ..Default::default()
    };
    let mut agent = Agent::launch_alone(&directory.path().join("agent"), options).await.unwrap();
    assert_eq!(agent.process().ended().await.unwrap().code(), Some(64));
    assert!(agent.log_text().unwrap().contains("use https"));
}
