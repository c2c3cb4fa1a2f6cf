//! `service`, `event`, `payload`.

use gateway_core::phone::{Phone, normalize_phone};
use serde_json::value::RawValue;

use super::{interaction::interaction, message, status};
use crate::provider::{
    Item, NormalizeError, Part, Target,
    body::{self, UNKNOWN, notice},
    json::Fields,
};

const SERVICE: &str = "channels";

/// What a body says.
pub fn parts(content: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let text = body::text(content)?;
    let Some(fields) = Fields::of_body(text) else { return Ok(body::odd(body::json(text)?)) };
    let part = |target, items| Ok(vec![Part { target, items, original: vec![text.into()] }]);
    let event = fields.name("event");
    let is_channels = fields.text("service").is_none_or(|service| service == SERVICE);
    let payload = fields.get("payload").and_then(|raw| Fields::of(raw).map(|payload| (raw, payload)));
    let mut target = Target::default();
    if let Some((raw, payload)) = payload.as_ref().filter(|_| is_channels) {
        target.number = payload.name("channelId");
        if let Some(items) = event.as_deref().and_then(|event| known(event, raw, payload, &mut target)) {
            return part(target, items);
        }
    }
    let time =
        payload.and_then(|(_, payload)| payload.time("updatedAt").or_else(|| payload.time("createdAt")));
    let field = event.or_else(|| fields.name("type"));
    let (field, raw) = (field.as_deref().unwrap_or(UNKNOWN), body::json(text)?);
    part(target, vec![notice(field, raw, &[field, raw.get()], time)])
}

/// The items of an event of WhatsApp, and its number. None for all that is passed on raw.
fn known(event: &str, raw: &RawValue, payload: &Fields<'_>, target: &mut Target) -> Option<Vec<Item>> {
    let (side, items) = match event {
        "whatsapp.inbound" => {
            let business_phone = connector(payload, "receiver");
            ("receiver", vec![message::received(raw, payload, business_phone)])
        }
        "whatsapp.outbound" => ("sender", status::outbound(raw, payload)?),
        "whatsapp.interaction" => ("sender", interaction(payload).filter(|items| !items.is_empty())?),
        _ => return None,
    };
    // Which side an interaction names the contact on is unclear; the connector is on the other.
    let other_side = || connector(payload, "receiver").filter(|_| event == "whatsapp.interaction");
    let business_phone = connector(payload, side).or_else(other_side).map(|phone| Box::from(phone.as_str()));
    target.other_number.clone_from(&business_phone);
    target.display_phone = business_phone;
    Some(items)
}

/// The business's number, where the connector on its side names it.
fn connector(payload: &Fields<'_>, side: &str) -> Option<Phone> {
    let connector = payload.object(side)?.object("connector")?;
    connector.text("identifierValue").as_deref().and_then(normalize_phone)
}
