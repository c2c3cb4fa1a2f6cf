//! `gateway-trace`: shows on the system calls of the real agent that no callback is answered 200 before the
//! sync that covers it has returned. `just trace` runs it; it needs `strace`.
//!
//! In reading order: [`calls`] (what strace writes), [`mod@check`] (the promise), and here the run.

mod calls;
mod check;

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use gateway_tests::{
    DEADLINE, MetaProvider, World, agent::AgentOptions, eventually, meta::text_message, python::run,
    world::WorldOptions,
};
use tokio::task::JoinSet;

use check::{Findings, WAMID_DIGITS, WAMID_PREFIX, check};

/// Every call that can read a request, write a record, sync it or answer.
const CALLS: &str =
    "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev,pwritev2,fdatasync,fsync";
/// More than a group commit writes at once: records are seen whole.
const STRING_BYTES_MAX: &str = "4194304";
/// In the path of every file of the journal.
const JOURNAL: &str = "/buffer/journal/";

/// Traces the agent under load and checks that it answers 200 only to what is on disk
#[derive(Parser)]
struct Arguments {
    /// How many callbacks to post
    #[arg(long, default_value_t = 4_000)]
    callbacks: usize,
    /// Over how many connections
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// What the path of every file of the journal contains
    #[arg(long, default_value = JOURNAL, hide = true)]
    journal: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let (text, code) = match trace(&Arguments::parse()).await {
        Ok(findings) => {
            let code = if findings.exceptions.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            (describe(&findings), code)
        }
        Err(error) => (format!("gateway-trace: {error:#}\n"), ExitCode::FAILURE),
    };
    // Nothing can be done when standard output is closed.
    drop(io::stdout().write_all(text.as_bytes()));
    code
}

fn describe(findings: &Findings) -> String {
    let Findings { answers, syncs, messages_per_sync_max, exceptions } = findings;
    let mut text = format!(
        "{answers} answers of 200 checked against {syncs} syncs, which covered up to {messages_per_sync_max} \
         messages each: {} exceptions\n",
        exceptions.len()
    );
    for exception in exceptions.iter().take(20) {
        text.extend([exception, "\n"]);
    }
    text
}

/// Runs the agent under strace, posts, ends it, and checks what it did.
async fn trace(arguments: &Arguments) -> anyhow::Result<Findings> {
    run("strace", ["-V"]).await.context("find strace (Debian and Ubuntu: apt-get install strace)")?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("trace");
    let output = file.to_str().context("name the trace")?;
    // strace is the child of the agent, not its parent, so that signals reach the agent.
    let strace = ["strace", "-D", "-f", "-yy", "-s", STRING_BYTES_MAX, "-e", CALLS, "-o", output, "--"];
    let agent = AgentOptions { wrapper: strace.map(str::to_owned).into(), ..AgentOptions::default() };
    let mut world = World::start_with(WorldOptions { agent, ..WorldOptions::default() }).await?;
    let callbacks = world.agent.callback_addr();
    let posted = post(&world, arguments).await?;
    world.receiver.recorded(posted).await;
    world.agent.stop().await?;
    let calls = calls::parse(&finished(&file).await?)?;
    let findings = check(&calls, callbacks, &arguments.journal)?;
    ensure!(
        findings.answers == posted,
        "{posted} callbacks were answered 200; the trace has {}",
        findings.answers
    );
    Ok(findings)
}

/// The trace, once strace has written all of it: the end of the program is its last line.
async fn finished(file: &Path) -> anyhow::Result<String> {
    eventually(DEADLINE, async || {
        let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
        let last = text.lines().last().unwrap_or_default();
        ensure!(last.contains("+++ exited") || last.contains("+++ killed"), "the trace has no end");
        Ok(text)
    })
    .await
}

/// Posts all callbacks; every one must be answered 200. Gives how many there were.
async fn post(world: &World, arguments: &Arguments) -> anyhow::Result<usize> {
    let mut posters = JoinSet::new();
    for connection in 0..arguments.connections {
        let numbers = (connection..arguments.callbacks).step_by(arguments.connections);
        // A client of its own, so that nobody shares its connection.
        let provider = MetaProvider::new(
            world.provider.callback_url().to_owned(),
            gateway_tests::world::APP_SECRET,
            world.provider.phone_number_id(),
        )?;
        posters.spawn(async move {
            let mut posted = 0;
            for number in numbers {
                let wamid = format!("{WAMID_PREFIX}{number:0WAMID_DIGITS$}");
                let message = text_message(&wamid, "966500000001", "traced");
                let answer = provider.post(&provider.messages(&[message])).await?;
                ensure!(answer.status == 200, "answered {}", answer.status);
                posted += 1;
            }
            anyhow::Ok(posted)
        });
    }
    let mut posted = 0;
    while let Some(done) = posters.join_next().await {
        posted += done??;
    }
    Ok(posted)
}
