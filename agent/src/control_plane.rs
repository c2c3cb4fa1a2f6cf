//! The way to the control plane: the channel, the agent's credential, and enrolling for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use gateway_proto::v1::{self, agent_sync_service_client::AgentSyncServiceClient};
use serde::{Deserialize, Serialize};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::private;

mod reports;

pub use reports::ReportClient;

/// Largest message of the config and report streams.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ENROLL_TIMEOUT: Duration = Duration::from_secs(10);
/// So that a dead connection is seen within 30 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CREDENTIAL_FILE: &str = "credential.json";

/// The agent's client of `AgentSyncService`. Cheap to clone.
pub type Client = AgentSyncServiceClient<InterceptedService<Channel, Credential>>;

/// Adds the agent's credential to every call. Prints masked.
#[derive(Clone)]
pub struct Credential(MetadataValue<Ascii>);

impl Credential {
    fn of(identity: &Identity, data_dir: &Path) -> Result<Self, IdentityError> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", identity.credential)
            .parse()
            .map_err(|_| IdentityError::Credential(data_dir.join(CREDENTIAL_FILE)))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A call that the control plane refused or did not answer. A `Status` itself prints its whole insides.
#[derive(Debug, thiserror::Error)]
#[error("call the control plane: {message} ({code:?})")]
pub struct CallFailed {
    code: Code,
    message: String,
}

impl From<Status> for CallFailed {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

/// Who this agent is. Made by enrolling, kept in the data directory.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The agent's id.
    pub agent_id: String,
    /// The agent's region, from its join token.
    pub region: String,
    credential: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, {})", self.agent_id, self.region)
    }
}

/// Why the agent has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither a credential nor a join token.
    #[error(
        "enroll agent: `{0}` has no credential yet and no --join-token-file was given; create a token with AgentService/CreateJoinToken and pass it in a file"
    )]
    NoJoinToken(PathBuf),
    /// A file cannot be read or written.
    #[error("access `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The credential file is damaged.
    #[error("parse `{path}`; delete it and enroll again with a new join token")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The agent enrolled for another region than it is started with.
    #[error(
        "use region `{asked}`: `{data_dir}` belongs to an agent that enrolled in `{enrolled}`; start it without --region, or enroll a new agent in an empty data directory"
    )]
    Region {
        /// What `--region` says.
        asked: String,
        /// What the join token said.
        enrolled: String,
        /// Where the identity is.
        data_dir: PathBuf,
    },
    /// The join token file has nothing in it.
    #[error("read join token from `{0}`: the file is empty")]
    EmptyJoinToken(PathBuf),
    /// The control plane URL is not a URL.
    #[error("parse --control-plane-url")]
    Url(#[source] tonic::transport::Error),
    /// The control plane refused.
    #[error("enroll agent at {url}: {message}")]
    Refused {
        /// The control plane.
        url: String,
        /// Its words.
        message: String,
    },
    /// The control plane did not answer; trying again can help.
    #[error("reach the control plane at {url}: {message}")]
    Away {
        /// The control plane.
        url: String,
        /// What happened.
        message: String,
    },
    /// The credential is not a header value.
    #[error("use the credential of `{0}`: it is not printable text")]
    Credential(PathBuf),
}

/// A channel to the control plane that connects when first used and reconnects by itself.
///
/// # Errors
/// When `url` is not a URL.
pub fn channel(url: &str) -> Result<Channel, IdentityError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(IdentityError::Url)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(Some(4 * 1024 * 1024))
        .initial_connection_window_size(Some(8 * 1024 * 1024));
    Ok(endpoint.connect_lazy())
}

/// The client of an enrolled agent.
///
/// # Errors
/// When the stored credential cannot be a header.
pub fn client(channel: Channel, identity: &Identity, data_dir: &Path) -> Result<Client, IdentityError> {
    let credential = Credential::of(identity, data_dir)?;
    Ok(AgentSyncServiceClient::with_interceptor(channel, credential)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// What an enrolled agent reports with.
///
/// # Errors
/// When the stored credential cannot be a header.
pub fn report_client(
    channel: Channel,
    identity: &Identity,
    data_dir: &Path,
) -> Result<ReportClient, IdentityError> {
    Ok(ReportClient::new(InterceptedService::new(channel, Credential::of(identity, data_dir)?)))
}

/// The stored identity, if the agent enrolled before.
///
/// # Errors
/// When the file exists and cannot be used.
pub fn stored_identity(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = data_dir.join(CREDENTIAL_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|source| IdentityError::Damaged { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::File { path, source }),
    }
}

/// Turns the join token in `token_file` into an identity and stores it.
///
/// # Errors
/// When there is no token, the control plane refuses or cannot be reached, or the identity cannot be
/// stored.
pub async fn enroll(
    channel: Channel,
    url: &str,
    token_file: Option<&Path>,
    region: Option<&str>,
    data_dir: &Path,
) -> Result<Identity, IdentityError> {
    let token_file = token_file.ok_or_else(|| IdentityError::NoJoinToken(data_dir.to_owned()))?;
    let join_token = fs::read_to_string(token_file)
        .map_err(|source| IdentityError::File { path: token_file.to_owned(), source })?;
    if join_token.trim().is_empty() {
        return Err(IdentityError::EmptyJoinToken(token_file.to_owned()));
    }
    let mut request = Request::new(v1::EnrollAgentRequest {
        join_token: join_token.trim().to_owned(),
        build: crate::BUILD.to_owned(),
        region: region.unwrap_or_default().to_owned(),
    });
    request.set_timeout(ENROLL_TIMEOUT);
    let response = AgentSyncServiceClient::new(channel)
        .enroll_agent(request)
        .await
        .map_err(|status| refusal(url, &status))?;
    let v1::EnrollAgentResponse { agent_id, credential, region } = response.into_inner();
    let identity = Identity { agent_id, region, credential };
    store_identity(&identity, data_dir)?;
    Ok(identity)
}

/// Tells a refusal, which is final, from a control plane that is away.
fn refusal(url: &str, status: &Status) -> IdentityError {
    let (url, message) = (url.to_owned(), status.message().to_owned());
    match status.code() {
        Code::Unauthenticated | Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented => {
            IdentityError::Refused { url, message }
        }
        _ => IdentityError::Away { url, message },
    }
}

fn store_identity(identity: &Identity, data_dir: &Path) -> Result<(), IdentityError> {
    let path = data_dir.join(CREDENTIAL_FILE);
    let bytes = serde_json::to_vec_pretty(identity).expect("three strings are JSON");
    private::write_file(&path, &bytes).map_err(|source| IdentityError::File { path, source })
}
