//! MessageBird Conversations, messagebird/go-rest-api `conversation/webhook.go` and `conversation/message.go`: the
//! message as it is now.

use gateway_core::signature::sha256_hex;
use serde::Serialize;
use serde_json::{Value, json};

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, jwt, random};

/// How long a token is good for, in seconds.
const TOKEN_SECONDS: i64 = 60;

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let (message_id, conversation_id, contact_id) = (random::hex(32), random::hex(32), random::hex(32));
    let (contact, business) = (scene.contact.as_str(), scene.number.phone_number);
    let time = format!("{:.0}", scene.now);
    let channel_id = scene.number.provider_number_id;
    let mut message = json!({
        "id": message_id, "conversationId": conversation_id, "channelId": channel_id,
        "platform": "whatsapp", "type": "text", "createdDatetime": time, "updatedDatetime": time,
    });
    let kind = match happening {
        Happening::Text(text) => {
            let of_contact = json!({
                "from": contact, "to": business, "direction": "received", "status": "received",
                "content": {"text": text},
            });
            extend(&mut message, of_contact);
            "message.created"
        }
        Happening::Status(status) => {
            let of_business = json!({
                "from": business, "to": contact, "direction": "sent", "status": word(status),
                "content": {"text": "Hello from the business"},
            });
            extend(&mut message, of_business);
            if status == Status::Failed {
                message["error"] = json!({"code": 470, "description": "Outside of the 24 hour window"});
            }
            "message.updated"
        }
    };
    let msisdn = scene.contact.digits().parse::<u64>().ok();
    let body = json!({
        "type": kind,
        "contact": {"id": contact_id, "msisdn": msisdn, "displayName": CONTACT_NAME},
        "conversation": {
            "id": conversation_id, "contactId": contact_id, "status": "active", "lastUsedChannelId": channel_id,
            "createdDatetime": time, "updatedDatetime": time,
        },
        "message": message,
    });
    Draft { body: body.to_string(), message_id }
}

fn extend(message: &mut Value, more: Value) {
    if let (Value::Object(message), Value::Object(more)) = (message, more) {
        message.extend(more);
    }
}

/// In the order in which MessageBird writes them.
#[derive(Serialize)]
struct Claims {
    iss: &'static str,
    nbf: i64,
    exp: i64,
    jti: String,
    url_hash: String,
    payload_hash: String,
}

/// `MessageBird-Signature-JWT`, <https://developers.messagebird.com/docs/verify-http-requests>.
pub fn sign(signing_key: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let now = unsigned.now.as_second();
    let claims = Claims {
        iss: "MessageBird",
        nbf: now,
        exp: now + TOKEN_SECONDS,
        jti: random::uuid(),
        url_hash: sha256_hex(unsigned.url.as_bytes()),
        payload_hash: sha256_hex(unsigned.body.as_bytes()),
    };
    vec![("messagebird-signature-jwt", jwt::hs256(&claims, signing_key))]
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Sent => "sent",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Failed => "failed",
    }
}
