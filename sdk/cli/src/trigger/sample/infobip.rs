//! Infobip, <https://www.infobip.com/docs/api/channels/whatsapp>: inbound messages, delivery reports and seen
//! reports. Nothing is signed.

use gateway_sdk::Timestamp;
use serde_json::{Value, json};

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, random};

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let message_id = random::uuid();
    let (contact, business, time) = (scene.contact.digits(), scene.number.digits(), time(scene.now));
    let body = match happening {
        Happening::Text(text) => json!({
            "results": [{
                "from": contact, "to": business, "integrationType": "WHATSAPP", "receivedAt": time,
                "messageId": message_id, "pairedMessageId": null, "callbackData": null,
                "message": {"type": "TEXT", "text": text}, "contact": {"name": CONTACT_NAME},
                "price": {"pricePerMessage": 0, "currency": "EUR"},
            }],
            "messageCount": 1, "pendingMessageCount": 0,
        }),
        Happening::Status(Status::Read) => json!({
            "results": [{
                "messageId": message_id, "from": business, "to": contact, "sentAt": time, "seenAt": time,
            }],
        }),
        Happening::Status(status) => {
            let (status, error) = report(status);
            json!({
                "results": [{
                    "bulkId": random::uuid(), "messageId": message_id, "to": contact, "sentAt": time,
                    "doneAt": time, "messageCount": 1, "price": {"pricePerMessage": 0, "currency": "EUR"},
                    "status": status, "error": error,
                }],
            })
        }
    };
    Draft { body: body.to_string(), message_id }
}

/// Status and error of a delivery report,
/// <https://www.infobip.com/docs/essentials/response-status-and-error-codes>.
fn report(status: Status) -> (Value, Value) {
    let no_error = json!({
        "groupId": 0, "groupName": "OK", "id": 0, "name": "NO_ERROR", "description": "No Error",
        "permanent": false,
    });
    match status {
        Status::Sent => (
            json!({
                "groupId": 1, "groupName": "PENDING", "id": 7, "name": "PENDING_ENROUTE",
                "description": "Message sent to next instance",
            }),
            no_error,
        ),
        Status::Failed => (
            json!({
                "groupId": 2, "groupName": "UNDELIVERABLE", "id": 9, "name": "UNDELIVERABLE_NOT_DELIVERED",
                "description": "Message sent not delivered",
            }),
            json!({
                "groupId": 1, "groupName": "HANDSET_ERRORS", "id": 1, "name": "EC_UNKNOWN_SUBSCRIBER",
                "description": "Unknown Subscriber", "permanent": true,
            }),
        ),
        Status::Delivered | Status::Read => (
            json!({
                "groupId": 3, "groupName": "DELIVERED", "id": 5, "name": "DELIVERED_TO_HANDSET",
                "description": "Message delivered to handset",
            }),
            no_error,
        ),
    }
}

/// Infobip writes the offset without a colon: `2019-07-19T11:21:27.861+0000`.
fn time(now: Timestamp) -> String {
    format!("{now:.3}").replace('Z', "+0000")
}
