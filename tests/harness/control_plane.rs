//! The control plane program: start, restart on the same data and address, end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_sdk::{Client, ClientOptions};
use tokio::process::Command;

use crate::{
    process::{Process, Usage, free_port},
    programs::programs,
};

/// How long the lifetime of a join token made by the harness is.
const JOIN_TOKEN_TTL: Duration = Duration::from_secs(600);

/// How a control plane is started; the default is a plain one.
#[derive(Debug, Clone, Default)]
pub struct ControlPlaneOptions {
    /// Without `--allow-destination-cidr`: destinations must be public and https. Otherwise loopback is
    /// allowed.
    pub public_destinations_only: bool,
    /// More arguments.
    pub arguments: Vec<String>,
}

/// A running control plane.
pub struct ControlPlane {
    process: Process,
    client: Client,
    http: reqwest::Client,
    start: Start,
    admin_key: String,
}

/// How to start it, and to start it again.
struct Start {
    dir: PathBuf,
    grpc_port: u16,
    admin_port: u16,
    options: ControlPlaneOptions,
}

impl ControlPlane {
    /// Starts a control plane with its data in `<dir>/control-plane` and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(dir, ControlPlaneOptions::default()).await
    }

    /// The same as `options` say.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_with(dir: &Path, options: ControlPlaneOptions) -> anyhow::Result<Self> {
        let start = Start { dir: dir.to_owned(), grpc_port: free_port()?, admin_port: free_port()?, options };
        let mut process = start.spawn().await?;
        let http = crate::http::client()?;
        start.wait_ready(&mut process, &http).await?;
        let key_file = start.data_dir().join("admin.key");
        let admin_key = fs::read_to_string(key_file).context("read admin key")?.trim().to_owned();
        let options = ClientOptions::new(format!("http://127.0.0.1:{}", start.grpc_port), &admin_key);
        let client = Client::connect_lazy(&options)?;
        Ok(Self { process, client, http, start, admin_key })
    }

    /// A client with the admin key; it outlives restarts.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The address for gRPC, `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.start.grpc_port)
    }

    /// The admin key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// The directory with the databases.
    pub fn data_dir(&self) -> PathBuf {
        self.start.data_dir()
    }

    /// A one-time token with which an agent of `region` enrolls.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub async fn join_token(&self, region: &str) -> anyhow::Result<String> {
        let request =
            v1::CreateJoinTokenRequest { region: region.to_owned(), ttl: Some(JOIN_TOKEN_TTL.try_into()?) };
        Ok(self.client.agents().create_join_token(request).await?.into_inner().join_token)
    }

    /// What `/metrics` shows.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        crate::http::get_text(&self.http, &format!("http://127.0.0.1:{}/metrics", self.start.admin_port))
            .await
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

    /// Starts it again after [`ControlPlane::kill`] or [`ControlPlane::stop`], on the same data and ports.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(!self.process.is_running()?, "start the control plane again: it is still running");
        self.process = self.start.spawn().await?;
        self.start.wait_ready(&mut self.process, &self.http).await
    }
}

impl Start {
    fn data_dir(&self) -> PathBuf {
        self.dir.join("control-plane")
    }

    async fn spawn(&self) -> anyhow::Result<Process> {
        let mut command = Command::new(&programs().await?.control_plane);
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--grpc-listen", &format!("127.0.0.1:{}", self.grpc_port)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin_port)])
            .args(["--log-format", "json"])
            .args(&self.options.arguments);
        if !self.options.public_destinations_only {
            command.args(["--allow-destination-cidr", "127.0.0.0/8"]);
        }
        Process::spawn("control plane", command, &self.dir.join("control-plane.log"))
    }

    async fn wait_ready(&self, process: &mut Process, http: &reqwest::Client) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:{}/readyz", self.admin_port);
        process.ready_when(async || crate::http::expect_ok(http, &url).await).await
    }
}
