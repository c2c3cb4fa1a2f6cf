//! Vonage Messages API, <https://developer.vonage.com/en/api/messages-olympus>, sections Inbound Message and
//! Message Status.

use gateway_core::signature::sha256_hex;
use serde::Serialize;
use serde_json::json;

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, jwt, random};

/// An API key of nobody.
const ACCOUNT_ID: &str = "a1b2c3d4";
const APPLICATION_ID: &str = "aaaaaaaa-bbbb-4ccc-8ddd-0123456789ab";

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let message_id = random::uuid();
    let (contact, business) = (scene.contact.digits(), scene.number.digits());
    let timestamp = format!("{:.3}", scene.now);
    let body = match happening {
        Happening::Text(text) => json!({
            "channel": "whatsapp", "context_status": "none", "from": contact, "to": business,
            "message_type": "text", "message_uuid": message_id, "profile": {"name": CONTACT_NAME},
            "text": text, "timestamp": timestamp,
        }),
        Happening::Status(status) => {
            let mut body = json!({
                "channel": "whatsapp", "from": business, "to": contact, "message_uuid": message_id,
                "status": word(status), "timestamp": timestamp,
            });
            if status == Status::Failed {
                body["error"] = json!({
                    "type": "https://developer.vonage.com/api-errors/messages#1000", "title": "1000",
                    "detail": "Throttled - You have exceeded the submission capacity allowed on this account. \
                               Please wait and retry",
                    "instance": random::hex(32),
                });
            }
            body
        }
    };
    Draft { body: body.to_string(), message_id }
}

/// In the order in which Vonage writes them.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
    jti: String,
    payload_hash: String,
    api_key: &'a str,
    application_id: &'a str,
}

/// The bearer token, <https://developer.vonage.com/en/getting-started/concepts/webhooks#decoding-signed-webhooks>.
pub fn sign(signature_secret: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let claims = Claims {
        iss: "Vonage",
        iat: unsigned.now.as_second(),
        jti: random::uuid(),
        payload_hash: sha256_hex(unsigned.body.as_bytes()),
        api_key: unsigned.account_id.unwrap_or(ACCOUNT_ID),
        application_id: APPLICATION_ID,
    };
    vec![("authorization", format!("Bearer {}", jwt::hs256(&claims, signature_secret)))]
}

const fn word(status: Status) -> &'static str {
    match status {
        // Handed to WhatsApp.
        Status::Sent => "submitted",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Failed => "rejected",
    }
}
