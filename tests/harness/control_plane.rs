//! The control plane program: what it is started with, and how it is called.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use gateway_proto::v1;
use gateway_sdk::{Client, ClientOptions};

use crate::{
    process::free_port,
    programs::programs,
    server::{Server, Start},
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
    /// A program and arguments that run the control plane, as of
    /// [`AgentOptions`](crate::agent::AgentOptions::wrapper).
    pub wrapper: Vec<String>,
    /// The program; unset means that of this workspace.
    pub program: Option<PathBuf>,
}

/// A control plane with its data in `<dir>/control-plane`.
pub struct ControlPlane {
    server: Server,
    client: Client,
    data_dir: PathBuf,
    grpc_port: u16,
    /// `https` with the control plane's own authority, otherwise `http`.
    scheme: &'static str,
    admin_key: String,
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
        let (data_dir, grpc_port, admin_port) = (dir.join("control-plane"), free_port()?, free_port()?);
        let mut command: Vec<OsString> = options.wrapper.iter().map(OsString::from).collect();
        command.push(match options.program {
            Some(program) => program.into(),
            None => programs().await?.control_plane.clone().into(),
        });
        command.extend([OsString::from("--data-dir"), data_dir.clone().into()]);
        let listen = [grpc_port, admin_port].map(|port| format!("127.0.0.1:{port}"));
        let flags = [["--grpc-listen", &listen[0]], ["--admin-listen", &listen[1]], ["--log-format", "json"]];
        command.extend(flags.as_flattened().iter().map(OsString::from));
        command.extend(options.arguments.iter().map(OsString::from));
        if !options.public_destinations_only {
            command.extend(["--allow-destination-cidr", "127.0.0.0/8"].map(OsString::from));
        }
        let log = dir.join("control-plane.log");
        let mut server = Server::launch(Start { name: "control plane", command, log, admin_port })?;
        server.wait_ready().await?;
        let admin_key = fs::read_to_string(data_dir.join("admin.key")).context("read admin key")?;
        let admin_key = admin_key.trim().to_owned();
        let has_own_ca = options.arguments.iter().any(|argument| argument == "--tls-own-ca");
        let scheme = if has_own_ca { "https" } else { "http" };
        let mut options = ClientOptions::new(format!("{scheme}://127.0.0.1:{grpc_port}"), &admin_key);
        if has_own_ca {
            options = options.with_ca_certificate(fs::read_to_string(data_dir.join("ca.pem"))?);
        }
        let client = Client::connect_lazy(&options)?;
        Ok(Self { server, client, data_dir, grpc_port, scheme, admin_key })
    }

    /// A client with the admin key; it outlives restarts.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The address for gRPC, `http://127.0.0.1:…`, or `https` with `--tls-own-ca`.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.grpc_port)
    }

    /// The same address.
    pub fn grpc_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.grpc_port))
    }

    /// The admin key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// The directory with the databases.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// A one-time token with which an agent of `region` enrolls.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub async fn join_token(&self, region: &str) -> anyhow::Result<String> {
        let request = v1::CreateJoinTokenRequest {
            region: region.to_owned(),
            ttl: Some(JOIN_TOKEN_TTL.try_into()?),
            ..Default::default()
        };
        Ok(self.client.agents().create_join_token(request).await?.into_inner().join_token)
    }
}

impl Deref for ControlPlane {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for ControlPlane {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}
