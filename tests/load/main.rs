//! `gateway-load`: how many events per second the gateway takes from provider to customer on this machine.
//!
//! Run it with `cargo run --release -p gateway-tests --bin gateway-load`. It starts the real control plane
//! and agent, posts signed Meta text callbacks over keep-alive connections, each waiting for its answer, and
//! takes the webhooks. The figures are for this machine with everything on it; with `--baseline` a bare
//! relay (signature check, append and `fdatasync`, 200, forward once) does the same work in the same run,
//! and the ratio to it is what counts. Other flags measure what trouble costs: `--black-hole`, `--hanging`,
//! `--backlog`.
//!
//! In reading order: [`wire`] (cheap HTTP), [`tally`] (who was sent when), [`generator`], [`receiver`],
//! [`gateway`] (what is measured), [`relay`] (the baseline), [`run`] (one measurement), [`trouble`].

mod wire;
mod tally;
mod generator;
mod receiver;
mod gateway;
mod relay;
mod run;
mod trouble;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};

use gateway_tests::figure::Spread;

use generator::Load;
use run::Measurement;

/// Connections over which a steady rate is posted.
const STEADY_CONNECTIONS: usize = 64;
/// How many times both sides of a comparison of 99th percentiles are measured: one of them alone says little.
const HANGING_ROUNDS: usize = 3;

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
    /// Measure the rate also with so many events waiting for a destination that is dead
    #[arg(long, value_name = "EVENTS")]
    backlog: Option<usize>,
    /// Measure only the answers to the provider, at a steady rate, while no destination accepts connections
    #[arg(long, conflicts_with_all = ["baseline", "backlog", "hanging"])]
    black_hole: bool,
    /// Measure only webhooks to so many destinations but one, at a steady rate, while that one answers and
    /// while it hangs
    #[arg(long, value_name = "DESTINATIONS", num_args = 0..=1, default_missing_value = "100",
          conflicts_with_all = ["baseline", "backlog"])]
    hanging: Option<usize>,
    /// The steady rate, in events per second
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
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
    let steady = Load { connections: STEADY_CONNECTIONS, duration, rate: Some(arguments.rate) };
    if arguments.black_hole {
        return show_black_hole(steady).await;
    }
    if let Some(destinations) = arguments.hanging {
        return show_hanging(steady, destinations.max(2)).await;
    }
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
        "µs agent/cp",
        "µs load"
    ))?;
    for &connections in &arguments.connections {
        let load = Load { connections, duration, rate: None };
        let gateway = run::gateway(load, 0).await?;
        show("gateway", connections, &gateway)?;
        if let Some(backlog) = arguments.backlog {
            let waiting = run::gateway(load, backlog).await?;
            show("backlog", connections, &waiting)?;
            show_ratio("to empty", connections, &waiting, &gateway)?;
        }
        if arguments.baseline {
            let relay = run::relay(load).await?;
            show("relay", connections, &relay)?;
            show_ratio("to relay", connections, &gateway, &relay)?;
        }
    }
    Ok(())
}

fn show_ratio(what: &str, connections: usize, of: &Measurement, to: &Measurement) -> anyhow::Result<()> {
    let ratio = of.events_per_second() / to.events_per_second();
    print(&format!("{what:>9} {connections:>5} {ratio:>9.2}"))
}

async fn show_black_hole(load: Load) -> anyhow::Result<()> {
    let measured = trouble::black_hole(load).await?;
    let rate = load.rate.unwrap_or_default();
    let Measurement { answered, answers, .. } = measured;
    print(&format!("no destination accepts, {rate}/s: {answered} answers, {answers}"))?;
    let rss = measured.programs.first().map_or(0, |usage| usage.rss_bytes_max >> 20);
    print(&format!("the agent used at most {rss} MiB"))
}

async fn show_hanging(load: Load, destinations: usize) -> anyhow::Result<()> {
    let mut p99 = [Vec::new(), Vec::new()];
    for _ in 0..HANGING_ROUNDS {
        for (is_hanging, what) in [(false, "answers"), (true, "hangs")] {
            let others: Spread = trouble::others(load, destinations, is_hanging).await?;
            print(&format!("one of {destinations} destinations {what}, the others: {others}"))?;
            p99[usize::from(is_hanging)].push(others.p99);
        }
    }
    let [without, with] = p99.map(|rounds| Spread::of(rounds).median);
    let ratio = trouble::ratio(with, without);
    print(&format!("ratio of the p99, median of {HANGING_ROUNDS} rounds: {ratio:.2}"))
}

fn show(what: &str, connections: usize, measured: &Measurement) -> anyhow::Result<()> {
    let pair = |spread: Spread| {
        let [low, high] = [spread.median, spread.p99].map(|time| time.as_secs_f64() * 1_000.0);
        format!("{low:.2}/{high:.2}")
    };
    let logs = measured.logs.map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |logs| {
            let all =
                if logs.recorded == measured.answered { "yes".to_owned() } else { logs.recorded.to_string() };
            (all, format!("{:.1}", logs.after.as_secs_f64()))
        },
    );
    let usage = |of: &dyn Fn(&gateway_tests::process::Usage) -> String| {
        let shown: Vec<String> = measured.programs.iter().map(of).collect();
        shown.join("/")
    };
    print(&format!(
        "{what:>9} {connections:>5} {:>9.0} {:>17} {:>17} {:>9} {:>8} {:>13} {:>13} {:>8.1}",
        measured.events_per_second(),
        pair(measured.answers),
        pair(measured.end_to_end),
        logs.0,
        logs.1,
        usage(&|usage| format!("{}M", usage.rss_bytes_max >> 20)),
        usage(&|usage| format!("{:.1}", measured.microseconds_per_event(usage.cpu))),
        measured.microseconds_per_event(measured.load_cpu),
    ))
}

fn print(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}
