//! `type`, `contact`, `conversation`, `message`.

use gateway_core::phone::normalize_phone;
use serde_json::value::RawValue;

use super::{
    body::{Body, UNKNOWN_FIELD},
    contact::contact,
    message, status,
};
use crate::provider::{Item, NormalizeError, Part, Target, json::Fields};

/// What a body says.
pub fn parts(content: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let body = Body::of(content)?;
    let Some(fields) = &body.fields else {
        return Ok(body.part(Target::default(), vec![body.notice(UNKNOWN_FIELD, None)]));
    };
    let kind = fields.name("type");
    let about_message = kind.as_deref().is_none_or(|kind| kind.starts_with("message."));
    let raw = fields.get("message").filter(|_| about_message);
    if let Some((raw, message)) = raw.and_then(|raw| Fields::of(raw).map(|message| (raw, message)))
        && is_whatsapp(&message)
        && let Some((target, items)) = known(kind.as_deref(), fields, raw, &message)
    {
        return Ok(body.part(target, items));
    }
    let (target, item) = raw_event(&body, fields, kind.as_deref());
    Ok(body.part(target, vec![item]))
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
        account_id: None,
    };
    let items = if is_received {
        vec![message::received(raw, message, contact, business_phone)]
    } else {
        status::sent(raw, message, contact)
    };
    Some((target, items))
}

/// What is not understood, or is about a conversation; also what the newer generation sends.
fn raw_event(body: &Body<'_>, fields: &Fields<'_>, kind: Option<&str>) -> (Target, Item) {
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
    let event = fields.name("event");
    let field = kind.or(event.as_deref()).unwrap_or(UNKNOWN_FIELD);
    (target, body.notice(field, time))
}
