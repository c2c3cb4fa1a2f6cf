//! Who a person is, where a single field says it.

use gateway_core::{event::Contact, phone::normalize_phone};

/// Someone whom one field names: by phone number, or else by whatever it is.
pub fn of_field(field: Option<Box<str>>) -> Contact {
    let phone = field.as_deref().and_then(normalize_phone);
    Contact { user_id: field.filter(|_| phone.is_none()), phone, ..Contact::default() }
}
