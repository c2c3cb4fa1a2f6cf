//! The gRPC server: limits, authorization, reflection, health, one file per service.
//!
//! Limits: a message of the API is at most 4 MiB, one of agents 8 MiB; a connection has at most 128 open
//! streams; a call must have its answer, or a stream its beginning, within 30 s. Idle connections are
//! probed, so that half-open ones end; all end at their age, so that callers spread over several control planes.

use std::{net::SocketAddr, time::Duration};

use gateway_proto::v1::{
    agent_service_server::AgentServiceServer, agent_sync_service_server::AgentSyncServiceServer,
    audit_service_server::AuditServiceServer, inbound_log_service_server::InboundLogServiceServer,
    inbound_route_service_server::InboundRouteServiceServer, instance_service_server::InstanceServiceServer,
    opt_out_service_server::OptOutServiceServer, tenant_service_server::TenantServiceServer,
    webhook_subscription_service_server::WebhookSubscriptionServiceServer,
};
use gateway_runtime::supervise::{OnEnd, Supervisor};
use rand::RngExt as _;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, service::Routes, transport::Server};
use tonic_health::server::HealthReporter;
use tower::util::MapRequestLayer;

use crate::{app::State, tls, writable::Trouble};

pub mod status;
mod unexplained;
mod deadline;
mod age;
mod ending;
mod health;
mod driven;
pub mod authorize;
pub mod page;
mod period;
pub mod field_mask;
mod repeat;
mod instance;
mod diagnosis;
mod inbound_route;
mod webhook_subscription;
mod opt_out;
mod inbound_log;
mod agent;
mod agent_sync;
mod audit;
mod tenant;
mod api_key;
#[cfg(test)]
mod tests;

/// Largest message of operators' methods, in and out. Larger ones are RESOURCE_EXHAUSTED.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest message of agents' methods, in and out.
const AGENT_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Open streams per connection; more wait at the client.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
/// How often a connection without traffic is probed, and how long the answer may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls may go on over a connection that has reached its age, unless the age is shorter.
const CONNECTION_GRACE: Duration = Duration::from_secs(5 * 60);
/// How long open calls may go on after a stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves gRPC on `listener` until shutdown; returns the bound address. Its health says whether there is `trouble`.
///
/// # Errors
/// When the listener has no address or the descriptors cannot be served.
pub fn serve(
    state: &State,
    supervisor: &Supervisor,
    listener: TcpListener,
    trouble: watch::Receiver<Trouble>,
) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let acceptor = state.config.tls.acceptor(&state.authority, supervisor, &state.metrics)?;
    let (health, routes) = routes(state)?;
    let layer = authorize::AuthorizeLayer::new(state.clone());
    let age_max = state.config.grpc_connection_age_max;
    supervisor.spawn("grpc", OnEnd::Shutdown, |stop| async move {
        // Before the first call, which may ask for it.
        let found = *trouble.borrow();
        health::announce(&health, found).await;
        let server = Server::builder()
            .layer(unexplained::ExplainLayer)
            .layer(MapRequestLayer::new(with_connect_info))
            .layer(age::AgeLayer)
            .layer(deadline::DeadlineLayer)
            .layer(layer)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            // Asks only. With its grace tonic cuts the connection without having asked.
            .max_connection_age(age_max)
            .add_routes(routes);
        let incoming = tls::incoming(listener, acceptor, age_max + age_max.min(CONNECTION_GRACE));
        let stopping = stop.clone().cancelled_owned();
        let serving = server.serve_with_incoming_shutdown(incoming, stopping);
        let out_of_time = out_of_time(stop, health, trouble);
        tokio::select! {
            outcome = serving => Ok(outcome?),
            () = out_of_time => Ok(()),
        }
    });
    Ok(address)
}

/// Adds what tonic itself would say of a plain connection, for those who want to know the caller's address.
fn with_connect_info(mut request: http::Request<Body>) -> http::Request<Body> {
    let info = request.extensions().get::<tls::Peer>().map(tls::Peer::connect_info);
    if let Some(info) = info {
        request.extensions_mut().insert(info);
    }
    request
}

/// Resolves when open calls have had their time after a stop. Calls that wait for ever, such as a health
/// watch, would otherwise hold the process.
async fn out_of_time(stop: CancellationToken, health: HealthReporter, trouble: watch::Receiver<Trouble>) {
    health::follow(&health, trouble, stop).await;
    tokio::time::sleep(DRAIN_TIMEOUT).await;
}

/// Adds a service with its message limits and notes its name for health.
macro_rules! add {
    ($routes:ident, $names:ident, $limit:expr, $server:ident, $service:expr) => {{
        let service =
            $server::new($service).max_decoding_message_size($limit).max_encoding_message_size($limit);
        $names.push(name_of(&service));
        $routes = $routes.add_service(service);
    }};
}

const fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

fn routes(state: &State) -> anyhow::Result<(HealthReporter, Routes)> {
    let reflect = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(gateway_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients without proto files can show the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(health_service)
        .add_service(reflect().build_v1()?)
        .add_service(reflect().build_v1alpha()?);
    let mut names = Vec::new();
    let max = MESSAGE_BYTES_MAX;
    add!(routes, names, max, InstanceServiceServer, instance::InstanceApi::new(state.clone()));
    add!(routes, names, max, InboundRouteServiceServer, inbound_route::InboundRouteApi::new(state.clone()));
    let subscriptions = webhook_subscription::WebhookSubscriptionApi::new(state.clone());
    add!(routes, names, max, WebhookSubscriptionServiceServer, subscriptions);
    add!(routes, names, max, OptOutServiceServer, opt_out::OptOutApi::new(state.clone()));
    add!(routes, names, max, InboundLogServiceServer, inbound_log::InboundLogApi::new(state.clone()));
    add!(routes, names, max, AgentServiceServer, agent::AgentApi::new(state.clone()));
    let agent_sync = agent_sync::AgentSyncApi::new(state.clone());
    add!(routes, names, AGENT_MESSAGE_BYTES_MAX, AgentSyncServiceServer, agent_sync);
    add!(routes, names, max, AuditServiceServer, audit::AuditApi::new(state.clone()));
    add!(routes, names, max, TenantServiceServer, tenant::TenantApi::new(state.clone()));
    debug_assert_eq!(names, SERVICES);
    Ok((health, routes))
}

/// Every service, for health.
const SERVICES: [&str; 9] = [
    "whatsapp_gateway.v1.InstanceService",
    "whatsapp_gateway.v1.InboundRouteService",
    "whatsapp_gateway.v1.WebhookSubscriptionService",
    "whatsapp_gateway.v1.OptOutService",
    "whatsapp_gateway.v1.InboundLogService",
    "whatsapp_gateway.v1.AgentService",
    "whatsapp_gateway.v1.AgentSyncService",
    "whatsapp_gateway.v1.AuditService",
    "whatsapp_gateway.v1.TenantService",
];

/// A new id with a prefix: 80 random bits in lower-case base32.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", gateway_core::id::base32(&rand::random::<[u8; 10]>()))
}

/// A new unguessable token for a URL: 32 letters and digits, 190 bits.
fn new_token() -> String {
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(32).map(char::from).collect()
}
