//! The steps of docs/operations.md with which the control plane's authority is replaced.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gateway_sdk::{Client, ClientOptions};

use super::*;

/// A client that trusts the authority there is now.
fn client(control_plane: &ControlPlane) -> Client {
    let ca = fs::read_to_string(control_plane.data_dir().join("ca.pem")).unwrap();
    let options = ClientOptions::new(control_plane.url(), control_plane.admin_key()).with_ca_certificate(ca);
    Client::connect_lazy(&options).unwrap()
}

/// Waits for the agent with this id to be online, with a certificate that expires after `after`; gives the time when
/// it does.
async fn online(client: &Client, id: &str, after: i64) -> i64 {
    eventually(DEADLINE, async || {
        let request = v1::GetAgentRequest { id: id.to_owned() };
        let agent = client.agents().get_agent(request).await?.into_inner().agent.context("get it")?;
        ensure!(agent.state() == v1::AgentState::Online, "the agent is {:?}", agent.state());
        let expires = agent.certificate_expire_time.context("it has a certificate")?.seconds;
        ensure!(expires > after, "the certificate is not renewed");
        Ok(expires)
    })
    .await
    .unwrap()
}

async fn start_agent(directory: &Path, control_plane: &ControlPlane, arguments: &[&Path]) -> Agent {
    let trust =
        arguments.iter().flat_map(|file| ["--control-plane-ca".to_owned(), file.display().to_string()]);
    // The second time it is not used.
    let join_token = Some(control_plane.join_token("test-region").await.unwrap());
    let options = AgentOptions { join_token, arguments: trust.collect(), ..Default::default() };
    Agent::start(directory, control_plane, options).await.unwrap()
}

/// The certificate of a new authority, which a control plane in an empty directory makes; and its key, as files.
async fn make_authority(directory: &Path) -> (PathBuf, PathBuf) {
    let other = directory.join("other");
    fs::create_dir(&other).unwrap();
    let mut maker = ControlPlane::start_with(&other, own_ca("10s")).await.unwrap();
    maker.stop().await.unwrap();
    let made = maker.data_dir();
    (made.join("ca.pem"), made.join("ca.key"))
}

/// The authorities that an agent trusts, as its data directory has them.
fn trusted(agent: &Agent) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(agent.data_dir().join("credential.json"))?;
    let identity: serde_json::Value = serde_json::from_str(&text)?;
    let named = identity["named_pins"].as_array().cloned().unwrap_or_default();
    let all = std::iter::once(identity["control_plane_pin"].clone()).chain(named);
    Ok(all.map(|pin| pin.as_str().unwrap_or_default().to_owned()).collect())
}

/// An agent that enrolled with a join token learns of the authority to come from the control plane itself: nobody gives
/// it a file. It follows the control plane to the new authority, forgets the old one then, and finds the control plane
/// after a restart. It never enrolls again.
#[tokio::test]
async fn a_new_authority_is_learned_without_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start_with(directory.path(), own_ca("10s")).await.unwrap();
    let data_dir = control_plane.data_dir();
    let mut agent = start_agent(&directory.path().join("edge"), &control_plane, &[]).await;
    let listed = control_plane.client().agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    let id = listed.into_inner().agents.remove(0).id;
    let old = trusted(&agent).unwrap();
    assert_eq!(old.len(), 1);
    let knows = async |wanted: &dyn Fn(&[String]) -> bool| {
        eventually(DEADLINE, async || {
            let found = trusted(&agent)?;
            ensure!(wanted(&found), "the agent trusts {found:?}");
            Ok(found)
        })
        .await
        .unwrap()
    };

    let (next, key) = make_authority(directory.path()).await;
    control_plane.stop().await.unwrap();
    fs::copy(&next, data_dir.join("ca-next.pem")).unwrap();
    control_plane.start_again().await.unwrap();
    let both = knows(&|found| found.len() == 2).await;
    assert_eq!(both[0], old[0]);

    control_plane.stop().await.unwrap();
    fs::rename(data_dir.join("ca.pem"), data_dir.join("ca-previous.pem")).unwrap();
    fs::remove_file(data_dir.join("ca-next.pem")).unwrap();
    fs::copy(&key, data_dir.join("ca.key")).unwrap();
    control_plane.start_again().await.unwrap();
    let client = client(&control_plane);
    let renewed = online(&client, &id, 0).await;
    assert_eq!(knows(&|found| found.len() == 1).await, both[1..]);

    control_plane.stop().await.unwrap();
    fs::remove_file(data_dir.join("ca-previous.pem")).unwrap();
    agent.stop().await.unwrap();
    control_plane.start_again().await.unwrap();
    agent.start_again().await.unwrap();
    online(&client, &id, renewed).await;
    let listed = client.agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().agents.len(), 1, "nobody enrolled again");
    agent.stop().await.unwrap();
}

/// An agent that enrolled with a join token is told to trust the old and the new authority; the control plane gets the
/// new one and keeps the certificate of the old one. The agent comes back with the certificate it has, renews it, and
/// comes back again when the old authority is forgotten. It never enrolls again.
#[tokio::test]
async fn the_authority_is_replaced_without_enrolling_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start_with(directory.path(), own_ca("10s")).await.unwrap();
    let data_dir = control_plane.data_dir();
    let edge = directory.path().join("edge");
    let mut agent = start_agent(&edge, &control_plane, &[]).await;
    let listed = control_plane.client().agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    let id = listed.into_inner().agents.remove(0).id;
    agent.stop().await.unwrap();

    let (next, key) = make_authority(directory.path()).await;
    let both = directory.path().join("both.pem");
    let pem = [&data_dir.join("ca.pem"), &next].map(|file| fs::read_to_string(file).unwrap()).concat();
    fs::write(&both, pem).unwrap();
    let mut agent = start_agent(&edge, &control_plane, &[&both]).await;
    let before = online(control_plane.client(), &id, 0).await;

    control_plane.stop().await.unwrap();
    fs::rename(data_dir.join("ca.pem"), data_dir.join("ca-previous.pem")).unwrap();
    fs::copy(&key, data_dir.join("ca.key")).unwrap();
    control_plane.start_again().await.unwrap();
    let client = client(&control_plane);
    let renewed = online(&client, &id, before).await;

    control_plane.stop().await.unwrap();
    fs::remove_file(data_dir.join("ca-previous.pem")).unwrap();
    control_plane.start_again().await.unwrap();
    online(&client, &id, renewed).await;
    let listed = client.agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().agents.len(), 1, "nobody enrolled again");
    agent.stop().await.unwrap();
}
