//! Who a person is, where a single field says it.

use gateway_core::{event::Contact, opt_out::is_identifier, phone::normalize_phone};

/// Someone whom one field names: by phone number, or else by whatever it is; nobody when it names nobody.
pub fn of_field(field: Option<Box<str>>) -> Contact {
    let field = field.filter(|field| is_identifier(field));
    let phone = field.as_deref().and_then(normalize_phone);
    Contact { user_id: field.filter(|_| phone.is_none()), phone, ..Contact::default() }
}
