//! Admin HTTP for operators and their machines: `/livez`, `/readyz`, `/metrics`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::supervise::{OnEnd, Supervisor};

/// Says why the process is not ready; `None` when it is.
pub type Readiness = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// What the admin server shows.
#[derive(Clone)]
pub struct Admin {
    /// Asked by `/readyz`.
    pub readiness: Readiness,
    /// Shown by `/metrics`.
    pub registry: Arc<Mutex<Registry>>,
}

/// Serves the admin routes on `listener` until shutdown; returns the bound address.
///
/// # Errors
/// When the listener has no address.
pub fn serve(supervisor: &Supervisor, listener: TcpListener, admin: Admin) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let ready = Arc::clone(&admin.readiness);
    let routes = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(move || async move { readyz(&ready) }))
        .route("/metrics", get(move || async move { metrics(&admin.registry) }));
    supervisor.spawn("admin", OnEnd::Shutdown, |stop| async move {
        axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await?;
        Ok(())
    });
    Ok(address)
}

fn readyz(readiness: &Readiness) -> impl IntoResponse + use<> {
    match readiness() {
        None => (StatusCode::OK, "ready\n".to_owned()),
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
