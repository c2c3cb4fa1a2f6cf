//! Posts signed Meta text callbacks over keep-alive connections, each waiting for its answer.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gateway_core::signature::hmac_sha256;
use serde_json::json;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    tally::{Tally, wamid},
    wire::Connection,
};

/// What to post and where.
#[derive(Clone)]
pub struct Target {
    /// The address for callbacks.
    pub address: SocketAddr,
    /// The path of the route.
    pub path: String,
    /// The app secret that signs.
    pub app_secret: String,
    /// The number.
    pub phone_number_id: String,
}

/// What one connection has done.
pub struct Posted {
    /// How many callbacks were answered 200.
    pub answered: usize,
    /// How long each answer took.
    pub answers: Vec<Duration>,
}

/// Posts for `duration` over `connections` connections.
pub async fn post(
    target: &Target,
    connections: usize,
    duration: Duration,
    tally: &Arc<Tally>,
) -> anyhow::Result<Vec<Posted>> {
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        tasks.spawn(post_on(target.clone(), connection, end, Arc::clone(tally)));
    }
    let mut posted = Vec::new();
    while let Some(done) = tasks.join_next().await {
        posted.push(done??);
    }
    Ok(posted)
}

async fn post_on(target: Target, number: usize, end: Instant, tally: Arc<Tally>) -> anyhow::Result<Posted> {
    let stream = TcpStream::connect(target.address).await.context("connect to the callback address")?;
    let mut connection = Connection::new(stream)?;
    let template = template(&target);
    let (before, after) = template.split_once("WAMID").context("split the template")?;
    let mut posted = Posted { answered: 0, answers: Vec::new() };
    let (mut body, mut request) = (String::with_capacity(1_024), String::with_capacity(2_048));
    while Instant::now() < end {
        let sequence = tally.sent(number);
        body.clear();
        body.extend([before, wamid(number, sequence).as_str(), after]);
        write_request(&mut request, &target, &body)?;
        let start = Instant::now();
        connection.send(request.as_bytes()).await?;
        let answer = connection.receive().await?.context("the connection was closed")?;
        ensure!(answer.status() == 200, "a callback was answered {}", answer.status());
        posted.answers.push(start.elapsed());
        posted.answered += 1;
    }
    Ok(posted)
}

fn write_request(request: &mut String, target: &Target, body: &str) -> anyhow::Result<()> {
    request.clear();
    let length = body.len();
    write!(
        request,
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nx-hub-signature-256: sha256=",
        target.path, target.address
    )?;
    for byte in hmac_sha256(target.app_secret.as_bytes(), body.as_bytes()) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        request.push(char::from(DIGITS[usize::from(byte >> 4)]));
        request.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    request.push_str("\r\n\r\n");
    request.push_str(body);
    Ok(())
}

/// A text callback of about 0.6 kB with `WAMID` where the id goes.
fn template(target: &Target) -> String {
    let message = json!({
        "from": "966500000001", "id": "WAMID", "timestamp": "1778148000", "type": "text",
        "text": {"body": "A text of the length that people usually write when they ask a shop about an order of theirs."},
    });
    let value = json!({
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "966110000000", "phone_number_id": target.phone_number_id},
        "contacts": [{"profile": {"name": "A Customer"}, "wa_id": "966500000001", "user_id": "SA.1349120865530274"}],
        "messages": [message],
    });
    let changes = [json!({"field": "messages", "value": value})];
    json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": changes}]})
        .to_string()
}
