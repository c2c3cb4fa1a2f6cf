//! Programs of one version earlier and one later work together: tested with what the programs of commit fc31c71
//! said to each other and left on their disks (`tests/versions/`, recorded by `just record-versions`), and with
//! words that no version knows yet.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use gateway_core::signature::WebhookSecret;
use gateway_proto::v1::{
    self, agent_sync_service_client::AgentSyncServiceClient, config_resource::Resource,
    stream_config_request::Message,
};
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, MetaProvider, Receiver, Within as _, World,
    agent::AgentOptions,
    eventually,
    proxy::Way,
    raw::{self, CALLBACK_PATH, RawAgent, RawControlPlane},
    relay::{AsTheyAre, Recorded},
    versions::{RECEIVER, Version, decoded, replayable},
    world::{APP_SECRET, INSTANCE_ID, PHONE_NUMBER_ID, VERIFY_TOKEN},
};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, client::Grpc, transport::Endpoint};

/// The version before this contract: an agent without start ids, certificates and a clock in its health; a
/// control plane without drains, tenants and sealed secrets.
const EARLIER: &str = "fc31c71";
const FROM: &str = "966500000001";
const OPTS_OUT: &str = "966500000002";
/// How long a recorded answer may be missing before the conversation goes on: today's program may have fewer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nothing more may come until all is said.
const SILENCE: Duration = Duration::from_secs(8);
/// A value of an enumeration that no version has.
const UNHEARD_OF: i32 = 99;
/// Recorded subscriptions deliver to one address, so one test at a time has it.
static ADDRESS: Mutex<()> = Mutex::const_new(());

/// Plays the agent's side of one recorded call, byte for byte; gives what is answered.
async fn play(
    control_plane: &ControlPlane,
    agent: &RawAgent,
    call: &[&Recorded],
) -> anyhow::Result<Vec<Recorded>> {
    let first = call.first().context("the call has no message")?;
    let (requests, outgoing) = mpsc::channel(1_000);
    let mut grpc = Grpc::new(Endpoint::from_shared(control_plane.url())?.connect().await?);
    grpc.ready().await?;
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", agent.authorization().parse()?);
    let path = format!("/whatsapp_gateway.v1.AgentSyncService/{}", first.method).parse()?;
    let mut sent = call.iter().skip_while(|message| message.way == Way::Down).peekable();
    // The call is open once the control plane has something to read.
    if let Some(message) = sent.next_if(|message| message.way == Way::Up) {
        requests.send(message.bytes.clone()).await?;
    }
    let mut answers = grpc.streaming(request, path, AsTheyAre).await?.into_inner();
    let mut heard = Vec::new();
    let mut hear = async |bytes| {
        heard.push(Recorded { way: Way::Down, bytes, ..(*first).clone() });
    };
    for message in sent {
        match message.way {
            Way::Up => requests.send(message.bytes.clone()).await?,
            Way::Down => match answers.message().within(PATIENCE).await {
                Ok(answer) => hear(answer?.context("the call was ended")?).await,
                Err(_) => continue,
            },
        }
    }
    while let Ok(Ok(Some(answer))) = answers.message().within(SILENCE).await {
        hear(answer).await;
    }
    Ok(heard)
}

/// The recorded calls of a method.
fn calls<'a>(messages: &'a [Recorded], method: &str) -> Vec<Vec<&'a Recorded>> {
    let mut calls: BTreeMap<u32, Vec<&Recorded>> = BTreeMap::new();
    for message in messages.iter().filter(|message| message.method == method) {
        calls.entry(message.call).or_default().push(message);
    }
    calls.into_values().collect()
}

/// An agent of the earlier version comes back to today's control plane, which has the earlier one's databases:
/// what it said then, byte for byte, is answered rightly: its configuration is known, its reports are
/// acknowledged and logged once, its opt-in is recorded, its health is shown.
#[tokio::test]
async fn earlier_agent_is_answered_rightly() {
    let version = Version::open(EARLIER).unwrap();
    let directory = tempfile::tempdir().unwrap();
    version.copy_data("control-plane", directory.path()).unwrap();
    version.copy_data("agent", directory.path()).unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let credential = directory.path().join("agent/credential.json");
    let agent = RawAgent::of_credential_file(&credential, control_plane.url()).unwrap();
    let mut played = Vec::new();
    for method in ["StreamConfig", "ReportLogs", "StreamWork"] {
        let recorded = calls(&version.second, method);
        assert!(!recorded.is_empty(), "{method} was not recorded");
        played.extend(recorded);
    }
    let answers = try_join_all(played.iter().map(|call| play(&control_plane, &agent, call))).await.unwrap();
    let answers = answers.concat();

    let hello: Vec<v1::StreamConfigRequest> = decoded(&version.second, "StreamConfig", Way::Up).unwrap();
    let Some(Message::Hello(hello)) = &hello[0].message else { panic!("{:?}", hello[0]) };
    let responses: Vec<v1::StreamConfigResponse> = decoded(&answers, "StreamConfig", Way::Down).unwrap();
    assert!(!responses[0].snapshot && responses[0].version == hello.version, "{:?}", responses[0]);
    assert_eq!(responses[0].store_epoch, hello.store_epoch);
    assert!(responses.iter().all(|response| response.upserts.is_empty()), "it is sent what it has");
    let reports: Vec<v1::ReportLogsRequest> = decoded(&version.second, "ReportLogs", Way::Up).unwrap();
    let acks: Vec<v1::ReportLogsResponse> = decoded(&answers, "ReportLogs", Way::Down).unwrap();
    let last = reports.iter().flat_map(|batch| &batch.reports).map(|report| report.sequence).max();
    assert_eq!(acks.iter().map(|ack| ack.acked_sequence).max(), last);

    let client = control_plane.client();
    let logs = client.inbound_logs().list_inbound_logs(v1::ListInboundLogsRequest::default()).await.unwrap();
    let logs = logs.into_inner().inbound_logs;
    let mut ids: Vec<_> = logs.iter().map(|log| log.event_id.clone()).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all);
    for messages in [&version.first, &version.second] {
        let reports: Vec<v1::ReportLogsRequest> = decoded(messages, "ReportLogs", Way::Up).unwrap();
        let mut events = 0;
        for report in reports.iter().flat_map(|batch| &batch.reports) {
            let Some(v1::report::Report::Event(event)) = &report.report else { continue };
            let event_id = &event.inbound_log.as_ref().unwrap().event_id;
            assert!(ids.contains(event_id), "{event_id} has no log");
            events += 1;
        }
        assert!(events > 1);
    }
    let request = v1::CheckSuppressionRequest {
        instance_id: INSTANCE_ID.to_owned(),
        phone: OPTS_OUT.to_owned(),
        purpose: v1::Purpose::Marketing.into(),
        ..Default::default()
    };
    let answer = client.opt_outs().check_suppression(request).await.unwrap().into_inner();
    assert!(answer.allowed, "the opt-in of the second conversation is not known");
    let request = v1::GetAgentRequest { id: agent.id.clone() };
    let shown = client.agents().get_agent(request).await.unwrap().into_inner().agent.unwrap();
    assert_eq!((shown.applied_version, shown.accepted_version), (hello.version, hello.version));
}

/// An agent of the earlier version enrolls with today's control plane.
#[tokio::test]
async fn earlier_agent_enrolls() {
    let version = Version::open(EARLIER).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    let [mut request] =
        decoded::<v1::EnrollAgentRequest>(&version.first, "EnrollAgent", Way::Up).unwrap()[..]
            .to_vec()
            .try_into()
            .unwrap();
    let channel = Endpoint::from_shared(control_plane.url()).unwrap().connect().await.unwrap();
    let mut client = AgentSyncServiceClient::new(channel);
    let used = client.enroll_agent(request.clone()).await.unwrap_err();
    assert_eq!(used.code(), tonic::Code::Unauthenticated);
    request.join_token = control_plane.join_token(&request.region).await.unwrap();
    let answer = client.enroll_agent(request.clone()).await.unwrap().into_inner();
    assert!(answer.agent_id.starts_with("agt_") && !answer.credential.is_empty(), "no identity");
    assert!(answer.region == request.region && answer.certificate.is_none());
}

/// The secret with which a recorded subscription signs.
fn recorded_secret(responses: &[v1::StreamConfigResponse], path: &str) -> anyhow::Result<WebhookSecret> {
    let mut configs = responses.iter().flat_map(|response| &response.upserts).filter_map(|upsert| {
        let Some(Resource::WebhookSubscription(config)) = &upsert.resource else { return None };
        let url = &config.webhook_subscription.as_ref()?.destination_url;
        url.ends_with(path).then_some(config)
    });
    let config = configs.next_back().context("find the recorded subscription")?;
    Ok(WebhookSecret::parse(&config.signing_secrets.first().context("find its secret")?.value)?)
}

fn recorded_path(responses: &[v1::StreamConfigResponse]) -> anyhow::Result<String> {
    let mut routes = responses.iter().flat_map(|response| &response.upserts).filter_map(|upsert| {
        let Some(Resource::InboundRoute(route)) = &upsert.resource else { return None };
        Some(format!("/callbacks/meta/{}", route.callback_token))
    });
    routes.next_back().context("find the recorded route")
}

/// The receiver of recorded subscriptions. The one of a test before may take a moment to leave the address.
async fn recorded_receiver() -> anyhow::Result<Receiver> {
    let address = RECEIVER.parse()?;
    eventually(DEADLINE, async || Receiver::start_at(address).await).await
}

/// A message is taken, delivered where the recorded configuration says, and signed with its secret.
async fn assert_serves(agent: &Agent, receiver: &Receiver, responses: &[v1::StreamConfigResponse]) {
    let url = agent.callback_url(&recorded_path(responses).unwrap());
    let provider = MetaProvider::new(url, APP_SECRET, PHONE_NUMBER_ID).unwrap();
    let wamid = eventually(DEADLINE, async || provider.say(FROM, "from today").await).await.unwrap();
    let is_it = |webhook: &gateway_tests::Webhook| {
        webhook.path == "/crm" && webhook.text("external_message_id") == wamid
    };
    let webhook = receiver.find(is_it).within(DEADLINE).await.unwrap();
    webhook.verify(&recorded_secret(responses, "/crm").unwrap()).unwrap();
}

fn options(control_plane: &RawControlPlane) -> AgentOptions {
    AgentOptions {
        control_plane_url: Some(control_plane.url()),
        join_token: Some("raw-join-token".to_owned()),
        ..AgentOptions::default()
    }
}

/// Today's agent enrolls with a control plane of the earlier version: it takes the configuration and the changes
/// as they were sent then, uses them, does the work, and reports.
#[tokio::test]
async fn earlier_control_plane_is_followed() {
    let _address = ADDRESS.lock().await;
    let version = Version::open(EARLIER).unwrap();
    let responses: Vec<v1::StreamConfigResponse> = replayable(&version.first, "StreamConfig").unwrap();
    let work: Vec<v1::StreamWorkResponse> = replayable(&version.first, "StreamWork").unwrap();
    let work_ids: Vec<_> = work.iter().flat_map(|work| &work.work).map(|work| work.id.clone()).collect();
    assert!(!work_ids.is_empty() && responses.len() > 2);
    let receiver = recorded_receiver().await.unwrap();
    let control_plane = RawControlPlane::start_with(work).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::launch_alone(directory.path(), options(&control_plane)).await.unwrap();
    let mut link = control_plane.connected().await.unwrap();
    for response in &responses {
        link.send(response.clone()).await.unwrap();
        let verdict = link.heard().await.unwrap();
        let ack = Message::Ack(v1::ConfigAck { nonce: response.nonce.clone() });
        assert_eq!(verdict, ack);
        let applied = link.heard().await.unwrap();
        assert!(
            matches!(&applied, Message::Applied(applied) if applied.version == response.version),
            "{applied:?}"
        );
    }
    agent.wait_ready().await.unwrap();
    assert_serves(&agent, &receiver, &responses).await;
    eventually(DEADLINE, async || {
        let acked = control_plane.acked_work();
        ensure!(work_ids.iter().all(|id| acked.contains(id)), "{work_ids:?} are not acknowledged: {acked:?}");
        let told = receiver.all().iter().any(|webhook| webhook.event().contains("test"));
        ensure!(told, "the test event was not sent");
        let is_event = |report: &v1::Report| matches!(report.report, Some(v1::report::Report::Event(_)));
        ensure!(control_plane.reports().iter().any(is_event), "nothing is reported");
        Ok(())
    })
    .await
    .unwrap();
}

/// Today's agent starts on the disk of an earlier one: it has its identity and configuration, serves before the
/// control plane says anything, and comes back to it with the version that the earlier one had.
#[tokio::test]
async fn earlier_agents_disk_is_taken_over() {
    let _address = ADDRESS.lock().await;
    let version = Version::open(EARLIER).unwrap();
    let responses: Vec<v1::StreamConfigResponse> = replayable(&version.first, "StreamConfig").unwrap();
    let said: Vec<v1::StreamConfigRequest> = decoded(&version.second, "StreamConfig", Way::Up).unwrap();
    let Some(Message::Hello(recorded)) = &said[0].message else { panic!("{:?}", said[0]) };
    let receiver = recorded_receiver().await.unwrap();
    let control_plane = RawControlPlane::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    version.copy_data("agent", directory.path()).unwrap();
    let mut agent = Agent::launch_alone(directory.path(), options(&control_plane)).await.unwrap();
    agent.wait_ready().await.unwrap();
    let link = control_plane.connected().await.unwrap();
    let hello = &link.hello;
    assert_eq!((&hello.agent_id, &hello.region), (&recorded.agent_id, &recorded.region));
    assert_eq!((hello.version, &hello.store_epoch), (recorded.version, &recorded.store_epoch));
    assert_eq!(hello.opt_out_cursor, recorded.opt_out_cursor);
    assert_serves(&agent, &receiver, &responses).await;
    assert!(is_dir_used(&directory.path().join("agent/buffer")));
}

fn is_dir_used(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// A message with a field that no version has.
fn with_unknown_field(message: &impl prost::Message) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    // Field 15000, a text: <https://protobuf.dev/programming-guides/encoding/#structure>.
    bytes.extend_from_slice(&[0xc2, 0xa9, 0x07, 3]);
    bytes.extend_from_slice(b"new");
    bytes
}

/// An agent of a later version reports a state that today's control plane has never heard of, in messages with
/// fields that it does not know: it is kept as the number that it is and shown, nothing is lost around it.
#[tokio::test]
async fn words_of_a_later_agent_are_kept() {
    let world = World::start().await.unwrap();
    let agent = RawAgent::enroll(&world.control_plane, "test-region").await.unwrap();
    let delivery = v1::Delivery {
        subscription_id: world.subscription.id.clone(),
        state: UNHEARD_OF,
        attempt_count: 3,
        ..Default::default()
    };
    let log = v1::InboundLog {
        event_id: "evt_aaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned(),
        instance_id: INSTANCE_ID.to_owned(),
        event: "message.tomorrow".to_owned(),
        deliveries: vec![delivery],
        ..Default::default()
    };
    let event = v1::EventReport { inbound_log: Some(log.clone()), attempts: Vec::new() };
    let reports = vec![
        v1::Report { sequence: 1, report: Some(v1::report::Report::Event(event)) },
        // Of a kind that today's control plane does not know.
        v1::Report { sequence: 2, report: None },
    ];
    let batch = v1::ReportLogsRequest { buffer_id: "buffer-of-tomorrow".to_owned(), reports };
    let recorded =
        |bytes: Vec<u8>, way| Recorded { call: 1, method: "ReportLogs".to_owned(), way, bytes: bytes.into() };
    let call = [recorded(with_unknown_field(&batch), Way::Up), recorded(Vec::new(), Way::Down)];
    let answers = play(&world.control_plane, &agent, &call.iter().collect::<Vec<_>>()).await.unwrap();
    let acks: Vec<v1::ReportLogsResponse> = decoded(&answers, "ReportLogs", Way::Down).unwrap();
    assert_eq!(acks.last().map(|ack| ack.acked_sequence), Some(2));
    let shown = world.log(&log.event_id).await.unwrap();
    assert_eq!((shown.deliveries[0].state, shown.deliveries[0].attempt_count), (UNHEARD_OF, 3));
    assert_eq!(shown.event, "message.tomorrow");
    let listed = world.logs().await.unwrap();
    assert_eq!(listed[0].deliveries[0].state, UNHEARD_OF);
}

/// A control plane of a later version sends a provider and an order of deliveries that today's agent has never
/// heard of, and a resource of an unknown kind: it refuses what it cannot serve, with a text that says to update
/// it, uses everything else, and goes on.
#[tokio::test]
async fn words_of_a_later_control_plane_harm_nothing() {
    let control_plane = RawControlPlane::start().await.unwrap();
    let receiver = Receiver::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::launch_alone(directory.path(), options(&control_plane)).await.unwrap();
    let mut link = control_plane.connected().await.unwrap();
    let mut strange = raw::route(1, APP_SECRET, VERIFY_TOKEN);
    if let Some(Resource::InboundRoute(route)) = &mut strange.resource {
        route.id = "route-strange".to_owned();
        route.callback_token = "strange-token".to_owned();
        route.provider = UNHEARD_OF;
    }
    let secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let response = v1::StreamConfigResponse {
        nonce: "1".to_owned(),
        version: 1,
        store_epoch: "epoch-of-tomorrow".to_owned(),
        snapshot: true,
        upserts: vec![
            raw::route(1, APP_SECRET, VERIFY_TOKEN),
            strange,
            raw::instance(1),
            raw::subscription(1, "sub-known", &receiver.url("/known"), secret),
            v1::ConfigResource { version: 1, resource: None },
        ],
        removals: vec![v1::ConfigRemoval {
            r#type: "kind_of_tomorrow".to_owned(),
            id: "x".to_owned(),
            deleted: true,
        }],
        ..Default::default()
    };
    link.send(response).await.unwrap();
    let Message::Nack(nack) = link.heard().await.unwrap() else { panic!("it takes everything") };
    let refused = nack.refused.iter().find(|refused| refused.id == "route-strange");
    let refused = refused.context("find the strange route").unwrap();
    assert!(refused.error.contains("provider") && refused.error.contains("update the agent"), "{refused:?}");
    agent.wait_ready().await.unwrap();
    let provider = MetaProvider::new(agent.callback_url(CALLBACK_PATH), APP_SECRET, PHONE_NUMBER_ID).unwrap();
    let wamid = eventually(DEADLINE, async || provider.say(FROM, "still there?").await).await.unwrap();
    let webhook = receiver.message(&wamid).within(DEADLINE).await.unwrap();
    assert_eq!(webhook.path, "/known");
}
