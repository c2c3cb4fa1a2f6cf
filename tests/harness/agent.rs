//! The agent program: what it is started with, and where it is then.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    control_plane::ControlPlane,
    process::{Process, free_port},
    programs::programs,
    server::{Server, Start},
};

/// How an agent is started; the default is a plain one.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Where it runs; empty means `test-region`.
    pub region: String,
    /// Its join token; unset means a new one.
    pub join_token: Option<String>,
    /// Where it finds the control plane, such as a [`crate::Proxy`] before it; unset means the control plane's
    /// own address.
    pub control_plane_url: Option<String>,
    /// The network of `--allow-destination-cidr`; unset means loopback.
    pub destinations: Option<String>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// A program and arguments that run the agent: `["sh", "-c", "…exec \"$@\"", "sh"]`.
    pub wrapper: Vec<String>,
    /// The program; unset means that of this workspace.
    pub program: Option<PathBuf>,
}

/// An agent with its data in `<dir>/agent`.
pub struct Agent {
    server: Server,
    settings: Settings,
}

/// What its arguments are made of.
#[derive(Clone)]
struct Settings {
    dir: PathBuf,
    control_plane_url: String,
    callback_port: u16,
    admin_port: u16,
    options: AgentOptions,
}

impl Agent {
    /// Starts an agent with its data in `<dir>/agent`, and waits until it is ready. It enrolls if it has not
    /// done so before.
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

    /// As [`Agent::start`], without waiting for it.
    ///
    /// # Errors
    /// When there is no join token, or the program cannot be started.
    pub async fn launch(
        dir: &Path,
        control_plane: &ControlPlane,
        mut options: AgentOptions,
    ) -> anyhow::Result<Self> {
        if options.join_token.is_none() {
            options.join_token = Some(control_plane.join_token(region(&options)).await?);
        }
        options.control_plane_url.get_or_insert_with(|| control_plane.url());
        Self::launch_alone(dir, options).await
    }

    /// As [`Agent::launch`], with nothing but the options: they name a control plane and a join token.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn launch_alone(dir: &Path, mut options: AgentOptions) -> anyhow::Result<Self> {
        options.region = region(&options).to_owned();
        let join_token = options.join_token.clone().unwrap_or_default();
        fs::create_dir_all(dir)?;
        fs::write(dir.join("join-token"), join_token)?;
        let settings = Settings {
            dir: dir.to_owned(),
            control_plane_url: options.control_plane_url.clone().context("name the control plane")?,
            callback_port: free_port()?,
            admin_port: free_port()?,
            options,
        };
        let server = Server::launch(settings.start("agent").await?)?;
        Ok(Self { server, settings })
    }

    /// The address for callbacks.
    pub fn callback_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.settings.callback_port))
    }

    /// The URL of a path on the callback address.
    pub fn callback_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.callback_addr())
    }

    /// The directory with the buffer, the credential and the configuration.
    pub fn data_dir(&self) -> PathBuf {
        self.settings.data_dir()
    }

    /// Starts a second agent on the data directory of this one.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn twin(&self) -> anyhow::Result<Process> {
        let mut settings = self.settings.clone();
        settings.callback_port = free_port()?;
        settings.admin_port = free_port()?;
        settings.start("second-agent").await?.spawn()
    }
}

fn region(options: &AgentOptions) -> &str {
    if options.region.is_empty() { "test-region" } else { &options.region }
}

impl Deref for Agent {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Settings {
    fn data_dir(&self) -> PathBuf {
        self.dir.join("agent")
    }

    async fn start(&self, name: &'static str) -> anyhow::Result<Start> {
        let options = &self.options;
        let mut command: Vec<OsString> = options.wrapper.iter().map(OsString::from).collect();
        command.push(match &options.program {
            Some(program) => program.clone().into(),
            None => programs().await?.agent.clone().into(),
        });
        // The data directory comes first, where wrappers that are scripts look for it.
        command.extend([OsString::from("--data-dir"), self.data_dir().into()]);
        command.extend([OsString::from("--join-token-file"), self.dir.join("join-token").into()]);
        let listen = [self.callback_port, self.admin_port].map(|port| format!("127.0.0.1:{port}"));
        let destinations = options.destinations.as_deref().unwrap_or("127.0.0.0/8");
        let flags = [
            ["--callback-listen", &listen[0]],
            ["--admin-listen", &listen[1]],
            ["--control-plane-url", &self.control_plane_url],
            ["--region", &options.region],
            ["--allow-destination-cidr", destinations],
            ["--log-format", "json"],
        ];
        command.extend(flags.as_flattened().iter().map(OsString::from));
        command.extend(options.arguments.iter().map(OsString::from));
        let log = self.dir.join(format!("{name}.log"));
        Ok(Start { name, command, log, admin_port: self.admin_port })
    }
}
