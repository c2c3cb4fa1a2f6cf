//! The metric that says when certificates expire.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::CurrentCertificate;

/// `gateway_tls_certificate_expire_time_seconds{certificate}`: when the certificates that this process shows
/// expire, in seconds since 1970. Read at every scrape, so that it is right whoever renews them. Cheap to clone.
#[derive(Clone, Default)]
pub struct ExpiryMetric(Arc<Mutex<Vec<(&'static str, CurrentCertificate)>>>);

impl ExpiryMetric {
    /// The metric, in `registry`. It shows nothing before [`ExpiryMetric::add`].
    pub fn register(registry: &mut Registry) -> Self {
        let metric = Self::default();
        registry.register_collector(Box::new(metric.clone()));
        metric
    }

    /// Shows the expiry of this certificate under `name`, while there is one.
    pub fn add(&self, name: &'static str, certificate: CurrentCertificate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, certificate));
    }
}

impl fmt::Debug for ExpiryMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExpiryMetric")
    }
}

impl Collector for ExpiryMetric {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shown.iter().filter_map(|(name, certificate)| Some((*name, certificate.validity()?)));
        let known: Vec<_> = known.collect();
        if known.is_empty() {
            return Ok(());
        }
        let help = "When the certificate expires, in seconds since 1970.";
        let mut family = encoder.encode_descriptor(
            "tls_certificate_expire_time",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (name, validity) in known {
            let gauge = ConstGauge::new(validity.not_after.as_second());
            gauge.encode(family.encode_family(&[("certificate", name)])?)?;
        }
        Ok(())
    }
}
