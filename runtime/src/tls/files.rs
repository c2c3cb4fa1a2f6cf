//! A certificate and its key in files that somebody else renews.

use std::{fs, path::PathBuf, time::Duration};

use jiff::Timestamp;
use rustls::{
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{CurrentCertificate, TlsFileError, Validity, certified_key, parse_certificates, validity};
use crate::{clock, private};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Where a certificate and its key are, both PEM. The certificate's file holds its chain as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those of its issuers.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What the two files hold. Never printed.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl CertificateFiles {
    fn read(&self) -> Result<Contents, TlsFileError> {
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|source| TlsFileError::Read { path: path.display().to_string(), source })
        };
        Ok(Contents { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    fn parse(&self, contents: &Contents) -> Result<CertifiedKey, TlsFileError> {
        let [certificate, key] = [&self.certificate, &self.key].map(|path| path.display().to_string());
        let chain = parse_certificates(&contents.certificate, &certificate)?;
        let parsed = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|source| TlsFileError::Pem { path: key.clone(), source })?;
        certified_key(chain, parsed).map_err(|source| TlsFileError::Pair { certificate, key, source })
    }
}

/// A certificate that follows its files. Files that cannot be used change nothing: the last good certificate is
/// shown further on. So does a renewed certificate that has expired, or is not valid yet, as long as the last one
/// is valid; one that becomes valid is used from then on.
pub struct FileCertificate {
    files: CertificateFiles,
    current: CurrentCertificate,
    /// What is shown.
    good: Contents,
    /// What was found at the last look and cannot be used, and whether a person was told.
    bad: Option<(Option<Contents>, bool)>,
}

/// What a look at the files came to.
#[derive(Debug)]
pub(super) enum Look {
    /// They are as they were.
    Unchanged,
    /// A new certificate is shown.
    Replaced,
    /// They cannot be used, for the first time; perhaps somebody is in the middle of writing them.
    Broken,
    /// They cannot be used, again, and a person is to hear of it.
    StaysBroken(TlsFileError),
}

impl FileCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(files: CertificateFiles) -> Result<Self, TlsFileError> {
        let good = files.read()?;
        let parsed = files.parse(&good)?;
        private::warn_if_open_to_the_world(&files.key);
        if let Some(validity) = validity(&parsed).filter(|validity| !validity.contains(clock::now())) {
            warn!(
                certificate = %files.certificate.display(),
                not_before = %validity.not_before,
                not_after = %validity.not_after,
                "the TLS certificate is not valid now, so that nobody will trust it; renew the files, they are \
                 read again without a restart"
            );
        }
        Ok(Self { files, current: CurrentCertificate::new(parsed), good, bad: None })
    }

    /// What to show in handshakes; it changes with the files.
    pub fn current(&self) -> CurrentCertificate {
        self.current.clone()
    }

    /// Follows the files until `stop`.
    ///
    /// # Errors
    /// When a look at the files panics; the result is for the supervisor.
    pub async fn watch(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
            self = tokio::task::spawn_blocking(move || {
                self.note();
                self
            })
            .await?;
        }
    }

    fn note(&mut self) {
        let certificate = self.files.certificate.display().to_string();
        let look = self.look(clock::now());
        let not_after = self.current.validity().map(|validity| validity.not_after.to_string());
        match look {
            Look::Unchanged | Look::Broken => {}
            Look::Replaced => {
                private::warn_if_open_to_the_world(&self.files.key);
                info!(certificate, not_after, "using the renewed TLS certificate");
            }
            Look::StaysBroken(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                warn!(
                    certificate,
                    error,
                    used_not_after = not_after,
                    "failed to read the renewed TLS certificate; the one before stays in use"
                );
            }
        }
    }

    /// `renewed`, unless the one in use serves better: callers refuse a certificate before and after its time.
    fn better(&self, renewed: CertifiedKey, now: Timestamp) -> Result<CertifiedKey, TlsFileError> {
        let is_valid = |validity: &Validity| validity.contains(now);
        match (validity(&renewed), self.current.validity()) {
            (Some(validity), Some(used)) if !is_valid(&validity) && is_valid(&used) => {
                let certificate = self.files.certificate.display().to_string();
                Err(TlsFileError::NotValidNow { certificate, validity })
            }
            _ => Ok(renewed),
        }
    }

    /// Reads the files again. The certificate and its key are two files, so that something in between may be
    /// found once; only when the same is found twice is it a fault.
    pub(super) fn look(&mut self, now: Timestamp) -> Look {
        let (contents, outcome) = match self.files.read() {
            Ok(contents) if contents == self.good => {
                self.bad = None;
                return Look::Unchanged;
            }
            Ok(contents) => {
                let parsed = self.files.parse(&contents).and_then(|parsed| self.better(parsed, now));
                (Some(contents), parsed)
            }
            Err(error) => (None, Err(error)),
        };
        match (outcome, contents) {
            (Ok(certificate), Some(contents)) => {
                self.current.replace(certificate);
                (self.good, self.bad) = (contents, None);
                Look::Replaced
            }
            (Err(error), contents) => match &mut self.bad {
                Some((found, is_told)) if *found == contents => {
                    if std::mem::replace(is_told, true) {
                        Look::Unchanged
                    } else {
                        Look::StaysBroken(error)
                    }
                }
                bad => {
                    *bad = Some((contents, false));
                    Look::Broken
                }
            },
            (Ok(_), None) => Look::Unchanged,
        }
    }
}
