//! Whom a payload is about. In a group the chat is the group and the person is `participant`; in what the
//! business wrote the person is whom it wrote to. The engines below WAHA disagree about `from` and `to` of the
//! business's own messages, but the id of every message names its chat:
//! `<fromMe>_<chat>_<id>[_<participant>]` (devlikeapro/waha `src/core/engines/noweb/session.noweb.core.ts`).

use std::borrow::Cow;

use gateway_core::{event::Contact, phone::Phone};
use serde_json::value::RawValue;

use super::data::Data;
use crate::provider::{
    jid::{Jid, Kind, contact},
    json::Fields,
    message,
};

/// The number of the session.
#[derive(Default)]
pub struct Me<'a> {
    /// The phone number.
    pub phone: Option<Phone>,
    names: Vec<Jid<'a>>,
}

impl<'a> Me<'a> {
    /// Reads `me`, which is absent before the phone is linked.
    pub fn of(me: Option<Fields<'a>>) -> Self {
        let Some(me) = me else { return Self::default() };
        let names = ["id", "jid", "lid"].into_iter().filter_map(|name| Jid::of(me.text(name)?));
        let names: Vec<_> = names.collect();
        Self { phone: names.iter().find_map(Jid::phone), names }
    }

    fn is(&self, jid: &Jid<'_>) -> bool {
        self.names.contains(jid)
    }
}

/// A payload about a message.
pub struct Payload<'a> {
    /// The payload; of a revoke, the message that is left.
    pub fields: Fields<'a>,
    /// All of it.
    pub raw: &'a RawValue,
    /// `revokedMessageId` of a revoke.
    pub revoked_id: Option<Box<str>>,
    /// `id`.
    pub id: Option<Cow<'a, str>>,
    /// Whether the business wrote the message.
    pub is_own: bool,
    /// What the engine says.
    pub data: Data<'a>,
    from: Option<Jid<'a>>,
    to: Option<Jid<'a>>,
    /// The chat in the id.
    chat: Option<Jid<'a>>,
    participant: Option<Jid<'a>>,
}

impl<'a> Payload<'a> {
    /// Reads the payload of an event; None when the event is about no message.
    pub fn of(event: &str, raw: &'a RawValue) -> Option<Self> {
        if event.split('.').next() != Some("message") {
            return None;
        }
        let mut fields = Fields::of(raw)?;
        let mut revoked_id = None;
        if event == "message.revoked" {
            revoked_id = fields.name("revokedMessageId");
            fields = ["after", "before"].into_iter().find_map(|name| fields.object(name))?;
        }
        let id = fields.text("id").filter(|id| !id.is_empty());
        let jid = |name| Jid::of(fields.text(name)?);
        let of_id = |index| part(id.as_ref()?, index).and_then(Jid::of);
        Some(Self {
            is_own: fields
                .truth("fromMe")
                .unwrap_or_else(|| id.as_deref().is_some_and(|id| id.starts_with("true_"))),
            from: jid("from"),
            to: jid("to"),
            chat: of_id(1),
            participant: jid("participant").or_else(|| jid("author")).or_else(|| of_id(3)),
            data: Data::of(fields.object("_data")),
            fields,
            raw,
            revoked_id,
            id,
        })
    }

    /// WhatsApp's own id within `id`.
    pub fn whatsapp_id(&self) -> Option<Cow<'a, str>> {
        part(self.id.as_ref()?, 2).filter(|id| !id.is_empty())
    }

    /// What names the message: its id, or else all of it.
    pub fn identity(&self) -> Box<str> {
        message::identity(self.id.as_deref(), self.raw)
    }

    /// Whether it is a story or in a channel, which are for everybody.
    pub fn is_public(&self) -> bool {
        self.chats().any(|chat| chat.is_public())
    }

    /// The group.
    pub fn group(&self) -> Option<&Jid<'a>> {
        self.chats().find(|chat| chat.kind == Kind::Group)
    }

    /// Who wrote it, or, of the business's own message, to whom. Nobody in particular reads what it wrote to a
    /// group.
    pub fn contact(&self, me: &Me<'_>) -> Contact {
        let in_group = self.group().is_some();
        if self.is_own {
            // Only the id's chat is never the business, whose hidden id `me` often lacks.
            let sides = [&self.to, &self.from].into_iter().flatten().filter(|_| self.chat.is_none());
            let chats = self.chat.iter().chain(sides).filter(|chat| !in_group && !me.is(chat));
            return contact(chats);
        }
        let chats = [&self.from, &self.chat].into_iter().flatten().filter(|_| !in_group);
        let others = self.data.other_names(in_group);
        let named = contact(chats.chain(&self.participant).chain(&others));
        Contact { name: self.data.contact_name(), ..named }
    }

    /// Who got the business's message: in a group each participant tells for themselves.
    pub fn reader(&self, me: &Me<'_>) -> Contact {
        match (self.group(), &self.participant) {
            (Some(_), participant) => contact(participant.iter().filter(|reader| !me.is(reader))),
            (None, _) => Contact { name: None, ..self.contact(me) },
        }
    }

    /// The recipient of a status as WAHA names it.
    pub fn recipient(&self) -> Box<str> {
        let reader = self.participant.as_ref().filter(|_| self.group().is_some());
        reader.or_else(|| self.chats().next()).map(Jid::name).unwrap_or_default()
    }

    /// The id's chat first: the only one that is never the business.
    fn chats(&self) -> impl Iterator<Item = &Jid<'a>> {
        [&self.chat, &self.to, &self.from].into_iter().flatten()
    }
}

/// A part of an id `<fromMe>_<chat>_<id>[_<participant>]`; None when it is another id.
fn part<'a>(id: &Cow<'a, str>, index: usize) -> Option<Cow<'a, str>> {
    if !id.starts_with("true_") && !id.starts_with("false_") {
        return None;
    }
    match id {
        Cow::Borrowed(id) => id.split('_').nth(index).map(Cow::Borrowed),
        Cow::Owned(id) => id.split('_').nth(index).map(|part| Cow::Owned(part.to_owned())),
    }
}
