//! From a join token to an agent: `EnrollAgent`, `RenewAgentCertificate`, and what a stream needs to be opened.

use std::time::Duration;

use gateway_core::{tenant::TenantScope, time};
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use tonic::{Request, Response, Status};
use tracing::info;

use super::{
    super::{
        agent::{hash, join_secret, secret},
        authorize::{self, AgentIdentity},
        new_id, status,
    },
    AgentSyncApi, check_build,
};
use crate::{
    admission::Admitted,
    audit::{Audited, AuditedBy},
    ca::AgentCertificate,
    store::{
        agents::{self, NewAgent},
        tenants,
    },
    tls::Peer,
};

/// Header in which an agent says which start of the program is calling: random, made at each start.
const START_ID_HEADER: &str = "gateway-start-id";
/// Longest start id that is told apart.
const START_ID_BYTES_MAX: usize = 64;
/// When a twin may try again: the other may be gone by then, and this one is to be back within the 10 s in which agents
/// find a control plane again. Agents wait up to a fifth longer.
const TWIN_RETRY_AFTER: Duration = Duration::from_secs(8);

impl AgentSyncApi {
    pub(super) async fn enroll(
        &self,
        request: Request<v1::EnrollAgentRequest>,
    ) -> Result<Response<v1::EnrollAgentResponse>, Status> {
        let source_address = request.remote_addr();
        let request = request.into_inner();
        let now = clock::now();
        let credential = secret("agent_");
        let token_hash = hash(join_secret(&request.join_token));
        // Anybody may call this; whoever has no token takes no writer's turn.
        if !agents::is_join_token(&self.state.store, &token_hash, now).await? {
            return Err(bad_token());
        }
        let mut tx = self.state.store.begin_write().await?;
        let token = agents::consume_join_token(&mut tx, &token_hash, now).await?.ok_or_else(bad_token)?;
        // A token that was made while its tenant was being deleted.
        if let Some(tenant_id) = &token.tenant_id
            && tenants::find(&mut tx, &TenantScope::All, tenant_id).await?.is_none()
        {
            return Err(bad_token());
        }
        // Dropping the transaction here gives the token back.
        check_build(&request.build)?;
        if !request.region.is_empty() && request.region != token.region {
            let description = format!("the join token is for region `{}`", token.region);
            return Err(status::invalid_field("region", description));
        }
        check_tenant(request.tenant_id.as_deref(), token.tenant_id.as_deref())?;
        let id = new_id("agt_");
        let asked = request.certificate_signing_request;
        let certificate = if asked.is_empty() { None } else { Some(self.certificate(&asked, &id, now)?) };
        let agent = NewAgent {
            id,
            region: token.region,
            build: request.build,
            credential_hash: hash(&credential),
            tenant_id: token.tenant_id,
            certificate_expire_time: certificate.as_ref().map(|certificate| certificate.expire_time),
        };
        agents::create_agent(&mut tx, &agent, now).await?;
        let enrolled = v1::Agent {
            id: agent.id.clone(),
            tenant_id: agent.tenant_id.clone().unwrap_or_default(),
            region: agent.region.clone(),
            build: agent.build.clone(),
            ..Default::default()
        };
        let audited = Audited::created("AgentSyncService/EnrollAgent", &enrolled);
        tx.audit(AuditedBy::agent(&agent.id, source_address), audited).await?;
        tx.commit().await?;
        info!(gateway.agent.id = agent.id, region = agent.region, "agent enrolled");
        Ok(Response::new(v1::EnrollAgentResponse {
            agent_id: agent.id,
            credential,
            region: agent.region,
            certificate: certificate.map(|certificate| self.certificate_to_proto(certificate)),
            tenant_id: Some(agent.tenant_id.unwrap_or_default()),
        }))
    }

    pub(super) async fn renew(
        &self,
        request: Request<v1::RenewAgentCertificateRequest>,
    ) -> Result<Response<v1::RenewAgentCertificateResponse>, Status> {
        let identity = authorize::agent(&request)?;
        let asked = request.into_inner().certificate_signing_request;
        if asked.is_empty() {
            return Err(status::missing_field("certificate_signing_request"));
        }
        let certificate = self.certificate(&asked, &identity.agent_id, clock::now())?;
        let expire_time = certificate.expire_time;
        if !agents::record_certificate(&self.state.store, &identity.agent_id, expire_time).await? {
            return Err(status::agent_revoked());
        }
        info!(gateway.agent.id = identity.agent_id, "agent renewed its certificate");
        let certificate = Some(self.certificate_to_proto(certificate));
        Ok(Response::new(v1::RenewAgentCertificateResponse { certificate }))
    }

    fn certificate(
        &self,
        request: &[u8],
        agent_id: &str,
        now: Timestamp,
    ) -> Result<AgentCertificate, Status> {
        let life = self.state.config.agent_certificate_lifetime;
        let made = self.state.authority.agent_certificate(request, agent_id, now, life);
        let made = made.map_err(|error| status::internal(&error))?;
        made.map_err(|error| status::invalid_field("certificate_signing_request", error.to_string()))
    }

    fn certificate_to_proto(&self, certificate: AgentCertificate) -> v1::AgentCertificate {
        v1::AgentCertificate {
            chain: certificate.chain,
            lifetime: Some(time::duration_to_proto(self.state.config.agent_certificate_lifetime)),
            expire_time: Some(time::to_proto(certificate.expire_time)),
            authorities: self.authorities(),
        }
    }

    /// Whom agents are to trust.
    fn authorities(&self) -> Vec<Vec<u8>> {
        if !self.state.config.tls.is_own_ca() {
            return Vec::new();
        }
        self.state.authority.announced().map(|certificate| certificate.to_vec()).collect()
    }

    /// Who opens a stream, and the hold on it that a revocation takes away.
    pub(super) async fn admit<T>(&self, request: &Request<T>) -> Result<(AgentIdentity, Admitted), Status> {
        let identity = authorize::agent(request)?;
        let peer = request.extensions().get::<Peer>();
        check_certificate(&identity, peer, clock::now())?;
        let start_id = request.metadata().get(START_ID_HEADER).and_then(|value| value.to_str().ok());
        let start_id = start_id.filter(|id| id.len() <= START_ID_BYTES_MAX).unwrap_or_default();
        let address = peer.and_then(|peer| peer.address);
        let admitted = self
            .state
            .admissions
            .enter(&identity.agent_id, start_id, address, clock::now())
            .map_err(|_| {
                status::unavailable_until(
                    "AGENT_IDENTITY_IN_USE",
                    "another process with this agent's identity is connected: its data directory was copied; \
                     empty this one and enroll it with a new join token",
                    TWIN_RETRY_AFTER,
                )
            })?;
        // The revocation that came after the credential was checked and before the line above.
        if agents::is_revoked(&self.state.store, &identity.agent_id).await? {
            return Err(status::agent_revoked());
        }
        Ok((identity, admitted))
    }
}

/// An agent that has served from a snapshot export has callbacks of the export's tenants.
fn check_tenant(served: Option<&str>, of_token: Option<&str>) -> Result<(), Status> {
    let of_token = of_token.unwrap_or_default();
    if served.is_none_or(|served| served == of_token) {
        return Ok(());
    }
    let description = match of_token {
        "" => "the join token is for an agent of the platform".to_owned(),
        tenant_id => format!("the join token is for an agent of tenant `{tenant_id}`"),
    };
    Err(status::invalid_field("tenant_id", description))
}

fn bad_token() -> Status {
    status::unauthenticated("the join token is unknown, used or expired; make a new one with CreateJoinToken")
}

/// What a stream of a process ends with when another takes over.
pub(super) fn taken_over() -> Status {
    status::unavailable("TAKEN_OVER", "another process with this agent's identity has connected")
}

/// Over TLS an agent that has a certificate must show it. Only `RenewAgentCertificate` is without this check.
fn check_certificate(identity: &AgentIdentity, peer: Option<&Peer>, now: Timestamp) -> Result<(), Status> {
    let Some(peer) = peer.filter(|peer| peer.is_tls && identity.has_certificate) else { return Ok(()) };
    let Some(certified) = &peer.certified else {
        let message = "show the agent's client certificate; get one with RenewAgentCertificate";
        return Err(status::certificate_needed("CERTIFICATE_REQUIRED", message));
    };
    if certified.agent_id != identity.agent_id {
        return Err(status::permission_denied(
            "the client certificate is of another agent than the credential",
        ));
    }
    if certified.expire_seconds <= now.as_second() {
        let message = "the agent's client certificate has expired; renew it with RenewAgentCertificate";
        return Err(status::certificate_needed("CERTIFICATE_EXPIRED", message));
    }
    Ok(())
}
