//! Every setting of the agent: flag over environment over TOML file over default.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gateway_core::violation::FieldViolations;
use gateway_runtime::{
    config::{Bytes, Layer, Span, load_file},
    layer,
    sealing::{BadKey, Key},
    telemetry::{LOG_FILTER_DEFAULT, LogFormat},
    tls::CertificateFiles,
};
use ipnet::IpNet;
use serde::Deserialize;
use url::{Host, Url};

use crate::snapshot::export::ExportFiles;

/// Settings as given, each perhaps unset.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where providers' callbacks are taken [default: 127.0.0.1:8090]
    #[arg(long, env = "GATEWAY_AGENT_CALLBACK_LISTEN", value_name = "ADDRESS")]
    pub callback_listen: Option<SocketAddr>,
    /// Where /livez, /readyz and /metrics are served [default: 127.0.0.1:9465]
    #[arg(long, env = "GATEWAY_AGENT_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Where the buffer, the credential and the last good configuration are kept; created when missing
    /// [default: ./data/agent]
    #[arg(long, env = "GATEWAY_AGENT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The control plane [default: http://127.0.0.1:50051]
    #[arg(long, env = "GATEWAY_AGENT_CONTROL_PLANE_URL", value_name = "URL")]
    pub control_plane_url: Option<String>,
    /// PEM file of the authority that the control plane's certificate comes from, for https; without it the one
    /// that the join token names, or those that the system trusts
    #[arg(long, env = "GATEWAY_AGENT_CONTROL_PLANE_CA", value_name = "FILE")]
    pub control_plane_ca: Option<PathBuf>,
    /// Where this agent runs; when given it must be the join token's region [default: the join token's]
    #[arg(long, env = "GATEWAY_AGENT_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// The address that providers call, when a proxy stands before the agent, for providers that sign it
    #[arg(long, env = "GATEWAY_AGENT_PUBLIC_BASE_URL", value_name = "URL")]
    pub public_base_url: Option<String>,
    /// File with the one-time join token; ignored once the agent has its credential
    #[arg(long, env = "GATEWAY_AGENT_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// File of `gateway-control-plane export-snapshot` with which a new agent starts while the control plane cannot be
    /// reached; ignored once there is a configuration on disk
    #[arg(long, env = "GATEWAY_AGENT_SNAPSHOT_FILE", value_name = "FILE")]
    pub snapshot_file: Option<PathBuf>,
    /// The key file that the export of --snapshot-file was made with
    #[arg(long, env = "GATEWAY_AGENT_SNAPSHOT_KEY_FILE", value_name = "FILE")]
    pub snapshot_key_file: Option<PathBuf>,
    /// Network in which destinations may be private and plain http; repeatable. Metadata addresses are
    /// never allowed
    #[arg(long, env = "GATEWAY_AGENT_ALLOW_DESTINATION_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub allow_destination_cidr: Vec<IpNet>,
    /// Take callbacks on a non-loopback address without TLS, because a proxy that terminates TLS stands
    /// before the agent [default: false]
    #[arg(
        long,
        env = "GATEWAY_AGENT_CALLBACK_BEHIND_PROXY",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub callback_behind_proxy: Option<bool>,
    /// PEM file of the certificate, with its chain, that providers see: callbacks come in over HTTPS; read again
    /// when it changes
    #[arg(long, env = "GATEWAY_AGENT_CALLBACK_TLS_CERT", value_name = "FILE")]
    pub callback_tls_cert: Option<PathBuf>,
    /// PEM file of the key of --callback-tls-cert
    #[arg(long, env = "GATEWAY_AGENT_CALLBACK_TLS_KEY", value_name = "FILE")]
    pub callback_tls_key: Option<PathBuf>,
    /// Network of proxies whose X-Forwarded-Proto and X-Forwarded-Host say what the provider called, for those
    /// that sign it; repeatable. From others these headers count for nothing
    #[arg(long, env = "GATEWAY_AGENT_CALLBACK_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',')]
    pub callback_trusted_proxy: Vec<IpNet>,
    /// Most bytes of events that are not delivered and reported yet; beyond it callbacks get 503
    /// [default: 4GiB]
    #[arg(long, env = "GATEWAY_AGENT_BUFFER_BYTES_MAX", value_name = "SIZE")]
    pub buffer_bytes_max: Option<Bytes>,
    /// The part of the buffer that one destination may be owed, in percent, 1 to 100; beyond it callbacks for
    /// it get 503, and 100 is no limit [default: 50]
    #[arg(long, env = "GATEWAY_AGENT_BUFFER_DESTINATION_SHARE", value_name = "PERCENT")]
    pub buffer_destination_share: Option<u8>,
    /// Most bytes of the files that remember for eight days what was seen, 32 bytes each; beyond it the oldest
    /// are forgotten early [default: 1GiB]
    #[arg(long, env = "GATEWAY_AGENT_BUFFER_MARKS_BYTES_MAX", value_name = "SIZE")]
    pub buffer_marks_bytes_max: Option<Bytes>,
    /// Length at which a new segment of the buffer's journal begins, 64KiB to 1GiB; at most twice what is live
    /// and one segment is on disk [default: 32MiB]
    #[arg(long, env = "GATEWAY_AGENT_BUFFER_SEGMENT_BYTES", value_name = "SIZE")]
    pub buffer_segment_bytes: Option<Bytes>,
    /// Least free space on the buffer's disk; below it callbacks get 503 [default: 64MiB, or a twentieth of
    /// a smaller disk]
    #[arg(long, env = "GATEWAY_AGENT_DISK_FREE_BYTES_MIN", value_name = "SIZE")]
    pub disk_free_bytes_min: Option<Bytes>,
    /// Longest time that stopping may take; what is left stays in the buffer [default: 10s]
    #[arg(long, env = "GATEWAY_AGENT_SHUTDOWN_GRACE", value_name = "DURATION")]
    pub shutdown_grace: Option<Span>,
    /// Which log lines, as `info` or `info,gateway_agent=debug` [default: info]
    #[arg(long, env = "GATEWAY_AGENT_LOG_FILTER", value_name = "FILTER")]
    pub log_filter: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, env = "GATEWAY_AGENT_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

layer!(Settings {
    options: [
        callback_listen,
        admin_listen,
        data_dir,
        control_plane_url,
        region,
        public_base_url,
        join_token_file,
        snapshot_file,
        snapshot_key_file,
        callback_behind_proxy,
        control_plane_ca,
        callback_tls_cert,
        callback_tls_key,
        buffer_bytes_max,
        buffer_destination_share,
        buffer_marks_bytes_max,
        buffer_segment_bytes,
        disk_free_bytes_min,
        shutdown_grace,
        log_filter,
        log_format,
    ],
    lists: [callback_trusted_proxy, allow_destination_cidr],
});

/// Settings validated, nothing left to parse.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where callbacks are taken; port 0 picks a free one.
    pub callback_listen: SocketAddr,
    /// Where admin HTTP is served; port 0 picks a free one.
    pub admin_listen: SocketAddr,
    /// Where state is kept.
    pub data_dir: PathBuf,
    /// The control plane.
    pub control_plane_url: String,
    /// The authority of the control plane; None for the one of the join token, or else the system's.
    pub control_plane_ca: Option<PathBuf>,
    /// The certificate that providers see; None for plain HTTP.
    pub callback_tls: Option<CertificateFiles>,
    /// Proxies that may say what the provider called.
    pub callback_trusted_proxy: Vec<IpNet>,
    /// Where this agent is meant to run; None for where its join token says.
    pub region: Option<String>,
    /// The address that providers call, if it is not the request's own.
    pub public_base_url: Option<Arc<str>>,
    /// File with the join token.
    pub join_token_file: Option<PathBuf>,
    /// A snapshot export to start from while the control plane cannot be reached.
    pub snapshot: Option<ExportFiles>,
    /// Networks in which destinations may be private and plain http.
    pub allow_destination_cidr: Vec<IpNet>,
    /// Most bytes of undelivered or unreported events.
    pub buffer_bytes_max: u64,
    /// The part of the buffer that one destination may be owed, in percent, 1 to 100.
    pub buffer_destination_share: u8,
    /// Most bytes of the files that remember what was seen.
    pub buffer_marks_bytes_max: u64,
    /// Length at which a new segment of the buffer's journal begins.
    pub buffer_segment_bytes: u64,
    /// Least free space on the buffer's disk; None for 64 MiB or a twentieth of a smaller disk.
    pub disk_free_bytes_min: Option<u64>,
    /// Longest time that stopping may take.
    pub shutdown_grace: Duration,
    /// The key under which the last good configuration is sealed; None for `config.key` of the data directory,
    /// made when it is not there.
    pub config_key: Option<Key>,
    /// Which log lines.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// Takes the key under which the last good configuration is sealed, from the environment.
    ///
    /// # Errors
    /// When it is not a key.
    pub fn use_config_key(&mut self, text: &str) -> Result<(), BadKey> {
        self.config_key = Some(Key::parse(text)?);
        Ok(())
    }
}

impl Settings {
    /// These settings over those of `file`, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn with_file(self, file: Option<&Path>) -> Result<Self, gateway_runtime::config::LoadFileError> {
        match file {
            Some(path) => Ok(self.over(load_file(path)?)),
            None => Ok(self),
        }
    }

    /// The validated form.
    ///
    /// # Errors
    /// Every setting that cannot be used.
    pub fn validate(self) -> Result<Config, FieldViolations> {
        let mut violations = FieldViolations::new();
        let callback_listen = self.callback_listen.unwrap_or(([127, 0, 0, 1], 8090).into());
        let behind_proxy = self.callback_behind_proxy.unwrap_or(false);
        let callback_tls = match (self.callback_tls_cert, self.callback_tls_key) {
            (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                violations.add("callback_tls_key", "must be set: it is the key of callback_tls_cert");
                None
            }
            (None, Some(_)) => {
                violations.add("callback_tls_cert", "must be set: callback_tls_key is its key");
                None
            }
        };
        if !callback_listen.ip().is_loopback() && !behind_proxy && callback_tls.is_none() {
            violations.add(
                "callback_listen",
                "is not a loopback address, and callbacks would come in without TLS: give a certificate with \
                 --callback-tls-cert and --callback-tls-key, or put a proxy that terminates TLS before the agent \
                 and say so with --callback-behind-proxy",
            );
        }
        let control_plane_url = self.control_plane_url.unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());
        check_control_plane(&control_plane_url, &mut violations);
        let public_base_url =
            self.public_base_url.as_deref().and_then(|text| base_url(text, &mut violations));
        if self.region.as_deref().is_some_and(|region| !is_region(region)) {
            violations.add("region", "must match [a-z0-9][a-z0-9_-]{0,62}");
        }
        let snapshot = export_files(self.snapshot_file, self.snapshot_key_file, &mut violations);
        let buffer_destination_share = self.buffer_destination_share.unwrap_or(50);
        if !(1..=100).contains(&buffer_destination_share) {
            violations.add("buffer_destination_share", "must be between 1 and 100 percent");
        }
        let buffer_segment_bytes = self.buffer_segment_bytes.map_or(32 << 20, |size| size.0);
        if !(64 << 10..=1 << 30).contains(&buffer_segment_bytes) {
            violations.add("buffer_segment_bytes", "must be between 64KiB and 1GiB");
        }
        violations.into_result(Config {
            callback_listen,
            admin_listen: self.admin_listen.unwrap_or(([127, 0, 0, 1], 9465).into()),
            data_dir: self.data_dir.unwrap_or_else(|| PathBuf::from("./data/agent")),
            control_plane_url,
            control_plane_ca: self.control_plane_ca,
            callback_tls,
            callback_trusted_proxy: self.callback_trusted_proxy,
            region: self.region,
            public_base_url,
            join_token_file: self.join_token_file,
            snapshot,
            allow_destination_cidr: self.allow_destination_cidr,
            buffer_bytes_max: self.buffer_bytes_max.map_or(4 << 30, |size| size.0),
            buffer_destination_share,
            buffer_marks_bytes_max: self.buffer_marks_bytes_max.map_or(1 << 30, |size| size.0),
            buffer_segment_bytes,
            disk_free_bytes_min: self.disk_free_bytes_min.map(|size| size.0),
            shutdown_grace: self.shutdown_grace.map_or(Duration::from_secs(10), |span| span.0),
            config_key: None,
            log_filter: self.log_filter.unwrap_or_else(|| LOG_FILTER_DEFAULT.to_owned()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

fn export_files(
    snapshot: Option<PathBuf>,
    key: Option<PathBuf>,
    violations: &mut FieldViolations,
) -> Option<ExportFiles> {
    match (snapshot, key) {
        (Some(snapshot), Some(key)) => return Some(ExportFiles { snapshot, key }),
        (None, None) => {}
        (Some(_), None) => {
            violations.add("snapshot_key_file", "must be set: it is the key that opens snapshot_file");
        }
        (None, Some(_)) => {
            violations.add("snapshot_file", "must be set: snapshot_key_file is its key");
        }
    }
    None
}

fn is_region(text: &str) -> bool {
    let starts_well = text.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
    let goes_on_well =
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    starts_well && goes_on_well && text.len() <= 63
}

fn check_control_plane(text: &str, violations: &mut FieldViolations) {
    match Url::parse(text) {
        Ok(url) if url.scheme() == "https" && url.has_host() => {}
        Ok(url) if url.scheme() == "http" && is_this_machine(&url) => {}
        Ok(url) if url.scheme() == "http" && url.has_host() => violations.add(
            "control_plane_url",
            "is http to another machine, which would show the agent's credential and everything it reports: use \
             https, or http to a tunnel or proxy on this machine",
        ),
        _ => violations.add(
            "control_plane_url",
            "must be a URL such as http://127.0.0.1:50051 or https://control-plane.example.com:50051",
        ),
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// The text without a slash at its end, scheme and host in lower case. The path stays as it is: providers sign
/// the URL byte for byte as it is written there.
fn base_url(text: &str, violations: &mut FieldViolations) -> Option<Arc<str>> {
    let base = normal_base_url(text.trim_end_matches('/'));
    if base.is_none() {
        violations.add(
            "public_base_url",
            "must be a URL such as https://gateway.example.com, without user, query and fragment, each percent sign \
             with two hex digits",
        );
    }
    base
}

/// The normal case of <https://www.rfc-editor.org/rfc/rfc3986#section-6.2.2.1>. None when the text is no base URL
/// as it stands: a parser mends much on its way in, and nobody signs what it mended.
fn normal_base_url(text: &str) -> Option<Arc<str>> {
    let is_base = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let is_mended =
        |character: char| character.is_whitespace() || character.is_control() || character == '\\';
    let is_escape = |rest: &str| rest.bytes().take_while(u8::is_ascii_hexdigit).take(2).count() == 2;
    let (scheme, rest) = text.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_usable = Url::parse(text).is_ok_and(|url| is_base(&url))
        && !authority.is_empty()
        && !authority.contains('@')
        && !text.contains(is_mended)
        && text.split('%').skip(1).all(is_escape);
    let [scheme, authority] = [scheme, authority].map(str::to_ascii_lowercase);
    is_usable.then(|| format!("{scheme}://{authority}{path}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example file names every setting at its default: it parses, and changes nothing.
    #[test]
    fn example_file_holds_the_defaults() {
        let text = include_str!("../agent.example.toml");
        let example: Settings = toml_of(text);
        let with_example = format!("{:?}", example.validate().unwrap());
        assert_eq!(with_example, format!("{:?}", Settings::default().validate().unwrap()));
        for line in text.lines().filter(|line| line.starts_with("# ") && line.contains(" = ")) {
            let _: Settings = toml_of(line.trim_start_matches("# "));
        }
    }

    fn toml_of(text: &str) -> Settings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        load_file(&path).unwrap()
    }

    /// A bad value names its setting and what would be right; all of them at once.
    #[test]
    fn bad_settings_are_named() {
        let settings = Settings {
            callback_listen: Some(([0, 0, 0, 0], 8090).into()),
            control_plane_url: Some("127.0.0.1:50051".to_owned()),
            region: Some("EU West".to_owned()),
            public_base_url: Some("gateway.example.com".to_owned()),
            ..Settings::default()
        };
        let fields: Vec<String> =
            settings.validate().unwrap_err().0.into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, ["callback_listen", "control_plane_url", "public_base_url", "region"]);
    }

    /// With TLS of its own the agent may listen anywhere; a certificate needs its key. The control plane is
    /// called without TLS on this machine only.
    #[test]
    fn tls_is_whole_and_needed_off_this_machine() {
        let settings = |cert: bool, key: bool, url: &str| {
            let settings = Settings {
                callback_listen: Some(([0, 0, 0, 0], 8090).into()),
                callback_tls_cert: cert.then(|| "tls.pem".into()),
                callback_tls_key: key.then(|| "tls.key".into()),
                control_plane_url: Some(url.to_owned()),
                ..Settings::default()
            };
            settings.validate().map_err(|violations| violations.0[0].field.clone())
        };
        let url = "https://control-plane.example.com";
        assert!(settings(true, true, url).unwrap().callback_tls.is_some());
        assert_eq!(settings(true, false, url).unwrap_err(), "callback_tls_key");
        assert_eq!(settings(false, true, url).unwrap_err(), "callback_tls_cert");
        for good in ["http://localhost:1", "http://127.0.0.9:1", "http://[::1]:1", "https://[fd00::1]:1"] {
            assert!(settings(true, true, good).is_ok(), "{good}");
        }
        for bad in ["http://control-plane.example.com", "http://10.0.0.1:1", "https://", "grpc://localhost"] {
            assert_eq!(settings(true, true, bad).unwrap_err(), "control_plane_url", "{bad}");
        }
    }

    /// Scheme and host of the public base URL are case-insensitive, its path is not; what is no URL as it stands is
    /// refused.
    #[test]
    fn public_base_url_is_normal() {
        let base = |text: &str| base_url(text, &mut FieldViolations::new()).map(|base| base.to_string());
        for (given, normal) in [
            ("https://gw.example.com", "https://gw.example.com"),
            ("HTTPS://GW.Example.COM:443/", "https://gw.example.com:443"),
            ("Http://[FE80::1]:8090/In/%c3%A9//", "http://[fe80::1]:8090/In/%c3%A9"),
        ] {
            assert_eq!(base(given).as_deref(), Some(normal));
        }
        for bad in [
            "",
            "https://",
            "https:///x",
            "https:gw.example.com",
            "ftp://gw.example.com",
            "https://x/%zz",
            "https://x/%",
            "https://x/%4",
            "https://x/%+1",
            "https://x/%é1",
            "https://user@x",
            "https://:password@x",
            "https://x?y",
            "https://x#y",
            " https://x",
            "https://x/a b",
            "https://x\\y",
        ] {
            assert_eq!(base(bad), None, "{bad:?}");
        }
    }

    /// An export is of no use without its key, nor a key without an export.
    #[test]
    fn snapshot_file_and_key_come_together() {
        let settings = |file: bool, key: bool| {
            let settings = Settings {
                snapshot_file: file.then(|| "eu.snapshot".into()),
                snapshot_key_file: key.then(|| "snapshot.key".into()),
                ..Settings::default()
            };
            settings.validate().map_err(|violations| violations.0[0].field.clone())
        };
        assert!(settings(true, true).unwrap().snapshot.is_some());
        assert!(settings(false, false).unwrap().snapshot.is_none());
        assert_eq!(settings(true, false).unwrap_err(), "snapshot_key_file");
        assert_eq!(settings(false, true).unwrap_err(), "snapshot_file");
    }

    /// With a proxy before it the agent may listen anywhere.
    #[test]
    fn proxy_allows_any_listen_address() {
        let settings = Settings {
            callback_listen: Some(([0, 0, 0, 0], 8090).into()),
            callback_behind_proxy: Some(true),
            ..Settings::default()
        };
        assert!(settings.validate().is_ok());
    }
}
