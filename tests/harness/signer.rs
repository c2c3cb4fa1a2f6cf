//! Proves callbacks as any provider does: with the provider's own Python library where there is one, otherwise
//! with Python's. Nothing here shares code with what is tested; see `tests/provider_signatures/sign.py`.

use std::process::Stdio;

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_proto::v1::InboundRouteSecretKind;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use crate::{
    condition::{DEADLINE, Within as _},
    python::{python_env, run, script},
};

const SCRIPT: &str = "provider_signatures/sign.py";

/// A secret that a provider and a route share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// What it is for.
    pub kind: InboundRouteSecretKind,
    /// Its value.
    pub value: String,
}

/// A request without its proof.
#[derive(Debug, Clone)]
pub struct Unproved<'a> {
    /// What proves it.
    pub secret: &'a Secret,
    /// `POST` or `GET`.
    pub method: &'a str,
    /// The URL as the provider knows it.
    pub url: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// What is to differ from what a genuine provider does, as the script says; null for nothing.
    pub options: &'a Value,
}

/// The proof of a request.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The URL to call: Twilio adds a parameter to it when the body is no form.
    pub url: String,
    /// The headers to send.
    pub headers: HeaderMap,
}

/// A running script.
pub struct Signer {
    pipes: Mutex<Pipes>,
    /// Ends with the signer.
    _script: Child,
}

struct Pipes {
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

#[derive(Deserialize)]
struct Answer {
    url: String,
    headers: Map<String, Value>,
}

impl Signer {
    /// Starts the script.
    ///
    /// # Errors
    /// When Python or a library is missing; the error says what to do.
    pub async fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(python_env().await?.join("python"));
        command.arg(script(SCRIPT)).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("start the signing script")?;
        let requests = child.stdin.take().context("write to the signing script")?;
        let answers = child.stdout.take().context("read from the signing script")?;
        let pipes = Pipes { requests, answers: BufReader::new(answers).lines() };
        Ok(Self { pipes: Mutex::new(pipes), _script: child })
    }

    /// Proves a request.
    ///
    /// # Errors
    /// When the provider's own library would not take the proof, or the request cannot be read.
    pub async fn prove(&self, request: &Unproved<'_>) -> anyhow::Result<Proof> {
        let kind = request.secret.kind.as_str_name().trim_start_matches("INBOUND_ROUTE_SECRET_KIND_");
        let options = if request.options.is_null() { &json!({}) } else { request.options };
        let line = json!({
            "kind": kind.to_lowercase(),
            "secret": request.secret.value,
            "method": request.method,
            "url": request.url,
            "body": STANDARD.encode(request.body),
            "options": options,
        });
        let mut pipes = self.pipes.lock().await;
        pipes.requests.write_all(format!("{line}\n").as_bytes()).await.context("ask the signing script")?;
        let answer = pipes.answers.next_line().within(DEADLINE).await??;
        drop(pipes);
        let answer = answer.with_context(|| format!("sign as {kind}: the script has ended, see above"))?;
        let answer: Answer = serde_json::from_str(&answer)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &answer.headers {
            let value = value.as_str().context("read a header")?;
            headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        Ok(Proof { url: answer.url, headers })
    }
}

/// How many published and computed vectors the script and the providers' libraries meet to the byte.
///
/// # Errors
/// When they do not meet one.
pub async fn check_vectors() -> anyhow::Result<usize> {
    let python = python_env().await?.join("python");
    let printed = run(python, [script(SCRIPT).as_os_str(), "--check".as_ref()]).await?;
    printed.trim().parse().context("read the number of vectors")
}
