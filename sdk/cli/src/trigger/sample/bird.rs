//! Bird Channels, <https://docs.bird.com/api/channels-api/supported-channels/programmable-whatsapp>. A message that was
//! read is an interaction, all other statuses are of `whatsapp.outbound`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::signature::hmac_sha256;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, random};

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let message_id = random::uuid();
    let time = format!("{:.3}", scene.now);
    let channel_id = scene.number.provider_number_id;
    let contact = json!({
        "id": random::uuid(), "identifierKey": "phonenumber", "identifierValue": scene.contact.as_str(),
        "annotations": {"name": CONTACT_NAME},
    });
    let connector = json!({"id": random::uuid(), "identifierValue": scene.number.phone_number});
    let (event, payload) = match happening {
        Happening::Text(text) => {
            let payload = json!({
                "id": message_id, "channelId": channel_id, "sender": {"contact": contact},
                "receiver": {"connector": connector}, "body": {"type": "text", "text": {"text": text}},
                "meta": {"extraInformation": {"timestamp": scene.now.as_second().to_string()}},
                "reference": "", "parts": [{"platformReference": random::wamid()}], "status": "delivered",
                "reason": "", "direction": "incoming", "lastStatusAt": time, "createdAt": time,
                "updatedAt": time,
            });
            ("whatsapp.inbound", payload)
        }
        Happening::Status(Status::Read) => {
            let payload = json!({
                "id": random::uuid(), "type": "read", "messageId": message_id, "channelId": channel_id,
                "sender": {"connector": connector}, "receiver": {"contacts": [contact]}, "createdAt": time,
            });
            ("whatsapp.interaction", payload)
        }
        Happening::Status(status) => {
            let mut payload = json!({
                "id": message_id, "channelId": channel_id, "sender": {"connector": connector},
                "receiver": {"contacts": [contact]},
                "body": {"type": "text", "text": {"text": "Hello from the business"}}, "reference": "",
                "parts": [{"platformReference": random::wamid()}], "reason": "", "direction": "outgoing",
                "lastStatusAt": time, "createdAt": time, "updatedAt": time,
            });
            set_status(&mut payload, status);
            ("whatsapp.outbound", payload)
        }
    };
    let body = json!({"service": "channels", "event": event, "payload": payload});
    Draft { body: body.to_string(), message_id }
}

fn set_status(payload: &mut Value, status: Status) {
    payload["status"] = match status {
        Status::Sent => "sent",
        Status::Delivered | Status::Read => "delivered",
        Status::Failed => "delivery_failed",
    }
    .into();
    if status == Status::Failed {
        payload["reason"] = "the recipient is not on WhatsApp".into();
    }
}

/// `messagebird-signature`,
/// <https://docs.bird.com/api/notifications-api/api-reference/webhooks/verifying-a-webhook>: over the time, the URL and
/// the 32 bytes of the body's hash.
pub fn sign(signing_key: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let timestamp = unsigned.now.as_second().to_string();
    let digest = Sha256::digest(unsigned.body.as_bytes());
    let message = [timestamp.as_bytes(), unsigned.url.as_bytes(), &digest].join(&b'\n');
    let signature = STANDARD.encode(hmac_sha256(signing_key.as_bytes(), &message));
    vec![("messagebird-signature", signature), ("messagebird-request-timestamp", timestamp)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_sdk::Timestamp;

    /// A signature computed by the algorithm of Bird's own samples.
    #[test]
    fn signatures_are_the_documented_ones() {
        let unsigned = Unsigned {
            url: "https://gw.example.com/in/bird/abc",
            body: r#"{"service":"channels","event":"whatsapp.inbound","payload":{"id":"404544c5-9920-45f1-8990-0855634ab7ac"}}"#,
            account_id: None,
            now: Timestamp::from_second(1_719_823_259).unwrap(),
        };
        assert_eq!(
            sign("bird-signing-key", &unsigned),
            [
                ("messagebird-signature", "CNWKgs3/XWIiDTuNyDmyn6Zuz/pWU/ReXkm7tQ/6jhc=".to_owned()),
                ("messagebird-request-timestamp", "1719823259".to_owned()),
            ]
        );
    }
}
