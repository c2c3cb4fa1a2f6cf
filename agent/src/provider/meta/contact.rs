//! Who a person is. `contacts[]` belongs to the whole value, not to one message, and has to be joined. Since
//! 2026 a person may have no phone number, only a business-scoped user id (`US.1349…`), in its own fields or
//! in those of the phone number.

use gateway_core::{
    event::Contact,
    opt_out::is_identifier,
    phone::{Phone, normalize_phone},
};
use serde_json::value::RawValue;

use crate::provider::{
    ITEMS_MAX,
    json::{Fields, elements},
};

/// Longest element of `contacts[]` beside several items, in bytes of JSON: each item can repeat it.
const CARD_BYTES_MAX: usize = 2048;
/// Most comparisons of an item with a contact: four times those of the largest batch that Meta sends.
const COMPARISONS_MAX: usize = 4_000_000;

/// The `contacts[]` of one value.
pub struct Contacts {
    cards: Vec<Card>,
    /// Bytes of the longest element.
    longest: usize,
}

struct Card {
    wa_id: Option<Box<str>>,
    user_id: Option<Box<str>>,
    name: Option<Box<str>>,
    username: Option<Box<str>>,
}

impl Contacts {
    /// Reads `contacts`; odd elements are left out, and those behind as many as there can be items.
    pub fn of(contacts: Option<&RawValue>) -> Self {
        let elements = contacts.and_then(elements).unwrap_or_default();
        Self {
            longest: elements.iter().map(|card| card.get().len()).max().unwrap_or(0),
            cards: elements.into_iter().take(ITEMS_MAX).filter_map(Card::of).collect(),
        }
    }

    /// Those that so many items are joined with: none where the price would be out of proportion to what they say,
    /// which no genuine batch comes near to. The items then name their contacts by themselves.
    pub fn for_items(&self, items: usize) -> &Self {
        const NOBODY: &Contacts = &Contacts { cards: Vec::new(), longest: 0 };
        let is_cheap = self.longest <= CARD_BYTES_MAX && items * self.cards.len() <= COMPARISONS_MAX;
        if items <= 1 || is_cheap { self } else { NOBODY }
    }

    /// The contact named by a phone field and a user id field of an item. `alone` says that the value has no
    /// other item, so that its only contact can be nobody else.
    pub fn join(&self, phone: Option<Box<str>>, user_id: Option<Box<str>>, alone: bool) -> Contact {
        let [phone, user_id] = [phone, user_id].map(|name| name.filter(|name| is_identifier(name)));
        let card = self.card(phone.as_deref(), user_id.as_deref(), alone);
        let named = phone.as_deref().and_then(normalize_phone);
        let wa_id = card.and_then(|card| card.wa_id.clone());
        let user_id = user_id
            .or_else(|| card.and_then(|card| card.user_id.clone()))
            .or_else(|| phone.filter(|_| named.is_none()))
            .or_else(|| wa_id.clone().filter(|wa_id| normalize_phone(wa_id).is_none()));
        Contact {
            phone: named.or_else(|| wa_id.as_deref().and_then(normalize_phone)),
            user_id,
            name: card.and_then(|card| card.name.clone()),
            username: card.and_then(|card| card.username.clone()),
        }
    }

    fn card(&self, phone: Option<&str>, user_id: Option<&str>, alone: bool) -> Option<&Card> {
        let by_phone = || self.cards.iter().find(|card| phone.is_some() && card.wa_id.as_deref() == phone);
        let by_user_id =
            || self.cards.iter().find(|card| user_id.is_some() && card.user_id.as_deref() == user_id);
        let by_variant = || {
            let key = phone.and_then(match_key)?;
            self.cards.iter().find(|card| card.wa_id.as_deref().and_then(match_key).as_ref() == Some(&key))
        };
        // Of a change of number, or of the business.
        let is_of_another = |card: &Card| {
            let phones = phone.and_then(match_key).zip(card.wa_id.as_deref().and_then(match_key));
            let user_ids = user_id.zip(card.user_id.as_deref());
            phones.is_some_and(|(one, two)| one != two) || user_ids.is_some_and(|(one, two)| one != two)
        };
        let the_only_one = || match self.cards.as_slice() {
            [card] if alone && !is_of_another(card) => Some(card),
            _ => None,
        };
        by_phone().or_else(by_user_id).or_else(by_variant).or_else(the_only_one)
    }
}

impl Card {
    fn of(raw: &RawValue) -> Option<Self> {
        let fields = Fields::of(raw)?;
        let profile = fields.object("profile");
        let of_profile = |name| profile.as_ref().and_then(|profile| profile.name(name));
        Some(Self {
            wa_id: fields.identifier("wa_id"),
            user_id: fields.identifier("user_id"),
            name: of_profile("name"),
            username: of_profile("username"),
        })
    }
}

/// A number in the form in which its national variants are equal.
fn match_key(phone: &str) -> Option<String> {
    normalize_phone(phone).as_ref().map(Phone::match_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contacts(elements: &[String]) -> Contacts {
        let json = RawValue::from_string(format!("[{}]", elements.join(","))).unwrap();
        Contacts::of(Some(&json))
    }

    /// The largest batch that Meta sends is joined; what would cost out of all proportion is not.
    #[test]
    fn joining_is_bounded() {
        let card = |number: usize| format!(r#"{{"wa_id":"1650555{number:04}"}}"#);
        let batch: Vec<_> = (0..1000).map(card).collect();
        let joined = |contacts: &Contacts, items| contacts.for_items(items).cards.len();
        assert_eq!(joined(&contacts(&batch), 1000), 1000);
        assert_eq!(joined(&contacts(&batch), ITEMS_MAX), 0);
        let long =
            contacts(&[format!(r#"{{"wa_id":"1","profile":{{"name":"{}"}}}}"#, "x".repeat(CARD_BYTES_MAX))]);
        assert_eq!((joined(&long, 1), joined(&long, 2)), (1, 0));
    }
}
