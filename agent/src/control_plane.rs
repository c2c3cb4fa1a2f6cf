//! The way to the control plane: the channel, the agent's credential, and enrolling for it.
//!
//! [`link`] is the connection, [`trust`] decides whose server it may end at, [`certificate`] is the agent's
//! client certificate and keeps it fresh, [`enrolment`] enrolls an agent that serves already.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use gateway_proto::v1::{self, agent_sync_service_client::AgentSyncServiceClient};
use serde::{Deserialize, Serialize};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
};
use tonic_types::StatusExt as _;
use tracing::info;
use uuid::Uuid;

use crate::private;

mod link;
mod trust;
mod certificate;
pub mod enrolment;
mod reports;
#[cfg(test)]
mod tests;

pub use certificate::{AgentCertificate, CertificateError, Keeper};
pub use link::{Calls, Link};
pub use reports::{ReportClient, ReportStream};
pub use trust::{Pin, TrustError};

/// Largest message of the config and report streams.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
const ENROLL_TIMEOUT: Duration = Duration::from_secs(10);
const CREDENTIAL_FILE: &str = "credential.json";

/// The agent's client of `AgentSyncService`. Cheap to clone.
pub type Client = AgentSyncServiceClient<InterceptedService<Calls, Credential>>;

/// Header that says which start of this program is calling, so that the control plane tells a restart from a
/// second agent with a copied data directory.
const START_ID_HEADER: &str = "gateway-start-id";

/// `ErrorInfo.reason` of the control plane's answers to a revoked agent.
const AGENT_REVOKED: &str = "AGENT_REVOKED";
/// And to a process while another one with the agent's identity is connected.
const AGENT_IDENTITY_IN_USE: &str = "AGENT_IDENTITY_IN_USE";

/// Adds the agent's credential to every call. Prints masked.
#[derive(Clone)]
pub struct Credential {
    authorization: MetadataValue<Ascii>,
    start_id: MetadataValue<Ascii>,
}

impl Credential {
    fn of(identity: &Identity, data_dir: &Path) -> Result<Self, IdentityError> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", identity.credential)
            .parse()
            .map_err(|_| IdentityError::Credential(data_dir.join(CREDENTIAL_FILE)))?;
        value.set_sensitive(true);
        Ok(Self { authorization: value, start_id: start_id() })
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request.metadata_mut().insert(START_ID_HEADER, self.start_id.clone());
        Ok(request)
    }
}

/// Random, the same for as long as this process runs.
fn start_id() -> MetadataValue<Ascii> {
    static START_ID: LazyLock<String> = LazyLock::new(|| Uuid::now_v7().simple().to_string());
    START_ID.parse().expect("hexadecimal digits can be in a header")
}

/// A call that the control plane refused or did not answer. A `Status` itself prints its whole insides.
#[derive(Debug, thiserror::Error)]
#[error("call the control plane: {message} ({code:?})")]
pub struct CallFailed {
    code: Code,
    message: String,
}

impl CallFailed {
    /// Whether the control plane may not have answered, so that the same call can be answered otherwise soon.
    const fn is_away(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
    }
}

impl From<Status> for CallFailed {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: explain(&status) }
    }
}

/// An open stream ended without a word of the control plane: at the age of the connection, because it stops, or because
/// the network broke. A reason to warn only when the next one cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("read stream: it ended")]
pub struct StreamEnded(#[source] Option<CallFailed>);

impl StreamEnded {
    /// What was read from an open stream: a message, or why the control plane ended it.
    ///
    /// # Errors
    /// When the stream ended without a word.
    pub fn check<T>(read: Result<Option<T>, Status>) -> Result<Result<T, Status>, Self> {
        match read {
            Ok(Some(message)) => Ok(Ok(message)),
            Ok(None) => Err(Self(None)),
            // A status that was received has no source.
            Err(status) if std::error::Error::source(&status).is_some() => Err(Self(Some(status.into()))),
            Err(status) => Ok(Err(status)),
        }
    }
}

/// Whether the control plane says that this agent was revoked.
pub fn is_revocation(status: &Status) -> bool {
    status.code() == Code::Unauthenticated && has_reason(status, AGENT_REVOKED)
}

/// Whether the control plane says that another process with this agent's identity is connected.
fn is_twin(status: &Status) -> bool {
    status.code() == Code::Unavailable && has_reason(status, AGENT_IDENTITY_IN_USE)
}

fn has_reason(status: &Status, reason: &str) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == reason)
}

/// What a status says, and why, when it was made here because there is no connection.
fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Who this agent is. Made by enrolling, kept in the data directory.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The agent's id.
    pub agent_id: String,
    /// The agent's region, from its join token.
    pub region: String,
    /// Its tenant, empty for the platform; None when an earlier control plane did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    credential: String,
    /// The authority that the control plane's certificate must come from, as the join token said; later the one by
    /// which it has proven itself when it named others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_pin: Option<Pin>,
    /// Other authorities that it may come from, as the control plane said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    named_pins: Vec<Pin>,
}

impl Identity {
    /// The authorities that the control plane's certificate may come from; none where the join token named none.
    pub fn pins(&self) -> impl Iterator<Item = Pin> {
        self.control_plane_pin.into_iter().chain(self.named_pins.iter().copied())
    }

    fn set_pins(&mut self, pins: &[Pin]) {
        self.control_plane_pin = pins.first().copied();
        self.named_pins = pins.iter().skip(1).copied().collect();
    }
}

/// Keeps what the control plane said of its authorities, and then trusts it. Nothing changes when it cannot be kept:
/// the agent would not know it after a restart.
///
/// # Errors
/// When the identity in `data_dir` cannot be read or written.
fn learn_authorities(link: &Link, authorities: &[Vec<u8>], data_dir: &Path) -> Result<(), IdentityError> {
    let Some((pins, trusted)) = link.pins().and_then(|pins| Some((pins, pins.after(authorities)?))) else {
        return Ok(());
    };
    if let Some(mut identity) = stored_identity(data_dir)? {
        identity.set_pins(&trusted);
        store_identity(&identity, data_dir)?;
        info!(count = trusted.len(), "trusting the authorities that the control plane named");
        pins.replace(trusted);
    }
    Ok(())
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
    /// What follows the full stop of a join token is no SHA-256.
    #[error("read join token from `{0}`: it is damaged; copy the whole line of CreateJoinToken")]
    DamagedJoinToken(PathBuf),
    /// The control plane cannot be called at all.
    #[error("prepare calls to the control plane")]
    Link(#[from] TrustError),
    /// The client certificate cannot be made or kept.
    #[error("get a client certificate")]
    Certificate(#[from] CertificateError),
    /// Whoever answers is not the control plane, or cannot prove it.
    #[error("trust the control plane at {url}: {message}")]
    Untrusted {
        /// The control plane.
        url: String,
        /// What is wrong with its certificate.
        message: String,
    },
    /// The control plane refused.
    #[error("enroll agent at {url}: {message}")]
    Refused {
        /// The control plane.
        url: String,
        /// Its words.
        message: String,
        /// Whether the control plane itself said it; otherwise it may have been a proxy before one that is away.
        is_its_own: bool,
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

/// The client of an enrolled agent.
///
/// # Errors
/// When the stored credential cannot be a header.
pub fn client(link: &Link, identity: &Identity, data_dir: &Path) -> Result<Client, IdentityError> {
    let credential = Credential::of(identity, data_dir)?;
    Ok(AgentSyncServiceClient::with_interceptor(link.calls(), credential)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// What an enrolled agent reports with.
///
/// # Errors
/// When the stored credential cannot be a header.
pub fn report_client(
    link: &Link,
    identity: &Identity,
    data_dir: &Path,
) -> Result<ReportClient, IdentityError> {
    Ok(ReportClient::new(InterceptedService::new(link.calls(), Credential::of(identity, data_dir)?)))
}

/// The stored identity, if the agent enrolled before.
///
/// # Errors
/// When the file exists and cannot be used.
pub fn stored_identity(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = data_dir.join(CREDENTIAL_FILE);
    private::warn_if_open(&path);
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|source| IdentityError::Damaged { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::File { path, source }),
    }
}

/// A join token: a secret, and perhaps whom to trust.
pub struct JoinToken {
    secret: String,
    /// The authority that the control plane's certificate must come from.
    pub pin: Option<Pin>,
}

impl JoinToken {
    /// Reads the token for an agent with its data in `data_dir`.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(file: Option<&Path>, data_dir: &Path) -> Result<Self, IdentityError> {
        let file = file.ok_or_else(|| IdentityError::NoJoinToken(data_dir.to_owned()))?;
        let text = fs::read_to_string(file)
            .map_err(|source| IdentityError::File { path: file.to_owned(), source })?;
        let text = text.trim();
        if text.is_empty() {
            return Err(IdentityError::EmptyJoinToken(file.to_owned()));
        }
        let Some((secret, pin)) = text.split_once('.') else {
            return Ok(Self { secret: text.to_owned(), pin: None });
        };
        let pin = pin.parse().map_err(|_| IdentityError::DamagedJoinToken(file.to_owned()))?;
        Ok(Self { secret: secret.to_owned(), pin: Some(pin) })
    }
}

/// For whom an agent is to enroll, as far as it was told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope<'a> {
    /// Its region; None for the join token's.
    pub region: Option<&'a str>,
    /// Its tenant, empty for the platform; None for the join token's.
    pub tenant_id: Option<&'a str>,
}

/// Turns a join token into an identity and stores it, and over TLS also the certificate that comes with it. The
/// connections of `link` were made without that certificate: enrolled agents use a link of their own.
///
/// # Errors
/// When the control plane refuses, is not to be trusted or cannot be reached, or the identity cannot be stored.
pub async fn enroll(
    link: &Link,
    token: &JoinToken,
    scope: Scope<'_>,
    data_dir: &Path,
) -> Result<Identity, IdentityError> {
    let key = if link.is_tls() { Some(certificate::NewKey::make()?) } else { None };
    let signing_request = key.as_ref().map(certificate::NewKey::request).transpose()?;
    let mut request = Request::new(v1::EnrollAgentRequest {
        join_token: token.secret.clone(),
        build: crate::BUILD.to_owned(),
        region: scope.region.unwrap_or_default().to_owned(),
        certificate_signing_request: signing_request.unwrap_or_default(),
        tenant_id: scope.tenant_id.map(str::to_owned),
    });
    request.set_timeout(ENROLL_TIMEOUT);
    let response = AgentSyncServiceClient::new(link.calls())
        .enroll_agent(request)
        .await
        .map_err(|status| refusal(link, &status))?;
    let enrolled = response.into_inner();
    let v1::EnrollAgentResponse { agent_id, credential, region, certificate, tenant_id } = enrolled;
    let mut identity = Identity {
        agent_id,
        region,
        tenant_id,
        credential,
        control_plane_pin: token.pin,
        named_pins: Vec::new(),
    };
    // The certificate first: without an identity it is nothing, and is written over by the next enrolment.
    if let (Some(key), Some(certificate)) = (key, certificate) {
        if let Some(trusted) = link.pins().and_then(|pins| pins.after(&certificate.authorities)) {
            identity.set_pins(&trusted);
        }
        let certificate = AgentCertificate::new(key, certificate)?;
        certificate.store(data_dir)?;
    }
    store_identity(&identity, data_dir)?;
    Ok(identity)
}

/// Tells a refusal, which is final, from a control plane that is away.
fn refusal(link: &Link, status: &Status) -> IdentityError {
    let (url, message) = (link.url().to_owned(), explain(status));
    if let Some(message) = link.untrusted() {
        return IdentityError::Untrusted { url, message };
    }
    match status.code() {
        Code::Unauthenticated | Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented => {
            // The control plane says why in more than words.
            let is_its_own = !status.details().is_empty();
            IdentityError::Refused { url, message, is_its_own }
        }
        _ => IdentityError::Away { url, message },
    }
}

fn store_identity(identity: &Identity, data_dir: &Path) -> Result<(), IdentityError> {
    let path = data_dir.join(CREDENTIAL_FILE);
    let bytes = serde_json::to_vec_pretty(identity).expect("strings are JSON");
    private::write_file(&path, &bytes).map_err(|source| IdentityError::File { path, source })
}
