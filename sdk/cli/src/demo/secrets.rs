//! Secrets of demo routes. The control plane never reads them back, so they are kept in the data directory.

use std::{fs, io, path::Path};

use anyhow::Context as _;
use gateway_core::{event::Provider, inbound_route::RouteSecretKind};
use gateway_runtime::private;
use rand::RngExt as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const META_FILE: &str = "dev.json";
/// Hex digits of a Meta app secret and a Twilio auth token.
const HEX_DIGITS: usize = 32;
/// Characters of all other secrets.
const CHARS: usize = 32;

/// Secrets of the demo route of Meta.
#[derive(Clone, Serialize, Deserialize)]
pub struct MetaSecrets {
    /// Signs callbacks.
    pub app_secret: String,
    /// Proves the handshake.
    pub verify_token: String,
}

impl MetaSecrets {
    /// Those of `<data-dir>/dev.json`, made at the first start.
    pub fn ensure(data_dir: &Path) -> anyhow::Result<Self> {
        ensure(&data_dir.join(META_FILE), || Self { app_secret: hex(), verify_token: letters() })
    }
}

#[derive(Serialize, Deserialize)]
struct RouteSecret {
    secret: String,
}

/// The kind and the value of the secret of another provider's demo route: of `<data-dir>/dev-<provider>.json`, made when
/// first asked for.
pub fn route_secret(data_dir: &Path, provider: Provider) -> anyhow::Result<(RouteSecretKind, String)> {
    let kind = RouteSecretKind::of(provider).first().copied();
    let kind = kind.context("find the kind of secret: the provider has none")?;
    let path = data_dir.join(format!("dev-{}.json", provider.name()));
    let RouteSecret { secret } = ensure(&path, || RouteSecret { secret: random(kind) })?;
    Ok((kind, secret))
}

fn random(kind: RouteSecretKind) -> String {
    match kind {
        RouteSecretKind::BasicCredential => format!("demo:{}", letters()),
        RouteSecretKind::Header => format!("x-demo-secret: {}", letters()),
        RouteSecretKind::MetaAppSecret | RouteSecretKind::TwilioAuthToken => hex(),
        _ => letters(),
    }
}

fn ensure<T: Serialize + DeserializeOwned>(path: &Path, make: impl FnOnce() -> T) -> anyhow::Result<T> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!("read `{}`; remove the file to get new secrets for the demo route", path.display())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secrets = make();
            private::write_file(path, &serde_json::to_vec_pretty(&secrets)?)
                .with_context(|| format!("write `{}`", path.display()))?;
            Ok(secrets)
        }
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}

fn hex() -> String {
    let mut random = rand::rng();
    (0..HEX_DIGITS).map(|_| char::from(b"0123456789abcdef"[random.random_range(0..16)])).collect()
}

fn letters() -> String {
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(CHARS).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use gateway_core::violation::FieldViolations;

    use super::*;

    /// The second start finds the secrets of the first, in a file for the owner only.
    #[test]
    fn secrets_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = MetaSecrets::ensure(directory.path()).unwrap();
        let second = MetaSecrets::ensure(directory.path()).unwrap();
        assert_eq!((&first.app_secret, &first.verify_token), (&second.app_secret, &second.verify_token));
        assert_eq!(first.app_secret.len(), HEX_DIGITS);
        for provider in Provider::ALL {
            let (kind, secret) = route_secret(directory.path(), provider).unwrap();
            assert_eq!(route_secret(directory.path(), provider).unwrap(), (kind, secret.clone()));
            let mut violations = FieldViolations::new();
            kind.check(provider, &mut violations, "secret", &secret);
            assert_eq!(violations, FieldViolations::new());
        }
        for file in fs::read_dir(directory.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
