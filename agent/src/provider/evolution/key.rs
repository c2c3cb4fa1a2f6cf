//! The key of a message: its id, its chat, and who wrote it. `remoteJid` is the chat: a person by number or by hidden
//! id, or a group; the number behind a hidden id stands in one of several fields, or nowhere
//! (EvolutionAPI/evolution-api#1872, #2326).

use std::borrow::Cow;

use gateway_core::{event::Contact, phone::Phone};

use crate::provider::{
    jid::{Jid, Kind, contact},
    json::Fields,
};

/// Other names of the person with whom the chat is.
const OF_CHAT: [&str; 2] = ["remoteJid", "remoteJidAlt"];
/// Who wrote to the business, beside those.
const OF_SENDER: [&str; 2] = ["senderPn", "senderLid"];
/// Who wrote in a group.
const OF_PARTICIPANT: [&str; 4] = ["participantAlt", "participant", "participantPn", "participantLid"];

/// A key.
pub struct Key<'a> {
    /// WhatsApp's id of the message.
    pub id: Option<Box<str>>,
    /// Whether the business wrote the message.
    pub is_own: bool,
    chat: Option<Jid<'a>>,
    /// Addresses of the person: of the sender, or of whom the business wrote to.
    people: Vec<Jid<'a>>,
}

impl<'a> Key<'a> {
    /// Reads a key.
    pub fn of(key: &Fields<'a>) -> Self {
        Self::read(key, key.truth("fromMe").unwrap_or(false))
    }

    /// Reads a key of what can only be the business's own.
    pub fn of_own(key: &Fields<'a>) -> Self {
        Self::read(key, true)
    }

    fn read(key: &Fields<'a>, is_own: bool) -> Self {
        // Digits without a server, which a device at their end can leave behind, are what the mode says.
        let is_hidden = key.text("addressingMode").is_some_and(|mode| mode == "lid");
        let jid = |name: &str| {
            let text = key.text(name)?;
            let bare = is_hidden && name != "senderPn" && !text.contains('@') && !text.is_empty();
            Jid::of(if bare { Cow::Owned(format!("{text}@lid")) } else { text })
        };
        let chat = jid("remoteJid");
        let is_shared = chat.as_ref().is_some_and(|chat| matches!(chat.kind, Kind::Group | Kind::List));
        let names: &[&str] = if is_shared { &OF_PARTICIPANT } else { &OF_CHAT };
        let senders = OF_SENDER.iter().filter(|_| !is_own);
        let people = names.iter().chain(senders).filter_map(|name| jid(name)).collect();
        Self { id: key.name("id").or_else(|| key.name("keyId")), is_own, chat, people }
    }

    /// Whether it is a story or in a channel, which are for everybody.
    pub fn is_public(&self) -> bool {
        self.chat.as_ref().is_some_and(Jid::is_public)
    }

    /// The group.
    pub fn group_id(&self) -> Option<Box<str>> {
        self.group().map(Jid::name)
    }

    fn group(&self) -> Option<&Jid<'a>> {
        self.chat.as_ref().filter(|chat| chat.kind == Kind::Group)
    }

    /// Who wrote it, or, of the business's own message, to whom. Nobody in particular reads what it wrote to a
    /// group.
    pub fn contact(&self, business: Option<&Phone>) -> Contact {
        if self.is_own && self.group().is_some() { Contact::default() } else { self.person(business) }
    }

    /// The person, whoever wrote: of a status the recipient. The business itself is nobody.
    pub fn person(&self, business: Option<&Phone>) -> Contact {
        let is_business =
            |jid: &Jid<'_>| self.is_own && business.is_some() && jid.phone().as_ref() == business;
        contact(self.people.iter().filter(|jid| !is_business(jid)))
    }

    /// The recipient of a status as the provider names it.
    pub fn recipient(&self) -> Box<str> {
        let participant = self.people.first().filter(|_| self.group().is_some());
        participant.or(self.chat.as_ref()).map(Jid::name).unwrap_or_default()
    }

    /// Whether the chat is the business's own number: a key as the other side sees it.
    pub fn is_mirrored(&self, business: Option<&Phone>) -> bool {
        self.is_own && business.is_some() && self.chat.as_ref().and_then(Jid::phone).as_ref() == business
    }

    /// Whether a name is only the user part of an address of the person, which stands in for a missing name.
    pub fn is_address(&self, name: &str) -> bool {
        let name = Jid::of(Cow::Borrowed(name));
        name.is_some_and(|name| self.people.iter().any(|jid| jid.user() == name.user()))
    }
}
