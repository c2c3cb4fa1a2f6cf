//! Every metric of the agent. Labels come from closed sets, never from ids, addresses or texts.

use std::sync::{Arc, Mutex, atomic::AtomicU64};

use gateway_runtime::tls::{CurrentCertificate, ExpiryMetric};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// All metrics of the agent. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    callbacks: Family<CallbackLabels, Counter>,
    events: Family<EventLabels, Counter>,
    attempts: Family<AttemptLabels, Counter>,
    attempt_duration: Histogram,
    hand_overs: Family<HandOverLabels, Counter>,
    quarantined: Counter,
    buffer_events: Gauge,
    buffer_bytes: Gauge,
    buffer_oldest_age: Gauge<f64, AtomicU64>,
    applied_version: Gauge,
    certificate_expired: Gauge,
    enrolled: Gauge,
    certificates: ExpiryMetric,
    registry: Arc<Mutex<Registry>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallbackLabels {
    provider: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandOverLabels {
    direction: &'static str,
}

/// Upper bounds of the attempt duration's buckets, in seconds; the last is the longest timeout.
const ATTEMPT_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

impl Metrics {
    /// Fresh metrics in a registry of their own.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("gateway");
        let metrics = Self {
            callbacks: Family::default(),
            events: Family::default(),
            attempts: Family::default(),
            attempt_duration: Histogram::new(ATTEMPT_SECONDS),
            hand_overs: Family::default(),
            quarantined: Counter::default(),
            buffer_events: Gauge::default(),
            buffer_bytes: Gauge::default(),
            buffer_oldest_age: Gauge::default(),
            applied_version: Gauge::default(),
            certificate_expired: Gauge::default(),
            enrolled: Gauge::default(),
            certificates: ExpiryMetric::register(&mut registry),
            registry: Arc::new(Mutex::new(registry)),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.register("callbacks", "Callbacks by provider and answer", self.callbacks.clone());
        registry.register("events", "Events by what the buffer did with them", self.events.clone());
        registry.register("attempts", "Webhook attempts by outcome", self.attempts.clone());
        registry.register_with_unit(
            "attempt_duration",
            "Duration of webhook attempts",
            Unit::Seconds,
            self.attempt_duration.clone(),
        );
        registry.register(
            "hand_overs",
            "Deliveries that went to or came from another agent",
            self.hand_overs.clone(),
        );
        registry.register("buffer_quarantined", "Buffers set aside as damaged", self.quarantined.clone());
        registry.register(
            "buffer_events",
            "Events not delivered and reported yet",
            self.buffer_events.clone(),
        );
        registry.register_with_unit(
            "buffer",
            "Size of the events not delivered and reported yet",
            Unit::Bytes,
            self.buffer_bytes.clone(),
        );
        registry.register_with_unit(
            "buffer_oldest_age",
            "Age of the oldest of them",
            Unit::Seconds,
            self.buffer_oldest_age.clone(),
        );
        registry.register(
            "config_applied_version",
            "Configuration version in use",
            self.applied_version.clone(),
        );
        registry.register(
            "certificate_expired",
            "1 while the agent's client certificate has expired and cannot be renewed",
            self.certificate_expired.clone(),
        );
        registry.register(
            "enrolled",
            "1 once the agent has its credential; 0 while it waits for one, or serves without",
            self.enrolled.clone(),
        );
    }

    /// Counts a callback by how it was answered.
    pub fn callback(&self, provider: &'static str, outcome: &'static str) {
        self.callbacks.get_or_create(&CallbackLabels { provider, outcome }).inc();
    }

    /// Counts events by what the buffer did with them: `stored`, `duplicate` or `refused`. Parts of
    /// callbacks that nobody claims count like events.
    pub fn events(&self, outcome: &'static str, count: u64) {
        self.events.get_or_create(&EventLabels { outcome }).inc_by(count);
    }

    /// Counts and times an attempt.
    pub fn attempt(&self, outcome: &'static str, seconds: f64) {
        self.attempts.get_or_create(&AttemptLabels { outcome }).inc();
        self.attempt_duration.observe(seconds);
    }

    /// Counts deliveries that went to another agent (`given`) or came from one (`taken`).
    pub fn hand_overs(&self, direction: &'static str, count: u64) {
        if count > 0 {
            self.hand_overs.get_or_create(&HandOverLabels { direction }).inc_by(count);
        }
    }

    /// Counts a buffer that was set aside as damaged.
    pub fn buffer_quarantined(&self) {
        self.quarantined.inc();
    }

    /// Shows how full the buffer is.
    pub fn buffer(&self, events: u64, bytes: u64, oldest_age_seconds: f64) {
        self.buffer_events.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.buffer_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.buffer_oldest_age.set(oldest_age_seconds);
    }

    /// Shows the configuration version in use.
    pub fn applied_version(&self, version: u64) {
        self.applied_version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// Shows when a certificate expires: `callback`, which callers see, or `client`, which the control plane sees.
    pub fn shows_certificate(&self, name: &'static str, certificate: CurrentCertificate) {
        self.certificates.add(name, certificate);
    }

    /// Shows whether the agent has its credential.
    pub fn enrolled(&self, is_enrolled: bool) {
        self.enrolled.set(i64::from(is_enrolled));
    }

    /// Whether the agent has its credential.
    pub fn is_enrolled(&self) -> bool {
        self.enrolled.get() != 0
    }

    /// Shows whether the client certificate has expired without a new one.
    pub fn certificate_expired(&self, is_expired: bool) {
        self.certificate_expired.set(i64::from(is_expired));
    }

    /// Whether the client certificate has expired without a new one.
    pub fn is_certificate_expired(&self) -> bool {
        self.certificate_expired.get() != 0
    }

    /// The registry, for the admin server.
    pub fn registry(&self) -> Arc<Mutex<Registry>> {
        Arc::clone(&self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
