//! `gateway`: the command line for people.
//!
//! - [`dev`]: a control plane and an agent in one process, with a demo instance and a receiver.
//! - [`trigger`]: a genuine sample callback through the agent's front door, and what became of it.
//! - [`demo`]: demo numbers, which both of them use.
//! - [`signature`]: signing and verifying by hand, for support.

mod output;
mod json;
mod session;
mod control_plane;
mod demo;
mod dev;
mod trigger;
mod signature;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use gateway_runtime::config::EXIT_BAD_CONFIG;

use output::Output;

const AFTER_HELP: &str = "\
First steps: `gateway dev` in one terminal, `gateway trigger message.received` in another.

Exit codes: 0 done; 1 it did not work, standard error says why and what to do; \
64 wrong usage or configuration.";

/// WhatsApp Gateway: callbacks of WhatsApp providers in, signed webhooks out.
#[derive(Parser)]
#[command(name = "gateway", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a control plane and an agent in one process, with a demo instance and a receiver to play with.
    Dev(dev::DevArgs),
    /// Send a genuine, signed sample callback through the agent's front door and show what became of it.
    Trigger(trigger::TriggerArgs),
    /// Sign or verify webhooks and callbacks by hand.
    #[command(subcommand)]
    Signature(signature::SignatureCommand),
}

/// Usage or configuration is wrong: ends with exit code 64.
#[derive(Debug, thiserror::Error)]
#[error("read configuration: {0}")]
struct BadConfig(String);

/// Much of the work is small, short-lived allocations on several threads (ADR 9).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help and version come this way too, and are no error.
            let code = if error.use_stderr() { EXIT_BAD_CONFIG } else { 0 };
            // Nothing can be done when the reader has gone.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let output = Output::stdout();
    let outcome = match command {
        Command::Dev(args) => dev::run(args, &output).await,
        Command::Trigger(args) => trigger::run(args, &output).await,
        Command::Signature(command) => signature::run(command, &output),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // `gateway … | head`: the reader has seen enough.
        Err(failure) if is_broken_pipe(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing can be done when standard error is closed.
            drop(writeln!(io::stderr().lock(), "gateway: {failure:#}"));
            if failure.is::<BadConfig>() { ExitCode::from(EXIT_BAD_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn is_broken_pipe(failure: &anyhow::Error) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
