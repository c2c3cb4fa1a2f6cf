//! How each provider says the same two things: a contact wrote, and a message of the business got a status.
//! Shapes as in `tests/fixtures/<provider>/`.

mod message;
mod status;

use gateway_core::event::Provider;
use reqwest::Url;
use serde_json::{Value, json};
use uuid::Uuid;

/// The business number of every provider's instance.
pub const BUSINESS: &str = "15550783881";
/// Another one, which no instance claims.
const OTHER_BUSINESS: &str = "15550783882";
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
        Provider::Waha | Provider::Evolution => "support",
    }
}

/// The provider's name of another number, which no instance claims.
pub const fn other_number(provider: Provider) -> &'static str {
    match provider {
        Provider::Twilio => "whatsapp:+15550783882",
        Provider::Vonage | Provider::Infobip => OTHER_BUSINESS,
        _ => OTHER_NAME,
    }
}

/// What providers with names of their own call the other number.
const OTHER_NAME: &str = "999999999999999";

/// The business number that the provider calls so.
fn business_of(number: &str) -> &'static str {
    if number == OTHER_NAME { OTHER_BUSINESS } else { BUSINESS }
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

/// The provider's word for a message that was not delivered, as `message.status_updated` has it.
pub const fn failed_word(provider: Provider) -> &'static str {
    match provider {
        Provider::Twilio => "undelivered",
        Provider::Vonage => "rejected",
        Provider::Infobip => "undeliverable",
        Provider::Bird => "delivery_failed",
        _ => "failed",
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
    let body = match provider {
        Provider::Twilio => return message::twilio(said),
        Provider::Meta | Provider::Dialog360 => message::meta(said),
        Provider::Vonage => message::vonage(said),
        Provider::Infobip => message::infobip(said),
        Provider::Gupshup => message::gupshup(said),
        Provider::MessageBird => message::messagebird(said),
        Provider::Bird => message::bird(said),
        Provider::Waha => message::waha(said),
        Provider::Evolution => message::evolution(said),
    };
    body.to_string().into_bytes()
}

/// The body of a status.
pub fn status(provider: Provider, told: Told<'_>) -> Vec<u8> {
    let body = match provider {
        Provider::Twilio => return status::twilio(told),
        Provider::Meta | Provider::Dialog360 => status::meta(told),
        Provider::Vonage => status::vonage(told),
        Provider::Infobip => status::infobip(told),
        Provider::Gupshup => status::gupshup(told),
        Provider::MessageBird => status::messagebird(told),
        Provider::Bird => status::bird(told),
        Provider::Waha => status::waha(told),
        Provider::Evolution => status::evolution(told),
    };
    body.to_string().into_bytes()
}

/// A callback of Meta's with one change.
pub fn meta(number: &str, field: &str, mut value: Value) -> Value {
    value["messaging_product"] = json!("whatsapp");
    value["metadata"] = json!({"display_phone_number": business_of(number), "phone_number_id": number});
    let change = json!({"field": field, "value": value});
    json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [change]}]})
}

/// A body of a form.
pub fn form(parameters: &[(&str, &str)]) -> Vec<u8> {
    let url = Url::parse_with_params("http://form/", parameters).expect("any text can be a parameter");
    url.query().unwrap_or_default().as_bytes().to_vec()
}

/// A callback of Gupshup, version 2.
pub fn gupshup(app: &str, kind: &str, payload: &Value, time: i64) -> Value {
    json!({"app": app, "timestamp": time * 1_000, "version": 2, "type": kind, "payload": payload})
}

/// A callback of WAHA.
pub fn waha(session: &str, event: &str, payload: &Value) -> Value {
    json!({
        "id": format!("evt_{}", Uuid::new_v4().simple()), "timestamp": MORNING * 1_000, "event": event,
        "session": session, "metadata": {}, "me": {"id": format!("{}@c.us", business_of(session)), "pushName": "Support"},
        "payload": payload, "engine": "WEBJS", "environment": {"version": "2026.5.1", "engine": "WEBJS"},
    })
}

/// A callback of Evolution API.
pub fn evolution(instance: &str, event: &str, data: &Value) -> Value {
    json!({
        "event": event, "instance": instance, "data": data, "destination": "https://gw.example.com",
        "date_time": "2026-05-08T13:00:00.000Z", "sender": format!("{}@s.whatsapp.net", business_of(instance)),
        "server_url": "https://evolution.example.com", "apikey": EVOLUTION_APIKEY,
    })
}

/// The token of the Evolution instance, which is in each of its callbacks.
pub const EVOLUTION_APIKEY: &str = "canary-apikey-4a17d2c0";

fn messagebird(event: &str, mut message: Value, contact: &str, name: &str) -> Value {
    message["conversationId"] = json!("2e15efafec384e1c82e9842075e87beb");
    message["platform"] = json!("whatsapp");
    message["createdDatetime"] = json!(MORNING_TEXT);
    message["updatedDatetime"] = json!(MORNING_TEXT);
    // A JSON number.
    let msisdn: u64 = contact.parse().expect("phone numbers are digits");
    json!({"type": event, "contact": {"id": "9354647c", "msisdn": msisdn, "displayName": name},
        "conversation": {"id": "2e15efafec384e1c82e9842075e87beb", "status": "active"}, "message": message})
}

fn bird(event: &str, mut payload: Value) -> Value {
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

fn connector(business: &str) -> Value {
    json!({"id": "60bf59d6", "identifierValue": plus(business)})
}

fn plus(digits: &str) -> String {
    format!("+{digits}")
}
