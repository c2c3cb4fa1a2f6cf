//! The envelope: `id`, `timestamp` (milliseconds), `event`, `session`, `me`, `payload`, and what says nothing of
//! the event (`metadata`, `environment`, `engine`).

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{
    contact::{Me, Payload},
    message, notice, status,
};
use crate::provider::{
    Item, NormalizeError, Part, Target,
    body::{self, UNKNOWN},
    json::Fields,
    login::is_login,
};

/// What the engine below WAHA says, raw, for finding faults: QR codes, keys and history among it.
const ENGINE_EVENT: &str = "engine.event";

/// One callback.
pub struct Callback<'a> {
    fields: Fields<'a>,
    /// `event`.
    pub event: Cow<'a, str>,
    /// The number of the session.
    pub me: Me<'a>,
    /// `timestamp`: when WAHA made the event.
    pub time: Option<Timestamp>,
}

/// What a body says.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    body::each(body::text(body)?, |fields| Ok(Callback::of(fields).part()))
}

impl<'a> Callback<'a> {
    fn of(fields: Fields<'a>) -> Self {
        let event = fields.text("event").filter(|event| !event.is_empty());
        Self {
            event: event.unwrap_or(Cow::Borrowed(UNKNOWN)),
            me: Me::of(fields.object("me")),
            time: fields.time("timestamp"),
            fields,
        }
    }

    /// The event; None when it is one that is not passed on.
    fn part(&self) -> Option<Part<'a>> {
        if self.event == ENGINE_EVENT || is_login(&self.event) {
            return None;
        }
        let payload = self.fields.get("payload");
        let (items, payload) = match notice::without_login(&self.event, payload) {
            Some(safe) => (vec![self.notice(&safe)], Cow::Owned(safe.get().to_owned())),
            None => (self.items(payload)?, Cow::Borrowed(payload.map_or("null", RawValue::get))),
        };
        let target = Target {
            number: self.fields.name("session"),
            display_phone: self.me.phone.as_ref().map(|phone| phone.as_str().into()),
            ..Target::default()
        };
        Some(Part { target, items, original: self.original(payload) })
    }

    /// The items of an event that carries no login; None when it is one that is not passed on.
    fn items(&self, raw: Option<&'a RawValue>) -> Option<Vec<Item>> {
        let raw = raw.unwrap_or(RawValue::NULL);
        let item = match Payload::of(&self.event, raw) {
            // Stories and channels are for everybody.
            Some(payload) if payload.is_public() => return None,
            Some(payload) => match &*self.event {
                // What the business itself wrote comes as `message.any`.
                "message" if payload.is_own => return None,
                "message" | "message.any" | "message.reaction" => Some(message::message(self, &payload)),
                "message.edited" => Some(message::edited(self, &payload)),
                "message.revoked" => Some(message::revoked(self, &payload)),
                "message.ack" | "message.ack.group" => status::acknowledged(self, &payload),
                "message.waiting" => status::waiting(self, &payload),
                _ => None,
            },
            None => None,
        };
        Some(vec![item.unwrap_or_else(|| self.notice(raw))])
    }

    fn notice(&self, raw: &RawValue) -> Item {
        let text = |name| self.fields.get(name).map_or("", RawValue::get);
        let own_time = Fields::of(raw).and_then(|payload| payload.time("timestamp"));
        let parts = [&*self.event, text("session"), text("id"), text("timestamp"), raw.get()];
        body::notice(&self.event, raw, &parts, own_time.or(self.time))
    }

    /// The pieces of a body with all of it that is read.
    fn original(&self, payload: Cow<'a, str>) -> Vec<Cow<'a, str>> {
        let mut pieces = Vec::with_capacity(13);
        pieces.extend([Cow::Borrowed(r#"{"payload":"#), payload]);
        for (name, key) in [
            ("event", r#","event":"#),
            ("session", r#","session":"#),
            ("id", r#","id":"#),
            ("timestamp", r#","timestamp":"#),
            ("me", r#","me":"#),
        ] {
            if let Some(raw) = self.fields.get(name) {
                pieces.extend([key, raw.get()].map(Cow::Borrowed));
            }
        }
        pieces.push(Cow::Borrowed("}"));
        pieces
    }
}
