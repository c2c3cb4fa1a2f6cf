//! `gateway-agent buffer …`: looks into the buffer of an agent that is stopped.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gateway_agent::pipeline::buffer::tool::{
    CheckedIndex, Salvaged, Source, Stopped, Stretch, Verified, check_index, export, salvage, verify,
};

#[cfg(test)]
mod tests;

/// Everything is as it should be.
const EXIT_SOUND: u8 = 0;
/// Something is damaged, or was lost.
const EXIT_DAMAGED: u8 = 1;
/// It could not be done: wrong usage, the agent runs, the disk refuses.
pub(crate) const EXIT_REFUSED: u8 = 2;
/// How often people are told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Looks into the buffer of a stopped agent; the buffer is left as it is
///
/// Exit codes: 0 all is sound, 1 something is damaged or was lost, 2 it could not be done.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Reads everything and says what is live and what is damaged
    ///
    /// The index is opened from a copy in the temporary directory (TMPDIR).
    Verify(VerifyArguments),
    /// Writes the open events as JSON lines. They are personal data
    ///
    /// One line per event that is not delivered or not reported yet: event_id, instance_id, event, receive_time,
    /// report (not_written, waiting, acked), subscriptions with their state, attempts and next_attempt_time, and
    /// payload, which is the webhook's body.
    Export(ExportArguments),
    /// Writes everything that can be read and is live into a fresh buffer
    ///
    /// NEW_DIR becomes a data directory with nothing but a buffer. Either put its `buffer` in the place of the
    /// damaged one while the agent is stopped, or start another agent on it.
    Salvage(SalvageArguments),
}

#[derive(clap::Args)]
pub(crate) struct DataDir {
    /// The data directory of the agent, which must be stopped
    #[arg(long, env = "GATEWAY_AGENT_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    of: DataDir,
    /// How the result is shown
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for people
    Text,
    /// One JSON object
    Json,
}

#[derive(clap::Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    of: DataDir,
    /// A new file for them, which only you can read [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Events, too, that are done and still in the journal
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args)]
pub(crate) struct SalvageArguments {
    /// The data directory of the agent, which must be stopped
    #[arg(long, env = "GATEWAY_AGENT_DATA_DIR", value_name = "DIR", required_unless_present = "segment")]
    data_dir: Option<PathBuf>,
    /// One segment instead, such as one in `buffer/quarantine`: what was not settled as far as it tells. What was
    /// settled later is delivered once more, with the same webhook-id
    #[arg(long, value_name = "FILE")]
    segment: Option<PathBuf>,
    /// Where to; must not be there, or be empty
    #[arg(long, value_name = "NEW_DIR")]
    to: PathBuf,
}

/// Does it. Returns the exit code.
pub(crate) fn run(command: &Command) -> u8 {
    run_to(command, &mut BufWriter::new(io::stdout().lock()))
}

fn run_to(command: &Command, out: &mut dyn Write) -> u8 {
    let done = match command {
        Command::Verify(arguments) => run_verify(arguments, out),
        Command::Export(arguments) => run_export(arguments, out),
        Command::Salvage(arguments) => run_salvage(arguments, out),
    };
    match done.and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Ok(code) => code,
        // Whoever reads has seen enough.
        Err(failure) if is_broken_pipe(&failure) => EXIT_SOUND,
        Err(failure) => {
            say(&format!("failed to {failure:#}"));
            EXIT_REFUSED
        }
    }
}

fn is_broken_pipe(failure: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref().map(io::Error::kind);
    failure.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// To people, who may not be looking.
fn say(text: &str) {
    drop(writeln!(io::stderr(), "gateway-agent: {text}"));
}

fn progress() -> impl FnMut(&'static str, u64, u64) {
    let mut next = Instant::now() + PROGRESS_EVERY;
    move |what, done, of| {
        if Instant::now() >= next {
            next = Instant::now() + PROGRESS_EVERY;
            say(&format!("{what}: {done} of {of}"));
        }
    }
}

fn run_verify(arguments: &VerifyArguments, out: &mut dyn Write) -> anyhow::Result<u8> {
    let buffer = Stopped::open(&arguments.of.data_dir)?;
    let verified = verify(&buffer, &mut progress())?;
    let is_text = arguments.format == Format::Text;
    if is_text {
        print_journal(&buffer, &verified, out)?;
        // A damaged index can end the program: what is known is said before.
        out.flush()?;
    }
    let index = check_index(&buffer, &verified, &std::env::temp_dir());
    let is_sound = verified.is_sound() && index.is_sound();
    if is_text {
        writeln!(out, "index       {}", words(&index))?;
        writeln!(out, "\n{}", if is_sound { "sound" } else { "damaged" })?;
    } else {
        let all = serde_json::json!({
            "directory": buffer.directory(), "is_sound": is_sound, "index": index, "journal": verified.found,
            "segments": verified.segments, "marks": verified.marks, "quarantined": verified.quarantined,
        });
        writeln!(out, "{all:#}")?;
    }
    Ok(if is_sound { EXIT_SOUND } else { EXIT_DAMAGED })
}

fn print_journal(buffer: &Stopped, verified: &Verified, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<22} {:>12} {:>9} {:>9} {:>9} {:>9}  damaged",
        "file", "bytes", "events", "reports", "others", "live"
    )?;
    for segment in &verified.segments {
        let of = |kind| segment.records.get(kind).copied().unwrap_or(0);
        let others = segment.records.values().sum::<u64>() - of("event") - of("report");
        let name = format!("{:016}", segment.number);
        write!(out, "{name:<22} {:>12} {:>9} {:>9}", segment.bytes, of("event"), of("report"))?;
        writeln!(out, " {others:>9} {:>9}  {}", segment.live, stretches(&segment.damaged))?;
    }
    for file in &verified.marks {
        let name = format!("marks {}", file.file);
        let damaged = stretches(&file.damaged);
        writeln!(
            out,
            "{name:<22} {:>12} {:>9} {:>9} {:>9} {:>9}  {damaged}",
            file.bytes, "", "", file.marks, ""
        )?;
    }
    let found = &verified.found;
    writeln!(out, "\nbuffer      {}", buffer.directory().display())?;
    writeln!(
        out,
        "open        {} events with {} deliveries, {} bytes; {} reports wait; {} opt-outs",
        found.events_open, found.deliveries_open, found.event_bytes, found.reports_waiting, found.opt_outs
    )?;
    if found.deliveries_handing_over > 0 {
        writeln!(out, "given away  {} deliveries, not acked yet", found.deliveries_handing_over)?;
    }
    if !verified.quarantined.is_empty() {
        writeln!(out, "set aside   {}", verified.quarantined.join(", "))?;
    }
    if !found.causes.is_empty() {
        let (bytes, events) = (found.unreadable_bytes, found.events_lost_max);
        writeln!(out, "damage      {}", found.causes.join("; "))?;
        writeln!(out, "            {bytes} bytes cannot be read, at most {events} events are lost")?;
    }
    Ok(())
}

/// Most stretches of a file that are named.
const STRETCHES_MAX: usize = 8;

fn stretches(damaged: &[Stretch]) -> String {
    let named = damaged.iter().take(STRETCHES_MAX);
    let mut text: Vec<String> =
        named.map(|stretch| format!("{} at {}", stretch.bytes, stretch.offset)).collect();
    let more = damaged.len().saturating_sub(STRETCHES_MAX);
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    if text.is_empty() { "-".to_owned() } else { text.join(", ") }
}

fn words(index: &CheckedIndex) -> String {
    match index {
        CheckedIndex::Empty => "none; the agent builds it from the journal".to_owned(),
        CheckedIndex::UpToDate => "up to date".to_owned(),
        CheckedIndex::Behind { segment, offset, bytes } => {
            format!(
                "at {offset} of segment {segment}, {bytes} bytes behind the journal, which the agent makes up for"
            )
        }
        CheckedIndex::Ahead { segment, offset } => {
            format!("at {offset} of segment {segment}: the end of the journal is missing")
        }
        CheckedIndex::OfAnotherJournal => {
            "belongs to another journal; the agent sets it aside and builds another".to_owned()
        }
        CheckedIndex::Damaged { cause } => {
            format!("damaged; the agent sets it aside and builds another ({cause})")
        }
        CheckedIndex::NotChecked { cause } => format!("not checked: {cause}"),
    }
}

fn run_export(arguments: &ExportArguments, out: &mut dyn Write) -> anyhow::Result<u8> {
    let buffer = Stopped::open(&arguments.of.data_dir)?;
    say("what is exported holds personal data: messages, phone numbers and names");
    let exported = match &arguments.output {
        None => export(&buffer, arguments.all, out, &mut progress())?,
        Some(path) => {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let file = file.map_err(|error| {
                anyhow::Error::from(error).context(format!("make file `{}`", path.display()))
            })?;
            let mut file = BufWriter::new(file);
            let exported = export(&buffer, arguments.all, &mut file, &mut progress())?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            exported
        }
    };
    say(&format!("exported {} events", exported.events));
    if exported.unreadable == 0 && exported.unreadable_bytes == 0 {
        return Ok(EXIT_SOUND);
    }
    let (events, bytes) = (exported.unreadable, exported.unreadable_bytes);
    say(&format!("{events} events and {bytes} bytes of the journal cannot be read"));
    Ok(EXIT_DAMAGED)
}

fn run_salvage(arguments: &SalvageArguments, out: &mut dyn Write) -> anyhow::Result<u8> {
    let salvaged = match (&arguments.segment, &arguments.data_dir) {
        (Some(segment), _) => salvage(Source::Segment(segment), &arguments.to, &mut progress())?,
        (None, Some(data_dir)) => {
            let buffer = Stopped::open(data_dir)?;
            salvage(Source::Buffer(&buffer), &arguments.to, &mut progress())?
        }
        (None, None) => anyhow::bail!("salvage: name a --data-dir or a --segment"),
    };
    print_salvaged(&salvaged, arguments, out)?;
    Ok(if salvaged.is_complete() { EXIT_SOUND } else { EXIT_DAMAGED })
}

fn print_salvaged(salvaged: &Salvaged, arguments: &SalvageArguments, out: &mut dyn Write) -> io::Result<()> {
    let to = arguments.to.join("buffer");
    let Salvaged { events, deliveries, reports, opt_outs, marks, .. } = salvaged;
    writeln!(out, "carried over  {events} events with {deliveries} open deliveries")?;
    writeln!(out, "              {reports} reports, {opt_outs} opt-outs, {marks} marks")?;
    if salvaged.is_complete() {
        writeln!(out, "lost          nothing")?;
    } else {
        let (bytes, lost) = (salvaged.unreadable_bytes, salvaged.events_lost_max);
        writeln!(out, "lost          {bytes} bytes cannot be read, at most {lost} events are lost")?;
        writeln!(out, "              {}", salvaged.causes.join("; "))?;
    }
    match &arguments.data_dir {
        Some(data_dir) if arguments.segment.is_none() => print_swap(&data_dir.join("buffer"), &to, out),
        _ => writeln!(out, "next          gateway-agent --data-dir {} …", arguments.to.display()),
    }
}

fn print_swap(from: &Path, to: &Path, out: &mut dyn Write) -> io::Result<()> {
    let (from, to) = (from.display(), to.display());
    writeln!(out, "next          mv {from} {from}.damaged && mv {to} {from}")
}
