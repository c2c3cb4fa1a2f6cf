//! Reading a provider's JSON without trusting its shape: a missing, null or differently typed field is an
//! absent one, a duplicate key is its last value, a broken surrogate is U+FFFD. Nothing here fails on JSON
//! that parses, and nothing recurses, however deep the value is nested.

use std::{borrow::Cow, fmt, marker::PhantomData};

use gateway_core::{
    opt_out::is_identifier,
    time::{from_provider_json, from_provider_number},
};
use jiff::Timestamp;
use serde::de::{
    Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
    value::MapAccessDeserializer,
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::ITEMS_MAX;

/// Deepest nesting of a value that is passed on as JSON. Deeper ones are passed on as JSON text in a string,
/// because parsers of receivers give up somewhere between 100 and 1,000 levels.
pub const RAW_DEPTH_MAX: usize = 64;
/// Largest value that is passed on whole. Of larger ones the beginning is passed on, with a mark.
pub const RAW_BYTES_MAX: usize = 256 * 1024;

/// Most fields of an object; one with more is read as if it was none, because each field costs far more memory than
/// the bytes that name it. Providers send some hundred.
pub const FIELDS_MAX: usize = 1 << 14;

/// The fields of one JSON object.
pub struct Fields<'a>(Vec<(Cow<'a, [u8]>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// The fields of `raw`; None when it is not an object.
    pub fn of(raw: &'a RawValue) -> Option<Self> {
        raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok())?
    }

    /// The fields of a body; None when it is not one JSON object.
    pub fn of_body(text: &'a str) -> Option<Self> {
        let fields: Self = serde_json::from_str(text).ok()?;
        // The reader of names passes over control characters, which JSON forbids.
        let is_odd = fields.iter().any(|(name, _)| name.iter().any(u8::is_ascii_control));
        (!is_odd || serde_json::from_str::<&RawValue>(text).is_ok()).then_some(fields)
    }

    /// Every field with its value, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &'a RawValue)> {
        self.0.iter().map(|(name, value)| (&**name, *value))
    }

    /// The value of a field; None when it is missing or null.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        let (_, value) = self.0.iter().rev().find(|(key, _)| **key == *name.as_bytes())?;
        (value.get() != "null").then_some(*value)
    }

    /// The fields of a field that is an object.
    pub fn object(&self, name: &str) -> Option<Self> {
        Self::of(self.get(name)?)
    }

    /// The elements of a field that is an array.
    pub fn array(&self, name: &str) -> Option<Vec<&'a RawValue>> {
        elements(self.get(name)?)
    }

    /// A field as text, empty text included.
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        text(self.get(name)?)
    }

    /// A field as text that names something; empty means absent.
    pub fn name(&self, name: &str) -> Option<Box<str>> {
        self.text(name).filter(|text| !text.is_empty()).map(Box::from)
    }

    /// A field as text that names a person, as [`is_identifier`] has it; anything else means absent. A phone number
    /// written as a float is the number.
    pub fn identifier(&self, name: &str) -> Option<Box<str>> {
        let raw = self.get(name)?;
        let is_float = raw.get().starts_with(|first: char| first.is_ascii_digit())
            && raw.get().contains(['.', 'e', 'E']);
        match integer(raw).filter(|_| is_float) {
            Some(number) => Some(number.to_string().into()),
            None => self.name(name).filter(|text| is_identifier(text)),
        }
    }

    /// A field as a time; integers, floats and strings of them, seconds or milliseconds.
    pub fn time(&self, name: &str) -> Option<Timestamp> {
        time(self.get(name)?)
    }

    /// A field as an integer; strings of one count, and floats without a fraction.
    pub fn integer(&self, name: &str) -> Option<i64> {
        integer(self.get(name)?)
    }

    /// A field as a finite number; strings of one count.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.get().trim_matches('"').trim().parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// A field as a truth value; strings of one count.
    pub fn truth(&self, name: &str) -> Option<bool> {
        self.get(name)?.get().trim_matches('"').parse().ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Vec<(Cow<'de, [u8]>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(Bytes(key)) = map.next_key()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom("too many fields"));
                    }
                    fields.push((key, map.next_value()?));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(FieldsVisitor).map(Self)
    }
}

/// A struct that is written as an object. A derived reader takes a list of its fields' values too, which no
/// provider means.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// A JSON string as bytes: unlike `str` it can hold what a lone surrogate escape stands for.
struct Bytes<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;

        impl<'de> Visitor<'de> for BytesVisitor {
            type Value = Cow<'de, [u8]>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(bytes))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Cow::Owned(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(BytesVisitor).map(Self)
    }
}

/// The elements of `raw`; None when it is not an array. Of more than [`ITEMS_MAX`] only one more than that.
pub fn elements(raw: &RawValue) -> Option<Vec<&RawValue>> {
    let Elements(elements) = raw.get().starts_with('[').then(|| serde_json::from_str(raw.get()).ok())??;
    Some(elements)
}

struct Elements<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Elements<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementsVisitor;

        impl<'de> Visitor<'de> for ElementsVisitor {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                    if elements.len() > ITEMS_MAX {
                        while seq.next_element::<IgnoredAny>()?.is_some() {}
                    }
                }
                Ok(elements)
            }
        }

        deserializer.deserialize_seq(ElementsVisitor).map(Self)
    }
}

/// A string as it is, a number or truth value as it is written; None for anything else.
pub fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    match raw.get().as_bytes().first()? {
        // Between its quotes a text without escapes is what it says.
        b'"' if !raw.get().contains('\\') => Some(Cow::Borrowed(&raw.get()[1..raw.get().len() - 1])),
        b'"' => {
            let Bytes(bytes) = serde_json::from_str(raw.get()).ok()?;
            Some(match bytes {
                Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
                Cow::Owned(bytes) => Cow::Owned(
                    String::from_utf8(bytes)
                        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
                ),
            })
        }
        b'-' | b'0'..=b'9' | b't' | b'f' => Some(Cow::Borrowed(raw.get())),
        _ => None,
    }
}

/// An integer, a float without a fraction, or a string of one.
pub fn integer(raw: &RawValue) -> Option<i64> {
    let number = raw.get().trim_matches('"').trim();
    number.parse().ok().or_else(|| number.parse().ok().and_then(whole))
}

/// A float as an integer, if it is one exactly.
#[expect(clippy::cast_possible_truncation, reason = "the range and the fraction are checked first")]
fn whole(number: f64) -> Option<i64> {
    (number.abs() < 9e15 && number.fract() == 0.0).then_some(number as i64)
}

/// An epoch time as an integer, a float or a string of one, seconds or milliseconds.
pub fn time(raw: &RawValue) -> Option<Timestamp> {
    match raw.get().trim_matches('"').parse() {
        Ok(number) => from_provider_number(number),
        Err(_) => from_provider_json(&serde_json::Value::String(text(raw)?.into_owned())),
    }
}

/// A copy of `raw` that every receiver can parse: within [`RAW_DEPTH_MAX`] and [`RAW_BYTES_MAX`], no number
/// beyond an `f64`, no lone surrogate. What is not like that is passed on as its JSON text in a string.
pub fn kept(raw: &RawValue) -> Box<RawValue> {
    let text = raw.get();
    let kept = if text.len() > RAW_BYTES_MAX {
        let beginning = &text[..text.floor_char_boundary(RAW_BYTES_MAX)];
        serde_json::value::to_raw_value(&Cut { truncated: true, bytes: text.len(), beginning })
    } else if is_deep(text) || serde_json::from_str::<Checked>(text).is_err() {
        serde_json::value::to_raw_value(text)
    } else {
        return raw.to_owned();
    };
    kept.expect("texts and numbers can always be written")
}

/// What is passed on of a value over [`RAW_BYTES_MAX`].
#[derive(serde::Serialize)]
struct Cut<'a> {
    truncated: bool,
    bytes: usize,
    beginning: &'a str,
}

/// Reads like the parsers of most receivers, and keeps nothing.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

fn is_deep(json: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > RAW_DEPTH_MAX {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// SHA-256, in hex, over the parts, each preceded by its length: an identity for what has no id.
pub fn identity(parts: &[&str]) -> Box<str> {
    use fmt::Write as _;
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut hex = String::with_capacity(64);
    for byte in hash.finalize() {
        write!(hex, "{byte:02x}").expect("a String takes every write");
    }
    hex.into_boxed_str()
}

#[cfg(test)]
mod tests;
