//! Admin HTTP for operators and their machines: `/livez`, `/readyz`, `/metrics`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    connections::{BoundedListener, Connection, Patience},
    supervise::{OnEnd, Supervisor},
};

/// Open connections. Beyond it new ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 256;
/// A connection opens with a request of HTTP/1, which is at least as long as `GET / HTTP/1.1`; beyond the usual
/// minute between two of its requests it is closed.
const PATIENCE: Patience = Patience {
    opening_bytes: 14,
    opening: Duration::from_secs(10),
    idle: Some(Duration::from_secs(75)),
    age: None,
};

/// Says why the process is not ready; `None` when it is.
pub type Readiness = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// What the admin server shows.
#[derive(Clone)]
pub struct Admin {
    /// Asked by `/readyz`.
    pub readiness: Readiness,
    /// Asked by `/readyz` when the process is ready: what it has to do without; `None` when nothing is missing.
    pub degraded: Readiness,
    /// Shown by `/metrics`.
    pub registry: Arc<Mutex<Registry>>,
}

/// Serves the admin routes on `listener` until shutdown; returns the bound address.
///
/// # Errors
/// When the listener has no address.
pub fn serve(supervisor: &Supervisor, listener: TcpListener, admin: Admin) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let (ready, degraded) = (Arc::clone(&admin.readiness), Arc::clone(&admin.degraded));
    let routes = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(move || async move { readyz(&ready, &degraded) }))
        .route("/metrics", get(move || async move { metrics(&admin.registry) }));
    supervisor.spawn("admin", OnEnd::Shutdown, |stop| async move {
        axum::serve(Incoming(BoundedListener::new(listener, CONNECTIONS_MAX)), routes)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await?;
        Ok(())
    });
    Ok(address)
}

struct Incoming(BoundedListener);

impl axum::serve::Listener for Incoming {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let (stream, address, place) = self.0.accept().await;
        (Connection::new(stream, PATIENCE, place), address)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn readyz(readiness: &Readiness, degraded: &Readiness) -> impl IntoResponse + use<> {
    match readiness() {
        None => match degraded() {
            None => (StatusCode::OK, "ready\n".to_owned()),
            Some(reason) => (StatusCode::OK, format!("ready, degraded: {reason}\n")),
        },
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

fn metrics(registry: &Mutex<Registry>) -> impl IntoResponse + use<> {
    let mut text = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
