//! Messages that are too large, deadlines, and a reason in every refusal.

use std::time::{Duration, Instant};

use gateway_proto::v1;
use gateway_tests::{
    ControlPlane, DEADLINE, Within as _,
    database::Lock,
    raw::{RawAgent, request},
    world::create_instance,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Limits of a message of operators and of agents.
const OPERATOR_BYTES_MAX: usize = 4 << 20;
const AGENT_BYTES_MAX: usize = 8 << 20;
/// How long a caller gives the control plane, and how much later it must be told; the control plane itself would
/// wait for 5 s. A busy machine may stand still at any one call, not at each of so many.
const GIVEN: Duration = Duration::from_millis(300);
const GIVEN_UP_MAX: Duration = Duration::from_secs(2);
const CALLS_MAX: usize = 5;
/// Some bytes for the frame around a long text.
const FRAME_BYTES: usize = 1_024;

fn assert_too_large(status: &Status, limit: usize) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(&limit.to_string()), "{status:?}");
    let info = status.get_error_details().error_info().cloned();
    assert!(
        info.is_some_and(|info| info.domain == "whatsapp-gateway" && !info.reason.is_empty()),
        "{status:?}"
    );
}

/// A message of an operator over 4 MiB and one of an agent over 8 MiB are refused, with a text that names the
/// limit; one just below is read. The connection goes on.
#[tokio::test]
async fn oversized_messages_are_refused_clearly() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    let mut instances = control_plane.client().instances().max_encoding_message_size(OPERATOR_BYTES_MAX * 2);
    let mut named = async |bytes: usize| {
        let instance = v1::Instance {
            id: "inst-test".to_owned(),
            display_name: "x".repeat(bytes),
            ..Default::default()
        };
        let request = v1::UpdateInstanceRequest {
            instance: Some(instance),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] }),
        };
        instances.update_instance(request).await.unwrap_err()
    };
    assert_too_large(&named(OPERATOR_BYTES_MAX + 1).await, OPERATOR_BYTES_MAX);
    let long = named(OPERATOR_BYTES_MAX - FRAME_BYTES).await;
    assert_eq!(long.code(), Code::InvalidArgument, "{long:?}");

    let agent = RawAgent::enroll(&control_plane, "test-region").await.unwrap();
    let mut client = agent.client().await.unwrap();
    let mut report = async |bytes: usize| {
        let opt_out = v1::BufferDamage { cause: "x".repeat(bytes), ..Default::default() };
        let report = v1::report::Report::BufferDamage(opt_out);
        let reports = vec![v1::Report { sequence: 1, report: Some(report) }];
        let batch = v1::ReportLogsRequest { buffer_id: format!("buffer-{bytes}"), reports };
        let requests = futures_util::StreamExt::chain(
            futures_util::stream::iter([batch]),
            futures_util::stream::pending(),
        );
        let mut answers = client.report_logs(requests).await?.into_inner();
        answers.message().await
    };
    let refused = report(AGENT_BYTES_MAX + 1).within(DEADLINE).await.unwrap();
    assert_too_large(&refused.expect_err("the report is too large"), AGENT_BYTES_MAX);
    let taken = report(AGENT_BYTES_MAX - FRAME_BYTES).within(DEADLINE).await.unwrap().unwrap().unwrap();
    assert_eq!(taken.acked_sequence, 1);

    let (requests, outgoing) = tokio::sync::mpsc::channel(4);
    let mut hello = agent.hello();
    requests.send(request(v1::stream_config_request::Message::Hello(hello.clone()))).await.unwrap();
    hello.build = "x".repeat(AGENT_BYTES_MAX);
    requests.send(request(v1::stream_config_request::Message::Hello(hello))).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut answers = client.stream_config(outgoing).await.unwrap().into_inner();
    let refused = async {
        loop {
            if let Err(status) = answers.message().await.transpose().expect("the stream ends with a status") {
                return status;
            }
        }
    };
    assert_too_large(&refused.within(DEADLINE).await.unwrap(), AGENT_BYTES_MAX);
}

/// A caller that gives the control plane 300 ms for a change is not kept waiting while another process holds
/// the database, neither by its own clock nor by the control plane's.
#[tokio::test]
async fn deadlines_are_honoured() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    let lock = Lock::of(&control_plane.data_dir().join("config.db")).await.unwrap();
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took >= GIVEN_UP_MAX) {
        assert!(took.len() < CALLS_MAX, "{took:?}");
        took.push(refusal_after(&control_plane, GIVEN).await);
    }
    assert!(took.iter().all(|took| *took >= GIVEN - Duration::from_millis(50)), "{took:?}");
    lock.release().await.unwrap();
    // What was given up on has not wedged the writer.
    create_join_token(&control_plane).await;
}

/// Calls for a change within `given`, which is refused for want of time; gives when.
async fn refusal_after(control_plane: &ControlPlane, given: Duration) -> Duration {
    // By hand, so that nobody on this side watches the time.
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let url = format!("{}/whatsapp_gateway.v1.OptOutService/CreateOptOut", control_plane.url());
    let message = prost::Message::encode_to_vec(&v1::CreateOptOutRequest {
        opt_out: Some(v1::OptOut {
            instance_id: "inst-test".to_owned(),
            phone: "+966500000001".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let call = client
        .post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", format!("{}m", given.as_millis()))
        .header("authorization", format!("Bearer {}", control_plane.admin_key()))
        .body([&[0], length.as_slice(), &message].concat());
    let began = Instant::now();
    let answer = call.send().within(DEADLINE).await.unwrap().unwrap();
    let took = began.elapsed();
    let code = answer.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<i32>().ok());
    let code = code.map(Code::from);
    assert_eq!(code, Some(Code::DeadlineExceeded), "{answer:?}");
    took
}

async fn create_join_token(control_plane: &ControlPlane) {
    control_plane.join_token("test-region").await.unwrap();
}
