//! One wish of a contact: who, what, how much, how we know, and when. Wishes merge into a
//! [`record`](super::record).

use std::fmt;

use jiff::Timestamp;

use crate::{
    id::{EventId, InstanceId, TenantId, base32},
    phone::Phone,
};

/// What a contact asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OptOutDirection {
    /// To start again.
    OptIn,
    /// To stop. Greater than an opt-in, so that it wins a tie.
    OptOut,
}

/// Whether a contact wants to be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptOutState {
    /// Sends that are not essential are suppressed.
    OptedOut,
    /// Nothing is suppressed.
    OptedIn,
}

/// How much an opt-out covers, or an opt-in ends. The wider one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OptOutScope {
    /// Marketing only.
    Marketing,
    /// Every purpose that the policy does not name essential.
    NonEssential,
}

impl OptOutScope {
    /// The word in webhook bodies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Marketing => "marketing",
            Self::NonEssential => "non_essential",
        }
    }
}

/// Why an opt-out was recorded or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptOutReason {
    /// The contact wrote a keyword or tapped a button.
    RecipientRequestedStop,
    /// The contact used WhatsApp's own control.
    ProviderPreference,
    /// A send failed with a code that says so (Meta 131050).
    ProviderError,
    /// It came with an import.
    Imported,
    /// Somebody recorded it through the API.
    Operator,
    /// The contact wrote a keyword that ends an opt-out.
    RecipientRequestedStart,
    /// A reason of a later version, by its number on the wire: an opt-out is not dropped for its reason.
    Other(i32),
}

impl OptOutReason {
    /// The word in webhook bodies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RecipientRequestedStop => "recipient_requested_stop",
            Self::ProviderPreference => "provider_preference",
            Self::ProviderError => "provider_error",
            Self::Imported => "imported",
            Self::Operator => "operator",
            Self::RecipientRequestedStart => "recipient_requested_start",
            Self::Other(_) => "other",
        }
    }
}

/// Who took a decision first; matters only for ties of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// This program, just now, from a provider: it knows the order in which these decisions came.
    Here,
    /// Another program, this one in an earlier life, or an operator: the time is taken as it is.
    Elsewhere,
}

/// A contact as opt-outs know it. At least one key is set in every record. Prints masked.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ContactRef {
    /// The phone number. National variants (Brazil, Mexico, Argentina) are the same contact.
    pub phone: Option<Phone>,
    /// The provider's user id.
    pub user_id: Option<Box<str>>,
}

impl ContactRef {
    /// What names the contact in derived ids: `+` and the digits with national variants folded, or else
    /// the user id. Empty when neither is known.
    pub fn key(&self) -> String {
        match (&self.phone, &self.user_id) {
            (Some(phone), _) => format!("+{}", phone.match_key()),
            (None, Some(user_id)) => user_id.to_string(),
            (None, None) => String::new(),
        }
    }

    /// Whether neither key is known.
    pub const fn is_empty(&self) -> bool {
        self.phone.is_none() && self.user_id.is_none()
    }

    /// Whether both name the same contact: one key agrees.
    pub fn matches(&self, other: &Self) -> bool {
        let phones = self.phone.as_ref().zip(other.phone.as_ref());
        let user_ids = self.user_id.as_ref().zip(other.user_id.as_ref());
        phones.is_some_and(|(one, two)| one.match_key() == two.match_key())
            || user_ids.is_some_and(|(one, two)| one == two)
    }

    /// Whether a key is known of both and differs.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let phones = self.phone.as_ref().zip(other.phone.as_ref());
        let user_ids = self.user_id.as_ref().zip(other.user_id.as_ref());
        phones.is_some_and(|(one, two)| one.match_key() != two.match_key())
            || user_ids.is_some_and(|(one, two)| one != two)
    }

    /// These keys with what a newer sighting of the same contact adds or changes. Another national variant
    /// of the same number is no change.
    #[must_use]
    pub fn updated(&self, newer: &Self) -> Self {
        let same_phone =
            |known: &&Phone| newer.phone.as_ref().is_none_or(|newer| newer.match_key() == known.match_key());
        Self {
            phone: self.phone.as_ref().filter(same_phone).or(newer.phone.as_ref()).cloned(),
            user_id: newer.user_id.as_ref().or(self.user_id.as_ref()).cloned(),
        }
    }
}

impl fmt::Debug for ContactRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ContactRef({:?}, user id {})",
            self.phone,
            if self.user_id.is_some() { "set" } else { "unset" }
        )
    }
}

/// Words that programs write where they know nobody: all their people would be one.
const NOBODY: [&str; 7] = ["null", "undefined", "none", "nil", "nan", "anonymous", "unknown"];

/// Whether a text can tell one person from others: a phone number, a user id or an address of WhatsApp with
/// at least one letter, or a digit other than 0. What is blank, only a sign, or a word for nobody is shared
/// by everybody whom a provider does not name; an opt-out under it would be everybody's.
pub fn is_identifier(text: &str) -> bool {
    let text = match text.get(..9) {
        Some(channel) if channel.eq_ignore_ascii_case("whatsapp:") => &text[9..],
        _ => text,
    };
    let name = match text.trim().split_once('@') {
        Some((user, "c.us" | "s.whatsapp.net" | "lid" | "hosted" | "hosted.lid")) => {
            user.split(':').next().unwrap_or_default()
        }
        _ => text,
    };
    // Fillers of Hangul are letters that show nothing.
    let tells = |letter: char| {
        letter.is_alphanumeric() && !matches!(letter, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}')
    };
    let word = name.trim_matches(|letter| !tells(letter));
    word.chars().any(|letter| tells(letter) && letter != '0')
        && !NOBODY.iter().any(|nobody| word.eq_ignore_ascii_case(nobody))
}

/// Names an opt-out: `opt_` and 26 characters of lower-case unpadded base32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OptOutId(pub(super) [u8; 16]);

impl OptOutId {
    /// The id of a contact's opt-out at an instance: the first 16 bytes of SHA-256 over `opt_out`, instance
    /// id and [`ContactRef::key`], each preceded by its length as u32 big endian. It stays when a second
    /// key becomes known.
    pub fn derive(instance_id: &InstanceId, contact: &ContactRef) -> Self {
        Self(*EventId::derive(&["opt_out", instance_id.as_str(), &contact.key()]).as_bytes())
    }
}

impl fmt::Display for OptOutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "opt_{}", base32(&self.0))
    }
}

impl fmt::Debug for OptOutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of the event that tells of a change of state: `evt_` and base32 of the first 16 bytes of SHA-256
/// over event name, instance id, [`ContactRef::key`] and the decimal change number, each preceded by its
/// length as u32 big endian. Two agents that see two STOPs of one contact name the same event.
pub fn opt_out_event_id(
    event_name: &str,
    instance_id: &InstanceId,
    contact_key: &str,
    change_number: u64,
) -> EventId {
    EventId::derive(&[event_name, instance_id.as_str(), contact_key, &change_number.to_string()])
}

/// One wish of a contact. Prints without message id and keyword, and with the contact masked.
#[derive(Clone, PartialEq, Eq)]
pub struct Decision {
    /// The tenant of the instance.
    pub tenant_id: TenantId,
    /// The instance the contact wrote to.
    pub instance_id: InstanceId,
    /// Who decided. Not empty.
    pub contact: ContactRef,
    /// What they ask for.
    pub direction: OptOutDirection,
    /// How much of it. A keyword's opt-in ends everything: [`OptOutScope::NonEssential`].
    pub scope: OptOutScope,
    /// How we know.
    pub reason: OptOutReason,
    /// The keyword, folded; none when there was none.
    pub keyword: Option<Box<str>>,
    /// The provider's id of the message that carried it.
    pub external_message_id: Option<Box<str>>,
    /// An operator's remark.
    pub note: Option<Box<str>>,
    /// When the contact decided, by the provider's clock.
    pub event_time: Timestamp,
    /// Who took it first.
    pub origin: Origin,
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decision({}, {:?}, ", self.instance_id, self.contact)?;
        write!(
            f,
            "{:?} of {:?} at {}, {:?}, {:?})",
            self.direction, self.scope, self.event_time, self.reason, self.origin
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every provider sends for somebody is an identifier; what it sends for nobody is none, or all of
    /// them would share one opt-out.
    #[test]
    fn what_names_nobody_is_no_identifier() {
        for text in [
            "",
            " ",
            "\u{a0}",
            "+",
            "-",
            "0",
            "+000",
            "\u{200b}",
            "\u{3164}",
            "\u{fffd}",
            "null",
            " NULL ",
            "(null)",
            "undefined",
            "Anonymous",
            "whatsapp:",
            "WhatsApp: +",
            "whatsapp:null",
            "@",
            "@lid",
            "@s.whatsapp.net",
            " @s.whatsapp.net\n",
            ":12@s.whatsapp.net",
            "null@c.us",
            "0@hosted.lid",
            "...",
            "🛑",
        ] {
            assert!(!is_identifier(text), "{text:?}");
        }
        for text in [
            "+966500000001",
            "966500000001@c.us",
            "966500000001:12@s.whatsapp.net",
            "182736455463728@lid",
            "0a",
            "1",
            "US.13491208655302741918",
            "whatsapp:US.1349",
            "foo_bar",
            "nullius",
            "@someone",
            "مرحبا",
            "٣",
        ] {
            assert!(is_identifier(text), "{text:?}");
        }
    }
}
