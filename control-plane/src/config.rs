//! Every setting of the control plane.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use gateway_core::destination::AddressPolicy;
use gateway_runtime::{
    config::{Layer as _, LoadFileError, load_file},
    telemetry::{LOG_FILTER_DEFAULT, LogFormat},
};
use ipnet::IpNet;
use serde::Deserialize;

/// The environment variable that sets the admin key.
pub const ADMIN_KEY_ENV: &str = "GATEWAY_CONTROL_PLANE_ADMIN_KEY";
/// Fewest bytes of an admin key.
pub const ADMIN_KEY_BYTES_MIN: usize = 16;

const GRPC_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 50_051);
const ADMIN_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9_464);
const DATA_DIR_DEFAULT: &str = "./data/control-plane";

/// Settings as given by flags, environment or file; what is not set falls through.
#[derive(Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// TOML file with settings; flags and environment win over it.
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address for gRPC; port 0 takes a free one [default: 127.0.0.1:50051].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_GRPC_LISTEN", value_name = "ADDRESS")]
    pub grpc_listen: Option<SocketAddr>,
    /// Directory of the databases and the admin key; created when missing [default: ./data/control-plane].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address for /livez, /readyz and /metrics; port 0 takes a free one [default: 127.0.0.1:9464].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Network in which destinations may have private addresses and use http; repeatable.
    #[arg(
        long,
        env = "GATEWAY_CONTROL_PLANE_ALLOW_DESTINATION_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub allow_destination_cidr: Vec<IpNet>,
    /// Which log lines are written, as `level` or `target=level,…` [default: info].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_LOG_FILTER", value_name = "FILTER")]
    pub log_filter: Option<String>,
    /// How log lines look: `text` or `json` [default: text].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

gateway_runtime::layer!(Settings {
    options: [config, grpc_listen, data_dir, admin_listen, log_filter, log_format],
    lists: [allow_destination_cidr],
});

/// Why the control plane cannot run with its settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file of `--config` cannot be used.
    #[error("load settings")]
    File(#[source] LoadFileError),
    /// gRPC would be in plain text where others can listen.
    #[error(
        "serve gRPC in plain text on {0}: only loopback addresses are possible; listen on 127.0.0.1 and put \
         a TLS proxy in front of it"
    )]
    PlaintextListen(SocketAddr),
    /// The admin key is guessable.
    #[error("use the admin key of {ADMIN_KEY_ENV}: it must have at least {ADMIN_KEY_BYTES_MIN} bytes")]
    ShortAdminKey,
    /// The admin key cannot be sent in a header.
    #[error("use the admin key of {ADMIN_KEY_ENV}: it must be visible ASCII without spaces")]
    UnprintableAdminKey,
}

/// The key of the platform admin. Prints masked.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey(Box<str>);

impl AdminKey {
    /// Takes a key as given.
    ///
    /// # Errors
    /// When it is too short or cannot be sent in a header.
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        if text.len() < ADMIN_KEY_BYTES_MIN {
            Err(InvalidConfig::ShortAdminKey)
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err(InvalidConfig::UnprintableAdminKey)
        } else {
            Ok(Self(text.into()))
        }
    }

    /// The key itself, for `authorization: Bearer <key>`.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("••••")
    }
}

/// Validated settings: nothing optional but the admin key, nothing left to parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address for gRPC, loopback; port 0 takes a free one.
    pub grpc_listen: SocketAddr,
    /// Directory of the databases and the admin key.
    pub data_dir: PathBuf,
    /// Address for `/livez`, `/readyz` and `/metrics`; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// Which addresses destinations may have.
    pub destinations: AddressPolicy,
    /// The admin key; when unset it is read from `<data_dir>/admin.key`, and made on the first start.
    pub admin_key: Option<AdminKey>,
    /// Which log lines are written.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// Lays flags and environment over the file that they name, and validates the result.
    ///
    /// # Errors
    /// When the file cannot be used or a value is out of range.
    pub fn load(settings: Settings, admin_key: Option<&str>) -> Result<Self, InvalidConfig> {
        let file = match &settings.config {
            Some(path) => load_file(path).map_err(InvalidConfig::File)?,
            None => Settings::default(),
        };
        Self::resolve(settings.over(file), admin_key)
    }

    /// Fills in defaults and validates.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn resolve(settings: Settings, admin_key: Option<&str>) -> Result<Self, InvalidConfig> {
        let grpc_listen = settings.grpc_listen.unwrap_or(GRPC_LISTEN_DEFAULT);
        if !grpc_listen.ip().is_loopback() {
            return Err(InvalidConfig::PlaintextListen(grpc_listen));
        }
        Ok(Self {
            grpc_listen,
            data_dir: settings.data_dir.unwrap_or_else(|| DATA_DIR_DEFAULT.into()),
            admin_listen: settings.admin_listen.unwrap_or(ADMIN_LISTEN_DEFAULT),
            destinations: AddressPolicy::new(settings.allow_destination_cidr),
            admin_key: admin_key.map(AdminKey::parse).transpose()?,
            log_filter: settings.log_filter.unwrap_or_else(|| LOG_FILTER_DEFAULT.to_owned()),
            log_format: settings.log_format.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn flags(arguments: &[&str]) -> Settings {
        Cli::try_parse_from([&["control-plane"], arguments].concat()).unwrap().settings
    }

    fn example() -> PathBuf {
        concat!(env!("CARGO_MANIFEST_DIR"), "/control-plane.example.toml").into()
    }

    /// The example file names every setting, each at its default.
    #[test]
    fn example_file_is_complete_and_default() {
        let file: Settings = load_file(&example()).unwrap();
        let Settings {
            config: _,
            grpc_listen,
            data_dir,
            admin_listen,
            allow_destination_cidr,
            log_filter,
            log_format,
        } = &file;
        assert!(grpc_listen.is_some() && data_dir.is_some() && admin_listen.is_some());
        assert!(log_filter.is_some() && log_format.is_some() && allow_destination_cidr.is_empty());
        let text = std::fs::read_to_string(example()).unwrap();
        assert!(text.contains("allow_destination_cidr"));
        let default = Config::resolve(Settings::default(), None).unwrap();
        assert_eq!(Config::resolve(file, None).unwrap(), default);
    }

    /// A flag wins over the file, the file over the default.
    #[test]
    fn flags_win_over_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.toml");
        std::fs::write(&path, "grpc_listen = \"127.0.0.1:1\"\nlog_format = \"json\"\n").unwrap();
        let path = path.to_str().unwrap();
        let config = Config::load(flags(&["--config", path, "--grpc-listen", "127.0.0.1:2"]), None).unwrap();
        assert_eq!(config.grpc_listen.port(), 2);
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.log_filter, "info");
    }

    /// Unknown keys, a missing file, guessable keys and plain text on a public address are refused.
    #[test]
    fn bad_settings_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.toml");
        std::fs::write(&path, "grpc_lisen = \"127.0.0.1:1\"\n").unwrap();
        let load = |arguments: &[&str], key| Config::load(flags(arguments), key);
        assert!(matches!(load(&["--config", path.to_str().unwrap()], None), Err(InvalidConfig::File(_))));
        assert!(matches!(load(&["--config", "/nowhere/x.toml"], None), Err(InvalidConfig::File(_))));
        let error = load(&["--grpc-listen", "0.0.0.0:50051"], None).unwrap_err();
        assert!(error.to_string().contains("TLS proxy"), "{error}");
        assert!(matches!(load(&[], Some("fifteen-bytes-k")), Err(InvalidConfig::ShortAdminKey)));
        assert!(matches!(load(&[], Some("sixteen bytes ke")), Err(InvalidConfig::UnprintableAdminKey)));
        assert!(Cli::try_parse_from(["control-plane", "--allow-destination-cidr", "10.0.0.1"]).is_err());
    }

    /// Networks repeat on the command line, and the admin key never shows.
    #[test]
    fn networks_repeat_and_key_is_masked() {
        let arguments = ["--allow-destination-cidr", "10.0.0.0/8", "--allow-destination-cidr", "fd00::/8"];
        let config = Config::load(flags(&arguments), Some("planted-admin-key")).unwrap();
        assert_eq!(config.destinations.allowed.len(), 2);
        assert!(!format!("{config:?}").contains("planted"));
    }
}
