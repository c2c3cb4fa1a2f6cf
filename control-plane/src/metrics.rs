//! Every metric of the control plane. Labels come from closed sets.

use std::sync::{Arc, Mutex, PoisonError};

use gateway_runtime::tls::{CurrentCertificate, ExpiryMetric};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What became of a gRPC request at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admission {
    /// It went on to its method.
    Accepted,
    /// No credential, or one that nobody has.
    Unauthenticated,
    /// A credential that may not call the method.
    PermissionDenied,
}

impl EncodeLabelValue for Admission {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Accepted => "accepted",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

/// Labels of `gateway_grpc_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdmissionLabels {
    /// What became of the request.
    pub outcome: Admission,
}

/// Handles to the metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// `gateway_grpc_requests_total{outcome}`.
    pub grpc_requests: Family<AdmissionLabels, Counter>,
    /// `gateway_config_version`.
    pub config_version: Gauge,
    certificates: ExpiryMetric,
    /// Where other parts register theirs, and what `/metrics` shows.
    pub registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// All metrics, registered and at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("gateway");
        let metrics = Self {
            grpc_requests: Family::default(),
            config_version: Gauge::default(),
            certificates: ExpiryMetric::register(&mut registry),
            registry: Arc::new(Mutex::new(registry)),
        };
        {
            let mut registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
            let help = "gRPC requests by what became of them at the door";
            registry.register("grpc_requests", help, metrics.grpc_requests.clone());
            registry.register(
                "config_version",
                "Newest configuration version",
                metrics.config_version.clone(),
            );
        }
        metrics
    }

    /// Shows when the certificate of the gRPC port expires.
    pub fn shows_certificate(&self, certificate: CurrentCertificate) {
        self.certificates.add("grpc", certificate);
    }

    /// Counts one gRPC request.
    pub fn admitted(&self, outcome: Admission) {
        self.grpc_requests.get_or_create(&AdmissionLabels { outcome }).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
