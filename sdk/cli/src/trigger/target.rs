//! Whom to call: the running `gateway dev`, unless flags say otherwise.

use clap::Args;

use crate::session;

/// Flags that name another target than the running `gateway dev`.
#[derive(Args)]
#[command(next_help_heading = "Another target than the running `gateway dev`")]
pub struct TargetArgs {
    /// The callback URL of a Meta route
    #[arg(long, value_name = "URL", env = "GATEWAY_CALLBACK_URL")]
    callback_url: Option<String>,
    /// An app secret of that route; better given by the environment, where other users cannot see it
    #[arg(long, value_name = "SECRET", env = "GATEWAY_APP_SECRET", hide_env_values = true)]
    app_secret: Option<String>,
    /// The control plane's gRPC
    #[arg(long, value_name = "URL", env = "GATEWAY_CONTROL_PLANE_URL")]
    control_plane_url: Option<String>,
    /// An API key; better given by the environment, where other users cannot see it
    #[arg(long, value_name = "KEY", env = "GATEWAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The instance of the number
    #[arg(long, value_name = "ID")]
    instance_id: Option<String>,
    /// The number's id at the provider, Meta `phone_number_id`
    #[arg(long, value_name = "ID")]
    provider_number_id: Option<String>,
    /// The business phone number
    #[arg(long, value_name = "PHONE")]
    phone_number: Option<String>,
}

/// Whom to call.
pub struct Target {
    pub callback_url: String,
    pub app_secret: String,
    pub control_plane_url: String,
    pub api_key: String,
    pub instance_id: Option<String>,
    pub provider_number_id: String,
    pub phone_number: String,
    /// The built-in receiver, when webhooks go there.
    pub receiver_url: Option<String>,
    /// The process of `gateway dev`, when it was found by its session file.
    process: Option<u32>,
}

impl Target {
    /// Flags over the session file.
    pub fn resolve(args: &TargetArgs) -> anyhow::Result<Self> {
        let session = session::find()?;
        let from = |flag: &Option<String>, name: &str, of_session: fn(&session::Session) -> &String| {
            flag.clone().or_else(|| session.as_ref().map(of_session).cloned()).ok_or_else(|| {
                anyhow::anyhow!(
                    "no `gateway dev` is running. Start it in another terminal (`gateway dev`, or `cargo run \
                     --bin gateway -- dev`), or name another target: {name} is missing (see --help)"
                )
            })
        };
        let same_callback = args.callback_url.is_none();
        Ok(Self {
            callback_url: from(&args.callback_url, "--callback-url", |session| &session.callback_url)?,
            app_secret: from(&args.app_secret, "--app-secret", |session| &session.app_secret)?,
            control_plane_url: from(&args.control_plane_url, "--control-plane-url", |session| {
                &session.control_plane_url
            })?,
            api_key: from(&args.api_key, "--api-key", |session| &session.api_key)?,
            instance_id: args.instance_id.clone().or_else(|| {
                session.as_ref().filter(|_| same_callback).map(|session| session.instance_id.clone())
            }),
            provider_number_id: from(&args.provider_number_id, "--provider-number-id", |session| {
                &session.provider_number_id
            })?,
            phone_number: from(&args.phone_number, "--phone-number", |session| &session.phone_number)?,
            receiver_url: session.as_ref().map(|session| session.receiver_url.clone()),
            process: session.as_ref().filter(|_| same_callback).map(|session| session.process),
        })
    }

    /// `problem`, and what to do about it.
    pub fn help(&self, problem: &str) -> String {
        match self.process {
            Some(process) => format!(
                "{problem}; the `gateway dev` that was found (process {process}) may have ended without \
                 cleaning up: start it again"
            ),
            None => problem.to_owned(),
        }
    }

    /// Whether the callback URL is on this machine.
    pub fn is_local(&self) -> bool {
        reqwest::Url::parse(&self.callback_url).is_ok_and(|url| {
            url.host_str().is_some_and(|host| {
                let host = host.trim_matches(['[', ']']);
                host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            })
        })
    }
}
