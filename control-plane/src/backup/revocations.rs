//! What a restore would bring back to life: API keys and agents that were revoked after the backup.

use std::{collections::HashSet, path::Path};

use gateway_core::time;
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;

use super::{BUSY_TIMEOUT, BackupError, DATABASES, Manifest};
use crate::{
    api::authorize::keys,
    audit::{Audited, AuditedBy, commands},
    store::{
        self, Cause, StoreError, api_keys,
        sqlite::files::{self, Connected},
    },
};

/// The method of the audit log's entries.
const METHOD: &str = "Restore";

/// An API key or an agent that the backup lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Whose it is.
    pub kind: CredentialKind,
    /// Its id.
    pub id: String,
    /// What people know it by: the display name of a key, the region of an agent.
    pub name: String,
    /// Its tenant; empty for the platform.
    pub tenant_id: String,
}

/// What holds a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// An API key.
    ApiKey,
    /// An agent.
    Agent,
}

/// Who gets in after a restore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Those that were revoked after the backup, and are revoked again; known only with the database that was in use.
    pub revoked: Vec<Credential>,
    /// Those that work.
    pub working: Vec<Credential>,
}

/// The working keys and agents of a database.
struct Working {
    keys: Vec<v1::ApiKey>,
    agents: Vec<(String, String, String)>,
}

/// Looks who gets in with the restored configuration database at `restored`, and revokes those that the database of
/// the data directory `previous` knows as revoked, or, when it is the later state of the same store, does not know.
///
/// # Errors
/// When one of them cannot be read, or the restored one not be written.
pub(super) async fn keep(
    restored: &Path,
    previous: Option<&Path>,
    manifest: &Manifest,
) -> Result<Credentials, BackupError> {
    let mut connection = files::open_restored(restored).await.map_err(BackupError::database(restored))?;
    let read = BackupError::database(restored);
    let now = clock::now();
    let Working { keys, agents } = working(&mut connection, now).await.map_err(read)?;
    let shut_out = match previous {
        Some(data_dir) => Some(ShutOut::read(&data_dir.join(store::FILE_NAME), manifest).await?),
        None => None,
    };
    let is_out = |kind, id: &str| shut_out.as_ref().is_some_and(|shut_out| shut_out.has(kind, id));
    let mut transaction = files::begin(&mut connection).await.map_err(BackupError::database(restored))?;
    let noted = commands::restored(&mut transaction, &manifest.store_epoch).await;
    noted.map_err(BackupError::Audit)?;
    let mut credentials = Credentials::default();
    for key in keys {
        let credential = Credential {
            kind: CredentialKind::ApiKey,
            id: key.id.clone(),
            name: key.display_name.clone(),
            tenant_id: key.tenant_id.clone(),
        };
        if is_out(CredentialKind::ApiKey, &key.id) {
            let written = revoke_key(&mut transaction, key, now).await;
            written.map_err(BackupError::Revoke)?;
            credentials.revoked.push(credential);
        } else {
            credentials.working.push(credential);
        }
    }
    for (id, region, tenant_id) in agents {
        let credential = Credential { kind: CredentialKind::Agent, id, name: region, tenant_id };
        if is_out(CredentialKind::Agent, &credential.id) {
            let written = revoke_agent(&mut transaction, &credential, now).await;
            written.map_err(BackupError::Revoke)?;
            credentials.revoked.push(credential);
        } else {
            credentials.working.push(credential);
        }
    }
    transaction.commit().await.map_err(BackupError::database(restored))?;
    files::close(connection).await.map_err(BackupError::database(restored))?;
    Ok(credentials)
}

async fn revoke_key(
    connection: &mut Connected,
    before: v1::ApiKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    let after = v1::ApiKey { revoke_time: Some(time::to_proto(now)), ..before.clone() };
    files::update_api_key(connection, &after.id, &api_keys::body_of(&after)).await?;
    audit(connection, now, Audited::changed(METHOD, &before, &after)).await
}

async fn revoke_agent(
    connection: &mut Connected,
    agent: &Credential,
    now: Timestamp,
) -> Result<(), StoreError> {
    files::revoke_agent(connection, &agent.id, now).await?;
    let (id, tenant_id) = (agent.id.clone(), agent.tenant_id.clone());
    let before = v1::Agent { id, tenant_id, ..Default::default() };
    let after = v1::Agent { revoke_time: Some(time::to_proto(now)), ..before.clone() };
    audit(connection, now, Audited::changed(METHOD, &before, &after)).await
}

async fn audit(connection: &mut Connected, now: Timestamp, audited: Audited) -> Result<(), StoreError> {
    let actor = AuditedBy::GATEWAY.actor.to_string();
    files::audit(connection, now, &actor, audited).await
}

/// Keys and agents that a database lets in.
async fn working(connection: &mut Connected, now: Timestamp) -> Result<Working, Cause> {
    let all = all_keys(connection).await?.into_iter();
    let keys = all.filter(|key| keys::refusal(key, now).is_none()).collect();
    Ok(Working { keys, agents: files::working_agents(connection).await? })
}

async fn all_keys(connection: &mut Connected) -> Result<Vec<v1::ApiKey>, Cause> {
    let (rows, are_summed) = files::api_keys(connection).await?;
    // What cannot be read lets nobody in.
    Ok(rows.iter().filter_map(|key| api_keys::read_row(&key.row, are_summed).ok()).collect())
}

/// Who does not get in, as the database that was in use knows it.
struct ShutOut {
    keys: Known,
    agents: Known,
}

struct Known {
    revoked: HashSet<String>,
    /// All ids, when one that is missing means that it was deleted after the backup.
    all: Option<HashSet<String>>,
}

impl Known {
    fn has_shut_out(&self, id: &str) -> bool {
        self.revoked.contains(id) || self.all.as_ref().is_some_and(|all| !all.contains(id))
    }
}

impl ShutOut {
    fn has(&self, kind: CredentialKind, id: &str) -> bool {
        match kind {
            CredentialKind::ApiKey => self.keys.has_shut_out(id),
            CredentialKind::Agent => self.agents.has_shut_out(id),
        }
    }

    /// Reads the database at `path`, which may be in use.
    async fn read(path: &Path, manifest: &Manifest) -> Result<Self, BackupError> {
        let previous = |source: Cause| BackupError::Previous { path: path.to_owned(), source };
        let opened = files::open_previous(path, BUSY_TIMEOUT).await;
        let mut connection = opened.map_err(|source| previous(source.into()))?;
        let found = files::schema_version(&mut connection, true).await;
        let found = found.map_err(|source| previous(source.into()))?;
        let known =
            DATABASES.iter().find(|(name, _)| *name == store::FILE_NAME).map_or(0, |(_, known)| *known);
        super::restore::check_version("the database that was in use", found, known)?;
        let shut_out = Self::of(&mut connection, manifest).await.map_err(previous)?;
        files::close(connection).await.map_err(|source| previous(source.into()))?;
        Ok(shut_out)
    }

    async fn of(connection: &mut Connected, manifest: &Manifest) -> Result<Self, Cause> {
        let keys = all_keys(connection).await?;
        let agents = files::revoked_agents(connection).await?;
        let (epoch, version) = files::epoch_and_version(connection).await?;
        // Another store never had the backup's keys, and an older state of this one not yet.
        let is_later = epoch == manifest.store_epoch && version >= manifest.config_version;
        let keys = keys.into_iter().map(|key| (key.id, key.revoke_time.is_some())).collect();
        let known = |found: Vec<(String, bool)>| Known {
            revoked: found.iter().filter(|(_, is_revoked)| *is_revoked).map(|(id, _)| id.clone()).collect(),
            all: is_later.then(|| found.into_iter().map(|(id, _)| id).collect()),
        };
        Ok(Self { keys: known(keys), agents: known(agents) })
    }
}
