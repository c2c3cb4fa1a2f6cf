//! `grpcurl` without proto files: list, describe, and the whole set-up of a number.

use std::{collections::BTreeSet, fs};

use anyhow::Context as _;
use gateway_core::event::Provider;
use gateway_proto::v1;
use gateway_tests::{
    ControlPlane, DEADLINE, MetaProvider, Receiver, Within as _,
    agent::{Agent, AgentOptions},
    eventually,
    programs::workspace_root,
    python::{python_env, run},
};
use serde_json::{Value, json};

/// `grpcurl` with the admin key.
async fn grpcurl(control_plane: &ControlPlane, arguments: &[&str]) -> anyhow::Result<String> {
    let header = format!("authorization: Bearer {}", control_plane.admin_key());
    grpcurl_with(&["-H", &header], control_plane, arguments).await
}

/// `grpcurl` with these flags; data comes first in `arguments`.
async fn grpcurl_with(
    flags: &[&str],
    control_plane: &ControlPlane,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let program = python_env().await?.join("grpcurl");
    let address = control_plane.url().trim_start_matches("http://").to_owned();
    let (data, verb) = match arguments {
        ["-d", data, verb @ ..] => (vec!["-d", data], verb),
        verb => (Vec::new(), verb),
    };
    let all = [flags, &["-plaintext"], &data, &[address.as_str()], verb].concat();
    run(program, all).await
}

async fn create(control_plane: &ControlPlane, method: &str, request: &Value) -> anyhow::Result<Value> {
    let method = format!("whatsapp_gateway.v1.{method}");
    let answer = grpcurl(control_plane, &["-d", &request.to_string(), &method]).await?;
    serde_json::from_str(&answer).context(answer)
}

/// `list` names every service, `describe` shows fields with their comments' first word intact; without a
/// key both are refused.
#[tokio::test]
async fn grpcurl_lists_and_describes_with_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let services = grpcurl(&control_plane, &["list"]).await.unwrap();
    for service in
        ["Instance", "InboundRoute", "WebhookSubscription", "OptOut", "InboundLog", "Agent", "AgentSync"]
    {
        assert!(services.contains(&format!("whatsapp_gateway.v1.{service}Service")), "{services}");
    }
    assert!(services.contains("grpc.health.v1.Health"), "{services}");
    let described =
        grpcurl(&control_plane, &["describe", "whatsapp_gateway.v1.InstanceService"]).await.unwrap();
    assert!(described.contains("rpc DiagnoseInstance"), "{described}");
    let described =
        grpcurl(&control_plane, &["describe", "whatsapp_gateway.v1.WebhookSubscription"]).await.unwrap();
    assert!(described.contains("destination_url") && described.contains("Required."), "{described}");
    let refused = grpcurl_with(&[], &control_plane, &["list"]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("Unauthenticated"), "{refused:#}");
}

/// The holder of an API key gets refusals as such: a client that goes by the letter of gRPC over HTTP/2 must not see a
/// broken answer instead.
#[tokio::test]
async fn grpcurl_shows_refusals_to_api_keys() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let request = json!({"api_key": {"display_name": "viewer", "role": "ROLE_VIEWER"}});
    let created = create(&control_plane, "TenantService/CreateApiKey", &request).await.unwrap();
    let header = format!("authorization: Bearer {}", created["secret"].as_str().unwrap());
    let arguments = ["-d", r#"{"id": "inst_unknown"}"#, "whatsapp_gateway.v1.InstanceService/GetInstance"];
    let refused = grpcurl_with(&["-H", &header], &control_plane, &arguments).await.unwrap_err();
    let shown = format!("{refused:#}");
    assert!(shown.contains("NotFound") && !shown.contains("without sending trailers"), "{shown}");
}

/// A customer's number is set up with grpcurl alone, field names as in the proto files, and an event goes
/// all the way.
#[tokio::test]
async fn grpcurl_sets_up_a_number_that_works() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let agent = Agent::start(directory.path(), &control_plane, AgentOptions::default()).await.unwrap();
    let receiver = Receiver::start().await.unwrap();
    let route = json!({"inbound_route": {
        "id": "my-route", "provider": "PROVIDER_META",
        "meta": {"app_secrets": ["s"], "verify_tokens": ["v"]},
    }});
    let route = create(&control_plane, "InboundRouteService/CreateInboundRoute", &route).await.unwrap();
    let path = route["inboundRoute"]["callbackPath"].as_str().unwrap();
    assert!(path.starts_with("/callbacks/meta/"), "{route}");
    assert!(
        !route.to_string().contains("app_secrets") && !route.to_string().contains("appSecrets"),
        "{route}"
    );
    let instance = json!({"instance": {
        "id": "my-line", "display_name": "My Line", "inbound_route_id": "my-route", "provider_number_id": "1002003004005",
    }});
    create(&control_plane, "InstanceService/CreateInstance", &instance).await.unwrap();
    let subscription = json!({"webhook_subscription": {
        "id": "my-hook", "instance_id": "my-line", "destination_url": receiver.url("/mine"), "events": ["message.*"],
    }});
    create(&control_plane, "WebhookSubscriptionService/CreateWebhookSubscription", &subscription)
        .await
        .unwrap();
    let provider = MetaProvider::new(agent.callback_url(path), "s", "1002003004005").unwrap();
    let wamid =
        eventually(DEADLINE, async || provider.say("966500000001", "by grpcurl").await).await.unwrap();
    eventually(DEADLINE, async || {
        let listed =
            grpcurl(&control_plane, &["whatsapp_gateway.v1.InboundLogService/ListInboundLogs"]).await?;
        anyhow::ensure!(listed.contains(&wamid), "{listed}");
        Ok(())
    })
    .await
    .unwrap();
    // The first message may have come before the subscription was in use.
    eventually(DEADLINE, async || {
        let listed = control_plane.client().agents().list_agents(v1::ListAgentsRequest::default()).await?;
        let listed = listed.into_inner();
        let is_current = |agent: &v1::Agent| agent.applied_version >= listed.config_version;
        anyhow::ensure!(listed.agents.iter().any(is_current), "the agent does not use it yet");
        Ok(())
    })
    .await
    .unwrap();
    let wamid = provider.say("966500000001", "and once more").await.unwrap();
    let webhook = receiver.message(&wamid).within(DEADLINE).await.unwrap();
    assert_eq!(webhook.text("instance_id"), "my-line");
}

/// The requests of `docs/providers.md` that create an instance work as they stand there, one for every provider
/// but Meta, which the README shows.
#[tokio::test]
async fn documented_requests_work_for_every_provider() {
    let document = fs::read_to_string(workspace_root().join("docs/providers.md")).unwrap();
    let commands = document.split("gw -d '").skip(1).filter_map(|command| command.split_once('\''));
    let mut providers = BTreeSet::new();
    for (request, rest) in commands {
        let method = rest.split_whitespace().find_map(|word| word.strip_prefix("whatsapp_gateway.v1."));
        if method != Some("InstanceService/CreateInstance") {
            continue;
        }
        let request: Value = serde_json::from_str(request).unwrap();
        // Each has the same example names.
        let directory = tempfile::tempdir().unwrap();
        let control_plane = ControlPlane::start(directory.path()).await.unwrap();
        let created = create(&control_plane, "InstanceService/CreateInstance", &request).await.unwrap();
        let route = &created["inboundRoute"];
        assert!(!route["callbackPath"].as_str().unwrap_or_default().is_empty(), "{created}");
        providers.insert(route["provider"].as_str().unwrap_or_default().to_owned());
    }
    let missing = Provider::ALL.into_iter().find(|provider| {
        *provider != Provider::Meta && !providers.contains(provider.to_proto().as_str_name())
    });
    assert!(missing.is_none(), "no request for {missing:?} among {providers:?}");
}
