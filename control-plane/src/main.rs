//! `gateway-control-plane`: exit code and process plumbing; everything else is in the library.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use gateway_control_plane::{
    app,
    config::{ADMIN_KEY_ENV, Config, Settings},
};
use gateway_runtime::{config::EXIT_BAD_CONFIG, supervise, telemetry};
use tokio_util::sync::CancellationToken;

/// Ends `--help`.
const AFTER_HELP: &str = "\
Environment:
  GATEWAY_CONTROL_PLANE_ADMIN_KEY  The admin key; without it `admin.key` of the data directory, made at the
                                   first start

Exit codes:
  0   stopped as asked
  1   failed
  64  wrong configuration or usage";

/// The source of truth of WhatsApp Gateway: configuration, opt-outs and inbound logs over gRPC.
#[derive(clap::Parser)]
#[command(name = "gateway-control-plane", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

/// Much of the work is small, short-lived allocations on several threads (ADR 9).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no error.
            let code = if error.use_stderr() { EXIT_BAD_CONFIG } else { 0 };
            return error.print().map_or(ExitCode::FAILURE, |()| ExitCode::from(code));
        }
    };
    let config = match configure(cli.settings) {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_BAD_CONFIG),
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn configure(settings: Settings) -> anyhow::Result<Config> {
    let admin_key = std::env::var_os(ADMIN_KEY_ENV).map(|key| key.to_string_lossy().into_owned());
    let config = Config::load(settings, admin_key.as_deref())?;
    telemetry::init(&config.log_filter, config.log_format)?;
    Ok(config)
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let running = app::start(config, stop.clone()).await?;
    let stopped = running.wait();
    tokio::pin!(stopped);
    tokio::select! {
        outcome = &mut stopped => return outcome,
        signal = supervise::termination() => signal.context("wait for a signal")?,
    }
    tracing::info!("stopping");
    stop.cancel();
    stopped.await
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // When standard error is gone there is nobody left to tell.
    drop(writeln!(std::io::stderr(), "gateway-control-plane: failed to {error:#}"));
    ExitCode::from(code)
}
