//! Connections that become too old: asked to end, then cut.

use gateway_proto::v1;
use gateway_tests::{ControlPlane, DEADLINE, Within as _, control_plane::ControlPlaneOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use tonic_types::StatusExt as _;

/// Frames of HTTP/2: <https://www.rfc-editor.org/rfc/rfc9113#section-6>.
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const ACK: u8 = 0x1;
/// How often a watch is begun, for one that is told.
const TRIES: usize = 5;

async fn control_plane(directory: &tempfile::TempDir) -> ControlPlane {
    let options = ControlPlaneOptions {
        arguments: vec!["--grpc-connection-age-max".to_owned(), "2s".to_owned()],
        ..ControlPlaneOptions::default()
    };
    ControlPlane::start_with(directory.path(), options).await.unwrap()
}

/// The next frame: its kind, flags and payload. None at the end of the connection.
async fn next_frame(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}

/// A connection is asked to end before it is: its client hears GOAWAY without an error, answers the ping that comes with it, and
/// so knows which calls were taken. One that nobody uses is closed then.
#[tokio::test]
async fn old_connections_are_asked_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = control_plane(&directory).await;
    let mut stream = TcpStream::connect(control_plane.grpc_addr()).await.unwrap();
    let opening = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 0x4, 0, 0, 0, 0, 0]].concat();
    stream.write_all(&opening).await.unwrap();
    let mut asked = Vec::new();
    let listen = async {
        while let Some((kind, flags, payload)) = next_frame(&mut stream).await {
            if kind == PING && flags & ACK == 0 {
                let answer = [&[0, 0, 8, PING, ACK, 0, 0, 0, 0], payload.as_slice()].concat();
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            } else if kind == GOAWAY {
                asked.push(payload[4..8].to_vec());
            }
        }
    };
    listen.within(DEADLINE).await.expect("the connection ends");
    assert!(!asked.is_empty() && asked.iter().all(|error| error == &[0; 4]), "{asked:?}");
}

/// A watch that is still open when its connection is cut ends with a status that says what to do. Where the machine stands
/// still between the word and the cut, the word is lost; not each time.
#[tokio::test]
async fn watches_over_old_connections_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = control_plane(&directory).await;
    let is_told = |status: &tonic::Status| {
        let reason = status.get_details_error_info().map(|info| info.reason);
        status.code() == Code::Unavailable && reason.as_deref() == Some("CONNECTION_TOO_OLD")
    };
    let mut heard = Vec::new();
    while heard.len() < TRIES && !heard.last().is_some_and(is_told) {
        let mut logs = control_plane.client().inbound_logs();
        let ended = async {
            let mut watch = match logs.watch_inbound_logs(v1::WatchInboundLogsRequest::default()).await {
                Ok(watch) => watch.into_inner(),
                Err(status) => return status,
            };
            loop {
                if let Err(status) = watch.message().await.transpose().expect("it does not end by itself") {
                    return status;
                }
            }
        };
        heard.push(ended.within(DEADLINE).await.expect("the watch ends"));
    }
    assert!(heard.last().is_some_and(is_told), "{heard:?}");
}
