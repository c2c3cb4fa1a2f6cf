//! Evolution API v2, EvolutionAPI/evolution-api `src/api/integrations/channel/whatsapp/whatsapp.baileys.service.ts` and
//! `src/api/integrations/event/webhook/webhook.controller.ts`.

use serde::Serialize;
use serde_json::json;

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, jwt, random};

/// How long a token is good for, in seconds.
const TOKEN_SECONDS: i64 = 600;

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let message_id = random::web_id();
    let remote = format!("{}@s.whatsapp.net", scene.contact.digits());
    let instance_id = random::uuid();
    let (event, data) = match happening {
        Happening::Text(text) => {
            let data = json!({
                "key": {"remoteJid": remote, "fromMe": false, "id": message_id}, "pushName": CONTACT_NAME,
                "status": "DELIVERY_ACK", "message": {"conversation": text}, "contextInfo": null,
                "messageType": "conversation", "messageTimestamp": scene.now.as_second(),
                "instanceId": instance_id, "source": "android",
            });
            ("messages.upsert", data)
        }
        Happening::Status(status) => {
            let data = json!({
                "messageId": random::letters(25), "keyId": message_id, "remoteJid": remote, "fromMe": true,
                "status": word(status), "instanceId": instance_id,
            });
            ("messages.update", data)
        }
    };
    let body = json!({
        "event": event, "instance": scene.number.provider_number_id, "data": data,
        "destination": "", "date_time": format!("{:.3}", scene.now),
        "sender": format!("{}@s.whatsapp.net", scene.number.digits()), "server_url": "http://localhost:8080",
        "apikey": null,
    });
    Draft { body: body.to_string(), message_id }
}

/// In the order in which Evolution API writes them.
#[derive(Serialize)]
struct Claims {
    iat: i64,
    exp: i64,
    app: &'static str,
    action: &'static str,
}

/// The bearer token of `jwt_key`. It says nothing of the body.
pub fn sign(jwt_key: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let now = unsigned.now.as_second();
    let claims = Claims { iat: now, exp: now + TOKEN_SECONDS, app: "evolution", action: "webhook" };
    vec![("authorization", format!("Bearer {}", jwt::hs256(&claims, jwt_key)))]
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Sent => "SERVER_ACK",
        Status::Delivered => "DELIVERY_ACK",
        Status::Read => "READ",
        Status::Failed => "ERROR",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_sdk::Timestamp;

    /// A token that PyJWT accepts.
    #[test]
    fn tokens_are_the_documented_ones() {
        let unsigned = Unsigned {
            url: "",
            body: "{}",
            account_id: None,
            now: Timestamp::from_second(1_700_000_000).unwrap(),
        };
        let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMDYwMCwiYXBwIjoiZXZvbHV0\
                     aW9uIiwiYWN0aW9uIjoid2ViaG9vayJ9.vfFP7UMSZ_0yT43wmp0-1rveEzwRjDU5AEHPxRdjZ58";
        assert_eq!(
            sign("evolution-jwt-key-0123456789abcdef", &unsigned),
            [("authorization", format!("Bearer {token}"))]
        );
    }
}
