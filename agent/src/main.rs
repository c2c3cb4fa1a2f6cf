//! `gateway-agent`: takes provider callbacks at the edge and delivers them as signed webhooks.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use gateway_agent::{app, config::Settings, snapshot::disk::key};
use gateway_runtime::{config::EXIT_BAD_CONFIG, supervise, telemetry};
use tokio_util::sync::CancellationToken;
use tracing::error;
use zeroize::Zeroizing;

mod buffer_command;

/// What `--help` says beside the settings.
const AFTER_HELP: &str = "\
First start:
  The agent enrolls at its control plane with a one-time join token: make one with AgentService/CreateJoinToken, \
write it to a file, and give that with --join-token-file. From then on the agent has a credential of its own in its \
data directory, and starts without a token and without a control plane.

Environment:
  GATEWAY_AGENT_CONFIG_KEY  The key under which the last good configuration is sealed, 32 bytes as base64 or \
hexadecimal; without it `config.key` of the data directory, made at the first start

Exit codes:
  0   stopped as asked
  1   failed
  64  wrong configuration or usage";

/// Takes provider callbacks, proves them genuine, and delivers them as signed webhooks.
#[derive(Parser)]
#[command(version, about, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// TOML file with settings; flags and environment win over it
    #[arg(long, env = "GATEWAY_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What to do instead of running.
#[derive(Subcommand)]
enum Command {
    #[command(subcommand)]
    Buffer(buffer_command::Command),
}

/// Much of the work is small, short-lived allocations on several threads (ADR 9).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too, and are no error.
            let code = if error.use_stderr() { exit_bad_usage() } else { 0 };
            return error.print().map_or(ExitCode::FAILURE, |()| ExitCode::from(code));
        }
    };
    match arguments.command {
        Some(Command::Buffer(command)) => ExitCode::from(buffer_command::run(&command)),
        None => run_agent(arguments),
    }
}

/// The tools have exit codes of their own.
fn exit_bad_usage() -> u8 {
    let is_tool = std::env::args_os().nth(1).is_some_and(|first| first == "buffer");
    if is_tool { buffer_command::EXIT_REFUSED } else { EXIT_BAD_CONFIG }
}

#[tokio::main]
async fn run_agent(arguments: Arguments) -> ExitCode {
    let configured = arguments
        .settings
        .with_file(arguments.config.as_deref())
        .map_err(anyhow::Error::from)
        .and_then(|settings| settings.validate().map_err(anyhow::Error::from));
    let config = match configured.and_then(|mut config| {
        if let Some(key) = std::env::var_os(key::ENV) {
            let key = Zeroizing::new(key.to_string_lossy().into_owned());
            config.use_config_key(&key).with_context(|| format!("use {}", key::ENV))?;
        }
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Without a tool the agent runs, with the flags it always had; help names both.
    #[test]
    fn agent_runs_without_a_tool() {
        let arguments =
            Arguments::try_parse_from(["gateway-agent", "--data-dir", "x", "--log-format", "json"]);
        let arguments = arguments.unwrap();
        assert!(arguments.command.is_none());
        assert_eq!(arguments.settings.data_dir, Some(PathBuf::from("x")));
        let help = Arguments::command().render_help().to_string();
        for text in
            ["buffer", "--callback-listen", "--buffer-bytes-max", "--config", "CreateJoinToken", key::ENV]
        {
            assert!(help.contains(text), "{text} is missing in {help}");
        }
        Arguments::command().debug_assert();
    }

    /// Settings of the agent are refused beside a tool, which would not heed them.
    #[test]
    fn tools_have_their_own_flags() {
        let tool = ["buffer", "verify", "--data-dir", "x"];
        assert!(Arguments::try_parse_from(["gateway-agent"].iter().chain(&tool)).unwrap().command.is_some());
        let both = ["gateway-agent", "--log-format", "json"];
        assert!(Arguments::try_parse_from(both.iter().chain(&tool)).is_err());
    }
}
