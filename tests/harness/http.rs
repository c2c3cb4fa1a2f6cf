//! HTTP requests: a plain client, and raw bytes for what no well-behaved client would send.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::condition::{DEADLINE, Within as _};

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A client that keeps connections and follows nothing.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client() -> anyhow::Result<reqwest::Client> {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    client.timeout(ANSWER_TIMEOUT).http1_only().build().context("build HTTP client")
}

/// The text at `url`.
///
/// # Errors
/// When it cannot be read, or the answer is not 200.
pub async fn get_text(client: &reqwest::Client, url: &str) -> anyhow::Result<String> {
    Ok(client.get(url).send().await?.error_for_status()?.text().await?)
}

/// Succeeds when `url` answers 200.
///
/// # Errors
/// When it does not.
pub async fn expect_ok(client: &reqwest::Client, url: &str) -> anyhow::Result<()> {
    let answer = client.get(url).send().await?;
    let status = answer.status();
    let text = answer.text().await?;
    ensure!(status.as_u16() == 200, "GET {url} answers {status}: {}", text.trim());
    Ok(())
}

/// Sends bytes as they are, and gives the status of the answer and its text so far.
///
/// # Errors
/// When there is no HTTP answer.
pub async fn send_raw(address: SocketAddr, request: &[u8]) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut chunk).within(DEADLINE).await??;
        answer.extend_from_slice(&chunk[..length]);
        let has_headers = answer.windows(4).any(|window| window == b"\r\n\r\n");
        if length == 0 || has_headers {
            break;
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status =
        text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("read the status line")?;
    Ok((status.parse()?, text))
}
