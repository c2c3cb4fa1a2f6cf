//! The way to the control plane.

use std::{fs, path::Path};

use anyhow::Context as _;
use gateway_sdk::{Client, ClientOptions, Error};

use crate::BadConfig;

/// Where the authority is that most people look for.
const OWN_CA: &str = "a control plane that runs with --tls-own-ca keeps its authority as `ca.pem` in its data \
                      directory: copy that file here and give it with --control-plane-ca";

/// Connects to the control plane at `url`. `ca` is the file of the authority that its certificate comes from;
/// without one those count that the system trusts.
///
/// # Errors
/// [`BadConfig`] when the caller has to give something else, otherwise that nothing answers.
pub async fn connect(url: &str, api_key: &str, ca: Option<&Path>) -> anyhow::Result<Client> {
    let mut options = ClientOptions::new(url, api_key);
    if let Some(path) = ca {
        let name = path.display();
        let pem = fs::read_to_string(path)
            .map_err(|error| BadConfig(format!("--control-plane-ca: read `{name}`: {error}")))?;
        options = options.with_ca_certificate(pem);
    }
    Client::connect(options).await.map_err(|error| match error {
        Error::Endpoint { .. } => {
            let form = "http://127.0.0.1:50051 or https://control-plane.example.com:50051";
            BadConfig(format!("--control-plane-url: {error}: it must be such as {form}")).into()
        }
        Error::ApiKey => BadConfig(format!("--api-key: {error}")).into(),
        Error::CaCertificate | Error::CaWithoutTls { .. } => {
            BadConfig(format!("--control-plane-ca: {error}")).into()
        }
        Error::NoTls { .. } | Error::WantsTls { .. } => {
            BadConfig(format!("--control-plane-url: {error}")).into()
        }
        Error::Untrusted { .. } if ca.is_none() => anyhow::anyhow!("{error}; {OWN_CA}"),
        error => anyhow::Error::from(error),
    })
}

/// As [`connect`], to a control plane of this process.
pub async fn connect_here(url: &str, api_key: &str, ca: Option<&Path>) -> anyhow::Result<Client> {
    connect(url, api_key, ca).await.context("connect to the control plane that was just started")
}
