//! Who is calling, and what they may call. One layer around all services, so that no method can forget it.
//!
//! Open: `grpc.health.v1.Health`, and `EnrollAgent`, which checks its join token itself. The other methods
//! of `AgentSyncService` take an agent's credential; everything else, reflection included, takes the admin
//! key.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use gateway_core::id::TenantId;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::status;
use crate::{app::State, metrics::Admission, store::agents};

const HEALTH_PREFIX: &str = "/grpc.health.v1.Health/";
const ENROLL_PATH: &str = "/whatsapp_gateway.v1.AgentSyncService/EnrollAgent";
const AGENT_PREFIX: &str = "/whatsapp_gateway.v1.AgentSyncService/";

/// An enrolled agent, as its credential proves it. In the request's extensions of agents' methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Its id.
    pub agent_id: String,
    /// Its region, from its join token.
    pub region: String,
}

/// Somebody who may configure the gateway. In the request's extensions of operators' methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The tenant they act for.
    pub tenant_id: TenantId,
}

/// The tenant that the caller of an operator's method acts for.
///
/// # Errors
/// UNAUTHENTICATED when the layer did not see the request; no such request reaches a method.
pub fn tenant<T>(request: &tonic::Request<T>) -> Result<TenantId, Status> {
    let operator = request.extensions().get::<Operator>();
    operator.map(|operator| operator.tenant_id.clone()).ok_or_else(|| status::unauthenticated(MISSING))
}

/// The agent that calls an agents' method.
///
/// # Errors
/// UNAUTHENTICATED when the layer did not see the request; no such request reaches a method.
pub fn agent<T>(request: &tonic::Request<T>) -> Result<AgentIdentity, Status> {
    let agent = request.extensions().get::<AgentIdentity>();
    agent.cloned().ok_or_else(|| status::unauthenticated(MISSING))
}

const MISSING: &str = "send the admin key as `authorization: Bearer <key>`";
const MISSING_AGENT: &str = "send the agent credential as `authorization: Bearer <credential>`";
const UNKNOWN: &str = "the key or credential of `authorization` is not valid here";

/// What a request's credential proves.
enum Caller {
    Anybody,
    Operator,
    Agent(AgentIdentity),
}

async fn identify(state: &State, path: &str, headers: &HeaderMap) -> Result<Caller, Status> {
    if path.starts_with(HEALTH_PREFIX) || path == ENROLL_PATH {
        return Ok(Caller::Anybody);
    }
    let for_agents = path.starts_with(AGENT_PREFIX);
    let Some(credential) = bearer(headers) else {
        return Err(status::unauthenticated(if for_agents { MISSING_AGENT } else { MISSING }));
    };
    let hash: [u8; 32] = Sha256::digest(credential).into();
    if bool::from(hash.ct_eq(&state.admin_key_hash)) {
        if for_agents {
            let message =
                "this method is for agents: call it with an agent credential, not with the admin key";
            return Err(status::permission_denied(message));
        }
        return Ok(Caller::Operator);
    }
    match agents::find_by_credential_hash(&state.store, &hash).await? {
        Some(agent) if for_agents => Ok(Caller::Agent(agent)),
        Some(_) => {
            Err(status::permission_denied("an agent credential cannot call this method: use the admin key"))
        }
        None => Err(status::unauthenticated(UNKNOWN)),
    }
}

/// The one bearer token of a request (RFC 6750, 2.1; the scheme's name ignores case).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Puts [`Authorize`] around a service.
#[derive(Clone)]
pub struct AuthorizeLayer {
    state: State,
}

impl AuthorizeLayer {
    /// Checks requests against the admin key and the agents of `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, state: self.state.clone() }
    }
}

/// Lets requests through to the service inside, or refuses them before it sees them.
#[derive(Clone)]
pub struct Authorize<S> {
    inner: S,
    state: State,
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The service that was polled ready is the one to call; a clone takes its place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let state = self.state.clone();
        Box::pin(async move {
            let caller = identify(&state, request.uri().path(), request.headers()).await;
            // Nothing behind this point has a use for the credential.
            request.headers_mut().remove(AUTHORIZATION);
            match caller {
                Ok(Caller::Anybody) => {}
                Ok(Caller::Operator) => {
                    let operator = Operator { tenant_id: TenantId::default_tenant() };
                    request.extensions_mut().insert(operator);
                }
                Ok(Caller::Agent(agent)) => drop(request.extensions_mut().insert(agent)),
                Err(refusal) => {
                    let denied = refusal.code() == tonic::Code::PermissionDenied;
                    let outcome =
                        if denied { Admission::PermissionDenied } else { Admission::Unauthenticated };
                    state.metrics.admitted(outcome);
                    return Ok(refusal.into_http());
                }
            }
            state.metrics.admitted(Admission::Accepted);
            inner.call(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    /// Only exactly one bearer token counts.
    #[test]
    fn one_bearer_token_is_read() {
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some(b"abc".as_slice()));
        assert_eq!(bearer(&headers(&["bearer abc"])), Some(b"abc".as_slice()));
        for values in
            [&[][..], &["abc"], &["Basic abc"], &["Bearer "], &["Bearer"], &["Bearer a", "Bearer b"]]
        {
            assert_eq!(bearer(&headers(values)), None, "{values:?}");
        }
    }
}
