//! What became of a message of the business,
//! <https://developer.vonage.com/en/messages/concepts/messages-status-callbacks>. An `error` can accompany any
//! status; the status alone decides.

use gateway_core::event::{EventType, ProviderError, Status};
use serde_json::value::RawValue;

use super::{contact::contact, envelope::Callback};
use crate::provider::{
    StatusItem,
    json::{Fields, integer, kept, text},
    message::{correlation, identity},
    status::settled,
};

/// The status of a callback with this `status`.
pub fn read(callback: &Callback<'_>, word: &str) -> StatusItem {
    let fields = &callback.fields;
    let word = word.to_lowercase();
    let event_type = event_type(&word);
    let recipient = fields.name("to");
    let external_message_id = fields.name("message_uuid");
    let item = StatusItem {
        identity: identity(external_message_id.as_deref(), callback.raw),
        status: Status {
            external_message_id,
            status: word.into(),
            recipient: recipient.clone().unwrap_or_default(),
            error: fields.get("error").and_then(error),
            pricing: pricing(callback.of_whatsapp("pricing"), fields.get("usage")),
            conversation: callback.of_whatsapp("conversation").map(kept),
            correlation: correlation(fields, "client_ref"),
            raw: event_type.is_none().then(|| kept(callback.raw)),
            ..Status::default()
        },
        contact: contact(callback, recipient, "recipient"),
        event_type,
        time: fields.time("timestamp"),
    };
    settled(item, || kept(callback.raw))
}

fn event_type(word: &str) -> Option<EventType> {
    match word {
        // Handed to WhatsApp.
        "submitted" => Some(EventType::MessageSent),
        "delivered" => Some(EventType::MessageDelivered),
        "read" => Some(EventType::MessageRead),
        "rejected" | "undeliverable" => Some(EventType::MessageFailed),
        _ => None,
    }
}

/// `title` is the code, as a text or a number, and `detail` says what it means. An error that is no object is a code
/// or a title.
fn error(raw: &RawValue) -> Option<ProviderError> {
    let object = Fields::of(raw);
    let title = object.as_ref().map_or(Some(raw), |error| error.get("title"));
    let detail = object.as_ref().and_then(|error| error.name("detail"));
    let code = title.and_then(integer);
    let error = if code.is_some() {
        ProviderError { code, title: detail, details: None }
    } else {
        let title = title.and_then(text).filter(|title| !title.is_empty());
        ProviderError { code, title: title.map(Box::from), details: detail }
    };
    (error.code.is_some() || error.title.is_some() || error.details.is_some()).then_some(error)
}

/// What WhatsApp says of the price, and in its field `usage` what Vonage charges; what Vonage charges alone when
/// WhatsApp says nothing.
fn pricing(of_whatsapp: Option<&RawValue>, usage: Option<&RawValue>) -> Option<Box<RawValue>> {
    let (Some(pricing), Some(usage)) = (of_whatsapp, usage) else {
        return of_whatsapp.or(usage).map(kept);
    };
    match pricing.get().strip_suffix('}').filter(|fields| fields.ends_with(|last| last != '{')) {
        Some(fields) => {
            let both = format!(r#"{fields},"usage":{}}}"#, usage.get());
            Some(RawValue::from_string(both).map_or_else(|_| kept(pricing), |both| kept(&both)))
        }
        None => Some(kept(usage)),
    }
}
