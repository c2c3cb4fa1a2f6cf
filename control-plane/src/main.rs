//! `gateway-control-plane`: exit code and process plumbing; everything else is in the library.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use gateway_control_plane::{
    app,
    config::{ADMIN_KEY_ENV, Config, ROOT_KEYS_ENV, Settings},
    sealing::rewrap::Progress,
};
use gateway_runtime::{config::EXIT_BAD_CONFIG, supervise, telemetry};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

mod backup_command;
mod export_command;

/// Ends `--help`.
const AFTER_HELP: &str = "\
Environment:
  GATEWAY_CONTROL_PLANE_ADMIN_KEY  The admin key; without it `admin.key` of the data directory, made at the
                                   first start
  GATEWAY_CONTROL_PLANE_ROOT_KEYS  Root keys with commas between them, newest first, instead of
                                   --root-key-file; GATEWAY_CONTROL_PLANE_ROOT_KEY for one

Exit codes:
  0   stopped as asked
  1   failed
  2   the backup is written, and something in it is damaged: standard output says what
  64  wrong configuration or usage";

/// The source of truth of WhatsApp Gateway: configuration, opt-outs and inbound logs over gRPC.
#[derive(clap::Parser)]
#[command(
    name = "gateway-control-plane",
    version,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

/// What to do instead of running.
#[derive(clap::Subcommand)]
enum Command {
    /// Copies the databases to a new directory, and looks for damage in the copy. The control plane may run meanwhile.
    /// Root key, CA key and admin key are not in the copy.
    Backup {
        /// Directory of the backup; made, or empty.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Makes a data directory, which must be empty, from a backup. Agents then take their configuration anew and
    /// report the opt-outs that the backup does not have.
    Restore {
        /// Directory of the backup.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// The data directory that was in use until now, if it can still be read: API keys and agents that were revoked
        /// after the backup are revoked again. Nothing in it is changed.
        #[arg(long, value_name = "DIR")]
        previous_data_dir: Option<PathBuf>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Writes what a new agent of a region would be sent to a file, with which it can start while the control plane is
    /// away. The control plane may run meanwhile. The file is encrypted and signed, and holds all opt-outs.
    ExportSnapshot {
        #[command(flatten)]
        arguments: Box<export_command::Arguments>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Seals the stored secrets under the newest root key, so that older ones can be thrown away. The control
    /// plane must be stopped. Stopped in between, it goes on with the next call.
    Rewrap {
        /// Also makes new data keys, and seals every secret anew: for when the database and a root key may have
        /// been read by others.
        #[arg(long)]
        data_keys: bool,
        #[command(flatten)]
        settings: Box<Settings>,
    },
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
    match cli.command {
        Some(Command::Backup { to, settings }) => {
            finish(configure(*settings), |config| backup_command::back_up(&config, &to))
        }
        Some(Command::Restore { from, previous_data_dir, settings }) => {
            let previous = previous_data_dir.as_deref();
            finish(configure(*settings), |config| backup_command::restore(&config, &from, previous))
        }
        Some(Command::ExportSnapshot { arguments, settings }) => {
            finish(configure(*settings), |config| export_command::export_snapshot(&config, *arguments))
        }
        Some(Command::Rewrap { data_keys, settings }) => {
            finish(configure(*settings), |config| rewrap(&config, data_keys))
        }
        None => finish(configure(cli.settings), run),
    }
}

/// Does it with the settings, and gives the exit code.
fn finish(config: anyhow::Result<Config>, act: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_BAD_CONFIG),
    };
    match act(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<backup_command::Damaged>() => fail(&error, backup_command::EXIT_DAMAGED),
        Err(error) => fail(&error, 1),
    }
}

fn configure(settings: Settings) -> anyhow::Result<Config> {
    let admin_key = std::env::var_os(ADMIN_KEY_ENV).map(|key| key.to_string_lossy().into_owned());
    let mut config = Config::load(settings, admin_key.as_deref())?;
    for root_keys in ROOT_KEYS_ENV.iter().filter_map(std::env::var_os) {
        config.use_root_keys(&Zeroizing::new(root_keys.to_string_lossy().into_owned()))?;
    }
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

/// Progress goes to standard output.
#[tokio::main]
async fn rewrap(config: &Config, renew_data_keys: bool) -> anyhow::Result<()> {
    app::rewrap(config, renew_data_keys, |progress| {
        let line = match progress {
            Progress::DataKeys { done, total } => {
                format!("{done} of {total} data keys are sealed under the newest root key")
            }
            Progress::Tenants { done, total, rows } => {
                format!("{done} of {total} tenants have a new data key; {rows} rows are sealed under it")
            }
            Progress::Wiping => "writing the database anew".to_owned(),
        };
        // When standard output is gone the work still goes on.
        drop(writeln!(std::io::stdout(), "{line}"));
    })
    .await
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // When standard error is gone there is nobody left to tell.
    drop(writeln!(std::io::stderr(), "gateway-control-plane: failed to {error:#}"));
    ExitCode::from(code)
}
