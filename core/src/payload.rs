//! The webhook body of an event: flat JSON. The first keys of each struct are the customer contract: they
//! never change and are always present, null when unknown. What follows is present when known.
//!
//! The same facts as JSON Schema: `sdk/schemas/`.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    event::{Contact, Content, Event, EventType, Message, OptOutNotice, ProviderNotice, Status},
    id::WebhookSubscriptionId,
    phone::Phone,
    time::rfc3339_seconds,
};

/// Writes the webhook body. Frozen from then on: every attempt and every replay carries these bytes.
pub fn body(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(640);
    let written = match &event.content {
        Content::Message(message) if event.event_type == EventType::MessageSent => {
            serde_json::to_writer(&mut bytes, &EchoBody::new(event, message))
        }
        Content::Message(message) => serde_json::to_writer(&mut bytes, &MessageBody::new(event, message)),
        Content::Status(status) => serde_json::to_writer(&mut bytes, &StatusBody::new(event, status)),
        Content::OptOut(notice) => serde_json::to_writer(&mut bytes, &OptOutBody::new(event, notice)),
        Content::Provider(notice) => serde_json::to_writer(&mut bytes, &ProviderBody::new(event, notice)),
        Content::Test { subscription_id } => {
            serde_json::to_writer(&mut bytes, &TestBody::new(event, subscription_id))
        }
    };
    written.expect("these structs have string keys and a Vec takes every write");
    bytes
}

/// Where `timestamp` comes from, when not from the provider.
fn timestamp_source(event: &Event) -> Option<&'static str> {
    event.is_time_ours.then_some("receive_time")
}

#[derive(Serialize)]
struct ContactBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
}

impl<'a> ContactBody<'a> {
    fn new(contact: &'a Contact) -> Option<Self> {
        let body = Self {
            name: contact.name.as_deref(),
            user_id: contact.user_id.as_deref(),
            username: contact.username.as_deref(),
        };
        (body.name.is_some() || body.user_id.is_some() || body.username.is_some()).then_some(body)
    }
}

#[derive(Serialize)]
struct MessageBody<'a> {
    event: &'static str,
    instance_id: &'a str,
    instance_name: &'a str,
    from: Option<&'a Phone>,
    message_text: Option<&'a str>,
    message_type: &'a str,
    external_message_id: Option<&'a str>,
    timestamp: String,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a Phone>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<ContactBody<'a>>,
    #[serde(flatten)]
    rest: &'a Message,
}

impl<'a> MessageBody<'a> {
    fn new(event: &'a Event, message: &'a Message) -> Self {
        Self {
            event: event.event_type.name(),
            instance_id: event.instance_id.as_str(),
            instance_name: &event.instance_name,
            from: event.contact.phone.as_ref(),
            message_text: message.text.as_deref(),
            message_type: &message.message_type,
            external_message_id: message.external_message_id.as_deref(),
            timestamp: rfc3339_seconds(event.event_time),
            event_id: event.id.to_string(),
            timestamp_source: timestamp_source(event),
            to: event.business_phone.as_ref(),
            contact: ContactBody::new(&event.contact),
            rest: message,
        }
    }
}

/// `message.sent` for what the business typed in its phone app: the status block, then the message.
#[derive(Serialize)]
struct EchoBody<'a> {
    event: &'static str,
    instance_id: &'a str,
    instance_name: &'a str,
    to: Option<&'a Phone>,
    status: &'static str,
    external_message_id: Option<&'a str>,
    timestamp: String,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a Phone>,
    message_text: Option<&'a str>,
    message_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<ContactBody<'a>>,
    #[serde(flatten)]
    rest: &'a Message,
}

impl<'a> EchoBody<'a> {
    fn new(event: &'a Event, message: &'a Message) -> Self {
        Self {
            event: event.event_type.name(),
            instance_id: event.instance_id.as_str(),
            instance_name: &event.instance_name,
            to: event.contact.phone.as_ref(),
            status: "sent",
            external_message_id: message.external_message_id.as_deref(),
            timestamp: rfc3339_seconds(event.event_time),
            event_id: event.id.to_string(),
            timestamp_source: timestamp_source(event),
            from: event.business_phone.as_ref(),
            message_text: message.text.as_deref(),
            message_type: &message.message_type,
            contact: ContactBody::new(&event.contact),
            rest: message,
        }
    }
}

#[derive(Serialize)]
struct StatusBody<'a> {
    event: &'static str,
    instance_id: &'a str,
    instance_name: &'a str,
    to: Option<&'a Phone>,
    status: &'a str,
    external_message_id: Option<&'a str>,
    timestamp: String,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a Phone>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<ContactBody<'a>>,
    #[serde(flatten)]
    rest: &'a Status,
}

impl<'a> StatusBody<'a> {
    fn new(event: &'a Event, status: &'a Status) -> Self {
        Self {
            event: event.event_type.name(),
            instance_id: event.instance_id.as_str(),
            instance_name: &event.instance_name,
            to: event.contact.phone.as_ref(),
            status: status_word(event.event_type, &status.status),
            external_message_id: status.external_message_id.as_deref(),
            timestamp: rfc3339_seconds(event.event_time),
            event_id: event.id.to_string(),
            timestamp_source: timestamp_source(event),
            from: event.business_phone.as_ref(),
            contact: ContactBody::new(&event.contact),
            rest: status,
        }
    }
}

/// The word in `status`. An event with a name of its own says what its name says, whatever the provider's `word`
/// for it is (`submitted`, `undelivered`, `rejected`, …): that is the contract. `message.status_updated` has the
/// provider's.
pub fn status_word(event_type: EventType, word: &str) -> &str {
    match event_type {
        EventType::MessageSent => "sent",
        EventType::MessageDelivered => "delivered",
        EventType::MessageRead if word != "played" => "read",
        EventType::MessageFailed => "failed",
        _ => word,
    }
}

#[derive(Serialize)]
struct OptOutBody<'a> {
    event: &'static str,
    instance_id: &'a str,
    instance_name: &'a str,
    from: Option<&'a Phone>,
    reason: &'static str,
    message_text: Option<&'a str>,
    timestamp: String,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a Phone>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<ContactBody<'a>>,
    #[serde(flatten)]
    rest: &'a OptOutNotice,
}

impl<'a> OptOutBody<'a> {
    fn new(event: &'a Event, notice: &'a OptOutNotice) -> Self {
        Self {
            event: event.event_type.name(),
            instance_id: event.instance_id.as_str(),
            instance_name: &event.instance_name,
            from: event.contact.phone.as_ref(),
            reason: notice.reason,
            message_text: notice.message_text.as_deref(),
            timestamp: rfc3339_seconds(event.event_time),
            event_id: event.id.to_string(),
            timestamp_source: timestamp_source(event),
            to: event.business_phone.as_ref(),
            contact: ContactBody::new(&event.contact),
            rest: notice,
        }
    }
}

#[derive(Serialize)]
struct ProviderBody<'a> {
    event: &'static str,
    instance_id: &'a str,
    instance_name: &'a str,
    provider_field: &'a str,
    timestamp: String,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_source: Option<&'static str>,
    raw: &'a RawValue,
}

impl<'a> ProviderBody<'a> {
    fn new(event: &'a Event, notice: &'a ProviderNotice) -> Self {
        Self {
            event: event.event_type.name(),
            instance_id: event.instance_id.as_str(),
            instance_name: &event.instance_name,
            provider_field: &notice.field,
            timestamp: rfc3339_seconds(event.event_time),
            event_id: event.id.to_string(),
            timestamp_source: timestamp_source(event),
            raw: &notice.raw,
        }
    }
}

#[derive(Serialize)]
struct TestBody<'a> {
    event: &'static str,
    instance_id: &'a str,
    instance_name: &'a str,
    subscription_id: &'a str,
    message_text: &'static str,
    timestamp: String,
    event_id: String,
}

impl<'a> TestBody<'a> {
    fn new(event: &'a Event, subscription_id: &'a WebhookSubscriptionId) -> Self {
        Self {
            event: event.event_type.name(),
            instance_id: event.instance_id.as_str(),
            instance_name: &event.instance_name,
            subscription_id: subscription_id.as_str(),
            message_text: "This is a test event of WhatsApp Gateway.",
            timestamp: rfc3339_seconds(event.event_time),
            event_id: event.id.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        event::OptOutNotice,
        id::{EventId, TenantId},
        phone::normalize_phone,
    };

    fn event(event_type: EventType, content: Content) -> Event {
        Event {
            id: EventId::from_bytes([7; 16]),
            event_type,
            tenant_id: TenantId::default_tenant(),
            instance_id: "demo-support-line".parse().unwrap(),
            instance_name: Arc::from("Demo Support Line"),
            contact: Contact { phone: normalize_phone("966500000001"), ..Contact::default() },
            business_phone: None,
            event_time: "2026-05-08T10:00:00.9Z".parse().unwrap(),
            is_time_ours: false,
            receive_time: "2026-05-08T10:00:01Z".parse().unwrap(),
            content,
        }
    }

    /// The opt-out body is the documented one, key for key and in its order.
    #[test]
    fn opt_out_body_is_the_contract() {
        let notice = OptOutNotice {
            reason: "recipient_requested_stop",
            message_text: Some("STOP".into()),
            ..OptOutNotice::default()
        };
        let body = body(&event(EventType::RecipientOptedOut, Content::OptOut(Box::new(notice))));
        assert_eq!(
            String::from_utf8(body).unwrap(),
            concat!(
                r#"{"event":"recipient.opted_out","instance_id":"demo-support-line","#,
                r#""instance_name":"Demo Support Line","from":"+966500000001","#,
                r#""reason":"recipient_requested_stop","message_text":"STOP","#,
                r#""timestamp":"2026-05-08T10:00:00Z","event_id":"evt_a4dqobyha4dqobyha4dqobyha4"}"#
            )
        );
    }

    /// The contract's keys are there, null when unknown; unknown optional parts are left out.
    #[test]
    fn contract_keys_are_always_present() {
        let mut received = event(EventType::MessageReceived, Content::Message(Box::default()));
        received.contact = Contact { user_id: Some("US.1".into()), ..Contact::default() };
        let value: serde_json::Value = serde_json::from_slice(&body(&received)).unwrap();
        for key in ["from", "message_text", "external_message_id"] {
            assert!(value.as_object().unwrap().contains_key(key) && value[key].is_null(), "{key}");
        }
        assert_eq!(value["contact"]["user_id"], "US.1");
        assert!(value.get("media").is_none() && value.get("to").is_none());
    }

    /// Every kind of body says that its time is ours when the provider gave none, and only then.
    #[test]
    fn a_time_of_ours_is_marked() {
        let raw = || RawValue::from_string("{}".to_owned()).unwrap();
        for (event_type, content) in [
            (EventType::MessageReceived, Content::Message(Box::default())),
            (EventType::MessageSent, Content::Message(Box::default())),
            (EventType::MessageRead, Content::Status(Box::default())),
            (EventType::RecipientOptedOut, Content::OptOut(Box::default())),
            (EventType::ProviderEvent, Content::Provider(ProviderNotice { field: "x".into(), raw: raw() })),
        ] {
            let theirs = event(event_type, content);
            let source = |event: &Event| {
                let value: serde_json::Value = serde_json::from_slice(&body(event)).unwrap();
                value.get("timestamp_source").cloned()
            };
            assert_eq!(source(&theirs), None);
            let ours = Event { is_time_ours: true, ..theirs };
            assert_eq!(source(&ours), Some("receive_time".into()), "{}", event_type.name());
        }
    }
}
