//! One running program: its log, its end, what it used.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::condition::{DEADLINE, Within as _, eventually};

/// Lines of the log that a failed test shows.
const TAIL_LINES: usize = 40;
/// Ports for programs come from below the range that the system gives to outgoing connections, so that
/// nobody takes a port while its program is being restarted.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Clock ticks per second in `/proc/<pid>/stat`; 100 on every Linux that runs Rust's standard library.
const TICKS_PER_SECOND: f64 = 100.0;

/// A program that was started and is killed when dropped. A failing test shows the end of its log.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where the log of this start begins.
    log_start: u64,
    pid: u32,
}

/// What a program has used since it started.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// The most resident memory so far, in bytes.
    pub rss_bytes_max: u64,
    /// Processor time, user and system.
    pub cpu: Duration,
}

impl Process {
    /// Starts `command`; its standard error goes to the end of `log`. Settings of the gateway in the
    /// environment of the test are not passed on.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let log_start = file.metadata()?.len();
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("GATEWAY_") {
                command.env_remove(key);
            }
        }
        let output = file.try_clone()?;
        command.stdin(Stdio::null()).stdout(output).stderr(file).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let pid = child.id().context("read the process id")?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), log_start, pid })
    }

    /// The process id.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// What this start has logged so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log_text(&self) -> anyhow::Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.log_start))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The first value that `pick` finds in a JSON log line of this start.
    ///
    /// # Errors
    /// When the program ends first, or takes too long.
    pub async fn logged<T>(&mut self, pick: impl Fn(&Value) -> Option<T>) -> anyhow::Result<T> {
        eventually(DEADLINE, async || {
            let text = self.log_text()?;
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found = lines.into_iter().find_map(|line| pick(&line));
            if found.is_none() && !self.is_running()? {
                bail!("{} has ended:\n{text}", self.name);
            }
            found.with_context(|| format!("find the line in the log of {}", self.name))
        })
        .await
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until `probe` succeeds, or the program has ended.
    ///
    /// # Errors
    /// When the program ends first, or the probe never succeeds.
    pub async fn ready_when(&mut self, probe: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let outcome = tokio::select! {
            ready = eventually(DEADLINE, probe) => ready,
            status = self.child.wait() => Err(anyhow::anyhow!("{} ended with {}", self.name, status?)),
        };
        outcome.with_context(|| format!("start {}:\n{}", self.name, self.tail()))
    }

    /// SIGKILL, as a power cut or the kernel's memory killer would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("kill {}", self.name))
    }

    /// Sends a signal by name: `TERM`, `INT`.
    ///
    /// # Errors
    /// When the process is gone.
    pub async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        // The shell's own kill, which is on every machine.
        let line = format!("kill -{signal} {}", self.pid);
        let status = Command::new("sh").args(["-c", &line]).status().await?;
        ensure!(status.success(), "send {signal} to {}", self.name);
        Ok(())
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM").await?;
        self.ended().await
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = self.child.wait().within(DEADLINE).await;
        Ok(ended.with_context(|| format!("wait for the end of {}", self.name))??)
    }

    /// Memory and processor time so far, from `/proc`.
    ///
    /// # Errors
    /// When the process is gone, or this is not Linux.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find VmHWM")?;
        let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse()?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // Fields are counted after the program's name, which may contain spaces: utime is the 14th field.
        let (_, fields) = stat.rsplit_once(')').context("read /proc/<pid>/stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let ticks = ticks.sum::<Result<f64, _>>()?;
        Ok(Usage { rss_bytes_max: kibibytes * 1024, cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND) })
    }

    fn tail(&self) -> String {
        let text = self.log_text().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("---- end of the log of {} ----\n{}\n", self.name, self.tail());
            // Nothing can be done when standard error is closed.
            drop(std::io::stderr().write_all(text.as_bytes()));
        }
    }
}

/// A port on which nobody listens, given to one caller only.
///
/// # Errors
/// When every port of the range is taken.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    let offset = u16::try_from(std::process::id() * 131 % u32::from(count))?;
    for _ in 0..count {
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (offset + index % count) % count;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("find a free port in {PORTS:?}")
}
