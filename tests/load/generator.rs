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
use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};

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
    /// The numbers, which get messages in turn.
    pub phone_number_ids: Vec<String>,
}

/// How much to post.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Over how many connections.
    pub connections: usize,
    /// For how long.
    pub duration: Duration,
    /// How many in a second over all connections; none is as many as are answered.
    pub rate: Option<f64>,
}

impl Load {
    /// When a message should be sent. What was to be sent before and waits for an answer delays it: then its
    /// time counts all the same, as it would for a provider.
    fn time(&self, start: Instant, connection: usize, sequence: usize) -> Option<Instant> {
        let number = u32::try_from(sequence * self.connections + connection).ok()?;
        Some(start + Duration::from_secs_f64(f64::from(number) / self.rate?))
    }
}

/// What one connection has done.
pub struct Posted {
    /// How many callbacks were answered 200.
    pub answered: usize,
    /// How many of them are measured to their end.
    pub measured: usize,
    /// How long each answer took.
    pub answers: Vec<Duration>,
}

/// Posts as much as `load` says.
pub async fn post(target: &Target, load: Load, tally: &Arc<Tally>) -> anyhow::Result<Vec<Posted>> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in 0..load.connections {
        tasks.spawn(post_on(target.clone(), load, connection, start, Arc::clone(tally)));
    }
    let mut posted = Vec::new();
    while let Some(done) = tasks.join_next().await {
        posted.push(done??);
    }
    Ok(posted)
}

async fn post_on(
    target: Target,
    load: Load,
    number: usize,
    start: Instant,
    tally: Arc<Tally>,
) -> anyhow::Result<Posted> {
    let stream = TcpStream::connect(target.address).await.context("connect to the callback address")?;
    let mut connection = Connection::new(stream)?;
    let templates: Vec<String> = target.phone_number_ids.iter().map(|number| template(number)).collect();
    let mut posted = Posted { answered: 0, measured: 0, answers: Vec::new() };
    let (mut body, mut request) = (String::with_capacity(1_024), String::with_capacity(2_048));
    let end = start + load.duration;
    loop {
        let time = load.time(start, number, posted.answered);
        if let Some(time) = time.filter(|time| *time < end) {
            sleep_until(time.into()).await;
        }
        let time = time.unwrap_or_else(Instant::now);
        if time >= end {
            return Ok(posted);
        }
        let sequence = tally.sent(number, time);
        let template = &templates[tally.instance(number, sequence)];
        let (before, after) = template.split_once("WAMID").context("split the template")?;
        body.clear();
        body.extend([before, wamid(number, sequence).as_str(), after]);
        write_request(&mut request, &target, &body)?;
        connection.send(request.as_bytes()).await?;
        let answer = connection.receive().await?.context("the connection was closed")?;
        ensure!(answer.status() == 200, "a callback was answered {}", answer.status());
        posted.answers.push(time.elapsed());
        posted.answered += 1;
        posted.measured += usize::from(tally.is_measured(number, sequence));
    }
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
fn template(phone_number_id: &str) -> String {
    let message = json!({
        "from": "966500000001", "id": "WAMID", "timestamp": "1778148000", "type": "text",
        "text": {"body": "A text of the length that people usually write when they ask a shop about an order of theirs."},
    });
    let value = json!({
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "966110000000", "phone_number_id": phone_number_id},
        "contacts": [{"profile": {"name": "A Customer"}, "wa_id": "966500000001", "user_id": "SA.1349120865530274"}],
        "messages": [message],
    });
    let changes = [json!({"field": "messages", "value": value})];
    json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": changes}]})
        .to_string()
}
