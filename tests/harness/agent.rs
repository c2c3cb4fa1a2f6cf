//! The agent program: start, restart on the same data and addresses, end.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use anyhow::ensure;
use tokio::process::Command;

use crate::{
    control_plane::ControlPlane,
    process::{Process, Usage, free_port},
    programs::programs,
};

/// How an agent is started; the default is a plain one.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Where it runs; empty means `test-region`.
    pub region: String,
    /// Its join token; unset means a new one.
    pub join_token: Option<String>,
    /// The network of `--allow-destination-cidr`; unset means loopback.
    pub destinations: Option<String>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// A program and arguments that run the agent: `["sh", "-c", "…exec \"$@\"", "sh"]`.
    pub wrapper: Vec<String>,
}

/// A running agent.
pub struct Agent {
    process: Process,
    http: reqwest::Client,
    start: Start,
}

/// How to start it, and to start it again.
#[derive(Clone)]
struct Start {
    dir: PathBuf,
    control_plane_url: String,
    callback_port: u16,
    admin_port: u16,
    options: AgentOptions,
}

impl Agent {
    /// Enrolls and starts an agent with its data in `<dir>/agent`, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(
        dir: &Path,
        control_plane: &ControlPlane,
        options: AgentOptions,
    ) -> anyhow::Result<Self> {
        let mut agent = Self::launch(dir, control_plane, options).await?;
        agent.wait_ready().await?;
        Ok(agent)
    }

    /// Enrolls and starts an agent without waiting for it.
    ///
    /// # Errors
    /// When there is no join token, or the program cannot be started.
    pub async fn launch(
        dir: &Path,
        control_plane: &ControlPlane,
        mut options: AgentOptions,
    ) -> anyhow::Result<Self> {
        if options.region.is_empty() {
            options.region = "test-region".to_owned();
        }
        let join_token = match &options.join_token {
            Some(join_token) => join_token.clone(),
            None => control_plane.join_token(&options.region).await?,
        };
        fs::create_dir_all(dir)?;
        fs::write(dir.join("join-token"), join_token)?;
        let start = Start {
            dir: dir.to_owned(),
            control_plane_url: control_plane.url(),
            callback_port: free_port()?,
            admin_port: free_port()?,
            options,
        };
        let process = start.spawn().await?;
        Ok(Self { process, http: crate::http::client()?, start })
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it ends first, or takes too long.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = self.admin_url("/readyz");
        self.process.ready_when(async || crate::http::expect_ok(&self.http, &url).await).await
    }

    /// The address for callbacks.
    pub fn callback_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.start.callback_port))
    }

    /// The URL of a path on the callback address.
    pub fn callback_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.callback_addr())
    }

    /// The URL of a path on the admin address.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.start.admin_port)
    }

    /// The directory with the buffer, the credential and the configuration.
    pub fn data_dir(&self) -> PathBuf {
        self.start.dir.join("agent")
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
        crate::http::get_text(&self.http, &self.admin_url("/metrics")).await
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

    /// Starts it again after [`Agent::kill`] or [`Agent::stop`], on the same data and ports, and waits
    /// until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.launch_again().await?;
        self.wait_ready().await
    }

    /// As [`Agent::start_again`], without waiting.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn launch_again(&mut self) -> anyhow::Result<()> {
        ensure!(!self.process.is_running()?, "start the agent again: it is still running");
        self.process = self.start.spawn().await?;
        Ok(())
    }

    /// Starts a second agent on the data directory of this one.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn twin(&self) -> anyhow::Result<Process> {
        let mut start = self.start.clone();
        start.callback_port = free_port()?;
        start.admin_port = free_port()?;
        let command = start.command().await?;
        Process::spawn("second agent", command, &start.dir.join("second-agent.log"))
    }
}

impl Start {
    async fn spawn(&self) -> anyhow::Result<Process> {
        Process::spawn("agent", self.command().await?, &self.dir.join("agent.log"))
    }

    async fn command(&self) -> anyhow::Result<Command> {
        let program = &programs().await?.agent;
        let mut command = match self.options.wrapper.split_first() {
            None => Command::new(program),
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .arg("--data-dir")
            .arg(self.dir.join("agent"))
            .arg("--join-token-file")
            .arg(self.dir.join("join-token"))
            .args(["--callback-listen", &format!("127.0.0.1:{}", self.callback_port)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin_port)])
            .args(["--control-plane-url", &self.control_plane_url, "--region", &self.options.region])
            .args(["--allow-destination-cidr", self.options.destinations.as_deref().unwrap_or("127.0.0.0/8")])
            .args(["--log-format", "json"])
            .args(&self.options.arguments);
        Ok(command)
    }
}
