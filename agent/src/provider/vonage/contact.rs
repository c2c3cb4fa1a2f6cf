//! Who a person is. Since 2026 a person may have no phone number, only a business-scoped user id (`US.1349…`),
//! <https://developer.vonage.com/en/messages/guides/handling-whatsapp-usernames-and-bsuids>. `from` and `to` hold
//! either; `whatsapp.sender` and `whatsapp.recipient` say which is which.

use gateway_core::{event::Contact, opt_out::is_identifier, phone::normalize_phone};

use super::envelope::Callback;
use crate::provider::json::Fields;

/// The contact named `named` in `from` or `to`, and described by the field `person` of `whatsapp`.
pub fn contact(callback: &Callback<'_>, named: Option<Box<str>>, person: &str) -> Contact {
    let person = callback.of_whatsapp(person).and_then(Fields::of);
    let named = named.filter(|named| is_identifier(named));
    let of_person = |name| person.as_ref().and_then(|person| person.identifier(name));
    let profile = callback.fields.object("profile");
    let of_profile = |name| profile.as_ref().and_then(|profile| profile.name(name));
    let phone = named.as_deref().and_then(normalize_phone);
    let wa_id = of_person("wa_id");
    let user_id = of_person("user_id")
        .or_else(|| named.filter(|_| phone.is_none()))
        .or_else(|| wa_id.clone().filter(|wa_id| normalize_phone(wa_id).is_none()));
    Contact {
        phone: wa_id.as_deref().and_then(normalize_phone).or(phone),
        user_id,
        name: of_profile("name"),
        username: of_profile("username"),
    }
}
