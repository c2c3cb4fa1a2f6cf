//! Who stands between Meta and us: a relay passes Meta's callbacks on, and may add to them.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::error::Errors;
use crate::provider::json::{self, Fields};

/// What Gupshup sends as a status when a callback address is saved
/// (partner-docs.gupshup.io/docs/passthrough-v3-incoming-events, "callback start").
const SET_CALLBACK: &str = "set-callback";

/// Who relayed a callback.
#[derive(Clone, Copy)]
pub enum Relay<'a> {
    /// Nobody, or somebody who adds nothing.
    Unchanged,
    /// Gupshup, version 3: `gs_app_id` beside `entry`, an id of its own of each message as `gs_id`, errors
    /// without a list (partner-docs.gupshup.io/docs/events and /docs/passthrough-v3-incoming-events).
    Gupshup {
        /// `gs_app_id`.
        app_id: Option<&'a RawValue>,
    },
}

impl<'a> Relay<'a> {
    /// The relay's name of the number.
    pub fn app_id(self) -> Option<Box<str>> {
        match self {
            Self::Gupshup { app_id: Some(app_id) } => {
                json::text(app_id).filter(|name| !name.is_empty()).map(Box::from)
            }
            Self::Unchanged | Self::Gupshup { app_id: None } => None,
        }
    }

    /// Another name of the number that Meta names, if a relay has one. Whoever is called by the relay's name does not
    /// know Meta's: where the relay leaves its name out, Meta's alone does not decide whose the number is.
    pub fn other_number(self, number: Option<&str>) -> Option<Box<str>> {
        match self {
            Self::Unchanged => None,
            Self::Gupshup { .. } => self.app_id().or_else(|| number.map(Box::from)),
        }
    }

    /// The relay's own id of the message that an object is about: what it answered the send with.
    pub fn message_id(self, object: &Fields<'_>) -> Option<Box<str>> {
        match self {
            Self::Unchanged => None,
            Self::Gupshup { .. } => object.name("gs_id"),
        }
    }

    /// The errors of a status.
    pub fn errors(self, status: &Fields<'_>) -> Errors {
        match (self, status.get("errors")) {
            (Self::Gupshup { .. }, None) => Errors::flat(status),
            (_, errors) => Errors::of(errors),
        }
    }

    /// The relay's word for an element of `statuses[]` that is about no message.
    pub fn test(self, status: &RawValue) -> Option<&'static str> {
        match self {
            // Most statuses are told apart without being taken to pieces.
            Self::Gupshup { .. } if status.get().contains(SET_CALLBACK) => {
                let kind = Fields::of(status)?.name("type")?;
                (*kind == *SET_CALLBACK).then_some(SET_CALLBACK)
            }
            Self::Unchanged | Self::Gupshup { .. } => None,
        }
    }

    /// Ends `entry[]` and the body, with what the relay adds.
    pub fn close(self, pieces: &mut Vec<Cow<'a, str>>) {
        match self {
            Self::Gupshup { app_id: Some(app_id) } => {
                pieces.extend([r#"],"gs_app_id":"#, app_id.get(), "}"].map(Cow::Borrowed));
            }
            Self::Unchanged | Self::Gupshup { app_id: None } => pieces.push(Cow::Borrowed("]}")),
        }
    }
}

/// The id of a message that its sender knows, and WhatsApp's where that is another one. `own` is the id of a
/// provider that gives messages ids of its own.
pub fn message_ids(
    own: Option<Box<str>>,
    whatsapp: Option<Box<str>>,
) -> (Option<Box<str>>, Option<Box<str>>) {
    match own {
        Some(own) => {
            let other = whatsapp.filter(|whatsapp| *whatsapp != own);
            (Some(own), other)
        }
        None => (whatsapp, None),
    }
}
