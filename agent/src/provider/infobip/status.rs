//! What became of a message of the business: delivery reports,
//! <https://www.infobip.com/docs/api/channels/whatsapp/whatsapp-message-status-reports/receive-whatsapp-delivery-reports>,
//! seen reports (`receive-whatsapp-seen-reports` beside it), and deletion reports, which Huawei's adapter of Infobip
//! describes, <https://support.huaweicloud.com/intl/en-us/api-cec/cec_07_0995.html>. In all of them `to`
//! is taken for the contact; see [`Target::either_side`](crate::provider::Target::either_side).

use gateway_core::event::{EventType, ProviderError, Status};
use serde_json::value::RawValue;

use crate::provider::{
    StatusItem,
    contact::of_field,
    json::{Fields, integer, kept},
    message::{correlation, identity},
    status::settled,
};

/// The name of the error that is none.
const NO_ERROR: &str = "NO_ERROR";

/// A delivery report.
pub fn delivery(raw: &RawValue, fields: &Fields<'_>) -> StatusItem {
    let status = fields.object("status");
    let of_status = |name| status.as_ref().and_then(|status| status.name(name));
    // A status that is no object is taken for its group.
    let alone = || fields.name("status").map(|word| word.to_uppercase().into_boxed_str());
    let (group, name) = (of_status("groupName").or_else(alone), of_status("name"));
    let event_type = event_type(group.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default());
    let word = match event_type {
        // The group says it all; the name is longer (`DELIVERED_TO_HANDSET`).
        Some(EventType::MessageDelivered | EventType::MessageFailed) => group,
        _ => name.or(group),
    };
    let word = word.unwrap_or_else(|| "unknown".into());
    let mut error = fields.object("error").and_then(|error| error_of(&error));
    if event_type == Some(EventType::MessageFailed) && error.is_none() {
        // What Infobip itself rejects has no error, and the status says why.
        error =
            Some(ProviderError { code: None, title: of_status("name"), details: of_status("description") });
    }
    let item = item(raw, fields, &word.to_lowercase(), event_type, &["doneAt", "sentAt"]);
    let status = Status { error, pricing: fields.get("price").map(kept), ..item.status };
    settled(StatusItem { status, ..item }, || kept(raw))
}

/// A seen report.
pub fn seen(raw: &RawValue, fields: &Fields<'_>) -> StatusItem {
    item(raw, fields, "read", Some(EventType::MessageRead), &["seenAt"])
}

/// A deletion report.
pub fn deleted(raw: &RawValue, fields: &Fields<'_>) -> StatusItem {
    item(raw, fields, "deleted", None, &["deletedAt"])
}

fn item(
    raw: &RawValue,
    fields: &Fields<'_>,
    word: &str,
    event_type: Option<EventType>,
    times: &[&str],
) -> StatusItem {
    let recipient = fields.name("to").or_else(|| fields.name("destination"));
    let external_message_id = fields.name("messageId");
    StatusItem {
        identity: identity(external_message_id.as_deref(), raw),
        status: Status {
            external_message_id,
            status: word.into(),
            recipient: recipient.clone().unwrap_or_default(),
            correlation: correlation(fields, "callbackData"),
            raw: event_type.is_none().then(|| kept(raw)),
            ..Status::default()
        },
        contact: of_field(recipient),
        event_type,
        time: times.iter().find_map(|name| fields.time(name)),
    }
}

/// The event of a status, <https://www.infobip.com/docs/essentials/response-status-and-error-codes>.
fn event_type(group: &str, name: &str) -> Option<EventType> {
    match (group, name) {
        // On its way from Infobip to WhatsApp.
        ("PENDING", "PENDING_ENROUTE") => Some(EventType::MessageSent),
        ("DELIVERED", _) => Some(EventType::MessageDelivered),
        ("UNDELIVERABLE" | "REJECTED" | "EXPIRED", _) => Some(EventType::MessageFailed),
        _ => None,
    }
}

/// The error of a report; None for the one that stands for success.
fn error_of(object: &Fields<'_>) -> Option<ProviderError> {
    let code = object.get("id").and_then(integer);
    let title = object.name("name");
    if code == Some(0) || title.as_deref() == Some(NO_ERROR) {
        return None;
    }
    let error = ProviderError { code, title, details: object.name("description") };
    (error.code.is_some() || error.title.is_some() || error.details.is_some()).then_some(error)
}
