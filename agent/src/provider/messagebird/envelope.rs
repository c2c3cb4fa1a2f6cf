//! `type`, `contact`, `conversation`, `message`.

use gateway_core::phone::normalize_phone;
use serde_json::value::RawValue;

use super::{contact::contact, message, status};
use crate::provider::{
    Item, NormalizeError, Part, Target,
    body::{self, UNKNOWN, notice},
    json::Fields,
};

/// What a body says.
pub fn parts(content: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let text = body::text(content)?;
    let Some(fields) = Fields::of_body(text) else { return Ok(body::odd(body::json(text)?)) };
    let (target, items) = match about_message(&fields) {
        Some(known) => known,
        None => raw_event(body::json(text)?, &fields),
    };
    Ok(vec![Part { target, items, original: vec![text.into()] }])
}

/// What is about a message of WhatsApp; None for all else.
fn about_message(fields: &Fields<'_>) -> Option<(Target, Vec<Item>)> {
    let kind = fields.name("type");
    let about_message = kind.as_deref().is_none_or(|kind| kind.starts_with("message."));
    let raw = fields.get("message").filter(|_| about_message)?;
    let message = Fields::of(raw).filter(is_whatsapp)?;
    known(kind.as_deref(), fields, raw, &message)
}

/// Whether the message is one of WhatsApp: a callback URL may serve channels of other platforms too.
fn is_whatsapp(message: &Fields<'_>) -> bool {
    message.text("platform").is_none_or(|platform| platform.starts_with("whatsapp"))
}

/// A message of a contact, or a status of one of the business. None for what is neither: of a contact's message only
/// its creation is news.
fn known(
    kind: Option<&str>,
    fields: &Fields<'_>,
    raw: &RawValue,
    message: &Fields<'_>,
) -> Option<(Target, Vec<Item>)> {
    let (is_received, person, business) = match message.text("direction")?.as_ref() {
        "received" if kind.is_none_or(|kind| kind == "message.created") => (true, "from", "to"),
        "sent" => (false, "to", "from"),
        _ => return None,
    };
    let contact = contact(message.name(person), fields.object("contact").as_ref());
    let business_phone = message.text(business).as_deref().and_then(normalize_phone);
    let number = |phone: &gateway_core::phone::Phone| Box::from(phone.as_str());
    let target = Target {
        number: message.name("channelId"),
        other_number: business_phone.as_ref().map(number),
        display_phone: business_phone.as_ref().map(number),
        ..Target::default()
    };
    let items = if is_received {
        vec![message::received(raw, message, contact, business_phone)]
    } else {
        status::sent(raw, message, contact)
    };
    Some((target, items))
}

/// What is not understood, or is about a conversation; also what the newer generation sends.
fn raw_event(raw: &RawValue, fields: &Fields<'_>) -> (Target, Vec<Item>) {
    let (message, conversation) = (fields.object("message"), fields.object("conversation"));
    let of_message = |name| message.as_ref().and_then(|message| message.name(name));
    let of_conversation = |name| conversation.as_ref().and_then(|conversation| conversation.name(name));
    let target = Target {
        number: of_message("channelId").or_else(|| of_conversation("lastUsedChannelId")),
        ..Target::default()
    };
    let time = ["updatedDatetime", "createdDatetime"].into_iter().find_map(|name| {
        let of = |fields: &Option<Fields<'_>>| fields.as_ref().and_then(|fields| fields.time(name));
        of(&message).or_else(|| of(&conversation))
    });
    let field = fields.name("type").or_else(|| fields.name("event"));
    let field = field.as_deref().unwrap_or(UNKNOWN);
    (target, vec![notice(field, raw, &[field, raw.get()], time)])
}
