//! Whom to call: the running `gateway dev`, unless flags say otherwise.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use gateway_core::event::Provider;
use gateway_sdk::Client;
use reqwest::Url;
use tokio::time::{Instant, sleep};

use super::{STEP_TIMEOUT, provider::ProofArg, sample::Number};
use crate::{
    BadConfig,
    control_plane::connect,
    demo::{self, Demo, title},
    dev::progress,
    session::{self, Session},
};

/// How often it is looked whether the agent uses a new demo.
const POLL: Duration = Duration::from_millis(5);

/// Flags that name another target than the running `gateway dev`.
#[derive(Args)]
#[command(next_help_heading = "Another target than the running `gateway dev`")]
pub struct TargetArgs {
    /// The callback URL of a route of the provider
    #[arg(long, value_name = "URL", env = "GATEWAY_CALLBACK_URL")]
    callback_url: Option<String>,
    /// A secret of that route, in the form of --proof; better given by the environment, where other users cannot
    /// see it
    #[arg(
        long,
        visible_alias = "app-secret",
        value_name = "SECRET",
        env = "GATEWAY_ROUTE_SECRET",
        hide_env_values = true
    )]
    secret: Option<String>,
    /// What proves the callback [default: the provider's signature; of those that do not sign, `basic`, or
    /// `header` of Gupshup]
    #[arg(long, value_enum)]
    proof: Option<ProofArg>,
    /// The URL that the provider signs, when it is not the one that is called: for agents with --public-base-url
    #[arg(long, value_name = "URL")]
    signed_url: Option<String>,
    /// The control plane's gRPC, http:// without TLS or https:// with it
    #[arg(long, value_name = "URL", env = "GATEWAY_CONTROL_PLANE_URL")]
    control_plane_url: Option<String>,
    /// PEM file of the authority that the certificate of an https control plane must come from [default: those
    /// that the system trusts]
    #[arg(long, value_name = "FILE", env = "GATEWAY_CONTROL_PLANE_CA")]
    control_plane_ca: Option<PathBuf>,
    /// An API key; better given by the environment, where other users cannot see it
    #[arg(long, value_name = "KEY", env = "GATEWAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The instance of the number
    #[arg(long, value_name = "ID")]
    instance_id: Option<String>,
    /// What names the number at the provider: Meta and 360dialog `phone_number_id`, Gupshup app, MessageBird and Bird
    /// channel id, WAHA session, Evolution API instance, others the number itself
    #[arg(long, value_name = "ID")]
    provider_number_id: Option<String>,
    /// The business phone number
    #[arg(long, value_name = "PHONE")]
    phone_number: Option<String>,
    /// The provider's account, where callbacks name one: Meta and 360dialog WhatsApp Business Account, Twilio account SID,
    /// Vonage API key
    #[arg(long, value_name = "ID")]
    provider_account_id: Option<String>,
}

/// Whom to call.
pub struct Target {
    pub provider: Provider,
    pub callback_url: Url,
    pub signed_url: String,
    pub proof: ProofArg,
    pub secret: String,
    pub instance_id: Option<String>,
    pub provider_number_id: String,
    pub phone_number: String,
    pub provider_account_id: Option<String>,
    /// The built-in receiver, when webhooks go there.
    pub receiver_url: Option<String>,
    /// The process of `gateway dev`, when it was found by its session file.
    process: Option<u32>,
}

/// What a demo of `gateway dev` gives where no flag does.
#[derive(Default)]
struct Defaults {
    callback_url: Option<String>,
    secret: Option<String>,
    provider_number_id: Option<String>,
    phone_number: Option<String>,
    instance_id: Option<String>,
}

impl Target {
    /// Flags over the running `gateway dev`, in which the demo of the provider is made when it is missing.
    pub async fn resolve(args: &TargetArgs, provider: Provider) -> anyhow::Result<(Self, Client)> {
        let proof = ProofArg::resolve(args.proof, provider)?;
        let session = args.session()?;
        let session = session.as_ref();
        args.check(provider, proof, session)?;
        let client = args.client(session).await?;
        let defaults = match session {
            Some(session) if provider == Provider::Meta => Defaults::of_session(session),
            Some(session) if args.callback_url.is_none() => {
                Defaults::of_demo(session, provider, &client).await?
            }
            _ => Defaults::default(),
        };
        let is_same_callback = args.callback_url.is_none();
        let pick = |flag: &Option<String>, default: Option<String>, name: &str| {
            let picked = flag.clone().or(default);
            picked.ok_or_else(|| BadConfig(format!("{name} is missing (see --help)")))
        };
        let callback_url = pick(&args.callback_url, defaults.callback_url, "--callback-url")?;
        let callback_url = callback(&callback_url, provider)?;
        let secret = match proof {
            ProofArg::Token => String::new(),
            _ => pick(&args.secret, defaults.secret, "--secret")?,
        };
        let target = Self {
            provider,
            signed_url: args.signed_url.clone().unwrap_or_else(|| callback_url.as_str().to_owned()),
            callback_url,
            proof,
            secret,
            instance_id: args.instance_id.clone().or(defaults.instance_id.filter(|_| is_same_callback)),
            provider_number_id: pick(
                &args.provider_number_id,
                defaults.provider_number_id,
                "--provider-number-id",
            )?,
            phone_number: pick(&args.phone_number, defaults.phone_number, "--phone-number")?,
            provider_account_id: args.provider_account_id.clone(),
            receiver_url: session.map(|session| session.receiver_url.clone()),
            process: session.filter(|_| is_same_callback).map(|session| session.process),
        };
        Ok((target, client))
    }

    /// The business number.
    pub fn number(&self) -> Number<'_> {
        Number {
            provider_number_id: &self.provider_number_id,
            phone_number: &self.phone_number,
            account_id: self.provider_account_id.as_deref(),
        }
    }

    /// `problem`, and what to do about it.
    pub fn help(&self, problem: &str) -> String {
        help(self.process, problem)
    }

    /// Whether the callback URL is on this machine.
    pub fn is_local(&self) -> bool {
        self.callback_url.host_str().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        })
    }
}

fn help(process: Option<u32>, problem: &str) -> String {
    match process {
        Some(process) => format!(
            "{problem}; the `gateway dev` that was found (process {process}) may have ended without cleaning up: \
             start it again"
        ),
        None => problem.to_owned(),
    }
}

/// The callback URL, which must not be another provider's.
fn callback(text: &str, provider: Provider) -> anyhow::Result<Url> {
    let mut url = Url::parse(text).ok().filter(|url| url.has_host()).ok_or_else(|| {
        BadConfig("--callback-url must be a URL such as https://gateway.example.com/callbacks/…".to_owned())
    })?;
    let of = url.path().split_once("/callbacks/").and_then(|(_, rest)| rest.split('/').next());
    if let Some(other) = of.and_then(Provider::from_name).filter(|other| *other != provider) {
        anyhow::bail!(BadConfig(format!(
            "the callback URL is of {}, the callback of {}: give --provider {}",
            title(other),
            title(provider),
            other.name()
        )));
    }
    // Never sent, and never signed.
    url.set_fragment(None);
    Ok(url)
}

impl TargetArgs {
    /// The running `gateway dev`, unless another control plane is meant.
    fn session(&self) -> anyhow::Result<Option<Session>> {
        let is_meant = |session: &Session| {
            self.control_plane_url.as_ref().is_none_or(|url| *url == session.control_plane_url)
        };
        Ok(session::find()?.filter(is_meant))
    }

    /// All that is missing is said at once.
    fn check(&self, provider: Provider, proof: ProofArg, session: Option<&Session>) -> anyhow::Result<()> {
        let is_demo = session.is_some() && (provider == Provider::Meta || self.callback_url.is_none());
        if is_demo {
            // Routes of demos have one secret.
            let best = ProofArg::resolve(None, provider)?;
            if proof != best && proof != ProofArg::Token && self.secret.is_none() {
                anyhow::bail!(BadConfig(format!(
                    "the demo route of {} has no secret for this --proof: leave it out, or name a route of your \
                     own with --callback-url and --secret",
                    title(provider)
                )));
            }
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut require = |name: &'static str, is_given: bool| {
            if !is_given {
                missing.push(name);
            }
        };
        require("--callback-url", self.callback_url.is_some());
        require("--secret", self.secret.is_some() || proof == ProofArg::Token);
        require("--provider-number-id", self.provider_number_id.is_some());
        require("--phone-number", self.phone_number.is_some());
        require("--control-plane-url", self.control_plane_url.is_some() || session.is_some());
        require("--api-key", self.api_key.is_some() || session.is_some());
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        match session {
            Some(_) => anyhow::bail!(BadConfig(format!(
                "a target that is not a demo of `gateway dev` also needs {missing} (see --help)"
            ))),
            None if self.is_named() => anyhow::bail!(BadConfig(format!(
                "no `gateway dev` is running, and a target without it also needs {missing} (see --help)"
            ))),
            None => anyhow::bail!(
                "no `gateway dev` is running. Start it in another terminal (`gateway dev`, or `cargo run --bin \
                 gateway -- dev`), or name another target: {missing} is missing (see --help)"
            ),
        }
    }

    /// Whether any flag says that another target is meant.
    fn is_named(&self) -> bool {
        let names = [
            &self.callback_url,
            &self.control_plane_url,
            &self.instance_id,
            &self.provider_number_id,
            &self.phone_number,
            &self.provider_account_id,
        ];
        names.into_iter().any(Option::is_some)
    }

    async fn client(&self, session: Option<&Session>) -> anyhow::Result<Client> {
        let pick = |flag: &Option<String>, of_session: fn(&Session) -> &String| {
            flag.clone().or_else(|| session.map(of_session).cloned()).unwrap_or_default()
        };
        let url = pick(&self.control_plane_url, |session| &session.control_plane_url);
        let api_key = pick(&self.api_key, |session| &session.api_key);
        let process = session.map(|session| session.process);
        let of_session = session.and_then(|session| session.control_plane_ca.as_deref());
        let ca = self.control_plane_ca.as_deref().or(of_session);
        match connect(&url, &api_key, ca).await {
            Err(error) if error.is::<BadConfig>() => Err(error),
            client => client.with_context(|| help(process, "the control plane cannot be called")),
        }
    }
}

impl Defaults {
    fn of_session(session: &Session) -> Self {
        Self {
            callback_url: Some(session.callback_url.clone()),
            secret: Some(session.app_secret.clone()),
            provider_number_id: Some(session.provider_number_id.clone()),
            phone_number: Some(session.phone_number.clone()),
            instance_id: Some(session.instance_id.clone()),
        }
    }

    /// The demo of another provider, which is made when it is missing.
    async fn of_demo(session: &Session, provider: Provider, client: &Client) -> anyhow::Result<Self> {
        let demo = Demo::of(provider);
        let (kind, secret) = demo::route_secret(Path::new(&session.data_dir), provider)?;
        let path = demo.ensure(client, &[(kind, secret.as_str())], &session.receiver_url).await;
        let path = path.with_context(|| format!("set up the demo of {}", title(provider)))?;
        wait_until_in_use(client).await?;
        progress(&format!("instance {}, inbound route {}", demo.instance_id, demo.route_id));
        let mut callback_url = Url::parse(&session.callback_url).context("read the session file")?;
        callback_url.set_path(&path);
        Ok(Self {
            callback_url: Some(callback_url.into()),
            secret: Some(secret),
            provider_number_id: Some(demo.provider_number_id.to_owned()),
            phone_number: Some(demo::PHONE_NUMBER.to_owned()),
            instance_id: Some(demo.instance_id),
        })
    }
}

/// Waits until an agent uses what was made.
async fn wait_until_in_use(client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    while !demo::is_in_use(client).await? {
        anyhow::ensure!(
            Instant::now() < deadline,
            "no agent took the demo's configuration within {} s (see AgentService/ListAgents)",
            STEP_TIMEOUT.as_secs()
        );
        sleep(POLL).await;
    }
    Ok(())
}
