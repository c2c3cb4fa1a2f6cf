use std::os::unix::fs::PermissionsExt as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::Settings;

fn config(data_dir: &Path, admin_key: Option<&str>) -> Config {
    let free = Some("127.0.0.1:0".parse().unwrap());
    let settings = Settings {
        data_dir: Some(data_dir.to_owned()),
        grpc_listen: free,
        admin_listen: free,
        ..Settings::default()
    };
    Config::resolve(settings, admin_key).unwrap()
}

async fn stop_and_wait(running: Running) {
    running.supervisor.stop().cancel();
    running.wait().await.unwrap();
}

/// The first start makes the data directory and a key that only its owner can read; the next start has the
/// same key, and one from the environment wins.
#[tokio::test]
async fn admin_key_is_made_once_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("a/b");
    let running = start(config(&data_dir, None), CancellationToken::new()).await.unwrap();
    let key = running.admin_key.clone();
    assert!(key.reveal().len() >= 40);
    let file = data_dir.join("admin.key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for database in DATABASES {
        assert_eq!(fs::metadata(data_dir.join(database)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(&data_dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), key.reveal());
    stop_and_wait(running).await;
    let running = start(config(&data_dir, None), CancellationToken::new()).await.unwrap();
    assert_eq!(running.admin_key, key);
    stop_and_wait(running).await;
    let given = Some("a-key-of-the-environment");
    let running = start(config(&data_dir, given), CancellationToken::new()).await.unwrap();
    assert_eq!(Some(running.admin_key.reveal()), given);
    stop_and_wait(running).await;
}

/// Two control planes never share a data directory: the second says who has it.
#[tokio::test]
async fn second_control_plane_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = start(config(directory.path(), None), CancellationToken::new()).await.unwrap();
    let second = start(config(directory.path(), None), CancellationToken::new()).await;
    let error = format!("{:#}", second.err().unwrap());
    assert!(error.contains(&directory.path().display().to_string()), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    stop_and_wait(first).await;
    let again = start(config(directory.path(), None), CancellationToken::new()).await.unwrap();
    stop_and_wait(again).await;
}

/// A port in use is an error that names the setting.
#[tokio::test]
async fn port_in_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config { grpc_listen: taken.local_addr().unwrap(), ..config(directory.path(), None) };
    let error = format!("{:#}", start(config, CancellationToken::new()).await.err().unwrap());
    assert!(error.contains("--grpc-listen"), "{error}");
}

/// Once started, `/readyz` says so and `/metrics` shows the metrics.
#[tokio::test]
async fn admin_server_is_ready_after_start() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(config(directory.path(), None), CancellationToken::new()).await.unwrap();
    let get = async |path: &str| {
        let mut socket = tokio::net::TcpStream::connect(running.admin_addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get("/metrics").await.contains("gateway_config_version 0"));
    stop_and_wait(running).await;
}
