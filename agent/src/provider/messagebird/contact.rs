//! Who a person is: `message.from` or `message.to`, and `contact`, which is the same person whichever way the message
//! went.

use gateway_core::{event::Contact, opt_out::is_identifier, phone::normalize_phone};

use crate::provider::json::Fields;

/// The person, from the message's `from` or `to` and from `contact`. Without any number the person is known by what
/// the message says, or else by the provider's id of the contact.
pub fn contact(person: Option<Box<str>>, card: Option<&Fields<'_>>) -> Contact {
    let person = person.filter(|person| is_identifier(person));
    let phone = person.as_deref().and_then(normalize_phone).or_else(|| {
        // A JSON number, but not always.
        let msisdn = card?.integer("msisdn")?;
        normalize_phone(&msisdn.to_string())
    });
    let of_card = |name| card.and_then(|card| card.name(name));
    let user_id = match &phone {
        Some(_) => None,
        None => person.or_else(|| card?.identifier("id")),
    };
    // Contacts that nobody named are called like their number.
    let is_name = |name: &str| phone.is_none() || normalize_phone(name) != phone;
    let name = ["displayName", "firstName"].into_iter().filter_map(of_card).find(|name| is_name(name));
    Contact { phone, user_id, name, username: None }
}
