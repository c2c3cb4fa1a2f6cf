//! A message of the business was delivered, or was not.

use serde_json::{Value, json};

use super::{BUSINESS, MORNING, MORNING_TEXT, Told, connector, form, person, plus};

impl Told<'_> {
    fn word(self, delivered: &'static str, failed: &'static str) -> &'static str {
        if self.failure.is_none() { delivered } else { failed }
    }
}

pub fn meta(told: Told<'_>) -> Value {
    let mut status = json!({
        "id": told.id, "status": told.word("delivered", "failed"), "recipient_id": told.to,
        "timestamp": MORNING.to_string(),
    });
    if let Some(code) = told.failure {
        status["errors"] = json!([{"code": code, "title": "Message undeliverable"}]);
    }
    super::meta(told.number, "messages", json!({"statuses": [status]}))
}

pub fn twilio(told: Told<'_>) -> Vec<u8> {
    let word = told.word("delivered", "undelivered");
    let (to, code) = (format!("whatsapp:+{}", told.to), told.failure.unwrap_or_default().to_string());
    let mut parameters = vec![
        ("MessageSid", told.id),
        ("AccountSid", "AC00000000000000000000000000000001"),
        ("MessageStatus", word),
        ("SmsStatus", word),
        ("From", told.number),
        ("To", &to),
        ("ChannelPrefix", "whatsapp"),
    ];
    parameters.extend(told.failure.is_some().then_some(("ErrorCode", &*code)));
    form(&parameters)
}

pub fn vonage(told: Told<'_>) -> Value {
    let mut status = json!({
        "channel": "whatsapp", "message_uuid": told.id, "to": told.to, "from": told.number,
        "timestamp": MORNING_TEXT, "status": told.word("delivered", "rejected"),
    });
    if let Some(code) = told.failure {
        status["error"] = json!({"type": "https://developer.vonage.com/api-errors/messages#1320",
            "title": code.to_string(), "detail": "Invalid template", "instance": "bf0ca0bf"});
    }
    status
}

pub fn infobip(told: Told<'_>) -> Value {
    let group = told.word("DELIVERED", "UNDELIVERABLE");
    let name = told.word("DELIVERED_TO_HANDSET", "UNDELIVERABLE_NOT_DELIVERED");
    let error = match told.failure {
        None => json!({"id": 0, "name": "NO_ERROR", "groupId": 0, "groupName": "OK", "permanent": false}),
        Some(code) => {
            json!({"id": code, "name": "EC_WHATSAPP_NOT_DELIVERED", "groupId": 1, "permanent": true})
        }
    };
    let result = json!({
        "messageId": told.id, "bulkId": "", "to": told.to, "channel": "WHATSAPP",
        "sentAt": "2026-05-08T09:59:59.000+0000", "doneAt": "2026-05-08T13:00:00.000+0300",
        "status": {"groupName": group, "name": name}, "error": error,
    });
    json!({"results": [result]})
}

pub fn gupshup(told: Told<'_>) -> Value {
    let payload = match told.failure {
        None => json!({"id": format!("gBEG{}", told.id), "gsId": told.id, "type": "delivered",
            "destination": told.to, "payload": {"ts": MORNING}}),
        Some(code) => json!({"id": told.id, "type": "failed", "destination": told.to,
            "payload": {"ts": MORNING, "code": code, "reason": "Number Does Not Exist"}}),
    };
    super::gupshup(told.number, "message-event", &payload, MORNING)
}

pub fn messagebird(told: Told<'_>) -> Value {
    let mut message = json!({
        "id": told.id, "channelId": told.number, "direction": "sent", "status": told.word("delivered", "failed"),
        "from": plus(BUSINESS), "to": plus(told.to), "type": "text", "content": {"text": "Hello"},
    });
    if let Some(code) = told.failure {
        message["error"] = json!({"code": code, "description": "no destination"});
    }
    super::messagebird("message.updated", message, told.to, "Zoë")
}

pub fn bird(told: Told<'_>) -> Value {
    let mut message = json!({
        "id": told.id, "channelId": told.number, "direction": "outgoing", "reason": "",
        "status": told.word("delivered", "delivery_failed"), "sender": {"connector": connector(BUSINESS)},
        "receiver": {"contacts": [person(told.to, "Zoë")]},
    });
    if let Some(code) = told.failure {
        let source = json!({"code": 131_026});
        message["failure"] = json!({"code": code, "description": "undeliverable", "source": source});
    }
    super::bird("whatsapp.outbound", message)
}

pub fn waha(told: Told<'_>) -> Value {
    let (ack, name) = if told.failure.is_none() { (2, "DEVICE") } else { (-1, "ERROR") };
    let payload = json!({"id": told.id, "from": format!("{}@c.us", told.to), "fromMe": true, "ack": ack, "ackName": name});
    super::waha(told.number, "message.ack", &payload)
}

pub fn evolution(told: Told<'_>) -> Value {
    let data = json!({
        "keyId": told.id, "remoteJid": format!("{}@s.whatsapp.net", told.to), "fromMe": true,
        "status": told.word("DELIVERY_ACK", "ERROR"), "messageId": "cm1",
    });
    super::evolution(told.number, "messages.update", &data)
}
