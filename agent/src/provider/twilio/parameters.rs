//! The parameters of a callback: a form, or a JSON object of the same names. A JSON object is also how a form is
//! kept, so that what was kept is read like what came.

use std::borrow::Cow;

use gateway_core::event::ProviderError;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::value::RawValue;
use url::form_urlencoded;

use crate::provider::json::{self, Fields, kept};

/// Most parameters of one callback. Twilio sends about forty; a callback with more is refused, because each
/// costs far more memory than the bytes that name it.
pub const PARAMETERS_MAX: usize = 10_000;

/// A name and its value, decoded.
pub type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Whether a content is JSON. No form begins like that: names are words, and in a form both are escaped.
pub fn is_json(content: &[u8]) -> bool {
    matches!(content.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// The pairs of a form, in its order; None when there are more than [`PARAMETERS_MAX`].
pub fn pairs(form: &[u8]) -> Option<Vec<Pair<'_>>> {
    // Counted no further than the limit: who sends it is not known yet.
    let count = form.split(|byte| *byte == b'&').take(PARAMETERS_MAX + 1).count();
    if count > PARAMETERS_MAX {
        return None;
    }
    let mut pairs = Vec::with_capacity(count);
    pairs.extend(form_urlencoded::parse(form));
    Some(pairs)
}

/// The parameters of one callback.
pub struct Parameters<'a> {
    pairs: Vec<Pair<'a>>,
    /// What they were read from, if that is JSON.
    source: Option<&'a RawValue>,
}

impl<'a> Parameters<'a> {
    /// The parameters of a form; None when there are more than [`PARAMETERS_MAX`].
    pub fn of_form(form: &'a [u8]) -> Option<Self> {
        Some(Self { pairs: pairs(form)?, source: None })
    }

    /// The parameters in a JSON value: none of a value that is no object, no values that are null, other values
    /// than texts as they are written. None when there are more than [`PARAMETERS_MAX`].
    pub fn of_json(raw: &'a RawValue) -> Option<Self> {
        let mut pairs = Vec::new();
        for (name, value) in Fields::of(raw).iter().flat_map(Fields::iter) {
            if pairs.len() == PARAMETERS_MAX {
                return None;
            }
            if value.get() != "null" {
                let name = String::from_utf8_lossy(name).into_owned();
                pairs.push((name.into(), json::text(value).unwrap_or(Cow::Borrowed(value.get()))));
            }
        }
        Some(Self { pairs, source: Some(raw) })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The value of a name, the last one if it is repeated; an empty value means nothing.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.pairs.iter().rev().find(|(key, _)| key == name)?;
        (!value.is_empty()).then_some(&**value)
    }

    /// The value of a name, to keep.
    pub fn name(&self, name: &str) -> Option<Box<str>> {
        self.get(name).map(Box::from)
    }

    /// The value of a name as a finite number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.trim().parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// Whether the value of a name is this word, in any case.
    pub fn is(&self, name: &str, word: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case(word))
    }

    /// `MessageSid`, or one of its older names.
    pub fn message_id(&self) -> Option<Box<str>> {
        self.name("MessageSid").or_else(|| self.name("SmsMessageSid")).or_else(|| self.name("SmsSid"))
    }

    /// What went wrong, and whether its code is not a number and so not in it.
    pub fn error(&self) -> (Option<ProviderError>, bool) {
        let code = self.get("ErrorCode");
        let error = ProviderError {
            code: code.and_then(|code| code.trim().parse().ok()),
            title: self.name("ErrorMessage"),
            details: self.name("ChannelStatusMessage"),
        };
        let has_odd_code = code.is_some() && error.code.is_none();
        // 0 is how some report that nothing went wrong.
        let is_one =
            error.code.is_some_and(|code| code != 0) || error.title.is_some() || error.details.is_some();
        (is_one.then_some(error), has_odd_code)
    }

    /// The parameters whose names begin with `prefix`, as an object; None when all are empty or left out.
    pub fn beginning_with(&self, prefix: &str, left_out: &str) -> Option<Box<RawValue>> {
        let chosen = |(name, value): &&Pair<'_>| name.starts_with(prefix) && !value.is_empty();
        let chosen: Vec<_> = self.pairs.iter().filter(chosen).collect();
        if chosen.iter().all(|(name, _)| name == left_out) {
            return None;
        }
        let object = Object(chosen.iter().copied());
        serde_json::value::to_raw_value(&object).ok().map(|object| kept(&object))
    }

    /// All of them as JSON text, as they came or as an object in the order in which they came.
    pub fn json(&self) -> Cow<'a, str> {
        match self.source {
            Some(raw) => Cow::Borrowed(raw.get()),
            None => {
                let object = serde_json::to_string(&Object(self.pairs.iter()));
                Cow::Owned(object.expect("texts can always be written"))
            }
        }
    }

    /// All of them, to be passed on raw.
    pub fn kept(&self) -> Box<RawValue> {
        let json = self.json();
        kept(serde_json::from_str(&json).expect("it was written, or read, as JSON"))
    }

    /// What tells them from all others, where no id does.
    pub fn identity(&self) -> Box<str> {
        json::identity(&[&self.json()])
    }
}

/// Pairs as a JSON object, repeated names included.
struct Object<I>(I);

impl<'a, I: Iterator<Item = &'a Pair<'a>> + Clone> Serialize for Object<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (name, value) in self.0.clone() {
            object.serialize_entry(name, value)?;
        }
        object.end()
    }
}
