//! `gateway-load`: how many events per second the gateway takes from provider to customer on this machine.
//!
//! Run it with `cargo run --release -p gateway-tests --bin gateway-load`. It starts the real control plane
//! and agent, posts signed Meta text callbacks over keep-alive connections, each waiting for its answer, and
//! takes the webhooks. The figures are for this machine with everything on it; with `--baseline` a bare
//! relay (signature check, append and `fdatasync`, 200, forward once) does the same work in the same run,
//! and the ratio to it is what counts.
//!
//! In reading order: [`wire`] (cheap HTTP), [`tally`] (who was sent when), [`generator`], [`receiver`],
//! [`relay`] (the baseline), [`run`] (one measurement).

mod wire;
mod tally;
mod generator;
mod receiver;
mod relay;
mod run;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};

use run::Measurement;

/// Measures the gateway end to end: events per second, answer latency, end-to-end latency.
#[derive(Parser)]
struct Arguments {
    /// Numbers of connections to measure with
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    connections: Vec<usize>,
    /// How long to post for each number of connections
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Also measure a bare relay, and print the ratio to it
    #[arg(long)]
    baseline: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The bare relay itself; started by `--baseline`
    #[command(hide = true)]
    Relay {
        /// Where to take callbacks
        #[arg(long)]
        listen: SocketAddr,
        /// Where to forward to
        #[arg(long)]
        forward: SocketAddr,
        /// The file to append to
        #[arg(long)]
        file: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse() {
        Arguments { command: Some(Command::Relay { listen, forward, file }), .. } => {
            relay::serve(listen, forward, file).await
        }
        arguments => measure(&arguments).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done when standard error is closed.
            drop(writeln!(io::stderr(), "gateway-load: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let duration = Duration::from_secs(arguments.seconds);
    print(&format!(
        "{:>9} {:>5} {:>9} {:>17} {:>17} {:>9} {:>8} {:>13} {:>13} {:>8}",
        "",
        "conn",
        "events/s",
        "answer p50/p99",
        "e2e p50/p99 ms",
        "all logs",
        "after s",
        "RSS agent/cp",
        "CPU agent/cp",
        "load"
    ))?;
    for &connections in &arguments.connections {
        let gateway = run::gateway(connections, duration).await?;
        show("gateway", connections, &gateway)?;
        if arguments.baseline {
            let relay = run::relay(connections, duration).await?;
            show("relay", connections, &relay)?;
            let ratio = gateway.events_per_second() / relay.events_per_second();
            print(&format!("{:>9} {connections:>5} {ratio:>9.2}", "ratio"))?;
        }
    }
    Ok(())
}

fn show(what: &str, connections: usize, measured: &Measurement) -> anyhow::Result<()> {
    let pair = |(low, high): (f64, f64)| format!("{low:.2}/{high:.2}");
    let logs = measured.logs.map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |logs| {
            let all =
                if logs.recorded == measured.answered { "yes".to_owned() } else { logs.recorded.to_string() };
            (all, format!("{:.1}", logs.after.as_secs_f64()))
        },
    );
    let usage = |of: fn(&gateway_tests::process::Usage) -> String| {
        let shown: Vec<String> = measured.programs.iter().map(of).collect();
        shown.join("/")
    };
    print(&format!(
        "{what:>9} {connections:>5} {:>9.0} {:>17} {:>17} {:>9} {:>8} {:>13} {:>13} {:>8.1}",
        measured.events_per_second(),
        pair(measured.answer_milliseconds),
        pair(measured.end_to_end_milliseconds),
        logs.0,
        logs.1,
        usage(|usage| format!("{}M", usage.rss_bytes_max >> 20)),
        usage(|usage| format!("{:.1}s", usage.cpu.as_secs_f64())),
        measured.load_cpu.as_secs_f64(),
    ))
}

fn print(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}
