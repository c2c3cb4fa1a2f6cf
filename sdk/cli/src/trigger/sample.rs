//! Sample callbacks in the form of Meta's Cloud API.
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/payload-examples>

use gateway_core::phone::{Phone, normalize_phone};
use gateway_sdk::Timestamp;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::Status;

/// A WhatsApp Business Account of Meta's own examples.
const ACCOUNT_ID: &str = "102290129340398";
const MESSAGE_ID_CHARS: usize = 30;

/// The business number that is called.
#[derive(Clone, Copy)]
pub struct Number<'a> {
    /// Meta `phone_number_id`.
    pub provider_number_id: &'a str,
    /// In E.164.
    pub phone_number: &'a str,
}

/// One callback to send.
pub struct Sample {
    /// The body.
    pub body: String,
    /// The provider's id of the message, new for every sample.
    pub message_id: String,
    /// The contact.
    pub contact: Phone,
}

/// The contact when none is given.
pub fn default_phone() -> Phone {
    normalize_phone("+966500000001").expect("this is a phone number")
}

/// A contact that has most probably not opted out yet.
pub fn random_phone() -> Phone {
    let number = rand::rng().random_range(10_000_000..100_000_000_u32);
    normalize_phone(&format!("+9665{number}")).expect("this is a phone number")
}

impl Sample {
    /// A contact writes `text`.
    pub fn message(number: Number<'_>, contact: Phone, text: &str, now: Timestamp) -> Self {
        let message_id = message_id();
        let value = json!({
            "contacts": [{"profile": {"name": "Sample Contact"}, "wa_id": contact.digits()}],
            "messages": [{
                "from": contact.digits(), "id": message_id, "timestamp": now.as_second().to_string(),
                "type": "text", "text": {"body": text},
            }],
        });
        Self { body: callback(number, value), message_id, contact }
    }

    /// A message of the business to `contact` gets a status.
    pub fn status(number: Number<'_>, contact: Phone, status: Status, now: Timestamp) -> Self {
        let message_id = message_id();
        let mut item = json!({
            "id": message_id, "status": status.word(), "timestamp": now.as_second().to_string(),
            "recipient_id": contact.digits(),
        });
        if status == Status::Failed {
            item["errors"] = json!([{
                "code": 131_026, "title": "Message undeliverable", "message": "Message undeliverable",
                "error_data": {"details": "Message Undeliverable."},
            }]);
        } else {
            item["pricing"] = json!({"billable": true, "pricing_model": "PMP", "category": "utility"});
        }
        Self { body: callback(number, json!({ "statuses": [item] })), message_id, contact }
    }
}

impl Status {
    /// Meta's word for it.
    const fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Failed => "failed",
        }
    }

    /// The event of its own.
    pub const fn event(self) -> &'static str {
        match self {
            Self::Sent => "message.sent",
            Self::Delivered => "message.delivered",
            Self::Read => "message.read",
            Self::Failed => "message.failed",
        }
    }
}

fn callback(number: Number<'_>, mut value: Value) -> String {
    value["messaging_product"] = "whatsapp".into();
    value["metadata"] = json!({
        "display_phone_number": number.phone_number.trim_start_matches('+'),
        "phone_number_id": number.provider_number_id,
    });
    let change = json!({"field": "messages", "value": value});
    json!({"object": "whatsapp_business_account", "entry": [{"id": ACCOUNT_ID, "changes": [change]}]})
        .to_string()
}

fn message_id() -> String {
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric).take(MESSAGE_ID_CHARS);
    format!("wamid.{}", letters.map(char::from).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sample is a message of its own, so that the gateway does not take it for a repeat.
    #[test]
    fn samples_are_unique() {
        let number = Number { provider_number_id: "1", phone_number: "+15550783881" };
        let sample = || Sample::message(number, default_phone(), "hello", Timestamp::UNIX_EPOCH);
        let (first, second) = (sample(), sample());
        assert_ne!(first.message_id, second.message_id);
        let body: Value = serde_json::from_str(&first.body).unwrap();
        let value = &body["entry"][0]["changes"][0]["value"];
        assert_eq!(value["metadata"]["display_phone_number"], "15550783881");
        assert_eq!(value["messages"][0]["id"], first.message_id);
    }
}
