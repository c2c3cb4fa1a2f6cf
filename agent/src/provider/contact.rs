//! Who a person is, where a single field says it, and who is none.

use gateway_core::{event::Contact, opt_out::is_identifier, phone::normalize_phone};

use super::Item;

/// Someone whom one field names: by phone number, or else by whatever it is; nobody when it names nobody.
pub fn of_field(field: Option<Box<str>>) -> Contact {
    let field = field.filter(|field| is_identifier(field));
    let phone = field.as_deref().and_then(normalize_phone);
    Contact { user_id: field.filter(|_| phone.is_none()), phone, ..Contact::default() }
}

/// An item whose persons are named by what can name a person: providers' code that takes anything else for a
/// user id must not make one contact of all who have it.
pub fn of_persons(mut item: Item) -> Item {
    let keep = |contact: &mut Contact| {
        contact.user_id.take_if(|user_id| !is_identifier(user_id));
    };
    match &mut item {
        Item::Message(item) => keep(&mut item.contact),
        Item::Status(item) => keep(&mut item.contact),
        Item::Preference(item) => keep(&mut item.contact),
        Item::ContactChange(change) => {
            keep(&mut change.from);
            keep(&mut change.to);
        }
        Item::Notice(_) => {}
    }
    item
}
