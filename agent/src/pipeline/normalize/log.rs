//! The log of an event.

use gateway_core::{
    event::{Content, Event, EventType},
    payload,
    time::to_proto,
};
use gateway_proto::v1;

use super::Origin;

/// Longest text in a column of the log, in bytes; the webhook body in the log has the whole text. WhatsApp
/// itself stops at 4,096 characters.
pub(super) const LOG_TEXT_BYTES_MAX: usize = 64 * 1024;

/// The log of an event, its body included.
pub fn log(event: &Event, origin: &Origin) -> v1::InboundLog {
    let contact = event.contact.phone.as_ref().map(|phone| phone.as_str().to_owned()).unwrap_or_default();
    let business = event.business_phone.as_ref().map(|phone| phone.as_str().to_owned()).unwrap_or_default();
    let (external_message_id, message_type, message_text) = texts(&event.content);
    let (from_phone, to_phone) = match &event.content {
        Content::Status(_) => (business, contact),
        Content::Message(_) if event.event_type == EventType::MessageSent => (business, contact),
        Content::Message(_) | Content::OptOut(_) => (contact, business),
        Content::Provider(_) | Content::Test { .. } => (String::new(), String::new()),
    };
    v1::InboundLog {
        event_id: event.id.to_string(),
        tenant_id: event.tenant_id.to_string(),
        instance_id: event.instance_id.to_string(),
        event: event.event_type.name().to_owned(),
        from_phone,
        to_phone,
        contact_user_id: column(event.contact.user_id.as_deref().unwrap_or_default()),
        message_type: column(message_type),
        message_text: column(message_text),
        external_message_id: column(external_message_id),
        event_time: Some(to_proto(event.event_time)),
        receive_time: Some(to_proto(event.receive_time)),
        agent_id: origin.agent_id.clone(),
        region: origin.region.clone(),
        duplicate_count: 0,
        payload_json: String::from_utf8(payload::body(event)).expect("a JSON writer writes UTF-8"),
        ..Default::default()
    }
}

/// A text as the log's column has it.
fn column(text: &str) -> String {
    text[..text.floor_char_boundary(LOG_TEXT_BYTES_MAX)].to_owned()
}

/// The provider's message id, the message type and the text, empty where the event has none.
fn texts(content: &Content) -> (&str, &str, &str) {
    match content {
        Content::Message(message) => (
            message.external_message_id.as_deref().unwrap_or_default(),
            &message.message_type,
            message.text.as_deref().unwrap_or_default(),
        ),
        Content::Status(status) => (status.external_message_id.as_deref().unwrap_or_default(), "", ""),
        Content::OptOut(notice) => (
            notice.external_message_id.as_deref().unwrap_or_default(),
            "",
            notice.message_text.as_deref().unwrap_or_default(),
        ),
        Content::Provider(_) | Content::Test { .. } => ("", "", ""),
    }
}
