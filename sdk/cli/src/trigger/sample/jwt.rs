//! JSON Web Tokens signed with HS256, <https://www.rfc-editor.org/rfc/rfc7519#section-3.1>.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway_core::signature::hmac_sha256;
use serde::Serialize;

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// The token that says `claims`, in the order of their fields.
pub fn hs256(claims: &impl Serialize, secret: &str) -> String {
    let claims = serde_json::to_vec(claims).expect("claims are texts and numbers");
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha256(secret.as_bytes(), message.as_bytes()));
    format!("{message}.{signature}")
}
