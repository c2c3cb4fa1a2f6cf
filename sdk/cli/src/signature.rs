//! `gateway signature`: signing and verifying by hand. The quickest answer to "why does my receiver refuse
//! the webhook".

use std::{
    fs,
    io::{self, Read as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use gateway_core::signature::{SigningKey, WebhookSecret, hmac_sha256, hmac_sha256_matches};
use gateway_sdk::{
    Timestamp,
    webhook::{VerifyError, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, WebhookVerifier},
};

use crate::output::{Look, Output};

/// The header with which Meta signs callbacks.
/// <https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads>
const META_HEADER: &str = "x-hub-signature-256";
/// The environment variable with the secret.
const SECRET_ENV: &str = "WEBHOOK_SECRET";

/// What to do with a signature.
#[derive(Subcommand)]
pub enum SignatureCommand {
    /// Check a webhook (or a Meta callback) against a secret and say what is wrong with it.
    ///
    /// The headers decide which: `webhook-…` is a webhook of the gateway, `x-hub-signature-256` a callback of
    /// Meta. Exit code 0 means genuine, 1 not genuine.
    Verify(VerifyArgs),
    /// Print the headers that sign a webhook body (or, with --meta, a callback body).
    Sign(SignArgs),
}

#[derive(Args)]
struct Input {
    /// File that holds the secret: `whsec_…` for webhooks, the app secret for Meta callbacks; several
    /// `whsec_…` may stand in it, separated by white space. For `v1a` signatures, the public key `whpk_…`
    /// verifies and the key `whsk_…` signs
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The body as text
    #[arg(long, value_name = "TEXT", conflicts_with = "body_file")]
    body: Option<String>,
    /// File that holds the body byte for byte; `-` is standard input [default: -]
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
}

/// Settings of `gateway signature verify`.
#[derive(Args)]
#[command(
    after_help = "Without --secret-file the secret comes from the environment variable WEBHOOK_SECRET."
)]
pub struct VerifyArgs {
    /// A header of the request as `name: value`; repeatable, others than those needed are ignored
    #[arg(short = 'H', long = "header", value_name = "HEADER", required = true)]
    headers: Vec<String>,
    /// Check as of this time, in unix seconds, instead of now
    #[arg(long, value_name = "SECONDS")]
    at: Option<i64>,
    #[command(flatten)]
    input: Input,
}

/// Settings of `gateway signature sign`.
#[derive(Args)]
#[command(
    after_help = "Without --secret-file the secret comes from the environment variable WEBHOOK_SECRET."
)]
pub struct SignArgs {
    /// Sign as Meta signs callbacks
    #[arg(long, conflicts_with_all = ["id", "timestamp"])]
    meta: bool,
    /// The `webhook-id`
    #[arg(long, required_unless_present = "meta")]
    id: Option<String>,
    /// The `webhook-timestamp`, in unix seconds [default: now]
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<i64>,
    #[command(flatten)]
    input: Input,
}

/// Runs the command.
pub fn run(command: SignatureCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        SignatureCommand::Verify(args) => {
            let now = match args.at {
                Some(seconds) => Timestamp::from_second(seconds).context("read --at")?,
                None => gateway_runtime::clock::now(),
            };
            let verdict = verify(&args.headers, &args.input.secret()?, &args.input.body()?, now)?;
            Ok(output.line(output.look(Look::Good, verdict))?)
        }
        SignatureCommand::Sign(args) => {
            let now = args.timestamp.unwrap_or_else(|| gateway_runtime::clock::now().as_second());
            let id = args.id.as_deref().filter(|_| !args.meta);
            for line in sign(id, now, &args.input.secret()?, &args.input.body()?)? {
                output.line(line)?;
            }
            Ok(())
        }
    }
}

impl Input {
    fn secret(&self) -> anyhow::Result<String> {
        let text = match &self.secret_file {
            Some(path) => {
                fs::read_to_string(path).with_context(|| format!("read secret file `{}`", path.display()))?
            }
            // From the environment or a file only: other users of the machine can see flags.
            None => std::env::var(SECRET_ENV).unwrap_or_default(),
        };
        let text = text.trim().to_owned();
        anyhow::ensure!(!text.is_empty(), "there is no secret; give --secret-file FILE, or set {SECRET_ENV}");
        Ok(text)
    }

    fn body(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.body, &self.body_file) {
            (Some(text), _) => Ok(text.clone().into_bytes()),
            (None, Some(path)) if path.as_os_str() != "-" => {
                fs::read(path).with_context(|| format!("read body file `{}`", path.display()))
            }
            _ => {
                let mut body = Vec::new();
                io::stdin().lock().read_to_end(&mut body).context("read the body from standard input")?;
                Ok(body)
            }
        }
    }
}

fn sign(id: Option<&str>, timestamp: i64, secret: &str, body: &[u8]) -> anyhow::Result<Vec<String>> {
    let Some(id) = id else {
        return Ok(vec![format!("{META_HEADER}: sha256={}", hex(&hmac_sha256(secret.as_bytes(), body)))]);
    };
    anyhow::ensure!(!id.is_empty() && !id.contains('.'), "--id must not be empty and must not contain a dot");
    let signatures = secret
        .split_whitespace()
        .map(|secret| {
            if secret.starts_with("whsk_") {
                return Ok(SigningKey::parse(secret).context("read the key")?.sign(id, timestamp, body));
            }
            Ok(WebhookSecret::parse(secret).context("read the secret")?.sign(id, timestamp, body))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(vec![
        format!("{WEBHOOK_ID}: {id}"),
        format!("{WEBHOOK_TIMESTAMP}: {timestamp}"),
        format!("{WEBHOOK_SIGNATURE}: {}", signatures.join(" ")),
    ])
}

/// What is right, or an error that says what is wrong.
fn verify(headers: &[String], secret: &str, body: &[u8], now: Timestamp) -> anyhow::Result<String> {
    let header = |wanted: &str| {
        headers.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    if let Some(signature) = header(META_HEADER) {
        return verify_meta(signature, secret, body);
    }
    let need = |name: &'static str| {
        header(name).with_context(|| format!("header `{name}` is missing; give it with -H"))
    };
    let (id, timestamp, signature) = (need(WEBHOOK_ID)?, need(WEBHOOK_TIMESTAMP)?, need(WEBHOOK_SIGNATURE)?);
    let verifier = WebhookVerifier::new(secret.split_whitespace()).context("read the secret")?;
    let check = |body: &[u8], now| verifier.verify_parts(id, timestamp, signature, body, now).map(|_| ());
    match check(body, now) {
        Ok(()) => Ok(format!("genuine: webhook {id}, {} bytes", body.len())),
        Err(VerifyError::Timestamp) => {
            let sent = timestamp.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            let sent = sent.filter(|sent| check(body, *sent).is_ok());
            let signature =
                if sent.is_some() { "the signature fits" } else { "the signature does not fit either" };
            anyhow::bail!(
                "not genuine: {}; {signature} (check as of another time with --at {timestamp})",
                VerifyError::Timestamp
            )
        }
        Err(VerifyError::Signature) => {
            let fits = |body: &[u8]| check(body, now).is_ok();
            anyhow::bail!("not genuine: {}; {}", VerifyError::Signature, advice(body, fits))
        }
        Err(error) => anyhow::bail!("not genuine: {error}"),
    }
}

fn verify_meta(signature: &str, secret: &str, body: &[u8]) -> anyhow::Result<String> {
    let bytes = signature.strip_prefix("sha256=").and_then(unhex).with_context(|| {
        format!("not genuine: read header `{META_HEADER}`: it must be `sha256=` and 64 hex digits")
    })?;
    let fits = |body: &[u8]| hmac_sha256_matches(secret.as_bytes(), body, &bytes);
    anyhow::ensure!(fits(body), "not genuine: the signature does not fit; {}", advice(body, fits));
    Ok(format!("genuine: callback of Meta, {} bytes", body.len()))
}

/// The usual reasons why a signature does not fit, the likeliest found by trying.
fn advice(body: &[u8], fits: impl Fn(&[u8]) -> bool) -> &'static str {
    let without = body.strip_suffix(b"\r\n").or_else(|| body.strip_suffix(b"\n"));
    if without.is_some_and(&fits) {
        "it fits without the newline at the end of the body: give the body byte for byte as received"
    } else if fits(&[body, b"\n"].concat()) {
        "it fits with a newline at the end of the body: give the body byte for byte as received"
    } else {
        "either the secret is another one, or the body is not byte for byte what was received (parsed and \
         written again, decoded, trimmed)"
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..64).step_by(2).map(|start| u8::from_str_radix(text.get(start..start + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const BODY: &[u8] = b"{\"a\":1}";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// What `sign` prints, `verify` accepts; each thing that is wrong is named.
    #[test]
    fn verify_says_what_is_wrong() {
        let headers = sign(Some("evt_1"), 1_000, SECRET, BODY).unwrap();
        assert!(verify(&headers, SECRET, BODY, at(1_000)).unwrap().starts_with("genuine"));
        let wrong = |headers: &[String], body: &[u8], now| {
            verify(headers, SECRET, body, at(now)).unwrap_err().to_string()
        };
        assert!(wrong(&headers, b"{\"a\":1}\n", 1_000).contains("without the newline"));
        assert!(wrong(&headers, b"{\"a\": 1}", 1_000).contains("byte for byte"));
        assert!(wrong(&headers, BODY, 2_000).contains("the signature fits"));
        assert!(wrong(&headers[1..], BODY, 1_000).contains("webhook-id"));
    }

    /// Asymmetric signatures too: the key signs, beside a secret or alone, and its public key verifies.
    #[test]
    fn asymmetric_signatures_are_verified() {
        let key = SigningKey::from_seed(&[7; 32]);
        let public = key.public().to_string();
        for secrets in [key.reveal(), format!("{SECRET}\n{}", key.reveal())] {
            let headers = sign(Some("evt_1"), 1_000, &secrets, BODY).unwrap();
            assert!(verify(&headers, &public, BODY, at(1_000)).unwrap().starts_with("genuine"));
            let forged = verify(&headers, &public, b"{\"a\": 1}", at(1_000)).unwrap_err().to_string();
            assert!(forged.contains("byte for byte"), "{forged}");
        }
        assert!(sign(Some("evt_1"), 1_000, "whsk_short", BODY).is_err());
    }

    /// Meta's signatures, with a vector that another implementation computed.
    #[test]
    fn meta_callbacks_are_verified() {
        let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
        let expected =
            "x-hub-signature-256: sha256=591c61d5cd8d82edc4fb053624ca097fc176aaec975b0f10930eeac6416f14ae";
        let headers = sign(None, 0, "meta-app-secret-1", body).unwrap();
        assert_eq!(headers, [expected]);
        assert!(verify(&headers, "meta-app-secret-1", body, at(0)).is_ok());
        assert!(verify(&headers, "meta-app-secret-2", body, at(0)).is_err());
        let cut = [expected[..expected.len() - 1].to_owned()];
        assert!(verify(&cut, "meta-app-secret-1", body, at(0)).is_err());
    }
}
