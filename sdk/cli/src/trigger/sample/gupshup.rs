//! Gupshup, callback format v2, <https://docs.gupshup.io/docs/inbound-messages> and
//! <https://docs.gupshup.io/docs/message-events>. Nothing is signed.

use serde_json::{Value, json};

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, random};

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let contact = scene.contact.digits();
    let (kind, payload, message_id) = match happening {
        Happening::Text(text) => {
            let id = random::wamid();
            let payload = json!({
                "id": id, "source": contact, "type": "text", "payload": {"text": text},
                "sender": {"phone": contact, "name": CONTACT_NAME, "country_code": "", "dial_code": ""},
            });
            ("message", payload, id)
        }
        Happening::Status(status) => {
            let id = random::uuid();
            ("message-event", event(&id, contact, status, scene.now.as_second()), id)
        }
    };
    let body = json!({
        "app": scene.number.provider_number_id, "timestamp": scene.now.as_millisecond(), "version": 2,
        "type": kind, "payload": payload,
    });
    Draft { body: body.to_string(), message_id }
}

/// `id` is WhatsApp's and `gsId` Gupshup's; of what failed at once, `id` is Gupshup's.
fn event(id: &str, contact: &str, status: Status, second: i64) -> Value {
    let word = match status {
        Status::Sent => "sent",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Failed => {
            return json!({
                "id": id, "type": "failed", "destination": contact,
                "payload": {"code": 1002, "reason": "Number Does Not Exists On WhatsApp"},
            });
        }
    };
    json!({
        "id": random::wamid(), "gsId": id, "type": word, "destination": contact, "payload": {"ts": second},
    })
}
