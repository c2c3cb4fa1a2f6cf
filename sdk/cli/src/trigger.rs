//! `gateway trigger`: a genuine sample callback through the agent's front door, and what became of it.
//!
//! In order: as whom ([`provider`]), whom to call ([`target`]), what to send ([`mod@sample`]), whether it opts out
//! ([`keyword`]), following its events through logs, deliveries and the receiver ([`follow`]), and showing it
//! ([`show`]).

mod provider;
mod target;
mod sample;
mod keyword;
mod follow;
mod show;

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use gateway_core::{event::Provider, phone::normalize_phone};
use gateway_sdk::{Client, Error, v1};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    BadConfig,
    output::{Look, Output},
};
use follow::{EventReport, Expected};
use keyword::Keyword;
use provider::{ProofArg, ProviderArg};
use sample::{Happening, Sample, Scene};
use target::Target;

/// How long each step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens at the provider.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A contact writes a text message
    #[value(name = "message.received")]
    MessageReceived,
    /// A message of the business gets a status, see --status
    Status,
    /// A contact writes STOP
    OptOut,
}

/// The status of `gateway trigger status`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// Left the provider
    Sent,
    /// Reached the phone
    Delivered,
    /// Was read
    Read,
    /// Could not be delivered
    Failed,
}

/// Settings of `gateway trigger`.
#[derive(Args)]
#[command(after_help = "\
With a running `gateway dev`, the first callback of a provider other than meta makes an instance, an inbound route \
and a subscription for it: demo-<provider>-line, demo-<provider>-route, demo-<provider>-subscription.")]
pub struct TriggerArgs {
    /// What happens at the provider
    kind: Kind,
    /// The provider whose callback is made
    #[arg(long, value_enum, value_name = "NAME", default_value = "meta")]
    provider: ProviderArg,
    /// The text of the message [default: a greeting, or STOP]
    #[arg(long)]
    text: Option<String>,
    /// The contact's phone number [default: +966500000001, or a random one for opt-out]
    #[arg(long, value_name = "PHONE")]
    from: Option<String>,
    /// The status of a message of the business
    #[arg(long, value_enum, default_value = "delivered")]
    status: Status,
    /// Write one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: target::TargetArgs,
}

/// What became of a callback.
#[derive(Serialize)]
pub struct Report {
    /// The callback and the agent's answer.
    callback: CallbackReport,
    /// Its events, in the order in which they were expected.
    events: Vec<EventReport>,
    /// What the gateway now says about marketing to the contact; only for opt-outs.
    #[serde(skip_serializing_if = "Option::is_none")]
    suppression: Option<SuppressionReport>,
}

/// A callback and the agent's answer.
#[derive(Serialize)]
pub struct CallbackReport {
    url: String,
    /// JSON as it is; a form as a text.
    body: Box<serde_json::value::RawValue>,
    status_code: u16,
    accepted_ms: f64,
}

/// Whether marketing may be sent to the contact.
#[derive(Serialize)]
pub struct SuppressionReport {
    marketing_allowed: bool,
    opt_out_id: String,
    after_ms: f64,
}

impl TriggerArgs {
    /// What the contact writes.
    fn text(&self) -> &str {
        let usual = if self.kind == Kind::OptOut { "STOP" } else { "Hello from `gateway trigger`" };
        self.text.as_deref().unwrap_or(usual)
    }
}

/// Sends the callback and follows it.
pub async fn run(args: TriggerArgs, output: &Output) -> anyhow::Result<()> {
    let (target, client) = Target::resolve(&args.target, args.provider.0).await?;
    let sample = sample(&args, &target)?;
    let keyword = Keyword { client: &client, text: args.text() };
    let known = match (args.kind, &target.instance_id) {
        (Kind::OptOut, Some(instance_id)) => {
            keyword.check(instance_id).await?;
            known_opt_out(&client, instance_id, &sample).await?
        }
        _ => None,
    };
    let http = http_client(&target)?;
    let start = Instant::now();
    let callback = send(&http, &target, &sample).await?;
    let show = show::Show { output, json: args.json };
    show.callback(&callback, &sample, target.proof)?;
    let mut report = Report { callback, events: Vec::new(), suppression: None };
    let follower = follow::Follower { client: &client, http: &http, target: &target, start };
    for expected in expected(&args, &target, &sample, known.as_ref()) {
        let event = follower.follow(&expected).await?;
        show.event(&event)?;
        if args.kind == Kind::OptOut && target.instance_id.is_none() && report.events.is_empty() {
            // Only now it is known whose policy counts.
            keyword.check(&event.instance_id).await?;
        }
        report.events.push(event);
    }
    if args.kind == Kind::OptOut {
        let suppression = follower.suppression(&sample, report.events.first()).await?;
        show.suppression(&suppression, known.as_ref())?;
        report.suppression = Some(suppression);
    }
    if args.json {
        output.line(serde_json::to_string_pretty(&report)?)?;
    } else {
        output.line(output.look(Look::Good, "done"))?;
    }
    Ok(())
}

fn sample(args: &TriggerArgs, target: &Target) -> anyhow::Result<Sample> {
    let contact = match (&args.from, args.kind) {
        (Some(from), _) => normalize_phone(from)
            .ok_or_else(|| BadConfig("--from must be a phone number such as +966500000001".to_owned()))?,
        (None, Kind::OptOut) => sample::random_phone(),
        (None, _) => sample::default_phone(),
    };
    let happening = match args.kind {
        Kind::MessageReceived | Kind::OptOut => Happening::Text(args.text()),
        Kind::Status => Happening::Status(args.status),
    };
    let scene = Scene { number: target.number(), contact, now: gateway_runtime::clock::now() };
    Ok(Sample::new(target.provider, scene, happening))
}

/// The events that the callback gives at a subscription to `*`.
fn expected(
    args: &TriggerArgs,
    target: &Target,
    sample: &Sample,
    known: Option<&v1::OptOut>,
) -> Vec<Expected> {
    let instance_id = target.instance_id.as_deref().unwrap_or_default();
    let of_message = |event: &'static str| Expected::of_message(event, instance_id, &sample.message_id);
    match args.kind {
        Kind::MessageReceived => vec![of_message("message.received")],
        Kind::Status => vec![of_message(args.status.event()), of_message("message.status_updated")],
        Kind::OptOut if known.is_some() => vec![of_message("message.received")],
        Kind::OptOut => {
            vec![
                of_message("message.received"),
                Expected::of_contact("recipient.opted_out", instance_id, sample),
            ]
        }
    }
}

/// The opt-out that the contact has already: then a second STOP changes nothing, and no event tells of it.
async fn known_opt_out(
    client: &Client,
    instance_id: &str,
    sample: &Sample,
) -> anyhow::Result<Option<v1::OptOut>> {
    let request = v1::CheckSuppressionRequest {
        instance_id: instance_id.to_owned(),
        phone: sample.contact.as_str().to_owned(),
        user_id: String::new(),
        purpose: v1::Purpose::Marketing.into(),
    };
    let answer = client.opt_outs().check_suppression(request).await.map_err(Error::from);
    let opt_out = answer.context("check suppression before the callback")?.into_inner().opt_out;
    Ok(opt_out.filter(|opt_out| opt_out.state() == v1::OptOutState::OptedOut))
}

fn http_client(target: &Target) -> anyhow::Result<reqwest::Client> {
    let builder =
        reqwest::Client::builder().timeout(STEP_TIMEOUT).redirect(reqwest::redirect::Policy::none());
    // A proxy of the environment cannot reach this machine's loopback addresses.
    let builder = if target.is_local() { builder.no_proxy() } else { builder };
    builder.build().context("set up the HTTP client")
}

async fn send(http: &reqwest::Client, target: &Target, sample: &Sample) -> anyhow::Result<CallbackReport> {
    let proof = target.proof.with(&target.secret);
    let now = gateway_runtime::clock::now();
    let headers = sample.headers(target.provider, proof, target.number(), &target.signed_url, now);
    let headers = headers.ok_or_else(|| {
        BadConfig(
            "--secret must be `user:password` for --proof basic, `name: value` for --proof header".into(),
        )
    })?;
    let mut request = http.post(target.callback_url.clone()).header("content-type", sample.content_type);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let start = Instant::now();
    let answer = request
        .body(sample.body.clone())
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(|| target.help("the agent does not answer at the callback URL"))?;
    let accepted_ms = milliseconds(start);
    let status_code = answer.status().as_u16();
    if status_code != 200 {
        anyhow::bail!("the agent answered {status_code} instead of 200: {}", advice(status_code, target));
    }
    Ok(CallbackReport {
        url: target.callback_url.as_str().to_owned(),
        body: sample.json()?,
        status_code,
        accepted_ms,
    })
}

/// What to do about an answer.
fn advice(status_code: u16, target: &Target) -> String {
    let what = match (target.provider, target.proof) {
        (Provider::Meta, _) => "the app secret is not the route's",
        (_, ProofArg::Signature) => {
            "the secret is not the route's, or the agent takes another URL than this one for the signed one (see \
             --public-base-url of the agent, --signed-url here)"
        }
        (_, ProofArg::Basic | ProofArg::Header) => "the route has no such credential, or wants a signature",
        (_, ProofArg::Token) => {
            "the route wants more than the token (its `callback_token_suffices` is false)"
        }
    };
    match status_code {
        401 => format!(
            "the agent does not know the callback URL's token, or {what}; InstanceService/DiagnoseInstance says why"
        ),
        503 => "the agent takes no callbacks now: it drains or was revoked (/readyz on its admin port says so), or its \
                buffer or its disk is full"
            .to_owned(),
        404 => {
            format!("this is not a callback URL; it ends in /callbacks/{}/{{token}}", target.provider.name())
        }
        _ => "the agent's log lines say why".to_owned(),
    }
}

/// Milliseconds since `start`, to a tenth.
fn milliseconds(start: Instant) -> f64 {
    (start.elapsed().as_secs_f64() * 10_000.0).round() / 10.0
}
