//! WAHA, <https://waha.devlike.pro/docs/how-to/events/>, with the engine WEBJS.

use gateway_core::signature::{encode_hex, hmac_sha512};
use serde_json::json;

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, random};

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let (chat, own) = (format!("{}@c.us", scene.contact.digits()), format!("{}@c.us", scene.number.digits()));
    let is_own = matches!(happening, Happening::Status(_));
    let message_id = format!("{is_own}_{chat}_{}", random::web_id());
    let (event, payload) = match happening {
        Happening::Text(text) => {
            let payload = json!({
                "id": message_id, "timestamp": scene.now.as_second(), "from": chat, "fromMe": false,
                "source": "app", "to": own, "participant": null, "body": text, "hasMedia": false,
                "media": null, "ack": 1, "ackName": "SERVER", "vCards": [], "replyTo": null,
                "_data": {"notifyName": CONTACT_NAME},
            });
            ("message", payload)
        }
        Happening::Status(status) => {
            let (ack, name) = ack(status);
            let payload = json!({
                "id": message_id, "from": chat, "participant": null, "fromMe": true, "ack": ack,
                "ackName": name,
            });
            ("message.ack", payload)
        }
    };
    let body = json!({
        "id": format!("evt_{}", random::ulid()), "timestamp": scene.now.as_millisecond(), "event": event,
        "session": scene.number.provider_number_id, "metadata": {},
        "me": {"id": own, "pushName": "Sample Business"}, "payload": payload, "engine": "WEBJS",
        "environment": {"version": "2025.9.1", "engine": "WEBJS", "tier": "PLUS", "browser": null},
    });
    Draft { body: body.to_string(), message_id }
}

const fn ack(status: Status) -> (i32, &'static str) {
    match status {
        Status::Failed => (-1, "ERROR"),
        Status::Sent => (1, "SERVER"),
        Status::Delivered => (2, "DEVICE"),
        Status::Read => (3, "READ"),
    }
}

/// `X-Webhook-Hmac`, <https://waha.devlike.pro/docs/how-to/events/#hmac-authentication>.
pub fn sign(hmac_key: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let signature = hmac_sha512(hmac_key.as_bytes(), unsigned.body.as_bytes());
    vec![
        ("x-webhook-request-id", random::uuid()),
        ("x-webhook-timestamp", unsigned.now.as_millisecond().to_string()),
        ("x-webhook-hmac", encode_hex(&signature)),
        ("x-webhook-hmac-algorithm", "sha512".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_sdk::Timestamp;

    /// The example of WAHA's documentation.
    #[test]
    fn signatures_are_the_documented_ones() {
        let unsigned = Unsigned {
            url: "",
            body: r#"{"event":"message","session":"default","engine":"WEBJS"}"#,
            account_id: None,
            now: Timestamp::UNIX_EPOCH,
        };
        let headers = sign("my-secret-key", &unsigned);
        let signature = "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8097c462b2b17a6ce93b6b47a136cf2e\
                         78a33a63f6752c2c1631777076153fa89";
        assert_eq!(headers[2], ("x-webhook-hmac", signature.to_owned()));
    }
}
