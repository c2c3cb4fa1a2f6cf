//! Join tokens that say whom to trust, and `RevokeAgent`.

use gateway_core::time;
use gateway_proto::v1;
use gateway_runtime::clock;
use tonic::{Request, Response, Status};

use super::{super::authorize, AgentApi};
use crate::{audit::Audited, store::agents};

/// Between the secret of a join token and the SHA-256 of the authority's certificate.
const PIN_SEPARATOR: char = '.';

/// The secret of a join token. An agent that sends the whole token is understood as well.
pub(in crate::api) fn join_secret(join_token: &str) -> &str {
    join_token.split(PIN_SEPARATOR).next().unwrap_or_default()
}

impl AgentApi {
    pub(super) async fn revoke(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let before = self.one_agent(&id).await?;
        let mut tx = self.state.store.begin_write().await?;
        let now = clock::now();
        agents::revoke(&mut tx, &id, now).await?;
        let revoke_time = before.revoke_time.or_else(|| Some(time::to_proto(now)));
        let after = v1::Agent { revoke_time, ..before.clone() };
        tx.audit(&caller, Audited::changed("AgentService/RevokeAgent", &before, &after)).await?;
        let (admissions, agent_id) = (self.state.admissions.clone(), id.clone());
        tx.after_commit(move || admissions.revoke(&agent_id));
        tx.commit().await?;
        tracing::info!(gateway.agent.id = id, "an agent was revoked");
        Ok(Response::new(v1::RevokeAgentResponse { agent: Some(self.one_agent(&id).await?) }))
    }

    /// The join token as the agent gets it.
    pub(super) fn with_pin(&self, join_secret: String) -> String {
        if self.state.config.tls.is_own_ca() {
            format!("{join_secret}{PIN_SEPARATOR}{}", self.state.authority.pin())
        } else {
            join_secret
        }
    }
}
