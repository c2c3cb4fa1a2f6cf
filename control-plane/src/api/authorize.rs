//! Who is calling, and what they may call. One layer around all services, so that no method can forget it.
//!
//! Open: `grpc.health.v1.Health`, and `EnrollAgent`, which checks its join token itself. The other methods
//! of `AgentSyncService` take an agent's credential; everything else, reflection included, takes the admin key
//! or an API key whose role ([`access`]) and scopes allow it. Calls of an API key end with it ([`keys`]).

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use gateway_core::{
    api_key::{self, Role, Scopes},
    time,
};
use gateway_runtime::clock;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::{Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};

use super::{ending::ending, status};
use crate::{
    app::State,
    metrics::Admission,
    store::{
        agents::{self, Holder},
        api_keys,
        damaged::Found,
    },
};

pub mod access;
mod caller;
pub mod keys;
mod streams;

pub use caller::{Actor, Caller};

use access::Access;
use keys::OpenCall;

/// An enrolled agent, as its credential proves it. In the request's extensions of agents' methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Its id.
    pub agent_id: String,
    /// Its region, from its join token.
    pub region: String,
    /// Its tenant, from its join token; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// Whether it has a client certificate, which it must show over TLS.
    pub has_certificate: bool,
}

/// The operator who calls a method.
///
/// # Errors
/// UNAUTHENTICATED when the layer did not see the request; no such request reaches a method.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| status::unauthenticated(MISSING))
}

/// The agent that calls an agents' method.
///
/// # Errors
/// UNAUTHENTICATED when the layer did not see the request; no such request reaches a method.
pub fn agent<T>(request: &tonic::Request<T>) -> Result<AgentIdentity, Status> {
    let agent = request.extensions().get::<AgentIdentity>();
    agent.cloned().ok_or_else(|| status::unauthenticated(MISSING))
}

const MISSING: &str = "send an API key or the admin key as `authorization: Bearer <key>`";
const MISSING_AGENT: &str = "send the agent credential as `authorization: Bearer <credential>`";
const FOR_AGENTS: &str = "this method is for agents: call it with an agent credential";
const UNKNOWN: &str = "the key or credential of `authorization` is not valid here";

/// What a request's credential proves.
enum Identity {
    Anybody,
    AdminKey,
    ApiKey(Box<Caller>, OpenCall),
    Agent(AgentIdentity),
}

async fn identify(
    state: &State,
    path: &str,
    headers: &HeaderMap,
    source_address: Option<SocketAddr>,
) -> Result<Identity, Status> {
    let access = access::of(path);
    if access == Access::Open {
        return Ok(Identity::Anybody);
    }
    let for_agents = access == Access::Agent;
    let Some(credential) = bearer(headers) else {
        return Err(status::unauthenticated(if for_agents { MISSING_AGENT } else { MISSING }));
    };
    let hash: [u8; 32] = Sha256::digest(credential).into();
    if bool::from(hash.ct_eq(&state.admin_key_hash)) {
        if for_agents {
            return Err(status::permission_denied(FOR_AGENTS));
        }
        return Ok(Identity::AdminKey);
    }
    if let Some(secret) = std::str::from_utf8(credential).ok().filter(|text| api_key::is_api_key(text)) {
        return by_api_key(state, path, access, secret, &hash, source_address).await;
    }
    match agents::find_by_credential_hash(&state.store, &hash).await? {
        Some(Holder::Agent(agent)) if for_agents => Ok(Identity::Agent(agent)),
        Some(Holder::Revoked) if for_agents => Err(status::agent_revoked()),
        Some(Holder::Agent(_)) => {
            Err(status::permission_denied("an agent credential cannot call this method: use an API key"))
        }
        Some(Holder::Revoked) | None => Err(status::unauthenticated(UNKNOWN)),
    }
}

/// The holder of an API key, when the key works and may call the method. One with a wrong checksum is refused
/// without asking the database.
async fn by_api_key(
    state: &State,
    path: &str,
    access: Access,
    secret: &str,
    hash: &[u8; 32],
    source_address: Option<SocketAddr>,
) -> Result<Identity, Status> {
    let unknown = || status::unauthenticated(UNKNOWN);
    if !api_key::is_well_formed(secret) {
        return Err(unknown());
    }
    let key = match api_keys::find_by_secret_hash(&state.store, hash).await?.ok_or_else(unknown)? {
        Found::Whole(key) => key,
        Found::Damaged(_) => return Err(status::unauthenticated(keys::DAMAGED)),
    };
    if let Some(reason) = keys::refusal(&key, clock::now()) {
        return Err(status::unauthenticated(reason));
    }
    let role = Role::from_proto(key.role).ok_or_else(unknown)?;
    let tenant = match key.tenant_id.as_str() {
        "" if role == Role::PlatformAdmin => None,
        id => Some(id.parse().map_err(|_| unknown())?),
    };
    let scopes = Scopes::new(&key.scopes);
    check_access(path, access, role, &scopes)?;
    let expire_time = key.expire_time.as_ref().and_then(time::from_proto);
    let call = state.keys.enter(&key);
    let caller = Caller::api_key(key.id, role, tenant, scopes, expire_time, source_address);
    Ok(Identity::ApiKey(Box::new(caller), call))
}

fn check_access(path: &str, access: Access, role: Role, scopes: &Scopes) -> Result<(), Status> {
    let needed = match access {
        Access::Open | Access::Reflection => return Ok(()),
        Access::Agent => return Err(status::permission_denied(FOR_AGENTS)),
        Access::Operator(needed) => needed,
    };
    let method = access::method(path);
    if role < needed {
        let message = format!("{method} needs {needed}; this key has {role}");
        return Err(status::permission_denied(message));
    }
    if !scopes.allow(method) {
        return Err(status::permission_denied(format!("{method} is not among the scopes of this key")));
    }
    Ok(())
}

/// Ends with the key of the call, which is open until then.
async fn end_of(call: OpenCall) -> Status {
    call.ended().cancelled().await;
    status::unauthenticated("the API key of this call was revoked, or has expired")
}

/// The one bearer token of a request (RFC 6750, 2.1; the scheme's name ignores case).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Where the connection of a request comes from.
fn source_address<B>(request: &Request<B>) -> Option<SocketAddr> {
    request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr)
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
            let source_address = source_address(&request);
            let caller = identify(&state, request.uri().path(), request.headers(), source_address).await;
            // Nothing behind this point has a use for the credential.
            request.headers_mut().remove(AUTHORIZATION);
            let mut open_call = None;
            match caller {
                Ok(Identity::Anybody) => {}
                Ok(Identity::AdminKey) => {
                    request.extensions_mut().insert(Caller::admin_key(source_address));
                }
                Ok(Identity::ApiKey(caller, call)) => {
                    request.extensions_mut().insert(*caller);
                    open_call = Some(call);
                }
                Ok(Identity::Agent(agent)) => drop(request.extensions_mut().insert(agent)),
                Err(refusal) => {
                    let denied = refusal.code() == tonic::Code::PermissionDenied;
                    let outcome =
                        if denied { Admission::PermissionDenied } else { Admission::Unauthenticated };
                    state.metrics.admitted(outcome);
                    return Ok(refusal.into_http());
                }
            }
            state.metrics.admitted(Admission::Accepted);
            let Some(call) = open_call else { return inner.call(request).await };
            let ended = call.ended().clone();
            tokio::select! {
                biased;
                response = inner.call(request) => response.map(|response| response.map(|body| ending(body, end_of(call)))),
                () = ended.cancelled() => Ok(end_of(call).await.into_http()),
            }
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
