//! Meta's Cloud API, <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/payload-examples>; and
//! 360dialog, which passes Meta's callbacks on.

use gateway_core::signature::{encode_hex, hmac_sha256};
use serde_json::{Value, json};

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, random};

/// A WhatsApp Business Account of Meta's own examples.
const ACCOUNT_ID: &str = "102290129340398";

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let message_id = random::wamid();
    let (contact, timestamp) = (scene.contact.digits(), scene.now.as_second().to_string());
    let value = match happening {
        Happening::Text(text) => json!({
            "contacts": [{"profile": {"name": CONTACT_NAME}, "wa_id": contact}],
            "messages": [{
                "from": contact, "id": message_id, "timestamp": timestamp, "type": "text",
                "text": {"body": text},
            }],
        }),
        Happening::Status(status) => {
            let mut item = json!({
                "id": message_id, "status": word(status), "timestamp": timestamp, "recipient_id": contact,
            });
            if status == Status::Failed {
                item["errors"] = json!([{
                    "code": 131_026, "title": "Message undeliverable", "message": "Message undeliverable",
                    "error_data": {"details": "Message Undeliverable."},
                }]);
            } else {
                item["pricing"] = json!({"billable": true, "pricing_model": "PMP", "category": "utility"});
            }
            json!({ "statuses": [item] })
        }
    };
    Draft { body: callback(scene, value), message_id }
}

/// `X-Hub-Signature-256`, <https://developers.facebook.com/docs/graph-api/webhooks/getting-started#validate-payloads>.
pub fn sign(app_secret: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let signature = hmac_sha256(app_secret.as_bytes(), unsigned.body.as_bytes());
    vec![("x-hub-signature-256", format!("sha256={}", encode_hex(&signature)))]
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Sent => "sent",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Failed => "failed",
    }
}

fn callback(scene: &Scene<'_>, mut value: Value) -> String {
    value["messaging_product"] = "whatsapp".into();
    value["metadata"] = json!({
        "display_phone_number": scene.number.digits(),
        "phone_number_id": scene.number.provider_number_id,
    });
    let account_id = scene.number.account_id.unwrap_or(ACCOUNT_ID);
    let change = json!({"field": "messages", "value": value});
    json!({"object": "whatsapp_business_account", "entry": [{"id": account_id, "changes": [change]}]})
        .to_string()
}
