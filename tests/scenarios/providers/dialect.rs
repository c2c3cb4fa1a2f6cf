//! How each provider says the same two things: a contact wrote, and a message of the business got a status.
//! Shapes as in `tests/fixtures/<provider>/`.

use gateway_core::event::Provider;
use reqwest::Url;
use serde_json::{Value, json};
use uuid::Uuid;

/// The business number of every provider's instance.
pub const BUSINESS: &str = "15550783881";
/// 2026-05-08T10:00:00Z, when everything happens that a provider gives a time to.
pub const MORNING: i64 = 1_778_234_400;
/// The same as text.
pub const MORNING_TEXT: &str = "2026-05-08T10:00:00Z";

/// A text message of a contact.
#[derive(Clone, Copy)]
pub struct Said<'a> {
    /// The provider's name of the business number.
    pub number: &'a str,
    /// The provider's id of the message.
    pub id: &'a str,
    /// The contact's phone number, digits.
    pub from: &'a str,
    /// The contact's name.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
}

/// A status of a message of the business.
#[derive(Clone, Copy)]
pub struct Told<'a> {
    /// The provider's name of the business number.
    pub number: &'a str,
    /// The provider's id of the message.
    pub id: &'a str,
    /// The contact's phone number, digits.
    pub to: &'a str,
    /// Whether it was delivered; otherwise it failed, with this code.
    pub failure: Option<i64>,
}

/// The provider's name of the business number, that of the fixtures.
pub const fn number(provider: Provider) -> &'static str {
    match provider {
        Provider::Meta | Provider::Dialog360 => "106540352242922",
        Provider::Twilio => "whatsapp:+15550783881",
        Provider::Vonage | Provider::Infobip => BUSINESS,
        Provider::Gupshup => "SupportLineApp",
        Provider::MessageBird => "619747f69cf940a98fb443140ce9aed2",
        Provider::Bird => "52ad151f-f7b4-46f9-a5c6-d3318e650c84",
        Provider::Waha => "default",
        Provider::Evolution => "support-line",
    }
}

/// Another number, which no instance claims.
pub const fn other_number(provider: Provider) -> &'static str {
    match provider {
        Provider::Twilio => "whatsapp:+15550783882",
        Provider::Vonage | Provider::Infobip => "15550783882",
        _ => "999999999999999",
    }
}

/// An error code as the provider has them; none where it has none.
pub const fn failure_code(provider: Provider) -> Option<i64> {
    match provider {
        Provider::Meta | Provider::Dialog360 => Some(131_026),
        Provider::Twilio => Some(63_024),
        Provider::Vonage => Some(1_320),
        Provider::Infobip => Some(7_004),
        Provider::Gupshup => Some(1_002),
        Provider::MessageBird => Some(21),
        Provider::Bird => Some(12_008),
        Provider::Waha | Provider::Evolution => None,
    }
}

/// Whether messages say when they were written.
pub const fn has_time(provider: Provider) -> bool {
    !matches!(provider, Provider::Twilio)
}

/// The media type of the provider's bodies.
pub const fn media_type(provider: Provider) -> &'static str {
    match provider {
        Provider::Twilio => "application/x-www-form-urlencoded",
        _ => "application/json",
    }
}

/// A message id that nobody has, of a message that this contact wrote.
pub fn new_id(provider: Provider, from: &str) -> String {
    let unique = Uuid::new_v4().simple();
    match provider {
        Provider::Meta | Provider::Dialog360 => format!("wamid.{unique}"),
        Provider::Twilio => format!("SM{unique}"),
        Provider::Waha => format!("false_{from}@c.us_{unique}"),
        Provider::Evolution => format!("3EB0{unique}"),
        _ => Uuid::new_v4().to_string(),
    }
}

/// A message id that nobody has, of a message that the business wrote to this contact.
pub fn new_own_id(provider: Provider, to: &str) -> String {
    new_id(provider, to).replacen("false_", "true_", 1)
}

/// The body of a text message.
pub fn message(provider: Provider, said: Said<'_>) -> Vec<u8> {
    let Said { number, id, from, name, text } = said;
    let body = match provider {
        Provider::Meta | Provider::Dialog360 => {
            let contact = json!({"profile": {"name": name}, "wa_id": from});
            let message = json!({
                "from": from, "id": id, "timestamp": MORNING.to_string(), "type": "text", "text": {"body": text},
            });
            meta(number, "messages", json!({"contacts": [contact], "messages": [message]}))
        }
        Provider::Twilio => {
            return form(&[
                ("MessageSid", id),
                ("SmsMessageSid", id),
                ("AccountSid", "AC00000000000000000000000000000001"),
                ("SmsStatus", "received"),
                ("MessageType", "text"),
                ("From", &format!("whatsapp:+{from}")),
                ("To", number),
                ("WaId", from),
                ("ProfileName", name),
                ("NumMedia", "0"),
                ("ButtonPayload", ""),
                ("Body", text),
            ]);
        }
        Provider::Vonage => json!({
            "channel": "whatsapp", "message_uuid": id, "to": number, "from": from, "timestamp": MORNING_TEXT,
            "profile": {"name": name}, "context_status": "none", "message_type": "text", "text": text,
        }),
        Provider::Infobip => json!({"results": [{
            "from": from, "to": number, "integrationType": "WHATSAPP", "receivedAt": "2026-05-08T10:00:00.000+0000",
            "messageId": id, "pairedMessageId": null, "callbackData": null, "contact": {"name": name},
            "message": {"type": "TEXT", "text": text}, "price": {"pricePerMessage": 0, "currency": "EUR"},
        }], "messageCount": 1, "pendingMessageCount": 0}),
        Provider::Gupshup => json!({
            "app": number, "timestamp": MORNING * 1_000, "version": 2, "type": "message",
            "payload": {"id": id, "source": from, "type": "text", "payload": {"text": text},
                "sender": {"phone": from, "name": name, "country_code": "966", "dial_code": "500000001"}},
        }),
        Provider::MessageBird => messagebird("message.created", &json!({
            "id": id, "channelId": number, "direction": "received", "status": "received", "from": plus(from),
            "to": plus(BUSINESS), "type": "text", "content": {"text": text},
        }), from, name),
        Provider::Bird => bird("whatsapp.inbound", &json!({
            "id": id, "channelId": number, "direction": "incoming", "status": "delivered",
            "sender": {"contact": person(from, name)}, "receiver": {"connector": connector()},
            "body": {"type": "text", "text": {"text": text}},
            "meta": {"extraInformation": {"timestamp": MORNING.to_string()}},
        })),
        Provider::Waha => waha(number, "message", &json!({
            "id": id, "timestamp": MORNING, "from": format!("{from}@c.us"), "fromMe": false,
            "to": format!("{BUSINESS}@c.us"), "body": text, "hasMedia": false, "ack": 1, "ackName": "SERVER",
            "vCards": [], "_data": {"notifyName": name},
        })),
        Provider::Evolution => evolution(number, "messages.upsert", &json!({
            "key": {"remoteJid": format!("{from}@s.whatsapp.net"), "fromMe": false, "id": id},
            "pushName": name, "status": "DELIVERY_ACK", "message": {"conversation": text}, "contextInfo": null,
            "messageType": "conversation", "messageTimestamp": MORNING, "source": "android",
        })),
    };
    body.to_string().into_bytes()
}

/// The body of a status.
pub fn status(provider: Provider, told: Told<'_>) -> Vec<u8> {
    let Told { number, id, to, failure } = told;
    let word = |delivered: &'static str, failed: &'static str| if failure.is_none() { delivered } else { failed };
    let body = match provider {
        Provider::Meta | Provider::Dialog360 => {
            let errors: Vec<Value> =
                failure.iter().map(|code| json!({"code": code, "title": "Message undeliverable"})).collect();
            let mut status = json!({
                "id": id, "status": word("delivered", "failed"), "recipient_id": to,
                "timestamp": MORNING.to_string(),
            });
            if failure.is_some() {
                status["errors"] = json!(errors);
            }
            meta(number, "messages", json!({"statuses": [status]}))
        }
        Provider::Twilio => {
            let word = word("delivered", "undelivered");
            let (to, code) = (format!("whatsapp:+{to}"), failure.unwrap_or_default().to_string());
            let mut parameters = vec![
                ("MessageSid", id),
                ("AccountSid", "AC00000000000000000000000000000001"),
                ("MessageStatus", word),
                ("SmsStatus", word),
                ("From", number),
                ("To", &to),
                ("ChannelPrefix", "whatsapp"),
            ];
            parameters.extend(failure.is_some().then_some(("ErrorCode", &*code)));
            return form(&parameters);
        }
        Provider::Vonage => {
            let mut status = json!({
                "channel": "whatsapp", "message_uuid": id, "to": to, "from": number, "timestamp": MORNING_TEXT,
                "status": word("delivered", "rejected"),
            });
            if let Some(code) = failure {
                status["error"] = json!({"type": "https://developer.vonage.com/api-errors/messages#1320",
                    "title": code.to_string(), "detail": "Invalid template", "instance": "bf0ca0bf"});
            }
            status
        }
        Provider::Infobip => infobip_report(id, to, failure),
        Provider::Gupshup => {
            let (detail, id_of_whatsapp) = (json!({"ts": MORNING}), format!("gBEG{id}"));
            let payload = match failure {
                None => json!({"id": id_of_whatsapp, "gsId": id, "type": "delivered", "destination": to,
                    "payload": detail}),
                Some(code) => json!({"id": id, "type": "failed", "destination": to,
                    "payload": {"ts": MORNING, "code": code, "reason": "Number Does Not Exist"}}),
            };
            json!({"app": number, "timestamp": MORNING * 1_000, "version": 2, "type": "message-event",
                "payload": payload})
        }
        Provider::MessageBird => {
            let mut message = json!({
                "id": id, "channelId": number, "direction": "sent", "status": word("delivered", "failed"),
                "from": plus(BUSINESS), "to": plus(to), "type": "text", "content": {"text": "Hello"},
            });
            if let Some(code) = failure {
                message["error"] = json!({"code": code, "description": "no destination"});
            }
            messagebird("message.updated", &message, to, "Zoë")
        }
        Provider::Bird => {
            let mut message = json!({
                "id": id, "channelId": number, "direction": "outgoing", "reason": "",
                "status": word("delivered", "delivery_failed"), "sender": {"connector": connector()},
                "receiver": {"contacts": [person(to, "Zoë")]},
            });
            if let Some(code) = failure {
                message["failure"] = json!({"code": code, "description": "undeliverable", "source": {"code": 131_026}});
            }
            bird("whatsapp.outbound", &message)
        }
        Provider::Waha => {
            let (ack, name) = if failure.is_none() { (2, "DEVICE") } else { (-1, "ERROR") };
            waha(number, "message.ack", &json!({
                "id": id, "from": format!("{to}@c.us"), "fromMe": true, "ack": ack, "ackName": name,
            }))
        }
        Provider::Evolution => evolution(number, "messages.update", &json!({
            "keyId": id, "remoteJid": format!("{to}@s.whatsapp.net"), "fromMe": true,
            "status": word("DELIVERY_ACK", "ERROR"), "messageId": "cm1",
        })),
    };
    body.to_string().into_bytes()
}

/// A callback of Meta's with one change.
pub fn meta(number: &str, field: &str, mut value: Value) -> Value {
    value["messaging_product"] = json!("whatsapp");
    value["metadata"] = json!({"display_phone_number": BUSINESS, "phone_number_id": number});
    let change = json!({"field": field, "value": value});
    json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [change]}]})
}

/// A body of a form.
pub fn form(parameters: &[(&str, &str)]) -> Vec<u8> {
    let url = Url::parse_with_params("http://form/", parameters).expect("any text can be a parameter");
    url.query().unwrap_or_default().as_bytes().to_vec()
}

/// A callback of WAHA.
pub fn waha(session: &str, event: &str, payload: &Value) -> Value {
    json!({
        "id": format!("evt_{}", Uuid::new_v4().simple()), "timestamp": MORNING * 1_000, "event": event,
        "session": session, "metadata": {}, "me": {"id": format!("{BUSINESS}@c.us"), "pushName": "Support"},
        "payload": payload, "engine": "WEBJS", "environment": {"version": "2026.5.1", "engine": "WEBJS"},
    })
}

/// A callback of Evolution API.
pub fn evolution(instance: &str, event: &str, data: &Value) -> Value {
    json!({
        "event": event, "instance": instance, "data": data, "destination": "https://gw.example.com",
        "date_time": "2026-05-08T13:00:00.000Z", "sender": format!("{BUSINESS}@s.whatsapp.net"),
        "server_url": "https://evolution.example.com", "apikey": EVOLUTION_APIKEY,
    })
}

/// The token of the Evolution instance, which is in each of its callbacks.
pub const EVOLUTION_APIKEY: &str = "canary-apikey-4a17d2c0";

fn infobip_report(id: &str, to: &str, failure: Option<i64>) -> Value {
    let (group, name) = match failure {
        None => ("DELIVERED", "DELIVERED_TO_HANDSET"),
        Some(_) => ("UNDELIVERABLE", "UNDELIVERABLE_NOT_DELIVERED"),
    };
    let error = match failure {
        None => json!({"id": 0, "name": "NO_ERROR", "groupId": 0, "groupName": "OK", "permanent": false}),
        Some(code) => json!({"id": code, "name": "EC_WHATSAPP_NOT_DELIVERED", "groupId": 1, "permanent": true}),
    };
    json!({"results": [{
        "messageId": id, "bulkId": "", "to": to, "channel": "WHATSAPP", "sentAt": "2026-05-08T09:59:59.000+0000",
        "doneAt": "2026-05-08T13:00:00.000+0300", "status": {"groupName": group, "name": name}, "error": error,
    }]})
}

fn messagebird(event: &str, message: &Value, contact: &str, name: &str) -> Value {
    let mut message = message.clone();
    message["conversationId"] = json!("2e15efafec384e1c82e9842075e87beb");
    message["platform"] = json!("whatsapp");
    message["createdDatetime"] = json!(MORNING_TEXT);
    message["updatedDatetime"] = json!(MORNING_TEXT);
    let msisdn: u64 = contact.parse().unwrap_or_default();
    json!({"type": event, "contact": {"id": "9354647c", "msisdn": msisdn, "displayName": name},
        "conversation": {"id": "2e15efafec384e1c82e9842075e87beb", "status": "active"}, "message": message})
}

fn bird(event: &str, payload: &Value) -> Value {
    let mut payload = payload.clone();
    payload["reference"] = json!("");
    payload["parts"] = json!([{"platformReference": "wamid.HBgL"}]);
    for name in ["lastStatusAt", "createdAt", "updatedAt"] {
        payload[name] = json!("2026-05-08T10:00:00.858Z");
    }
    json!({"service": "channels", "event": event, "payload": payload})
}

fn person(phone: &str, name: &str) -> Value {
    json!({"id": "d4e8935a", "identifierKey": "phonenumber", "identifierValue": plus(phone),
        "annotations": {"name": name}})
}

fn connector() -> Value {
    json!({"id": "60bf59d6", "identifierValue": plus(BUSINESS)})
}

fn plus(digits: &str) -> String {
    format!("+{digits}")
}
