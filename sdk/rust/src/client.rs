//! Typed client of the control plane.
//!
//! [`Client`] hands out one generated client per service, all over one connection, with the API key and a
//! deadline on every call. On top of them: [`Client::list`], a stream over all pages of any List method
//! ([`page`]), and [`Client::watch_inbound_logs`], which outlives broken connections ([`watch`]).
//! A refused call is an [`Error::Call`] that names the fields at fault ([`error`]). A call that meets the end of its
//! connection is UNAVAILABLE and may be repeated ([`connection`]).

pub mod connection;
pub mod error;
mod fault;
pub mod page;
pub mod watch;

use std::{fmt, time::Duration};

use gateway_proto::v1;
use tonic::{
    GrpcMethod, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

pub use connection::Connection;
pub use error::{CallError, Error, FieldViolation};
pub use page::ListRequest;

/// How long a call may take when [`ClientOptions`] does not say otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is probed, so that a watch notices a dead peer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long a probe may stay unanswered before the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer taken: a page of 1,000 logs with long bodies fits; a larger one fails the call.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Methods that stream for as long as the caller listens, and so carry no deadline.
const STREAMING_METHODS: [&str; 2] = ["WatchInboundLogs", "WatchAgents"];
/// Header that carries a call's deadline. <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Where the control plane is and who is calling. Prints masked.
#[derive(Clone)]
pub struct ClientOptions {
    endpoint: String,
    api_key: String,
    deadline: Duration,
    ca_certificate_pem: Option<String>,
}

impl ClientOptions {
    /// `endpoint` is `http://host:port`, or `https://host:port` for TLS; `api_key` is the admin key or
    /// any other API key.
    pub fn new(endpoint: impl Into<String>, api_key: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            api_key: api_key.into(),
            deadline: DEADLINE_DEFAULT,
            ca_certificate_pem: None,
        }
    }

    /// How long a call may take unless its request says otherwise (`Request::set_timeout`).
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Trusts this certificate authority (PEM; there may be several) instead of those of the system; only for `https`.
    /// A control plane with an authority of its own keeps it as `ca.pem` in its data directory.
    #[must_use]
    pub fn with_ca_certificate(mut self, pem: impl Into<String>) -> Self {
        self.ca_certificate_pem = Some(pem.into());
        self
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("endpoint", &self.endpoint)
            .field("api_key", &"••••")
            .field("deadline", &self.deadline)
            .field("ca_certificate", &self.ca_certificate_pem.is_some())
            .finish()
    }
}

/// One connection with the API key on every call; what the generated clients run over.
pub type Transport = InterceptedService<Connection, Credentials>;

/// Client of the control plane. Cheap to clone; all clones share one connection, which comes back by
/// itself after a break.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the options are malformed, nothing answers at the endpoint within five seconds, or the server there is
    /// not trusted, or one side speaks TLS and the other does not.
    pub async fn connect(options: ClientOptions) -> Result<Self, Error> {
        let endpoint = endpoint(&options)?;
        let channel =
            endpoint.connect().await.map_err(|source| fault::of_connect(&options.endpoint, source))?;
        if fault::wants_tls(endpoint.uri()).await {
            return Err(Error::WantsTls { endpoint: options.endpoint });
        }
        Self::over(channel, &options)
    }

    /// Connects at the first call. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the options are malformed.
    pub fn connect_lazy(options: &ClientOptions) -> Result<Self, Error> {
        Self::over(endpoint(options)?.connect_lazy(), options)
    }

    fn over(channel: Channel, options: &ClientOptions) -> Result<Self, Error> {
        let mut bearer: MetadataValue<Ascii> =
            format!("Bearer {}", options.api_key).parse().map_err(|_| Error::ApiKey)?;
        bearer.set_sensitive(true);
        let credentials = Credentials { bearer, deadline: options.deadline };
        Ok(Self { transport: InterceptedService::new(Connection::new(channel), credentials) })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client(••••)")
    }
}

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $module:ident::$client:ident;)*) => {
        impl Client {$(
            $(#[$doc])*
            pub fn $name(&self) -> v1::$module::$client<Transport> {
                v1::$module::$client::new(self.transport.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
            }
        )*}
    };
}

services! {
    /// Connected business numbers.
    instances: instance_service_client::InstanceServiceClient;
    /// Where providers call us.
    inbound_routes: inbound_route_service_client::InboundRouteServiceClient;
    /// What is delivered from an instance, and where to.
    webhook_subscriptions: webhook_subscription_service_client::WebhookSubscriptionServiceClient;
    /// Who asked to stop, and whether a message may be sent.
    opt_outs: opt_out_service_client::OptOutServiceClient;
    /// What came in and what became of it.
    inbound_logs: inbound_log_service_client::InboundLogServiceClient;
    /// Tenants and their API keys.
    tenants: tenant_service_client::TenantServiceClient;
    /// The fleet, for operators.
    agents: agent_service_client::AgentServiceClient;
    /// Who did what.
    audit_log: audit_service_client::AuditServiceClient;
}

/// Puts the API key and the default deadline on a call. Prints masked.
#[derive(Clone)]
pub struct Credentials {
    bearer: MetadataValue<Ascii>,
    deadline: Duration,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.bearer.clone());
        let streams = request
            .extensions()
            .get::<GrpcMethod<'static>>()
            .is_some_and(|method| STREAMING_METHODS.contains(&method.method()));
        if !streams && !request.metadata().contains_key(GRPC_TIMEOUT) {
            request.set_timeout(self.deadline);
        }
        Ok(request)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(••••)")
    }
}

fn endpoint(options: &ClientOptions) -> Result<Endpoint, Error> {
    let wrap = |source| Error::Endpoint { endpoint: options.endpoint.clone(), source };
    let endpoint = Endpoint::from_shared(options.endpoint.clone())
        .map_err(wrap)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let is_tls = endpoint.uri().scheme_str() == Some("https");
    let tls = match &options.ca_certificate_pem {
        Some(_) if !is_tls => return Err(Error::CaWithoutTls { endpoint: options.endpoint.clone() }),
        Some(pem) if fault::has_certificates(pem) => {
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        Some(_) => return Err(Error::CaCertificate),
        None if is_tls => ClientTlsConfig::new().with_native_roots(),
        None => return Ok(endpoint),
    };
    endpoint.tls_config(tls).map_err(wrap)
}

#[cfg(test)]
mod tests;
