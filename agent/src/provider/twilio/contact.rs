//! Who a person is: `whatsapp:+16505551234`, the same without `whatsapp:`, or a business-scoped user id in the
//! number's place. Cases of nyaruka/courier `handlers/twiml/handlers_test.go`.

use gateway_core::{event::Contact, opt_out::is_identifier, phone::normalize_phone};
use serde_json::value::RawValue;

use super::parameters::Parameters;
use crate::provider::json::Fields;

/// The person whose address is in `field`: `From` of a message, `To` of a status.
pub fn contact(parameters: &Parameters<'_>, field: &str) -> Contact {
    let name = parameters.name("ProfileName");
    let identifier = |name| parameters.get(name).filter(|text| is_identifier(text)).map(Box::from);
    let address = identifier(field).or_else(|| identifier("WaId"));
    // What is known of WhatsApp is repeated in `ChannelMetadata`, and read there only where it is missing.
    let is_missing = name.is_none() || address.is_none();
    let metadata = parameters.get("ChannelMetadata").filter(|_| is_missing).and_then(metadata);
    let of_metadata = |name| metadata.as_ref().and_then(|metadata| metadata.name(name));
    let metadata_identifier = |name| metadata.as_ref().and_then(|metadata| metadata.identifier(name));
    let address = address.or_else(|| metadata_identifier("WaId"));
    let external = identifier("ExternalUserId").or_else(|| metadata_identifier("ExternalUserId"));
    // A user id may stand where the number is expected, and a number where the user id is.
    let phone_of = |id: &Option<Box<str>>| id.as_deref().and_then(normalize_phone);
    let (address_phone, external_phone) = (phone_of(&address), phone_of(&external));
    let user_id = external.filter(|_| external_phone.is_none());
    let user_id = user_id.or_else(|| address.filter(|_| address_phone.is_none()));
    let phone = address_phone.or(external_phone);
    let phone = phone.or_else(|| parameters.get("WaId").and_then(normalize_phone));
    Contact {
        phone,
        user_id: user_id.as_deref().map(|id| id.strip_prefix("whatsapp:").unwrap_or(id).into()),
        name: name.or_else(|| of_metadata("ProfileName")),
        username: parameters.name("ProfileUsername").or_else(|| parameters.name("Username")),
    }
}

/// The context of the JSON text in `ChannelMetadata`.
fn metadata(text: &str) -> Option<Fields<'_>> {
    Fields::of(serde_json::from_str::<&RawValue>(text).ok()?)?.object("data")?.object("context")
}
