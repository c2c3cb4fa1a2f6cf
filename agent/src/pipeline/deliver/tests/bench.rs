//! Attempts without a buffer: one event, one subscription, and what comes of it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::sync::OwnedSemaphorePermit;

use super::*;
use crate::pipeline::deliver::{
    attempt::{Made, Verdict},
    dial::{Resolve, Resolving},
};

pub(super) const LOOPBACK: &[&str] = &["127.0.0.0/8", "::1/128"];

/// The first event, owed.
pub(super) fn owed() -> Owed {
    Owed { log: event(1, &[]).log.into(), attempts: 0 }
}

/// A subscription as the agent uses it.
pub(super) fn settings(subscription: v1::WebhookSubscription) -> Arc<SubscriptionConfig> {
    let id = subscription.id.clone();
    Arc::clone(snapshot([subscription]).subscription(&id).unwrap())
}

/// A subscription with a short attempt timeout.
pub(super) fn impatient(destination_url: &str) -> v1::WebhookSubscription {
    let attempt_timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    v1::WebhookSubscription { attempt_timeout, ..subscription("sub_a", destination_url) }
}

pub(super) fn policy(allowed: &[&str]) -> AddressPolicy {
    AddressPolicy::new(allowed.iter().map(|network| network.parse().unwrap()).collect())
}

pub(super) fn attempter(allowed: &[&str]) -> Attempter {
    Attempter::new(policy(allowed), "agt_1", Metrics::new()).unwrap()
}

/// The first attempt at a destination, on loopback.
pub(super) async fn attempt_at(destination_url: &str) -> Made {
    attempter(LOOPBACK).attempt(&owed(), &settings(impatient(destination_url))).await
}

/// Kind and words of a failed attempt.
pub(super) fn failure(made: &Made) -> (v1::AttemptFailure, &str) {
    (made.attempt.failure(), made.attempt.error.as_str())
}

/// Whether no connection was made, and that was known soon.
pub(super) fn is_quick(made: &Made) -> bool {
    matches!(made.verdict, Verdict::Failed { quick: true, .. })
}

/// PEM of a certificate or key (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// A resolver that answers by a function of the name and how many lookups came before.
pub(super) struct Scripted<F> {
    answer: F,
    lookups: std::sync::atomic::AtomicUsize,
}

impl<F: Fn(&str, usize) -> Vec<std::net::IpAddr>> Scripted<F> {
    pub(super) fn new(answer: F) -> Arc<Self> {
        Arc::new(Self { answer, lookups: std::sync::atomic::AtomicUsize::new(0) })
    }

    pub(super) fn lookups(&self) -> usize {
        self.lookups.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl<F: Fn(&str, usize) -> Vec<std::net::IpAddr> + Send + Sync> Resolve for Scripted<F> {
    fn resolve(&self, name: &str, _turn: OwnedSemaphorePermit) -> Resolving {
        let before = self.lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let answer = (self.answer)(name, before);
        Box::pin(async move { Ok(answer) })
    }
}
