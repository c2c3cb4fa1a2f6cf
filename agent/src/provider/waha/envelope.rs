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
    login::{LOGIN, cut, is_login},
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
        let (item, payload) = match notice::without_login(&self.event, payload) {
            Some(safe) => (self.notice(&safe), Cow::Owned(safe.get().to_owned())),
            None => self.item(payload.unwrap_or(RawValue::NULL))?,
        };
        let target = Target {
            number: self.fields.name("session"),
            display_phone: self.me.phone.as_ref().map(|phone| phone.as_str().into()),
            ..Target::default()
        };
        Some(Part { target, items: vec![item], original: self.original(payload) })
    }

    /// What an event of this payload says, and as much of it as may be kept; None when it is one that is not
    /// passed on.
    fn item(&self, raw: &'a RawValue) -> Option<(Item, Cow<'a, str>)> {
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
        Some(match item {
            Some(item) => (item, Cow::Borrowed(raw.get())),
            None => {
                let safe = cut(raw.get(), &LOGIN);
                (self.notice(serde_json::from_str(&safe).unwrap_or(RawValue::NULL)), safe)
            }
        })
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
