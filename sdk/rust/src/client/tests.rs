use std::{
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gateway_proto::v1::inbound_log_service_server::{InboundLogService, InboundLogServiceServer};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::task::JoinSet;
use tonic::{Code, Response, transport::Server};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;

mod tls;

/// What one open watch of the fake gives before it breaks.
type Script = Vec<Result<v1::WatchInboundLogsResponse, Status>>;

/// A control plane that lists 5 logs and plays one script per watch.
#[derive(Default)]
struct Fake {
    scripts: Mutex<Vec<Script>>,
    watches: Mutex<Vec<v1::WatchInboundLogsRequest>>,
    lists: Mutex<Vec<v1::ListInboundLogsRequest>>,
    headers: Mutex<Vec<(Option<String>, bool)>>,
}

impl Fake {
    fn note<T>(&self, request: &Request<T>) {
        let bearer = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let deadline = request.metadata().contains_key(GRPC_TIMEOUT);
        self.headers.lock().unwrap().push((bearer, deadline));
    }
}

#[tonic::async_trait]
impl InboundLogService for Fake {
    type WatchInboundLogsStream = std::pin::Pin<
        Box<dyn futures_util::Stream<Item = Result<v1::WatchInboundLogsResponse, Status>> + Send>,
    >;

    async fn list_inbound_logs(
        &self,
        request: Request<v1::ListInboundLogsRequest>,
    ) -> Result<Response<v1::ListInboundLogsResponse>, Status> {
        self.note(&request);
        let request = request.into_inner();
        self.lists.lock().unwrap().push(request.clone());
        let first: usize = request.page_token.parse().unwrap_or(0);
        let end = (first + 2).min(5);
        Ok(Response::new(v1::ListInboundLogsResponse {
            inbound_logs: (first..end).map(|number| log(&number.to_string())).collect(),
            next_page_token: if end < 5 { end.to_string() } else { String::new() },
        }))
    }

    async fn get_inbound_log(
        &self,
        request: Request<v1::GetInboundLogRequest>,
    ) -> Result<Response<v1::GetInboundLogResponse>, Status> {
        self.note(&request);
        let mut details = ErrorDetails::with_bad_request_violation("event_id", "must be `evt_…`");
        details.set_error_info("INVALID_EVENT_ID", "whatsapp-gateway", std::collections::HashMap::new());
        Err(Status::with_error_details(Code::InvalidArgument, "bad event id", details))
    }

    async fn watch_inbound_logs(
        &self,
        request: Request<v1::WatchInboundLogsRequest>,
    ) -> Result<Response<Self::WatchInboundLogsStream>, Status> {
        self.note(&request);
        self.watches.lock().unwrap().push(request.into_inner());
        let mut scripts = self.scripts.lock().unwrap();
        if scripts.is_empty() {
            return Err(Status::permission_denied("the script is over"));
        }
        Ok(Response::new(stream::iter(scripts.remove(0)).boxed()))
    }

    async fn list_delivery_attempts(
        &self,
        _: Request<v1::ListDeliveryAttemptsRequest>,
    ) -> Result<Response<v1::ListDeliveryAttemptsResponse>, Status> {
        Ok(Response::new(v1::ListDeliveryAttemptsResponse::default()))
    }
}

fn log(event_id: &str) -> v1::InboundLog {
    v1::InboundLog { event_id: event_id.to_owned(), ..v1::InboundLog::default() }
}

fn watched(event_id: &str) -> Result<v1::WatchInboundLogsResponse, Status> {
    Ok(v1::WatchInboundLogsResponse {
        inbound_log: Some(log(event_id)),
        cursor: format!("after {event_id}"),
        ..v1::WatchInboundLogsResponse::default()
    })
}

/// Serves the fake on a free port until the `JoinSet` is dropped.
async fn serve(fake: Arc<Fake>) -> (ClientOptions, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = InboundLogServiceServer::from_arc(fake);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    (ClientOptions::new(format!("http://{address}"), "secret-key"), tasks)
}

/// A List of 5 items in pages of 2 comes as one stream, each page asked for with the token of the one
/// before and the same filter.
#[tokio::test]
async fn list_goes_through_all_pages() {
    let fake = Arc::new(Fake::default());
    let (options, _server) = serve(Arc::clone(&fake)).await;
    let client = Client::connect(options).await.unwrap();
    let request = v1::ListInboundLogsRequest { instance_id: "abc".to_owned(), ..Default::default() };
    let logs: Vec<_> = client.list(request).map_ok(|log| log.event_id).try_collect().await.unwrap();
    assert_eq!(logs, ["0", "1", "2", "3", "4"]);
    let lists = fake.lists.lock().unwrap();
    assert_eq!(lists.iter().map(|list| list.page_token.as_str()).collect::<Vec<_>>(), ["", "2", "4"]);
    assert!(lists.iter().all(|list| list.instance_id == "abc"));
}

/// Breaks, errors that can pass and streams that end are survived: every response comes once, and each
/// reconnection asks for what follows the last cursor. What cannot be mended ends the stream.
#[tokio::test]
async fn watch_resumes_after_the_last_cursor() {
    let fake = Arc::new(Fake::default());
    *fake.scripts.lock().unwrap() = vec![
        vec![],
        vec![watched("a"), watched("b"), Err(Status::unavailable("break"))],
        vec![Err(Status::internal("h2 broke"))],
        vec![watched("c")],
    ];
    let (options, _server) = serve(Arc::clone(&fake)).await;
    let client = Client::connect(options).await.unwrap();
    let mut watch = pin!(client.watch_inbound_logs(v1::WatchInboundLogsRequest::default()));
    for expected in ["a", "b", "c"] {
        let response = watch.try_next().await.unwrap().unwrap();
        assert_eq!(response.inbound_log.unwrap().event_id, expected);
    }
    let end = watch.try_next().await.unwrap_err();
    assert_eq!(end.code(), Some(Code::PermissionDenied));
    let watches = fake.watches.lock().unwrap();
    let cursors: Vec<_> = watches.iter().map(|watch| watch.cursor.as_str()).collect();
    assert_eq!(cursors, ["", "", "after b", "after b", "after c"]);
    // It began "now"; the reconnection before the first cursor goes on from then.
    assert!(watches[0].start_time.is_none() && watches[1].start_time.is_some());
}

/// Every call carries the key; unary calls carry a deadline and the endless stream does not.
#[tokio::test]
async fn calls_carry_key_and_deadline() {
    let fake = Arc::new(Fake::default());
    let (options, _server) = serve(Arc::clone(&fake)).await;
    let client = Client::connect_lazy(&options).unwrap();
    client.inbound_logs().list_inbound_logs(v1::ListInboundLogsRequest::default()).await.unwrap();
    client.inbound_logs().watch_inbound_logs(v1::WatchInboundLogsRequest::default()).await.unwrap_err();
    let bearer = Some("Bearer secret-key".to_owned());
    assert_eq!(*fake.headers.lock().unwrap(), [(bearer.clone(), true), (bearer, false)]);
}

/// Every method of operators that streams its answer is known to do so, as is no other: a deadline would cut it.
/// Agents' methods are not called from here.
#[test]
fn all_streams_go_without_deadline() {
    let files = FileDescriptorSet::decode(gateway_proto::DESCRIPTORS).unwrap();
    let services = files.file.iter().flat_map(|file| &file.service);
    let methods = services.filter(|service| service.name() != "AgentSyncService").flat_map(|one| &one.method);
    let mut streaming: Vec<_> =
        methods.filter(|method| method.server_streaming()).map(|method| method.name()).collect();
    let mut listed = STREAMING_METHODS.to_vec();
    streaming.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, streaming);
}

/// A refused call names the field at fault.
#[tokio::test]
async fn refusals_name_the_field() {
    let (options, _server) = serve(Arc::default()).await;
    let client = Client::connect(options).await.unwrap();
    let status =
        client.inbound_logs().get_inbound_log(v1::GetInboundLogRequest::default()).await.unwrap_err();
    let error = Error::from(status);
    assert_eq!(error.call().unwrap().reason, "INVALID_EVENT_ID");
    assert_eq!(error.call().unwrap().violations[0].field, "event_id");
}

/// Neither options nor client print the key, and unusable options are refused before any call.
#[tokio::test]
async fn secrets_are_masked_and_options_checked() {
    let options =
        ClientOptions::new("http://127.0.0.1:1", "secret-key").with_deadline(Duration::from_secs(1));
    let client = Client::connect_lazy(&options).unwrap();
    let printed = format!("{options:?} {client:?} {:?}", client.transport);
    assert!(!printed.contains("secret-key"), "{printed}");
    assert!(matches!(Client::connect(options).await, Err(Error::Connect { .. })));
    let bad_key = ClientOptions::new("http://127.0.0.1:1", "line\nbreak");
    assert!(matches!(Client::connect_lazy(&bad_key), Err(Error::ApiKey)));
    let bad_endpoint = ClientOptions::new("not an address", "key");
    assert!(matches!(Client::connect_lazy(&bad_endpoint), Err(Error::Endpoint { .. })));
}

/// Takes one connection, reads frames up to the first request (RFC 9113, 3.4 and 4.1), writes `last_words` and hangs up.
async fn hang_up(listener: &tokio::net::TcpListener, last_words: &[u8]) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const HEADERS: u8 = 1;
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut preface = [0; 24];
    connection.read_exact(&mut preface).await.unwrap();
    connection.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // SETTINGS, empty
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        connection.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            break;
        }
    }
    connection.write_all(last_words).await.unwrap();
}

/// A call whose connection ends under it says that it may be repeated, whether the server hung up or said that it would;
/// the repeat goes over a new connection.
#[tokio::test]
async fn a_lost_connection_is_unavailable() {
    let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]; // GOAWAY, this stream the last, NO_ERROR
    for last_words in [&[][..], &goaway] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::connect_lazy(&ClientOptions::new(endpoint, "secret-key")).unwrap();
        for _ in 0..2 {
            let request = v1::ListInboundLogsRequest::default();
            let mut logs = client.inbound_logs();
            let (answer, ()) = tokio::join!(logs.list_inbound_logs(request), hang_up(&listener, last_words));
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(status.message().contains("may be repeated"), "{status:?}");
            assert!(Error::from(status).is_transient());
        }
    }
}
