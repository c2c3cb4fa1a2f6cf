//! What messages of all providers have in common, whatever shape they came in.

use std::borrow::Cow;

use gateway_core::{
    event::{Location, Message, MessageContext, Reaction},
    opt_out::is_identifier,
    phone::normalize_phone,
};
use serde_json::value::RawValue;

use super::{
    jid::Jid,
    json::{self, Fields, kept},
};

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

/// Makes a message a place; what it is called is the text. None, and nothing done, when it does not say where.
#[must_use]
pub fn set_location(message: &mut Message, location: Location) -> Option<()> {
    if location.latitude.is_none() && location.longitude.is_none() {
        return None;
    }
    message.text = location.name.clone().or_else(|| location.address.clone());
    message.location = Some(location);
    Some(())
}

/// Contact cards as the provider gave them, in a list, also where the provider gives a single card without one.
pub fn contacts(raw: &RawValue) -> Box<RawValue> {
    if raw.get().starts_with('[') {
        return kept(raw);
    }
    let card = kept(raw);
    RawValue::from_string(format!("[{}]", card.get())).unwrap_or(card)
}

/// What the sender of a message gave along to have it back: a text, or else JSON, as it is written. What says
/// nothing is none.
pub fn correlation(fields: &Fields<'_>, name: &str) -> Option<Box<str>> {
    let given = fields.get(name)?;
    let text = json::text(given).unwrap_or_else(|| given.get().into());
    (!matches!(&*text, "" | "{}" | "[]")).then(|| text.into())
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

/// What a message answers or forwards; None when nothing is said. Who wrote what is answered is named as whoever
/// writes is: a phone number in E.164, or else the provider's name without channel and device.
pub fn context(context: MessageContext) -> Option<MessageContext> {
    let from = context.from.filter(|from| is_identifier(from)).map(writer);
    let context = MessageContext { from, ..context };
    let says_nothing = context.id.is_none()
        && context.from.is_none()
        && context.forwarded.is_none()
        && context.frequently_forwarded.is_none()
        && context.referred_product.is_none();
    (!says_nothing).then_some(context)
}

fn writer(from: Box<str>) -> Box<str> {
    let from = from.strip_prefix("whatsapp:").unwrap_or(&from);
    match (normalize_phone(from), from.contains('@').then(|| Jid::of(Cow::Borrowed(from))).flatten()) {
        (Some(phone), _) => phone.as_str().into(),
        (None, Some(jid)) => jid.phone().map_or_else(|| jid.name(), |phone| phone.as_str().into()),
        (None, None) => from.into(),
    }
}

/// The answers of a flow: JSON in a text, not always an object; a text that is no JSON stays a text.
pub fn response(text: &str) -> Option<Box<RawValue>> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(response) => Some(kept(response)),
        Err(_) => serde_json::value::to_raw_value(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    /// Who wrote what is answered is named like whoever writes, however the provider writes an address.
    #[test]
    fn writers_are_named_like_senders() {
        for (given, named) in [
            ("whatsapp:+15550783881", Some("+15550783881")),
            ("15550783881@s.whatsapp.net", Some("+15550783881")),
            ("15550783881:12@c.us", Some("+15550783881")),
            ("15550783881@hosted", Some("+15550783881")),
            ("15550783881", Some("+15550783881")),
            ("182736455463728:3@lid", Some("182736455463728@lid")),
            ("whatsapp:US.13491208655302741918", Some("US.13491208655302741918")),
            ("US.13491208655302741918", Some("US.13491208655302741918")),
            (" ", None),
        ] {
            let said = context(MessageContext { from: Some(given.into()), ..MessageContext::default() });
            assert_eq!(said.and_then(|said| said.from).as_deref(), named, "{given}");
        }
    }

    /// A place without coordinates is none; one is enough.
    #[test]
    fn places_have_coordinates() {
        let mut message = Message::default();
        let named = Location { name: Some("Office".into()), ..Location::default() };
        assert_eq!(set_location(&mut message, named.clone()), None);
        assert!(message.location.is_none() && message.text.is_none());
        assert_eq!(set_location(&mut message, Location { latitude: Some(0.0), ..named }), Some(()));
        assert!(message.location.is_some() && message.text.as_deref() == Some("Office"));
    }

    /// Contact cards are a list, whether the provider gives one or a single card.
    #[test]
    fn contact_cards_are_a_list() {
        for (given, list) in
            [(r#"[{"a":1}]"#, r#"[{"a":1}]"#), (r#"{"a":1}"#, r#"[{"a":1}]"#), ("\"x\"", "[\"x\"]")]
        {
            assert_eq!(contacts(&raw(given)).get(), list);
        }
    }

    /// What was given along comes back, whatever JSON it is; what says nothing does not.
    #[test]
    fn what_was_given_along_comes_back() {
        let json = raw(
            r#"{"text":"order-1","number":5,"object":{"order":1},"list":[1],"a":"","b":{},"c":[],"d":null}"#,
        );
        let fields = Fields::of(&json).unwrap();
        for (name, given) in
            [("text", "order-1"), ("number", "5"), ("object", r#"{"order":1}"#), ("list", "[1]")]
        {
            assert_eq!(correlation(&fields, name).as_deref(), Some(given));
        }
        for name in ["a", "b", "c", "d", "missing"] {
            assert_eq!(correlation(&fields, name), None, "{name}");
        }
    }
}
