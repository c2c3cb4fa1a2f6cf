//! What messages of all providers have in common, whatever shape they came in.

use gateway_core::event::{Location, Message, MessageContext, Reaction};
use serde_json::value::RawValue;

use super::json::{self, Fields, kept};

/// What we call a message that we cannot tell more about; it is passed on raw.
pub const UNSUPPORTED: &str = "unsupported";

/// The provider's id of a message, or else a hash of the item that has none.
pub fn identity(id: Option<&str>, raw: &RawValue) -> Box<str> {
    id.map_or_else(|| json::identity(&[raw.get()]), Box::from)
}

/// Makes a message one that we cannot tell more about. `literal` is the provider's word for its type, `raw` the
/// whole item.
pub fn set_unsupported(message: &mut Message, literal: Option<Box<str>>, raw: &RawValue) {
    message.message_type = UNSUPPORTED.into();
    message.raw_type = literal;
    message.raw = Some(kept(raw));
}

/// Makes a message a place; what it is called is the text.
pub fn set_location(message: &mut Message, location: Location) {
    message.text = location.name.clone().or_else(|| location.address.clone());
    message.location = Some(location);
}

/// A place in Meta's words, which others use too.
pub fn location(object: &Fields<'_>) -> Location {
    Location {
        latitude: object.number("latitude"),
        longitude: object.number("longitude"),
        name: object.name("name"),
        address: object.name("address"),
        url: object.name("url"),
    }
}

/// Makes a message a reaction to another one; without an emoji the reaction was taken back.
pub fn set_reaction(message: &mut Message, message_id: Option<Box<str>>, emoji: Option<Box<str>>) {
    message.text.clone_from(&emoji);
    message.reaction = Some(Reaction { message_id, emoji });
}

/// What a message answers or forwards; None when nothing is said.
pub fn context(context: MessageContext) -> Option<MessageContext> {
    let says_nothing = context.id.is_none()
        && context.from.is_none()
        && context.forwarded.is_none()
        && context.frequently_forwarded.is_none()
        && context.referred_product.is_none();
    (!says_nothing).then_some(context)
}

/// The answers of a flow: JSON in a text, not always an object; a text that is no JSON stays a text.
pub fn response(text: &str) -> Option<Box<RawValue>> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(response) => Some(kept(response)),
        Err(_) => serde_json::value::to_raw_value(text).ok(),
    }
}
