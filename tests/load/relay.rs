//! The bare relay, as a yardstick: signature check, append and `fdatasync`, 200, then the webhook once,
//! signed. No queue, no retry, no log. It is what any gateway must do at least.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, mpsc},
};

use anyhow::Context as _;
use bytes::Bytes;
use gateway_core::signature::{WebhookSecret, hmac_sha256_matches};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
};

use crate::{
    run::APP_SECRET,
    wire::{Connection, header},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
/// Bodies that wait for the disk; when full, connections wait.
const APPENDS_MAX: usize = 1_024;

/// A body to append, and whom to tell when it is on disk.
type Append = (Bytes, oneshot::Sender<()>);

/// Serves until killed.
pub async fn serve(listen: SocketAddr, forward: SocketAddr, file: PathBuf) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.context("bind the relay")?;
    let file = OpenOptions::new().create(true).append(true).open(file)?;
    let (appends, queue) = mpsc::sync_channel(APPENDS_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn_blocking(move || append_all(file, &queue));
    let secret = Arc::new(WebhookSecret::from_key(&[7; 32])?);
    loop {
        let (stream, _) = listener.accept().await?;
        tasks.spawn(relay(stream, forward, appends.clone(), Arc::clone(&secret)));
    }
}

/// Appends whatever is waiting, syncs once for all of it, and tells everybody.
fn append_all(mut file: File, queue: &mpsc::Receiver<Append>) -> io::Result<()> {
    while let Ok(first) = queue.recv() {
        let batch: Vec<Append> = std::iter::once(first).chain(queue.try_iter()).collect();
        let bytes: Vec<u8> = batch.iter().flat_map(|(body, _)| body.iter().copied()).collect();
        file.write_all(&bytes)?;
        file.sync_data()?;
        for (_, done) in batch {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }
    Ok(())
}

async fn relay(
    stream: TcpStream,
    forward: SocketAddr,
    appends: mpsc::SyncSender<Append>,
    secret: Arc<WebhookSecret>,
) -> io::Result<()> {
    let mut callbacks = Connection::new(stream)?;
    let mut webhooks = Connection::new(TcpStream::connect(forward).await?)?;
    let mut request = Vec::with_capacity(2_048);
    while let Some(callback) = callbacks.receive().await? {
        if !is_genuine(callback.head(), callback.body()) {
            callbacks.send(REFUSED).await?;
            continue;
        }
        let body = Bytes::copy_from_slice(callback.body());
        let (done, durable) = oneshot::channel();
        appends.send((body.clone(), done)).map_err(io::Error::other)?;
        durable.await.map_err(io::Error::other)?;
        callbacks.send(OK).await?;
        request.clear();
        write_webhook(&mut request, forward, &secret, &body);
        webhooks.send(&request).await?;
        webhooks.receive().await?;
    }
    Ok(())
}

fn is_genuine(head: &[u8], body: &[u8]) -> bool {
    let signature = header(head, "x-hub-signature-256").and_then(|value| value.strip_prefix(b"sha256="));
    let digits = signature.and_then(|signature| str::from_utf8(signature).ok()).unwrap_or_default();
    let bytes: Option<Vec<u8>> = (0..digits.len() / 2)
        .map(|index| u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok())
        .collect();
    bytes.is_some_and(|bytes| hmac_sha256_matches(APP_SECRET.as_bytes(), body, &bytes))
}

fn write_webhook(request: &mut Vec<u8>, forward: SocketAddr, secret: &WebhookSecret, body: &[u8]) {
    let (id, timestamp) = ("evt_relay", jiff::Timestamp::now().as_second());
    let signature = secret.sign(id, timestamp, body);
    let mut head = String::with_capacity(512);
    let length = body.len();
    let written = write!(
        head,
        "POST / HTTP/1.1\r\nhost: {forward}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nwebhook-id: {id}\r\nwebhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n\r\n"
    );
    written.expect("a String takes every write");
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(body);
}
