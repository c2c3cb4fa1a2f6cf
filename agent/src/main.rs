//! `gateway-agent`: takes provider callbacks at the edge and delivers them as signed webhooks.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use gateway_agent::{app, config::Settings};
use gateway_runtime::{config::EXIT_BAD_CONFIG, supervise, telemetry};
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Takes provider callbacks, proves them genuine, and delivers them as signed webhooks.
///
/// Exit codes: 0 stopped, 1 failed, 64 wrong configuration or usage.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// TOML file with settings; flags and environment win over it
    #[arg(long, env = "GATEWAY_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too, and are no error.
            let code = if error.use_stderr() { EXIT_BAD_CONFIG } else { 0 };
            return error.print().map_or(ExitCode::FAILURE, |()| ExitCode::from(code));
        }
    };
    let configured = arguments
        .settings
        .with_file(arguments.config.as_deref())
        .map_err(anyhow::Error::from)
        .and_then(|settings| settings.validate().map_err(anyhow::Error::from));
    let config = match configured.and_then(|config| {
        telemetry::init(&config.log_filter, config.log_format)?;
        Ok(config)
    }) {
        Ok(config) => config,
        Err(failure) => {
            complain(&failure);
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = format!("{failure:#}"), "failed to run the agent");
            ExitCode::FAILURE
        }
    }
}

/// Logging is not set up when the configuration is wrong, so this goes straight to standard error.
fn complain(failure: &anyhow::Error) {
    use std::io::Write as _;
    // Nothing can be done when standard error is closed.
    drop(writeln!(std::io::stderr(), "gateway-agent: bad configuration: {failure:#}"));
}

async fn run(config: gateway_agent::config::Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let running = app::start(config, stop.clone());
    let ended = async { running.await?.wait().await };
    tokio::pin!(ended);
    tokio::select! {
        outcome = &mut ended => outcome,
        signal = supervise::termination() => {
            signal?;
            tracing::info!("stopping");
            stop.cancel();
            ended.await
        }
    }
}
