//! Who the agent is when it starts: enrolled, or serving from a snapshot export until it can enroll.

use anyhow::Context as _;
use gateway_runtime::{backoff::Backoff, clock};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{ENROLL_RETRY_FIRST, ENROLL_RETRY_MAX};
use crate::{
    config::Config,
    control_plane::{
        self, IdentityError, Link, Scope,
        enrolment::{Enrolled, Unenrolled, enroll_now, enroll_with, join_token},
    },
    opt_out::OptOuts,
    snapshot::{
        self,
        disk::ConfigLog,
        drain::Drain,
        export::{Export, ExportError, ExportFiles},
    },
};

/// Who the agent is.
pub(super) enum Standing {
    /// It has a credential.
    Enrolled(Box<Enrolled>),
    /// It serves from an export and has none yet.
    Unenrolled(Unenrolled),
}

/// What an agent starts with.
pub(super) struct Start<'a> {
    pub(super) config: &'a Config,
    pub(super) log: &'a ConfigLog,
    pub(super) opt_outs: &'a OptOuts,
    pub(super) drain: &'a Drain,
}

impl Start<'_> {
    /// The stored identity, or a new one. A control plane that cannot be reached is waited for, unless there is an
    /// export; one that refuses is the end then.
    pub(super) async fn standing(&self, stop: &CancellationToken) -> anyhow::Result<Standing> {
        let data_dir = &self.config.data_dir;
        if let Some(enrolled) = self.stored().await? {
            return Ok(Standing::Enrolled(Box::new(enrolled)));
        }
        if let Some(unenrolled) = Unenrolled::stored(data_dir)?
            && !self.log.is_empty()
        {
            self.check_region(&unenrolled.region)?;
            return Ok(Standing::Unenrolled(unenrolled));
        }
        self.drain.begin_anew().context("forget that an earlier agent of this data directory was revoked")?;
        match &self.config.snapshot {
            Some(files) if self.log.is_empty() => self.enroll_or_serve(files, stop).await,
            Some(_) => {
                info!("not using the snapshot export: there is a configuration on disk; enrolling first");
                self.enroll(stop).await
            }
            None => self.enroll(stop).await,
        }
    }

    /// The agent that enrolled before.
    async fn stored(&self) -> anyhow::Result<Option<Enrolled>> {
        let config = self.config;
        let Some(identity) = control_plane::stored_identity(&config.data_dir)? else { return Ok(None) };
        self.check_region(&identity.region)?;
        if self.drain.is_revoked() {
            error!("{}", snapshot::REVOKED);
        }
        Unenrolled::forget(&config.data_dir);
        if let Some(files) = config.snapshot.as_ref().filter(|_| self.log.is_empty()) {
            let scope = Scope { region: Some(&identity.region), tenant_id: identity.tenant_id.as_deref() };
            let installed = self.install(files, scope, scope.tenant_id.is_some(), |_| Ok(())).await;
            if let Err(failure) = installed {
                let error = format!("{failure:#}");
                warn!(error, "failed to start from the snapshot export; waiting for the control plane");
            }
        }
        let link = Link::new(&config.control_plane_url, config.control_plane_ca.as_deref(), identity.pins())?;
        Ok(Some(Enrolled::new(identity, link, &config.data_dir)?))
    }

    fn check_region(&self, enrolled: &str) -> Result<(), IdentityError> {
        match self.config.region.clone().filter(|asked| asked != enrolled) {
            Some(asked) => {
                let (enrolled, data_dir) = (enrolled.to_owned(), self.config.data_dir.clone());
                Err(IdentityError::Region { asked, enrolled, data_dir })
            }
            None => Ok(()),
        }
    }

    fn scope(&self) -> Scope<'_> {
        Scope { region: self.config.region.as_deref(), tenant_id: None }
    }

    /// Enrolls, and waits for the control plane if need be.
    async fn enroll(&self, stop: &CancellationToken) -> anyhow::Result<Standing> {
        let mut backoff = Backoff::new(ENROLL_RETRY_FIRST, ENROLL_RETRY_MAX);
        let mut token = join_token(self.config)?;
        loop {
            match enroll_with(self.config, &token, self.scope()).await {
                Ok(enrolled) => return Ok(joined(enrolled)),
                Err(IdentityError::Away { url, message }) => {
                    // Not under its own name, which is that of the text in a log of JSON.
                    warn!(url, error = message, "failed to reach the control plane; trying again");
                }
                Err(failure) => return Err(failure.into()),
            }
            anyhow::ensure!(backoff.wait(stop).await, "stopped before the control plane could be reached");
            // Somebody may be in the middle of writing another one, and a pipe gives it only once.
            if let Ok(newer) = join_token(self.config) {
                token = newer;
            }
        }
    }

    /// Enrolls if that can be done now, since nothing is as good as the newest configuration; otherwise serves from the
    /// export. Not when the control plane refuses: it is not away then, and an agent that was revoked and has lost its
    /// disk is not to serve again.
    async fn enroll_or_serve(
        &self,
        files: &ExportFiles,
        stop: &CancellationToken,
    ) -> anyhow::Result<Standing> {
        let tried = tokio::select! {
            tried = enroll_now(self.config, self.scope()) => tried,
            () = stop.cancelled() => anyhow::bail!("stopped before the control plane could be reached"),
        };
        // Said with what to do about it by whoever goes on trying, or else together with what is wrong with the export.
        let failure = match tried {
            Ok(enrolled) => return Ok(joined(enrolled)),
            Err(failure @ IdentityError::Refused { is_its_own: true, .. }) => return Err(failure.into()),
            Err(failure) => anyhow::Error::from(failure),
        };
        let mut unenrolled = None;
        // Written down before there is a configuration: in between, the next start begins anew.
        let keep = |export: &Export| {
            let tenant_id = export.header.tenant_id.as_ref().map(ToString::to_string).unwrap_or_default();
            let kept = Unenrolled { region: export.header.region.clone(), tenant_id };
            kept.store(&self.config.data_dir)?;
            unenrolled = Some(kept);
            Ok(())
        };
        self.install(files, self.scope(), true, keep).await.with_context(|| {
            format!("start from the snapshot export, as the agent could not enroll ({failure:#})")
        })?;
        Ok(Standing::Unenrolled(unenrolled.expect("it was kept before the export was installed")))
    }

    /// Makes an export the configuration on disk.
    async fn install(
        &self,
        files: &ExportFiles,
        scope: Scope<'_>,
        is_scope_sure: bool,
        before: impl FnOnce(&Export) -> Result<(), IdentityError>,
    ) -> anyhow::Result<()> {
        let files = files.clone();
        let [region, tenant_id] = [scope.region, scope.tenant_id].map(|id| id.map(str::to_owned));
        let open = move || {
            let scope = Scope { region: region.as_deref(), tenant_id: tenant_id.as_deref() };
            Export::open(&files, scope, clock::now())
        };
        let export = tokio::task::spawn_blocking(open).await??;
        before(&export)?;
        let (log, opt_outs) = (self.log.clone(), self.opt_outs.clone());
        let install = move || export.install(&log, &opt_outs, is_scope_sure);
        let installed: Result<(), ExportError> = tokio::task::spawn_blocking(install).await?;
        Ok(installed?)
    }
}

fn joined(enrolled: Enrolled) -> Standing {
    info!(agent_id = enrolled.identity.agent_id, region = enrolled.identity.region, "enrolled");
    Standing::Enrolled(Box::new(enrolled))
}
