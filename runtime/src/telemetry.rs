//! Log lines on standard error.

use std::io::IsTerminal as _;

use serde::Deserialize;
use tracing_subscriber::{
    EnvFilter, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The filter in force when none is given.
pub const LOG_FILTER_DEFAULT: &str = "info";

/// The log filter cannot be parsed, or logging was set up before.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not `target=level,…`.
    #[error("parse log filter `{filter}`")]
    Filter {
        /// The filter.
        filter: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is installed already.
    #[error("install the log subscriber")]
    Installed(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends log lines to standard error. `filter` is as in `RUST_LOG`: `info,gateway_agent=debug`.
///
/// # Errors
/// When the filter is wrong or logging was set up before.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let lines = tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(stderr());
            registry.with(lines).try_init()
        }
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr());
            registry.with(lines).try_init()
        }
    };
    installed.map_err(TelemetryError::Installed)
}

fn stderr() -> impl for<'a> MakeWriter<'a> + 'static {
    std::io::stderr
}
