//! Every setting of the control plane.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use gateway_core::destination::AddressPolicy;
use gateway_runtime::{
    config::{Layer as _, LoadFileError, Span, load_file},
    sealing::{BadKey, Key},
    telemetry::{LOG_FILTER_DEFAULT, LogFormat},
};
use ipnet::IpNet;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::{
    sealing::{RootKeys, SealingError},
    tls::Tls,
};

/// The environment variable that sets the admin key.
pub const ADMIN_KEY_ENV: &str = "GATEWAY_CONTROL_PLANE_ADMIN_KEY";
/// The environment variables that set the root keys: one, or several with commas, newest first.
pub const ROOT_KEYS_ENV: [&str; 2] = ["GATEWAY_CONTROL_PLANE_ROOT_KEY", "GATEWAY_CONTROL_PLANE_ROOT_KEYS"];
/// Fewest bytes of an admin key.
pub const ADMIN_KEY_BYTES_MIN: usize = 16;

const GRPC_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 50_051);
const ADMIN_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9_464);
const CERTIFICATE_LIFETIME_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
const CERTIFICATE_LIFETIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(30 * 24 * 3_600);
const CONNECTION_AGE_DEFAULT: Duration = Duration::from_secs(30 * 60);
const CONNECTION_AGES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3_600);
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
    /// Age at which a gRPC connection is asked to end, so that callers spread again over several control planes;
    /// calls on it have 5 minutes, or as long again when that is shorter. 1s to 24h [default: 30m].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_GRPC_CONNECTION_AGE_MAX", value_name = "DURATION")]
    pub grpc_connection_age_max: Option<Span>,
    /// PEM file of the certificate, with its chain, that the gRPC port shows; read again when it changes.
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the key of --tls-cert.
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// TLS on the gRPC port with a certificate of the control plane's own authority, made at the first start;
    /// join tokens tell agents to trust it [default: false].
    #[arg(
        long,
        env = "GATEWAY_CONTROL_PLANE_TLS_OWN_CA",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub tls_own_ca: Option<bool>,
    /// Name or address by which agents and clients call the gRPC port, for --tls-own-ca; repeatable. The
    /// listen address, localhost and the loopback addresses are added.
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_TLS_NAME", value_name = "NAME", value_delimiter = ',')]
    pub tls_name: Vec<String>,
    /// Life of the client certificates of agents, 10s to 720h; they renew at about 70 % of it [default: 24h].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_AGENT_CERTIFICATE_LIFETIME", value_name = "DURATION")]
    pub agent_certificate_lifetime: Option<Span>,
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
    /// File with a root key, under which stored secrets are sealed: 32 bytes as base64 or hexadecimal. Repeatable,
    /// newest first: the first seals, all open [default: root.key of the data directory, made at the first
    /// start].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_ROOT_KEY_FILE", value_name = "FILE", value_delimiter = ',')]
    pub root_key_file: Vec<PathBuf>,
    /// Which log lines are written, as `level` or `target=level,…` [default: info].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_LOG_FILTER", value_name = "FILTER")]
    pub log_filter: Option<String>,
    /// How log lines look: `text` or `json` [default: text].
    #[arg(long, env = "GATEWAY_CONTROL_PLANE_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

gateway_runtime::layer!(Settings {
    options: [
        grpc_connection_age_max,
        tls_cert,
        tls_key,
        tls_own_ca,
        agent_certificate_lifetime,
        config,
        grpc_listen,
        data_dir,
        admin_listen,
        log_filter,
        log_format
    ],
    lists: [tls_name, root_key_file, allow_destination_cidr],
});

/// Why the control plane cannot run with its settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file of `--config` cannot be used.
    #[error("load settings")]
    File(#[source] LoadFileError),
    /// gRPC would be in plain text where others can listen.
    #[error(
        "serve gRPC in plain text on {0}: only loopback addresses are possible; give a certificate with \
         --tls-cert and --tls-key, use --tls-own-ca, or listen on 127.0.0.1 and put a TLS proxy in front of it"
    )]
    PlaintextListen(SocketAddr),
    /// The settings of TLS contradict each other.
    #[error("set up TLS on the gRPC port: {0}")]
    Tls(&'static str),
    /// Certificates of agents would be renewed all the time, or hardly ever.
    #[error("use {0:?} as --agent-certificate-lifetime: it must be between 10s and 720h")]
    CertificateLifetime(Duration),
    /// Connections would end all the time, or hardly ever.
    #[error("use {0:?} as --grpc-connection-age-max: it must be between 1s and 24h")]
    ConnectionAge(Duration),
    /// The admin key is guessable.
    #[error("use the admin key of {ADMIN_KEY_ENV}: it must have at least {ADMIN_KEY_BYTES_MIN} bytes")]
    ShortAdminKey,
    /// A root key cannot be read.
    #[error("load root keys")]
    RootKeys(#[source] SealingError),
    /// A root key of the environment cannot be read.
    #[error("use the root keys of {} or {}", ROOT_KEYS_ENV[0], ROOT_KEYS_ENV[1])]
    RootKeyOfEnvironment(#[source] BadKey),
    /// Root keys come from two places, which says nothing about which one is the newest.
    #[error("use root keys of files and of the environment: give all of them in one way")]
    TwoSourcesOfRootKeys,
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
    /// Address for gRPC; loopback without TLS; port 0 takes a free one.
    pub grpc_listen: SocketAddr,
    /// Age at which a gRPC connection is asked to end.
    pub grpc_connection_age_max: Duration,
    /// How the gRPC port speaks.
    pub tls: Tls,
    /// Life of the client certificates of agents.
    pub agent_certificate_lifetime: Duration,
    /// Directory of the databases and the admin key.
    pub data_dir: PathBuf,
    /// Address for `/livez`, `/readyz` and `/metrics`; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// Which addresses destinations may have.
    pub destinations: AddressPolicy,
    /// The admin key; when unset it is read from `<data_dir>/admin.key`, and made on the first start.
    pub admin_key: Option<AdminKey>,
    /// The keys under which stored secrets are sealed.
    pub root_keys: RootKeys,
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
        let tls = tls(&settings, grpc_listen)?;
        if tls == Tls::Off && !grpc_listen.ip().is_loopback() {
            return Err(InvalidConfig::PlaintextListen(grpc_listen));
        }
        let age_max = settings.grpc_connection_age_max.map_or(CONNECTION_AGE_DEFAULT, |span| span.0);
        if !CONNECTION_AGES.contains(&age_max) {
            return Err(InvalidConfig::ConnectionAge(age_max));
        }
        let lifetime =
            settings.agent_certificate_lifetime.map_or(CERTIFICATE_LIFETIME_DEFAULT, |span| span.0);
        if !CERTIFICATE_LIFETIMES.contains(&lifetime) {
            return Err(InvalidConfig::CertificateLifetime(lifetime));
        }
        let data_dir = settings.data_dir.unwrap_or_else(|| DATA_DIR_DEFAULT.into());
        let root_keys = if settings.root_key_file.is_empty() {
            RootKeys::of_data_dir(&data_dir)
        } else {
            let keys = RootKeys::read_files(&settings.root_key_file).map_err(InvalidConfig::RootKeys)?;
            RootKeys::Given(keys)
        };
        Ok(Self {
            grpc_listen,
            grpc_connection_age_max: age_max,
            tls,
            agent_certificate_lifetime: lifetime,
            data_dir,
            admin_listen: settings.admin_listen.unwrap_or(ADMIN_LISTEN_DEFAULT),
            destinations: AddressPolicy::new(settings.allow_destination_cidr),
            admin_key: admin_key.map(AdminKey::parse).transpose()?,
            root_keys,
            log_filter: settings.log_filter.unwrap_or_else(|| LOG_FILTER_DEFAULT.to_owned()),
            log_format: settings.log_format.unwrap_or_default(),
        })
    }

    /// Takes root keys of the environment, with commas between them, newest first.
    ///
    /// # Errors
    /// When one is not a key, or there are root key files too.
    pub fn use_root_keys(&mut self, text: &str) -> Result<(), InvalidConfig> {
        if matches!(self.root_keys, RootKeys::Given(_)) {
            return Err(InvalidConfig::TwoSourcesOfRootKeys);
        }
        let keys: Result<Vec<Key>, BadKey> = text.split(',').map(Key::parse).collect();
        self.root_keys = RootKeys::Given(keys.map_err(InvalidConfig::RootKeyOfEnvironment)?);
        Ok(())
    }
}

fn tls(settings: &Settings, listen: SocketAddr) -> Result<Tls, InvalidConfig> {
    let own_ca = settings.tls_own_ca.unwrap_or(false);
    if !own_ca && !settings.tls_name.is_empty() {
        return Err(InvalidConfig::Tls("--tls-name is for --tls-own-ca, which is not set"));
    }
    match (&settings.tls_cert, &settings.tls_key) {
        (Some(_), Some(_)) if own_ca => {
            Err(InvalidConfig::Tls("--tls-cert and --tls-own-ca exclude each other"))
        }
        (Some(certificate), Some(key)) => {
            Ok(Tls::Files { certificate: certificate.clone(), key: key.clone() })
        }
        (Some(_), None) => Err(InvalidConfig::Tls("--tls-cert needs --tls-key")),
        (None, Some(_)) => Err(InvalidConfig::Tls("--tls-key needs --tls-cert")),
        (None, None) if own_ca => Ok(Tls::OwnCa { names: own_names(&settings.tls_name, listen)? }),
        (None, None) => Ok(Tls::Off),
    }
}

/// By what the port may be called: what is given, where it listens, and this machine.
fn own_names(given: &[String], listen: SocketAddr) -> Result<Vec<String>, InvalidConfig> {
    if listen.ip().is_unspecified() && given.is_empty() {
        let problem = "--tls-own-ca on every address needs --tls-name, the name by which agents call";
        return Err(InvalidConfig::Tls(problem));
    }
    if given.iter().any(|name| ServerName::try_from(name.as_str()).is_err()) {
        return Err(InvalidConfig::Tls("a --tls-name is neither a host name nor an IP address"));
    }
    let mut names = given.to_vec();
    let own = (!listen.ip().is_unspecified()).then(|| listen.ip().to_string());
    let here = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    for name in own.into_iter().chain(here) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
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
            grpc_connection_age_max,
            tls_cert,
            tls_key,
            tls_own_ca,
            tls_name,
            agent_certificate_lifetime,
            grpc_listen,
            data_dir,
            admin_listen,
            allow_destination_cidr,
            root_key_file,
            log_filter,
            log_format,
        } = &file;
        assert!(grpc_connection_age_max.is_some());
        assert!(grpc_listen.is_some() && data_dir.is_some() && admin_listen.is_some());
        assert!(log_filter.is_some() && log_format.is_some() && allow_destination_cidr.is_empty());
        let text = std::fs::read_to_string(example()).unwrap();
        assert!(text.contains("allow_destination_cidr"));
        assert!(text.contains("root_key_file") && root_key_file.is_empty());
        assert!(agent_certificate_lifetime.is_some() && tls_own_ca.is_some() && tls_name.is_empty());
        assert!(tls_cert.is_none() && tls_key.is_none());
        assert!(
            text.contains("\n# tls_cert = ") && text.contains("\n# tls_key = ") && text.contains("tls_name")
        );
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

    /// TLS opens other addresses than loopback; settings that contradict each other are refused.
    #[test]
    fn tls_settings_are_checked() {
        let load = |arguments: &[&str]| Config::load(flags(arguments), None);
        let anywhere = ["--grpc-listen", "0.0.0.0:50051"];
        let with = |more: &[&str]| load(&[&anywhere, more].concat());
        let files = with(&["--tls-cert", "c.pem", "--tls-key", "k.pem"]).unwrap();
        assert_eq!(files.tls, Tls::Files { certificate: "c.pem".into(), key: "k.pem".into() });
        let own = with(&["--tls-own-ca", "--tls-name", "cp.example.com,10.0.0.7"]).unwrap();
        let names = ["cp.example.com", "10.0.0.7", "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        assert_eq!(own.tls, Tls::OwnCa { names: names.into() });
        for refused in [
            &["--tls-cert", "c.pem"][..],
            &["--tls-key", "k.pem"],
            &["--tls-own-ca"],
            &["--tls-own-ca", "--tls-name", "not a name"],
            &["--tls-name", "cp.example.com"],
            &["--tls-own-ca", "--tls-name", "a", "--tls-cert", "c.pem", "--tls-key", "k.pem"],
        ] {
            assert!(matches!(with(refused), Err(InvalidConfig::Tls(_))), "{refused:?}");
        }
        for refused in ["999ms", "25h"] {
            let error = load(&["--grpc-connection-age-max", refused]).unwrap_err();
            assert!(matches!(error, InvalidConfig::ConnectionAge(_)), "{refused}");
        }
        for refused in ["9s", "721h"] {
            let error = load(&["--agent-certificate-lifetime", refused]).unwrap_err();
            assert!(matches!(error, InvalidConfig::CertificateLifetime(_)), "{refused}");
        }
    }

    /// Root keys come from files, newest first, or from the environment, not from both; what is no key is refused
    /// without showing it; without any, the data directory keeps one.
    #[test]
    fn root_keys_come_from_one_place() {
        let directory = tempfile::tempdir().unwrap();
        let keys = [Key::generate(), Key::generate()];
        let files = ["new.key", "old.key"].map(|name| directory.path().join(name));
        for (file, key) in files.iter().zip(&keys) {
            std::fs::write(file, key.to_base64().as_bytes()).unwrap();
        }
        let [new, old] = files.each_ref().map(|file| file.to_str().unwrap());
        let arguments = ["--root-key-file", new, "--root-key-file", old];
        let mut config = Config::load(flags(&arguments), None).unwrap();
        assert_eq!(config.root_keys, RootKeys::Given(keys.to_vec()));
        let spelled = keys.each_ref().map(|key| key.to_base64().to_string()).join(", ");
        assert!(matches!(config.use_root_keys(&spelled), Err(InvalidConfig::TwoSourcesOfRootKeys)));
        assert!(!format!("{config:?}").contains(keys[0].to_base64().as_str()));
        let mut config = Config::load(flags(&["--data-dir", "x"]), None).unwrap();
        assert_eq!(config.root_keys, RootKeys::File("x/root.key".into()));
        let refused = config.use_root_keys("planted").unwrap_err();
        assert!(!format!("{refused} {refused:?}").contains("planted"));
        config.use_root_keys(&spelled).unwrap();
        assert_eq!(config.root_keys, RootKeys::Given(keys.to_vec()));
        std::fs::write(&files[0], "planted").unwrap();
        let refused = Config::load(flags(&arguments), None).unwrap_err();
        assert!(matches!(refused, InvalidConfig::RootKeys(SealingError::BadRootKey { .. })));
        assert!(!format!("{refused} {refused:?}").contains("planted"));
        assert!(Config::load(flags(&["--root-key-file", "/nowhere/x.key"]), None).is_err());
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
