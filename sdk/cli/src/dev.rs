//! `gateway dev`: a control plane and an agent in one process.
//!
//! In order: a data directory ([`data`]), both programs ([`programs`]), what stands in them ([`standing`]), a
//! receiver of webhooks ([`receiver`]), and a text that says what to do with it ([`welcome`]).

mod data;
mod programs;
mod standing;
mod receiver;
mod welcome;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
};

use anyhow::Context as _;
use clap::Args;
use gateway_runtime::{
    supervise,
    telemetry::{self, LogFormat},
};
use tokio::sync::mpsc;

use crate::{
    BadConfig,
    demo::PHONE_NUMBER,
    output::{Look, Output},
    session::{Session, SessionFile},
};
use data::DataDir;
use programs::Programs;
use receiver::Receiver;
use standing::Standing;

/// Lines about webhooks that wait for standard output. When full, a line is left out; the webhook itself is
/// kept by the receiver.
const LINES_MAX: usize = 256;

/// Settings of `gateway dev`.
#[derive(Args)]
#[command(after_help = "\
Once it runs it prints addresses, ids, secrets and lines to copy, and then a line for each webhook that the built-in \
receiver takes. Ctrl-C stops it.

The environment variable GATEWAY_CONTROL_PLANE_ADMIN_KEY sets the admin key.")]
pub struct DevArgs {
    /// Keep everything in DIR, and find it there at the next start; without it a temporary directory is used
    /// and removed at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the control plane serves gRPC; port 0 takes a free one, here and below
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    grpc_listen: SocketAddr,
    /// Where the control plane serves /livez, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    control_plane_admin_listen: SocketAddr,
    /// Where the agent takes callbacks
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    callback_listen: SocketAddr,
    /// Where the agent serves /livez, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9465")]
    agent_admin_listen: SocketAddr,
    /// Where the built-in receiver takes webhooks and shows them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8099")]
    receiver_listen: SocketAddr,
    /// Serve gRPC with TLS, with a certificate of the control plane's own authority
    #[arg(long)]
    tls: bool,
    /// Which log lines of control plane and agent go to standard error, as `info` or `gateway_agent=debug`
    #[arg(long, env = "GATEWAY_DEV_LOG_FILTER", value_name = "FILTER", default_value = "warn")]
    log_filter: String,
}

impl DevArgs {
    /// Every address with its flag and what it is for.
    fn listens(&self) -> [(SocketAddr, &'static str, &'static str); 5] {
        [
            (self.grpc_listen, "--grpc-listen", "the control plane's gRPC"),
            (self.control_plane_admin_listen, "--control-plane-admin-listen", "the control plane's metrics"),
            (self.callback_listen, "--callback-listen", "the agent's callbacks"),
            (self.agent_admin_listen, "--agent-admin-listen", "the agent's metrics"),
            (self.receiver_listen, "--receiver-listen", "the built-in receiver"),
        ]
    }

    /// Everything here is for one person on one machine, without TLS.
    fn check(&self) -> Result<(), BadConfig> {
        for (address, flag, purpose) in self.listens() {
            if !address.ip().is_loopback() {
                return Err(BadConfig(format!(
                    "{flag} {address} is not a loopback address; `gateway dev` serves {purpose} without TLS, \
                     for this machine only"
                )));
            }
        }
        Ok(())
    }
}

/// A running `gateway dev`.
struct Dev {
    programs: Programs,
    standing: Standing,
    receiver: Receiver,
    session: Session,
    data_dir: DataDir,
    _session_file: SessionFile,
}

/// Runs until Ctrl-C.
pub async fn run(args: DevArgs, output: &Output) -> anyhow::Result<()> {
    args.check()?;
    telemetry::init(&args.log_filter, LogFormat::Text)
        .map_err(|error| BadConfig(format!("--log-filter: {error}")))?;
    let (lines, mut webhooks) = mpsc::channel(LINES_MAX);
    let mut termination = pin!(supervise::termination());
    let dev = tokio::select! {
        started = Dev::start(&args, lines) => started?,
        signal = &mut termination => return Ok(signal?),
    };
    welcome::print(&dev, output)?;
    loop {
        tokio::select! {
            Some(line) = webhooks.recv() => output.line(line)?,
            () = dev.programs.ended() => break,
            signal = &mut termination => {
                signal?;
                break;
            }
        }
    }
    progress("stopping: finishing what was accepted …");
    tokio::select! {
        stopped = dev.stop() => stopped?,
        signal = supervise::termination() => {
            signal?;
            anyhow::bail!("stopped at the second signal, before everything was finished");
        }
    }
    output.line(output.look(Look::Faint, "stopped"))?;
    Ok(())
}

impl Dev {
    async fn start(args: &DevArgs, lines: mpsc::Sender<receiver::Line>) -> anyhow::Result<Self> {
        programs::check_free(&args.listens())?;
        let data_dir = DataDir::open(args.data_dir.clone())?;
        let listener = receiver::bind(args.receiver_listen).await?;
        let receiver_url = receiver::url(&listener)?;
        let control_plane = programs::ControlPlane::start(args, data_dir.path()).await?;
        let client = control_plane.client().await?;
        let standing =
            Standing::ensure(&client, data_dir.path(), &receiver_url).await.context("set up the demo")?;
        let receiver = Receiver::serve(listener, client.clone(), lines)?;
        let programs = control_plane.with_agent(args, data_dir.path(), &client).await?;
        let session = session(&programs, &standing, &receiver, data_dir.path());
        let session_file = SessionFile::write(&session)?;
        Ok(Self { programs, standing, receiver, session, data_dir, _session_file: session_file })
    }

    /// Agent first, so that it can still report, then the control plane; the receiver takes webhooks until
    /// the end.
    async fn stop(self) -> anyhow::Result<()> {
        self.programs.stop().await?;
        self.receiver.stop().await
    }
}

/// For those who run in another directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn session(programs: &Programs, standing: &Standing, receiver: &Receiver, data_dir: &Path) -> Session {
    Session {
        process: std::process::id(),
        data_dir: absolute(data_dir),
        control_plane_url: programs.control_plane_url(),
        control_plane_ca: programs.control_plane_ca().map(absolute),
        api_key: programs.admin_key().to_owned(),
        callback_url: format!("http://{}{}", programs.callback_addr(), standing.callback_path),
        app_secret: standing.secrets.app_secret.clone(),
        receiver_url: receiver.url().to_owned(),
        instance_id: standing.demo.instance_id.clone(),
        provider_number_id: standing.demo.provider_number_id.to_owned(),
        phone_number: PHONE_NUMBER.to_owned(),
    }
}

/// Progress goes to standard error, so that standard output can be piped.
pub fn progress(text: &str) {
    // Nothing can be done when standard error is closed.
    drop(writeln!(io::stderr().lock(), "{text}"));
}
