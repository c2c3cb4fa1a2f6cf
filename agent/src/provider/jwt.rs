//! JSON Web Tokens, <https://www.rfc-editor.org/rfc/rfc7519>, signed with a secret (HMAC). What a token says about
//! time, body or URL is its provider's to judge: see [`Claims`].

use http::header::AUTHORIZATION;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};

use super::{CallbackRequest, Refusal};

pub use jsonwebtoken::Algorithm;

/// What a genuine token says.
#[derive(Debug)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// A claim that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A claim that is a time: seconds since 1970, fractions cut.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
    pub fn seconds(&self, name: &str) -> Option<i64> {
        let value = self.0.get(name)?;
        let whole = || value.as_f64().filter(|seconds| (0.0..9e15).contains(seconds));
        value.as_i64().or_else(|| whole().map(|seconds| seconds as i64))
    }

    /// Whether the token says anything under this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }
}

/// The token of `Authorization: Bearer …`.
///
/// # Errors
/// When there is none, or more than one.
pub fn bearer(request: &CallbackRequest) -> Result<&str, Refusal> {
    let value = request.single_header(AUTHORIZATION.as_str())?.ok_or(Refusal::MissingSignature)?;
    let (scheme, token) = value.split_once(' ').ok_or(Refusal::MissingSignature)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(Refusal::MissingSignature) }
}

/// The claims of a token that any of the secrets signed with one of the algorithms. Empty secrets are none.
///
/// # Errors
/// Why it is not proved. Algorithms are checked before any secret is used, so that a token cannot choose how it
/// is judged.
pub fn verify<'a>(
    token: &str,
    secrets: impl Iterator<Item = &'a str>,
    algorithms: &[Algorithm],
) -> Result<Claims, Refusal> {
    let header = decode_header(token).map_err(|error| match error.kind() {
        // An algorithm that the library does not know, `none` above all.
        ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => Refusal::WrongAlgorithm,
        _ => Refusal::MalformedSignature,
    })?;
    if !algorithms.contains(&header.alg) {
        return Err(Refusal::WrongAlgorithm);
    }
    let mut validation = Validation::new(header.alg);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let mut refusal = Refusal::MissingSecret;
    let mut claims = None;
    // Every secret is tried, so that the time does not tell which one fits.
    for secret in secrets.filter(|secret| !secret.is_empty()) {
        match decode::<Map<String, Value>>(token, &DecodingKey::from_secret(secret.as_bytes()), &validation) {
            Ok(decoded) => claims = Some(Claims(decoded.claims)),
            Err(error) => {
                refusal = match error.kind() {
                    ErrorKind::InvalidSignature => Refusal::WrongSignature,
                    _ => Refusal::MalformedSignature,
                }
            }
        }
    }
    claims.ok_or(refusal)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use gateway_core::signature::{hmac_sha256, hmac_sha512};
    use http::HeaderValue;

    use super::*;
    use crate::provider::tests::request;

    const HS256: &[Algorithm] = &[Algorithm::HS256];

    fn token(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn signed(claims: &str) -> String {
        token(r#"{"alg":"HS256","typ":"JWT"}"#, claims, |bytes| hmac_sha256(b"key", bytes).to_vec())
    }

    /// Any of several live secrets may have signed; the claims are what the token says.
    #[test]
    fn genuine_tokens_are_read() {
        let token = signed(r#"{"iss":"Vonage","iat":1700000000,"nbf":1700000000.9,"x":null,"n":"5"}"#);
        for secrets in [&["key"][..], &["another", "key"], &["key", "another", ""]] {
            let claims = verify(&token, secrets.iter().copied(), HS256).unwrap();
            assert_eq!((claims.text("iss"), claims.text("iat")), (Some("Vonage"), None));
            assert_eq!(claims.seconds("iat"), Some(1_700_000_000));
            assert_eq!(claims.seconds("nbf"), Some(1_700_000_000));
            assert_eq!((claims.seconds("n"), claims.seconds("missing")), (None, None));
            assert!(claims.has("n") && !claims.has("x") && !claims.has("missing"));
        }
    }

    /// An old token is as genuine as a new one here, whatever it says about time, audience or subject.
    #[test]
    fn time_is_judged_elsewhere() {
        let token = signed(r#"{"exp":1,"nbf":99999999999,"aud":"x","sub":7}"#);
        assert!(verify(&token, ["key"].into_iter(), HS256).is_ok());
    }

    /// Tokens cannot choose an algorithm, and nothing passes without a secret.
    #[test]
    fn forged_tokens_are_refused() {
        let claims = r#"{"iss":"Vonage"}"#;
        let refusal = |token: &str, secret: &str| verify(token, [secret].into_iter(), HS256).err();
        let genuine = signed(claims);
        assert_eq!(refusal(&genuine, "other"), Some(Refusal::WrongSignature));
        assert_eq!(refusal(&genuine, ""), Some(Refusal::MissingSecret));
        let none = token(r#"{"alg":"none"}"#, claims, |_| Vec::new());
        assert_eq!(refusal(&none, "key"), Some(Refusal::WrongAlgorithm));
        let hs512 = token(r#"{"alg":"HS512"}"#, claims, |bytes| hmac_sha512(b"key", bytes).to_vec());
        assert_eq!(refusal(&hs512, "key"), Some(Refusal::WrongAlgorithm));
        for algorithm in ["RS256", "ES256", "EdDSA"] {
            let header = format!(r#"{{"alg":"{algorithm}"}}"#);
            let forged = token(&header, claims, |bytes| hmac_sha256(b"key", bytes).to_vec());
            assert_eq!(refusal(&forged, "key"), Some(Refusal::WrongAlgorithm), "{algorithm}");
        }
        let changed = genuine.replace('.', ".e");
        assert!(matches!(
            refusal(&changed, "key"),
            Some(Refusal::WrongSignature | Refusal::MalformedSignature | Refusal::WrongAlgorithm)
        ));
        for malformed in ["", ".", "..", "a.b", "a.b.c", "no token at all"] {
            let refused = refusal(malformed, "key");
            assert!(
                matches!(refused, Some(Refusal::MalformedSignature | Refusal::WrongAlgorithm)),
                "{malformed}: {refused:?}"
            );
        }
        let no_object = signed("[1]");
        assert_eq!(refusal(&no_object, "key"), Some(Refusal::MalformedSignature));
    }

    /// The bearer token is taken from one header with that scheme.
    #[test]
    fn bearer_is_read() {
        let with = |values: &[&str]| {
            let mut request = request(b"");
            for value in values {
                request.headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            bearer(&request).map(str::to_owned)
        };
        assert_eq!(with(&["Bearer abc"]).as_deref(), Ok("abc"));
        assert_eq!(with(&["bearer  abc "]).as_deref(), Ok("abc"));
        assert_eq!(with(&[]), Err(Refusal::MissingSignature));
        assert_eq!(with(&["Basic abc"]), Err(Refusal::MissingSignature));
        assert_eq!(with(&["Bearer"]), Err(Refusal::MissingSignature));
        assert_eq!(with(&["Bearer a", "Bearer b"]), Err(Refusal::MalformedSignature));
    }
}
