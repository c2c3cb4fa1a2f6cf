//! Control plane and agent, started and stopped in one process.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use gateway_runtime::private;
use gateway_sdk::{Client, v1};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::DevArgs;
use crate::{BadConfig, control_plane::connect_here, demo::is_in_use, session};

/// The region of the one agent.
const REGION: &str = "default";
/// How long the agent may take to use the first configuration.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(20);
/// How long the join token can be used; the agent needs it at once.
const JOIN_TOKEN_TTL: Duration = Duration::from_secs(300);

/// Fails with a message that names the flag when an address is taken.
pub fn check_free(listens: &[(SocketAddr, &'static str, &'static str)]) -> anyhow::Result<()> {
    for (address, flag, purpose) in listens {
        let Err(error) = TcpListener::bind(address) else { continue };
        let who = session::find()
            .ok()
            .flatten()
            .map(|session| {
                format!(" (a `gateway dev` may be running already, as process {})", session.process)
            })
            .unwrap_or_default();
        return Err(error).with_context(|| {
            format!(
                "listen on {address} for {purpose}{who}: stop the program that uses the port, or choose \
                 another one with {flag} {}:0",
                address.ip()
            )
        });
    }
    Ok(())
}

/// Networks of the built-in receiver.
fn loopback_networks<T: std::str::FromStr<Err: std::fmt::Debug>>() -> Vec<T> {
    ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("these are networks")).into()
}

/// A running control plane.
pub struct ControlPlane {
    running: gateway_control_plane::app::Running,
    /// The authority of its certificate, with TLS.
    ca: Option<PathBuf>,
    stop: CancellationToken,
}

impl ControlPlane {
    /// Starts it in `<data_dir>/control-plane`.
    pub async fn start(args: &DevArgs, data_dir: &Path) -> anyhow::Result<Self> {
        use gateway_control_plane::{
            app,
            config::{ADMIN_KEY_ENV, Config, Settings},
        };
        let data_dir = data_dir.join("control-plane");
        let ca = args.tls.then(|| data_dir.join(gateway_control_plane::ca::CERTIFICATE_FILE));
        let settings = Settings {
            grpc_listen: Some(args.grpc_listen),
            tls_own_ca: Some(args.tls),
            data_dir: Some(data_dir),
            admin_listen: Some(args.control_plane_admin_listen),
            allow_destination_cidr: loopback_networks(),
            ..Settings::default()
        };
        let admin_key = std::env::var(ADMIN_KEY_ENV).ok();
        let config =
            Config::resolve(settings, admin_key.as_deref()).map_err(|error| BadConfig(error.to_string()))?;
        let (stop, place) = (CancellationToken::new(), config.data_dir.display().to_string());
        let running = app::start(config, stop.clone()).await.with_context(|| {
            format!("start the control plane in `{place}` (another --data-dir, or none, starts afresh)")
        })?;
        Ok(Self { running, ca, stop })
    }

    fn url(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.running.grpc_addr)
    }

    /// A client with the admin key.
    pub async fn client(&self) -> anyhow::Result<Client> {
        connect_here(&self.url(), self.running.admin_key.reveal(), self.ca.as_deref()).await
    }

    /// Starts an agent in `<data_dir>/agent` beside it, and waits until the agent uses the configuration.
    pub async fn with_agent(
        self,
        args: &DevArgs,
        data_dir: &Path,
        client: &Client,
    ) -> anyhow::Result<Programs> {
        use gateway_agent::{app, config::Settings};
        let join_token_file = data_dir.join("join-token");
        let token = client
            .agents()
            .create_join_token(v1::CreateJoinTokenRequest {
                region: REGION.to_owned(),
                ttl: Some(gateway_core::time::duration_to_proto(JOIN_TOKEN_TTL)),
                ..Default::default()
            })
            .await
            .map_err(gateway_sdk::Error::from)
            .context("create a join token")?;
        private::write_file(&join_token_file, token.into_inner().join_token.as_bytes())
            .with_context(|| format!("write join token to `{}`", join_token_file.display()))?;
        let settings = Settings {
            callback_listen: Some(args.callback_listen),
            admin_listen: Some(args.agent_admin_listen),
            data_dir: Some(data_dir.join("agent")),
            control_plane_url: Some(self.url()),
            region: Some(REGION.to_owned()),
            join_token_file: Some(join_token_file.clone()),
            allow_destination_cidr: loopback_networks(),
            ..Settings::default()
        };
        let config = settings.validate().map_err(|error| BadConfig(error.to_string()))?;
        let agent_stop = CancellationToken::new();
        let agent = app::start(config, agent_stop.clone()).await.context("start the agent")?;
        wait_until_current(client, &agent_stop).await?;
        // Used or, for an agent that has its credential, not needed.
        std::fs::remove_file(&join_token_file).context("remove the join token")?;
        Ok(Programs { control_plane: self, agent, agent_stop })
    }
}

/// Waits until an online agent uses the newest configuration.
async fn wait_until_current(client: &Client, agent_stop: &CancellationToken) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if is_in_use(client).await? {
            return Ok(());
        }
        anyhow::ensure!(
            !agent_stop.is_cancelled(),
            "the agent ended while starting; see its log lines above"
        );
        anyhow::ensure!(
            Instant::now() < deadline,
            "the agent did not take the configuration within {} s; run again with --log-filter info to see why",
            READY_TIMEOUT.as_secs()
        );
        sleep(READY_POLL).await;
    }
}

/// A running control plane and a running agent.
pub struct Programs {
    control_plane: ControlPlane,
    agent: gateway_agent::app::Running,
    agent_stop: CancellationToken,
}

impl Programs {
    /// Where the control plane serves gRPC.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.control_plane.running.grpc_addr
    }

    /// The same as a URL.
    pub fn control_plane_url(&self) -> String {
        self.control_plane.url()
    }

    /// The file of the authority that its certificate comes from, with TLS.
    pub fn control_plane_ca(&self) -> Option<&Path> {
        self.control_plane.ca.as_deref()
    }

    /// Where the control plane serves metrics.
    pub fn control_plane_admin_addr(&self) -> SocketAddr {
        self.control_plane.running.admin_addr
    }

    /// The key of the platform admin.
    pub fn admin_key(&self) -> &str {
        self.control_plane.running.admin_key.reveal()
    }

    /// Where the agent takes callbacks.
    pub fn callback_addr(&self) -> SocketAddr {
        self.agent.callback_addr
    }

    /// Where the agent serves metrics.
    pub fn agent_admin_addr(&self) -> SocketAddr {
        self.agent.admin_addr
    }

    /// Resolves when one of them ended by itself; [`Programs::stop`] then says why. Cancel safe.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.control_plane.stop.cancelled() => {}
            () = self.agent_stop.cancelled() => {}
        }
    }

    /// Drains the agent, which reports what it did, then the control plane.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.agent_stop.cancel();
        let agent = self.agent.wait().await.context("run the agent");
        self.control_plane.stop.cancel();
        let control_plane = self.control_plane.running.wait().await.context("run the control plane");
        agent.and(control_plane)
    }
}

/// Everything listed, for lists that are short.
pub async fn all<R: gateway_sdk::client::ListRequest>(
    client: &Client,
    request: R,
) -> anyhow::Result<Vec<R::Item>> {
    Ok(client.list(request).try_collect().await?)
}
