//! A contact wrote a text.

use serde_json::{Value, json};

use super::{MORNING, MORNING_TEXT, Said, business_of, connector, form, person, plus};

pub fn meta(said: Said<'_>) -> Value {
    let contact = json!({"profile": {"name": said.name}, "wa_id": said.from});
    let message = json!({
        "from": said.from, "id": said.id, "timestamp": MORNING.to_string(), "type": "text",
        "text": {"body": said.text},
    });
    super::meta(said.number, "messages", json!({"contacts": [contact], "messages": [message]}))
}

pub fn twilio(said: Said<'_>) -> Vec<u8> {
    form(&[
        ("MessageSid", said.id),
        ("SmsMessageSid", said.id),
        ("AccountSid", "AC00000000000000000000000000000001"),
        ("SmsStatus", "received"),
        ("MessageType", "text"),
        ("From", &format!("whatsapp:+{}", said.from)),
        ("To", said.number),
        ("WaId", said.from),
        ("ProfileName", said.name),
        ("NumMedia", "0"),
        ("ButtonPayload", ""),
        ("Body", said.text),
    ])
}

pub fn vonage(said: Said<'_>) -> Value {
    json!({
        "channel": "whatsapp", "message_uuid": said.id, "to": said.number, "from": said.from,
        "timestamp": MORNING_TEXT, "profile": {"name": said.name}, "context_status": "none",
        "message_type": "text", "text": said.text,
    })
}

pub fn infobip(said: Said<'_>) -> Value {
    let result = json!({
        "from": said.from, "to": said.number, "integrationType": "WHATSAPP",
        "receivedAt": "2026-05-08T10:00:00.000+0000", "messageId": said.id, "pairedMessageId": null,
        "callbackData": null, "contact": {"name": said.name}, "message": {"type": "TEXT", "text": said.text},
        "price": {"pricePerMessage": 0, "currency": "EUR"},
    });
    json!({"results": [result], "messageCount": 1, "pendingMessageCount": 0})
}

pub fn gupshup(said: Said<'_>) -> Value {
    let sender =
        json!({"phone": said.from, "name": said.name, "country_code": "966", "dial_code": "500000001"});
    let payload = json!({"id": said.id, "source": said.from, "type": "text", "payload": {"text": said.text},
        "sender": sender});
    super::gupshup(said.number, "message", &payload, MORNING)
}

pub fn messagebird(said: Said<'_>) -> Value {
    let message = json!({
        "id": said.id, "channelId": said.number, "direction": "received", "status": "received",
        "from": plus(said.from), "to": plus(business_of(said.number)), "type": "text",
        "content": {"text": said.text},
    });
    super::messagebird("message.created", message, said.from, said.name)
}

pub fn bird(said: Said<'_>) -> Value {
    let message = json!({
        "id": said.id, "channelId": said.number, "direction": "incoming", "status": "delivered",
        "sender": {"contact": person(said.from, said.name)},
        "receiver": {"connector": connector(business_of(said.number))},
        "body": {"type": "text", "text": {"text": said.text}},
        "meta": {"extraInformation": {"timestamp": MORNING.to_string()}},
    });
    super::bird("whatsapp.inbound", message)
}

pub fn waha(said: Said<'_>) -> Value {
    let payload = json!({
        "id": said.id, "timestamp": MORNING, "from": format!("{}@c.us", said.from), "fromMe": false,
        "to": format!("{}@c.us", business_of(said.number)), "body": said.text, "hasMedia": false, "ack": 1,
        "ackName": "SERVER", "vCards": [], "_data": {"notifyName": said.name},
    });
    super::waha(said.number, "message", &payload)
}

pub fn evolution(said: Said<'_>) -> Value {
    let key = json!({"remoteJid": format!("{}@s.whatsapp.net", said.from), "fromMe": false, "id": said.id});
    let data = json!({
        "key": key, "pushName": said.name, "status": "DELIVERY_ACK", "message": {"conversation": said.text},
        "contextInfo": null, "messageType": "conversation", "messageTimestamp": MORNING, "source": "android",
    });
    super::evolution(said.number, "messages.upsert", &data)
}
