//! The agent's client certificate: a key made here, a certificate from the control plane, renewed at about 70 %
//! of its life.
//!
//! When the control plane is away for so long that the certificate expires, the agent goes on serving; it
//! renews with its credential once the control plane is back. Times are measured by the agent's own clock, from
//! the moment it got the certificate, so that a clock that is wrong by days changes nothing.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::time::duration_from_proto;
use gateway_proto::v1;
use gateway_runtime::{backoff::Backoff, clock, tls};
use jiff::Timestamp;
use rand::RngExt as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tracing::{debug, info, warn};

use super::{CallFailed, Client, ENROLL_TIMEOUT, Link, learn_authorities};
use crate::{metrics::Metrics, private};

const FILE: &str = "certificate.json";
/// The part of its life after which a certificate is renewed: somewhere in between, so that agents that enrolled
/// together do not renew together.
const RENEWED_AT: std::ops::Range<f64> = 0.65..0.75;
/// How often the clock is looked at, which may jump.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// First and longest delay between attempts to renew.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// There is no client certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The key or the request cannot be made.
    #[error("make a key and a certificate signing request")]
    Key(#[from] rcgen::Error),
    /// The control plane's answer has no certificate, or none for the key.
    #[error("use the certificate of the control plane's answer")]
    Answer(#[source] Option<rustls::Error>),
    /// The file cannot be read or written.
    #[error("access `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A key that is not certified yet. Prints nothing.
pub(super) struct NewKey(KeyPair);

impl NewKey {
    pub(super) fn make() -> Result<Self, CertificateError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    #[cfg(test)]
    pub(super) const fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// The certificate signing request. It names nobody: who gets the certificate is the control plane's to say.
    pub(super) fn request(&self) -> Result<Vec<u8>, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

/// A certificate with its key. Prints without the key.
pub struct AgentCertificate {
    key: Vec<u8>,
    chain: Vec<Vec<u8>>,
    received: Timestamp,
    life: Duration,
}

/// How it is kept. Key and certificate are one file, since one without the other is worth nothing.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// PKCS #8, base64.
    key: String,
    /// DER, base64; the agent's own first.
    chain: Vec<String>,
    /// Seconds since 1970, by the agent's clock.
    receive_seconds: i64,
    life_seconds: u64,
}

impl fmt::Debug for AgentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentCertificate({:?} from {})", self.life, self.received)
    }
}

impl AgentCertificate {
    pub(super) fn new(key: NewKey, answer: v1::AgentCertificate) -> Result<Self, CertificateError> {
        let life = answer.lifetime.as_ref().and_then(duration_from_proto);
        let life = life.filter(|life| !life.is_zero()).ok_or(CertificateError::Answer(None))?;
        let (key, chain) = (key.0.serialize_der(), answer.chain);
        let certificate = Self { key, chain, received: clock::now(), life };
        certificate.certified_key().map_err(|error| CertificateError::Answer(Some(error)))?;
        Ok(certificate)
    }

    /// The one that was stored. None when there is none or it cannot be read; then it is renewed.
    pub fn stored(data_dir: &Path) -> Option<Self> {
        private::warn_if_open(&data_dir.join(FILE));
        Self::read(data_dir)
    }

    /// As [`AgentCertificate::stored`], without a warning of who else can read it.
    pub(super) fn read(data_dir: &Path) -> Option<Self> {
        let bytes = fs::read(data_dir.join(FILE)).ok()?;
        let stored: Stored = serde_json::from_slice(&bytes).ok()?;
        let chain: Result<Vec<_>, _> = stored.chain.iter().map(|one| STANDARD.decode(one)).collect();
        let certificate = Self {
            key: STANDARD.decode(stored.key).ok()?,
            chain: chain.ok()?,
            received: Timestamp::from_second(stored.receive_seconds).ok()?,
            life: Duration::from_secs(stored.life_seconds),
        };
        certificate.certified_key().ok()?;
        Some(certificate)
    }

    pub(super) fn store(&self, data_dir: &Path) -> Result<(), CertificateError> {
        let stored = Stored {
            key: STANDARD.encode(&self.key),
            chain: self.chain.iter().map(|one| STANDARD.encode(one)).collect(),
            receive_seconds: self.received.as_second(),
            life_seconds: self.life.as_secs(),
        };
        let path = data_dir.join(FILE);
        let bytes = serde_json::to_vec(&stored).expect("strings and numbers are JSON");
        private::write_file(&path, &bytes).map_err(|source| CertificateError::File { path, source })
    }

    pub(super) fn certified_key(&self) -> Result<CertifiedKey, rustls::Error> {
        let chain = self.chain.iter().map(|one| CertificateDer::from(one.clone())).collect();
        tls::certified_key(chain, PrivateKeyDer::Pkcs8(self.key.clone().into()))
    }

    /// How much of its life is over at `now`; more than 1 when it has expired. A clock that went back to before
    /// the certificate came tells nothing, so that it counts as expired.
    fn age(&self, now: Timestamp) -> f64 {
        let age = now.duration_since(self.received).as_secs_f64();
        if age < 0.0 { f64::INFINITY } else { age / self.life.as_secs_f64() }
    }

    fn has_expired(&self) -> bool {
        self.age(clock::now()) >= 1.0
    }
}

/// Keeps the client certificate fresh. It ends only when told to.
pub struct Keeper {
    link: Link,
    client: Client,
    data_dir: PathBuf,
    metrics: Metrics,
    held: Option<AgentCertificate>,
    renewed_at: f64,
}

impl Keeper {
    /// Keeps the certificate of `data_dir` fresh, and shows it in connections of `link`. A certificate that
    /// cannot be used is as good as none.
    pub fn new(link: Link, client: Client, data_dir: &Path, metrics: Metrics) -> Self {
        let held = AgentCertificate::stored(data_dir).filter(|held| link.show(held).is_ok());
        let renewed_at = rand::rng().random_range(RENEWED_AT);
        Self { link, client, data_dir: data_dir.to_owned(), metrics, held, renewed_at }
    }

    /// Renews until `stop`. Without TLS there is nothing to do.
    ///
    /// # Errors
    /// Never; the result is for the supervisor.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let (mut is_told, mut is_refused) = (false, false);
        if !self.link.is_tls() {
            stop.cancelled().await;
            return Ok(());
        }
        loop {
            if !is_refused {
                is_refused = tokio::select! {
                    () = tokio::time::sleep(self.due_in(clock::now())) => false,
                    () = self.link.refused() => true,
                    () = stop.cancelled() => return Ok(()),
                };
            }
            if !is_refused && !self.due_in(clock::now()).is_zero() {
                continue;
            }
            let had_expired = self.held.as_ref().is_some_and(AgentCertificate::has_expired);
            let renewed = tokio::select! {
                renewed = self.renew() => renewed,
                () = stop.cancelled() => return Ok(()),
            };
            let mut is_away = false;
            match renewed {
                Ok(()) => {
                    // Streams that are open go on; those that were refused, or are about to be, need another connection.
                    if self.link.forget_refusals() || is_refused || had_expired {
                        self.link.reconnect();
                    }
                    self.link.note_certificate();
                    self.metrics.certificate_expired(false);
                    backoff.reset();
                    is_told = false;
                    info!("renewed the client certificate of this agent");
                }
                Err(failure) => {
                    is_away = failure.downcast_ref().is_some_and(CallFailed::is_away);
                    self.note(&failure, &mut is_told);
                }
            }
            match self.wait(&mut backoff, is_away, &stop).await {
                Some(refused) => is_refused = refused,
                None => return Ok(()),
            }
        }
    }

    /// Waits for the next attempt. A control plane that was away, and refuses a call meanwhile, is back: true then. None
    /// when `stop` came first.
    pub(super) async fn wait(
        &self,
        backoff: &mut Backoff,
        is_away: bool,
        stop: &CancellationToken,
    ) -> Option<bool> {
        tokio::select! {
            goes_on = backoff.wait(stop) => goes_on.then_some(false),
            () = self.link.refused(), if is_away => Some(true),
        }
    }

    pub(super) fn due_in(&self, now: Timestamp) -> Duration {
        let Some(held) = &self.held else { return Duration::ZERO };
        let rest = (self.renewed_at - held.age(now)).max(0.0);
        held.life.mul_f64(rest).min(LOOK_INTERVAL)
    }

    fn note(&self, failure: &anyhow::Error, is_told: &mut bool) {
        let is_expired = self.held.as_ref().is_none_or(AgentCertificate::has_expired);
        self.metrics.certificate_expired(is_expired);
        let error = format!("{failure:#}");
        if is_expired && !std::mem::replace(is_told, true) {
            warn!(
                error,
                "the client certificate of this agent has expired and cannot be renewed; it goes on serving from \
                 the last good configuration and renews once the control plane can be reached"
            );
        } else {
            debug!(error, "failed to renew the client certificate; trying again");
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        let key = NewKey::make()?;
        let message = v1::RenewAgentCertificateRequest { certificate_signing_request: key.request()? };
        let mut request = Request::new(message);
        request.set_timeout(ENROLL_TIMEOUT);
        let response = self.client.renew_agent_certificate(request).await.map_err(CallFailed::from)?;
        let mut answer =
            response.into_inner().certificate.context("renew certificate: the answer has none")?;
        let authorities = std::mem::take(&mut answer.authorities);
        let certificate = AgentCertificate::new(key, answer)?;
        let (store, link, data_dir) = (certificate, self.link.clone(), self.data_dir.clone());
        let storing = tokio::task::spawn_blocking(move || {
            store.store(&data_dir)?;
            if let Err(error) = learn_authorities(&link, &authorities, &data_dir) {
                let error = format!("{:#}", anyhow::Error::from(error));
                // The certificate is good all the same; the authorities come again with the next one.
                warn!(error, "failed to keep the authorities that the control plane named");
            }
            Ok::<_, CertificateError>(store)
        });
        let certificate = storing.await??;
        self.link.show(&certificate)?;
        self.held = Some(certificate);
        self.renewed_at = rand::rng().random_range(RENEWED_AT);
        Ok(())
    }
}
