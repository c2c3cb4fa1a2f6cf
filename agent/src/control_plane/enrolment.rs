//! Enrolling while the agent serves already, from a snapshot export: what needs the control plane waits for it, and
//! everything else does not.

use std::{
    fs, io,
    mem::discriminant,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use gateway_runtime::backoff::Backoff;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    AgentCertificate, Client, Identity, IdentityError, JoinToken, Link, ReportClient, Scope, client, enroll,
    report_client,
};
use crate::{config::Config, private, snapshot::SnapshotHandle};

/// The file that is there while an agent that has not enrolled serves from an export.
const FILE: &str = "unenrolled.json";
/// First and longest delay between attempts to enroll.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What an enrolled agent calls the control plane with. Cheap to clone.
#[derive(Clone)]
pub struct Enrolled {
    /// Who the agent is.
    pub identity: Identity,
    /// The way to the control plane.
    pub link: Link,
    /// Calls with the agent's credential.
    pub client: Client,
    /// Reports with it.
    pub reports: ReportClient,
}

impl Enrolled {
    /// Makes the clients of an identity. `link` shows the certificate that came with it, if it can be used, from its
    /// first connection on: the control plane refuses calls without it.
    ///
    /// # Errors
    /// When its credential cannot be a header.
    pub fn new(identity: Identity, link: Link, data_dir: &Path) -> Result<Self, IdentityError> {
        if let Some(certificate) = AgentCertificate::read(data_dir).filter(|_| link.is_tls()) {
            // One that cannot be used is as good as none; who keeps it renews it.
            drop(link.show(&certificate));
        }
        // More than the join token named, when the control plane has said more since.
        if let Some(pins) = link.pins() {
            pins.replace(identity.pins().collect());
        }
        let client = client(&link, &identity, data_dir)?;
        let reports = report_client(&link, &identity, data_dir)?;
        Ok(Self { identity, link, client, reports })
    }
}

/// Whether the agent has enrolled. Cheap to clone.
#[derive(Clone)]
pub struct Enrolment {
    enrolled: watch::Sender<Option<Enrolled>>,
    agent: SnapshotHandle,
}

impl Enrolment {
    /// `agent` has not enrolled yet.
    pub fn new(agent: SnapshotHandle) -> Self {
        Self { enrolled: watch::Sender::new(None), agent }
    }

    /// The agent has enrolled. From now on it hears what the control plane says of it.
    pub fn complete(&self, enrolled: Enrolled) {
        enrolled.link.inform(self.agent.clone());
        self.enrolled.send_replace(Some(enrolled));
    }

    /// Waits until the agent has enrolled. Cancel safe.
    pub async fn wait(&self) -> Enrolled {
        let mut enrolled = self.enrolled.subscribe();
        let found = enrolled.wait_for(Option::is_some).await;
        let found = found.expect("the sender is in `self`, so the wait does not fail");
        found.clone().expect("it was waited for")
    }
}

/// For whom an agent serves that has not enrolled: what the export said that it has started from. The control plane
/// gives it an identity of the same region and tenant, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unenrolled {
    /// Its region.
    pub region: String,
    /// Its tenant; empty for the platform.
    pub tenant_id: String,
}

impl Unenrolled {
    /// What `data_dir` says, if the agent of it serves from an export.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn stored(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| IdentityError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { path, source }),
        }
    }

    /// Keeps it, so that the agent serves after a restart too.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn store(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        let bytes = serde_json::to_vec_pretty(self).expect("two strings are JSON");
        private::write_file(&path, &bytes).map_err(|source| IdentityError::File { path, source })
    }

    /// The agent has enrolled.
    pub fn forget(data_dir: &Path) {
        if let Err(error) = fs::remove_file(data_dir.join(FILE))
            && error.kind() != io::ErrorKind::NotFound
        {
            // The credential beside it wins.
            error!(%error, "failed to remove {FILE}");
        }
    }

    /// Who the agent is until it has enrolled: nobody. What it records gets its agent id from the control plane, which
    /// takes it from the credential that reports.
    pub fn identity(&self) -> Identity {
        Identity {
            agent_id: String::new(),
            region: self.region.clone(),
            tenant_id: Some(self.tenant_id.clone()),
            credential: String::new(),
            control_plane_pin: None,
            named_pins: Vec::new(),
        }
    }
}

/// Enrolls an agent that serves already, however long that takes, and tells `enrolment`. The join token is read anew
/// for each attempt, so that it can be replaced meanwhile.
///
/// # Errors
/// Never; the result is for the supervisor.
pub async fn enroll_while_serving(
    config: Arc<Config>,
    unenrolled: Unenrolled,
    enrolment: Enrolment,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut told = None;
    let scope = Scope { region: Some(&unenrolled.region), tenant_id: Some(&unenrolled.tenant_id) };
    let enrolling = async {
        loop {
            match enroll_now(&config, scope).await {
                Ok(enrolled) => break Some(enrolled),
                Err(failure) => {
                    // The same trouble with another token is news to whoever has just put it there.
                    let trouble = (discriminant(&failure), last_changed(&config));
                    if told.replace(trouble) != Some(trouble) {
                        warn(&config, failure);
                    }
                }
            }
            if !backoff.wait(&stop).await {
                break None;
            }
        }
    };
    let enrolled = tokio::select! {
        enrolled = enrolling => enrolled,
        () = stop.cancelled() => None,
    };
    if let Some(enrolled) = enrolled {
        Unenrolled::forget(&config.data_dir);
        let (agent_id, region) = (&enrolled.identity.agent_id, &enrolled.identity.region);
        info!(agent_id, region, "enrolled; reporting what was taken before");
        enrolment.complete(enrolled);
    }
    stop.cancelled().await;
    Ok(())
}

/// One attempt to enroll.
///
/// # Errors
/// When there is no join token, or the control plane refuses or cannot be reached.
pub async fn enroll_now(config: &Config, scope: Scope<'_>) -> Result<Enrolled, IdentityError> {
    enroll_with(config, &join_token(config)?, scope).await
}

/// One attempt to enroll, with this token.
///
/// # Errors
/// When the control plane refuses or cannot be reached.
pub async fn enroll_with(
    config: &Config,
    token: &JoinToken,
    scope: Scope<'_>,
) -> Result<Enrolled, IdentityError> {
    let link = || Link::new(&config.control_plane_url, config.control_plane_ca.as_deref(), token.pin);
    // Two, as the connection of the first is made without the certificate that comes with the identity; and both
    // before the token is used up.
    let (link, own_link) = (link()?, link()?);
    let identity = enroll(&link, token, scope, &config.data_dir).await?;
    Enrolled::new(identity, own_link, &config.data_dir)
}

/// The join token, as its file has it now.
///
/// # Errors
/// When there is none.
pub fn join_token(config: &Config) -> Result<JoinToken, IdentityError> {
    JoinToken::read(config.join_token_file.as_deref(), &config.data_dir)
}

/// When the join token file was changed last.
fn last_changed(config: &Config) -> Option<SystemTime> {
    fs::metadata(config.join_token_file.as_deref()?).and_then(|metadata| metadata.modified()).ok()
}

/// Says why the agent has not enrolled, and what to do.
fn warn(config: &Config, failure: IdentityError) {
    let join_token_file = config.join_token_file.as_deref().map(|path| path.display().to_string());
    let what_to_do = match &failure {
        IdentityError::Away { .. } => "nothing: it is tried again until the control plane answers",
        IdentityError::NoJoinToken(_) => "restart the agent with --join-token-file",
        IdentityError::Refused { .. }
        | IdentityError::EmptyJoinToken(_)
        | IdentityError::DamagedJoinToken(_)
        | IdentityError::File { .. } => {
            "put a new token of AgentService/CreateJoinToken into the join token file; it is read again within 10 s"
        }
        _ => "mend what the error says; it is tried again",
    };
    let error = format!("{:#}", anyhow::Error::from(failure));
    warn!(
        error,
        join_token_file,
        what_to_do,
        "not enrolled: serving from the snapshot export; reports wait on disk until the agent can enroll"
    );
}
