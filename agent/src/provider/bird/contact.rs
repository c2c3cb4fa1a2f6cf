//! Who a person is: `contact`, with an identifier and its kind; since WhatsApp users may hide their number the kind is
//! not always `phonenumber`.

use gateway_core::{event::Contact, phone::normalize_phone};

use crate::provider::json::Fields;

/// The person of `contact`, and of `meta.extraInformation`, which may say more. Without a number the person is known
/// by WhatsApp's id, or else by the identifier that there is, or else by Bird's id of the contact.
pub fn contact(card: Option<&Fields<'_>>, extra: Option<&Fields<'_>>) -> Contact {
    let mut contact = Contact::default();
    let mut other = None;
    if let Some(card) = card {
        contact.name = card.object("annotations").and_then(|annotations| annotations.name("name"));
        other = identify(card, &mut contact);
        for identifier in card.array("identifiers").unwrap_or_default() {
            if let Some(identifier) = Fields::of(identifier) {
                identify(&identifier, &mut contact);
            }
        }
    }
    let of_extra = |name| extra.and_then(|extra| extra.name(name));
    if contact.phone.is_none() {
        contact.phone = of_extra("phoneNumber").as_deref().and_then(normalize_phone);
    }
    contact.user_id = contact.user_id.or_else(|| extra?.identifier("whatsappbsuid"));
    contact.username = contact.username.or_else(|| of_extra("whatsappusername"));
    if contact.phone.is_none() && contact.user_id.is_none() {
        contact.user_id = other.or_else(|| card?.identifier("id"));
    }
    contact
}

/// Takes an identifier into the contact; gives back what is of no kind that we know.
fn identify(fields: &Fields<'_>, contact: &mut Contact) -> Option<Box<str>> {
    let value = fields.identifier("identifierValue")?;
    let kind = fields.text("identifierKey").unwrap_or_default();
    let place = match kind.as_ref() {
        "phonenumber" | "" => {
            let phone = normalize_phone(&value);
            if phone.is_some() {
                contact.phone = contact.phone.take().or(phone);
                return None;
            }
            return Some(value);
        }
        "whatsappusername" => &mut contact.username,
        // Ids that are scoped to a business portfolio have its name after the underscore.
        kind if kind == "whatsappbsuid" || kind.starts_with("whatsapp_") => &mut contact.user_id,
        _ => return Some(value),
    };
    place.get_or_insert(value);
    None
}
