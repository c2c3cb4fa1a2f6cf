//! A program of the gateway that is ended and started again on the same data and addresses.

use std::{ffi::OsString, path::PathBuf, process::ExitStatus};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::{
    http,
    process::{Process, Usage},
};

/// How to start a program, as often as wanted.
#[derive(Debug, Clone)]
pub struct Start {
    /// What it is called in errors.
    pub name: &'static str,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Where its log goes.
    pub log: PathBuf,
    /// The port of its admin address.
    pub admin_port: u16,
}

impl Start {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self) -> anyhow::Result<Process> {
        let (program, arguments) = self.command.split_first().context("name the program")?;
        let mut command = Command::new(program);
        command.args(arguments);
        Process::spawn(self.name, command, &self.log)
    }
}

/// The program, running or ended.
pub struct Server {
    process: Process,
    http: reqwest::Client,
    start: Start,
}

impl Server {
    /// Starts it without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(start: Start) -> anyhow::Result<Self> {
        Ok(Self { process: start.spawn()?, http: http::client()?, start })
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it ends first, or takes too long.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = self.admin_url("/readyz");
        self.process.ready_when(async || http::expect_ok(&self.http, &url).await).await
    }

    /// The URL of a path on the admin address.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.start.admin_port)
    }

    /// The program.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What `/metrics` shows.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        http::get_text(&self.http, &self.admin_url("/metrics")).await
    }

    /// One value of `/metrics`, by its name and labels as they are written there.
    ///
    /// # Errors
    /// When nothing answers, or there is no such value.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let metrics = self.metrics().await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("find metric `{name}`"))?.parse()?)
    }

    /// What it has logged since its last start.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log_text(&self) -> anyhow::Result<String> {
        self.process.log_text()
    }

    /// Memory and processor time since the last start.
    ///
    /// # Errors
    /// When it is not running.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        self.process.usage()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.stop().await
    }

    /// Starts it again after [`Server::kill`] or [`Server::stop`], and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.launch_again()?;
        self.wait_ready().await
    }

    /// As [`Server::start_again`], without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_again(&mut self) -> anyhow::Result<()> {
        ensure!(!self.process.is_running()?, "start the {} again: it is still running", self.start.name);
        self.process = self.start.spawn()?;
        Ok(())
    }
}
