//! How providers prove their callbacks, written again from their rules, and what must not pass for it.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use gateway_core::{
    event::Provider,
    signature::{encode_hex, hmac_sha1, hmac_sha256, hmac_sha512, sha256_hex},
    snapshot::RouteSecretKind,
};
use http::{HeaderName, Method, header::AUTHORIZATION};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use url::form_urlencoded;

use super::exchange::{Exchange, is_target};

/// Most parameters of a form; Twilio sends about forty.
const PARAMETERS_MAX: usize = 10_000;

/// One way of proving a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A signature of Meta.
    Meta,
    /// A signature of Twilio.
    Twilio,
    /// A token of Vonage.
    Vonage,
    /// A token of MessageBird.
    MessageBirdToken,
    /// A signature of MessageBird, as before the token.
    MessageBird,
    /// A signature of Bird.
    Bird,
    /// A signature of WAHA.
    Waha,
    /// A token of Evolution API.
    Evolution,
    /// Basic authentication.
    Basic,
    /// A header that was agreed on.
    Header,
}

/// The value of a secret of a kind, with `secret` in it.
pub fn value(kind: RouteSecretKind, secret: &str) -> String {
    match kind {
        RouteSecretKind::BasicCredential => format!("hook-user:{secret}"),
        RouteSecretKind::Header => format!("x-hook-secret: {secret}"),
        _ => secret.to_owned(),
    }
}

impl Proof {
    /// The ways of a provider.
    pub const fn of(provider: Provider) -> &'static [Self] {
        match provider {
            Provider::Meta => &[Self::Meta],
            Provider::Dialog360 | Provider::Infobip => &[Self::Basic, Self::Header],
            Provider::Twilio => &[Self::Twilio],
            Provider::Vonage => &[Self::Vonage],
            Provider::Gupshup => &[Self::Header],
            Provider::MessageBird => &[Self::MessageBirdToken, Self::MessageBird],
            Provider::Bird => &[Self::Bird],
            Provider::Waha => &[Self::Waha, Self::Header],
            Provider::Evolution => &[Self::Evolution, Self::Header],
        }
    }

    /// What it takes.
    pub const fn kind(self) -> RouteSecretKind {
        match self {
            Self::Meta => RouteSecretKind::MetaAppSecret,
            Self::Twilio => RouteSecretKind::TwilioAuthToken,
            Self::Vonage => RouteSecretKind::VonageSignatureSecret,
            Self::MessageBirdToken | Self::MessageBird => RouteSecretKind::MessageBirdSigningKey,
            Self::Bird => RouteSecretKind::BirdSigningKey,
            Self::Waha => RouteSecretKind::WahaHmacKey,
            Self::Evolution => RouteSecretKind::EvolutionJwtKey,
            Self::Basic => RouteSecretKind::BasicCredential,
            Self::Header => RouteSecretKind::Header,
        }
    }

    /// The same exchange as the provider sends it; None when the provider would not.
    pub fn prove(self, exchange: &Exchange, secret: &str, now: Timestamp) -> Option<Exchange> {
        let mut genuine = Exchange { headers: Vec::new(), ..exchange.clone() };
        if self == Self::Twilio && genuine.method == Method::GET {
            genuine.body.clear();
        } else if self == Self::Twilio && is_json(&genuine.body) {
            genuine.target = format!("/callbacks/twilio/token?bodySHA256={}", sha256_hex(&genuine.body));
        } else if self != Self::Twilio {
            genuine.method = Method::POST;
        }
        let headers = self.headers(&genuine, secret, now)?;
        genuine.headers = headers
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.into_bytes()))
            .collect();
        Some(genuine)
    }

    fn headers(self, of: &Exchange, secret: &str, now: Timestamp) -> Option<Vec<(&'static str, String)>> {
        let (key, seconds) = (secret.as_bytes(), now.as_second());
        let bearer = |token: String| vec![(AUTHORIZATION.as_str(), format!("Bearer {token}"))];
        let hash = sha256_hex(&of.body);
        Some(match self {
            Self::Meta => {
                vec![("x-hub-signature-256", format!("sha256={}", encode_hex(&hmac_sha256(key, &of.body))))]
            }
            Self::Twilio => {
                let signature = hmac_sha1(key, (of.url() + &twilio_parameters(of)?).as_bytes());
                vec![("x-twilio-signature", STANDARD.encode(signature))]
            }
            Self::Vonage => {
                bearer(token(key, &format!(r#"{{"iat":{seconds},"iss":"Vonage","payload_hash":"{hash}"}}"#)))
            }
            Self::MessageBirdToken => {
                let hash = if of.body.is_empty() { String::new() } else { hash };
                let (url, expiry) = (sha256_hex(of.url().as_bytes()), seconds + 60);
                let claims = format!(
                    r#"{{"iss":"MessageBird","nbf":{seconds},"exp":{expiry},"url_hash":"{url}","payload_hash":"{hash}"}}"#
                );
                vec![("messagebird-signature-jwt", token(key, &claims))]
            }
            // Its query is written anew before it is signed; only of an empty one is the form beyond doubt.
            Self::MessageBird if !of.query().is_empty() => return None,
            Self::MessageBird => bird(key, "", &of.body, seconds),
            Self::Bird => bird(key, &of.url(), &of.body, seconds),
            Self::Waha => vec![
                ("x-webhook-hmac", encode_hex(&hmac_sha512(key, &of.body))),
                ("x-webhook-hmac-algorithm", "sha512".to_owned()),
            ],
            Self::Evolution => {
                let expiry = seconds + 600;
                bearer(token(
                    key,
                    &format!(r#"{{"iat":{seconds},"exp":{expiry},"app":"evolution","action":"webhook"}}"#),
                ))
            }
            Self::Basic => {
                let credential = STANDARD.encode(value(self.kind(), secret));
                vec![(AUTHORIZATION.as_str(), format!("Basic {credential}"))]
            }
            Self::Header => vec![("x-hook-secret", secret.to_owned())],
        })
    }

    const fn covers_body(self) -> bool {
        !matches!(self, Self::Evolution | Self::Basic | Self::Header)
    }

    const fn covers_url(self) -> bool {
        matches!(self, Self::Twilio | Self::MessageBirdToken | Self::Bird)
    }

    /// What must not pass, each with one byte changed, or one header missing. `seed` says which byte.
    pub fn forged(self, genuine: &Exchange, seed: &[u8]) -> Vec<Exchange> {
        let mut forged = Vec::new();
        for index in 0..genuine.headers.len() {
            let mut missing = genuine.clone();
            missing.headers.remove(index);
            forged.push(missing);
            let mut changed = genuine.clone();
            // Neither white space, nor the same letter in another case, which hex and names of schemes may have.
            change(&mut changed.headers[index].1, seed, |old| if old == b'x' { b'y' } else { b'x' });
            forged.push(changed);
        }
        if self.covers_body() && !genuine.body.is_empty() {
            let mut changed = genuine.clone();
            change(&mut changed.body, seed, |old| old ^ (1 << (seed[1] % 8)));
            if self != Self::Twilio || signs_another(genuine, &changed) {
                forged.push(changed);
            }
        }
        if self.covers_url() {
            let mut target = genuine.target.clone().into_bytes();
            change(&mut target[1..], seed, |old| if old == b'x' { b'y' } else { b'x' });
            let target = String::from_utf8(target).ok().filter(|target| is_target(target));
            if let Some(target) = target.filter(|target| *target != genuine.target) {
                forged.push(Exchange { target, ..genuine.clone() });
            }
        }
        forged
    }
}

/// Changes one byte.
fn change(bytes: &mut [u8], seed: &[u8], to: impl FnOnce(u8) -> u8) {
    let position =
        seed.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    if !bytes.is_empty() {
        let position = position % bytes.len();
        bytes[position] = to(bytes[position]);
    }
}

fn token(key: &[u8], claims: &str) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha256(key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn bird(key: &[u8], line: &str, body: &[u8], seconds: i64) -> Vec<(&'static str, String)> {
    let timestamp = seconds.to_string();
    let message = [timestamp.as_bytes(), line.as_bytes(), &Sha256::digest(body)].join(&b'\n');
    vec![
        ("messagebird-signature", STANDARD.encode(hmac_sha256(key, &message))),
        ("messagebird-request-timestamp", timestamp),
    ]
}

fn is_json(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// What Twilio signs behind the URL; None for a form that it would not send.
fn twilio_parameters(exchange: &Exchange) -> Option<String> {
    if exchange.method == Method::GET || is_json(&exchange.body) {
        return Some(String::new());
    }
    if exchange.body.split(|byte| *byte == b'&').count() > PARAMETERS_MAX {
        return None;
    }
    let pairs: std::collections::BTreeSet<_> = form_urlencoded::parse(&exchange.body).collect();
    Some(pairs.iter().flat_map(|(name, value)| [&**name, &**value]).collect())
}

/// Whether Twilio's signature tells two bodies apart: names and values are signed without a mark between them, so
/// that `a=b` and `ab` are the same.
fn signs_another(genuine: &Exchange, changed: &Exchange) -> bool {
    is_json(&changed.body) || twilio_parameters(genuine) != twilio_parameters(changed)
}
