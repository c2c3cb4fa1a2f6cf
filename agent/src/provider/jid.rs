//! WhatsApp's own addresses (JIDs), `<user>[:<device>]@<server>`, as the providers that link a phone pass them
//! on: devlikeapro/waha-docs `content/docs/how-to/receive-messages/-chat-ids.md`, WhiskeySockets/Baileys
//! `src/WABinary/jid-utils.ts`.

use std::borrow::Cow;

use gateway_core::{
    event::Contact,
    opt_out::is_identifier,
    phone::{Phone, normalize_phone},
};

/// What an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A person, by phone number.
    Person,
    /// A person, by an id that hides the phone number (LID). It looks like a number and is none.
    Hidden,
    /// A group.
    Group,
    /// A list of recipients; who wrote is named beside it.
    List,
    /// The stories of all contacts.
    Stories,
    /// A channel that people follow.
    Newsletter,
    /// Anything else.
    Other,
}

/// One address. Comparing two compares what they name, whatever the device.
#[derive(Clone)]
pub struct Jid<'a> {
    text: Cow<'a, str>,
    /// What it names.
    pub kind: Kind,
}

impl<'a> Jid<'a> {
    /// Reads an address; None when there is nothing. White space, which was seen inside of addresses
    /// (EvolutionAPI/evolution-api#2272), is no part of one. Digits alone are a phone number.
    pub fn of(text: Cow<'a, str>) -> Option<Self> {
        let text = if text.contains(char::is_whitespace) {
            Cow::Owned(text.split_whitespace().collect())
        } else {
            text
        };
        if text.is_empty() {
            return None;
        }
        let kind = match text.split_once('@') {
            Some((_, "c.us" | "s.whatsapp.net" | "hosted")) => Kind::Person,
            Some((_, "lid" | "hosted.lid")) => Kind::Hidden,
            Some((_, "g.us")) => Kind::Group,
            Some((_, "newsletter")) => Kind::Newsletter,
            Some(("status", "broadcast")) => Kind::Stories,
            Some((_, "broadcast")) => Kind::List,
            None if normalize_phone(&text).is_some() => Kind::Person,
            _ => Kind::Other,
        };
        Some(Self { text, kind })
    }

    /// What stands before the device and the server.
    pub fn user(&self) -> &str {
        let user = self.text.split('@').next().unwrap_or_default();
        user.split(':').next().unwrap_or_default()
    }

    /// The phone number of a person who is named by it.
    pub fn phone(&self) -> Option<Phone> {
        if self.kind == Kind::Person { normalize_phone(self.user()) } else { None }
    }

    /// The address without its device.
    pub fn name(&self) -> Box<str> {
        match (self.text.split_once('@'), self.text.contains(':')) {
            (Some((_, server)), true) => format!("{}@{server}", self.user()).into_boxed_str(),
            _ => Box::from(&*self.text),
        }
    }

    /// Whether it names no conversation: what is published there is for everybody, and is not passed on.
    pub fn is_public(&self) -> bool {
        matches!(self.kind, Kind::Stories | Kind::Newsletter)
    }
}

impl PartialEq for Jid<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.user() == other.user()
    }
}

/// The person whom these addresses name: the first phone number and the first hidden id among them, or else
/// whatever is there that can name somebody. Groups and lists are nobody.
pub fn contact<'a, 'b: 'a>(jids: impl IntoIterator<Item = &'a Jid<'b>>) -> Contact {
    let mut contact = Contact::default();
    let mut other: Option<&Jid<'_>> = None;
    for jid in jids.into_iter().filter(|jid| is_identifier(jid.user())) {
        match jid.kind {
            Kind::Person if contact.phone.is_none() => {
                contact.phone = jid.phone();
                if contact.phone.is_none() {
                    other.get_or_insert(jid);
                }
            }
            Kind::Hidden if contact.user_id.is_none() => contact.user_id = Some(jid.name()),
            Kind::Other => {
                other.get_or_insert(jid);
            }
            _ => {}
        }
    }
    if contact.phone.is_none() && contact.user_id.is_none() {
        contact.user_id = other.map(Jid::name);
    }
    contact
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(text: &str) -> Jid<'_> {
        Jid::of(Cow::Borrowed(text)).unwrap()
    }

    fn phone(text: &str) -> Option<String> {
        jid(text).phone().map(|phone| phone.as_str().to_owned())
    }

    /// Every form of a person's number gives the number, device and stray white space left out.
    #[test]
    fn people_are_read() {
        for text in [
            "966500000001@c.us",
            "966500000001@s.whatsapp.net",
            "966500000001:12@s.whatsapp.net",
            " 966500000001@s.whatsapp.net\n",
            "96650000\n0001@s.whatsapp.net",
            "966500000001",
            "+966500000001",
        ] {
            assert_eq!(phone(text).as_deref(), Some("+966500000001"), "{text}");
            assert!(jid(text) == jid("966500000001@c.us") || text.starts_with('+'), "{text}");
        }
        assert!(Jid::of(Cow::Borrowed(" \n")).is_none());
    }

    /// Digits that are no phone number never become one.
    #[test]
    fn nothing_else_is_a_phone_number() {
        for (text, kind) in [
            ("182736455463728@lid", Kind::Hidden),
            ("182736455463728:3@lid", Kind::Hidden),
            ("120363025246125486@g.us", Kind::Group),
            ("120363025246125486@newsletter", Kind::Newsletter),
            ("status@broadcast", Kind::Stories),
            ("1717171717@broadcast", Kind::List),
            ("966500000001@elsewhere", Kind::Other),
            ("US.13491208655302741918", Kind::Other),
            ("me", Kind::Other),
            ("@", Kind::Other),
            ("12@c.us", Kind::Person),
            ("1@2@c.us", Kind::Other),
        ] {
            assert_eq!((jid(text).kind, phone(text)), (kind, None), "{text}");
        }
    }

    /// One person is known by number and hidden id at once; the device belongs to neither.
    #[test]
    fn contacts_have_both_names() {
        let both = ["120363025246125486@g.us", "182736455463728:3@lid", "966500000001:9@c.us", "1@lid"];
        let contact = contact(&both.map(jid));
        assert_eq!(contact.phone.unwrap().as_str(), "+966500000001");
        assert_eq!(contact.user_id.as_deref(), Some("182736455463728@lid"));
        let odd = super::contact(&["US.1349:x", "12@c.us"].map(jid));
        assert_eq!((odd.phone, odd.user_id.as_deref()), (None, Some("US.1349:x")));
        assert!(super::contact(&["1@g.us", "2@broadcast"].map(jid)).user_id.is_none());
    }
}
