//! One newtype per identifier. [`EventId`] derives from the provider's ids, so that a provider's retry,
//! another agent and a replay all name the same event.

use std::{fmt, str::FromStr, sync::Arc};

use sha2::{Digest as _, Sha256};

/// Shortest id a caller may give.
pub const ID_CHARS_MIN: usize = 3;
/// Longest id a caller may give.
pub const ID_CHARS_MAX: usize = 63;

/// The id does not match `[a-z0-9][a-z0-9_-]{2,62}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must match [a-z0-9][a-z0-9_-]{{2,62}}: 3 to 63 lower-case letters, digits, `_` and `-`, starting with a letter or digit"
)]
pub struct InvalidId;

fn check(text: &str) -> Result<(), InvalidId> {
    let bytes = text.as_bytes();
    let starts_well = bytes.first().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let goes_on_well = bytes
        .iter()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'));
    if starts_well && goes_on_well && (ID_CHARS_MIN..=ID_CHARS_MAX).contains(&bytes.len()) {
        Ok(())
    } else {
        Err(InvalidId)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

ids! {
    /// Names a tenant, the owner of instances.
    TenantId;
    /// Names an instance: one connected WhatsApp business number.
    InstanceId;
    /// Names an inbound route: where one provider account calls us.
    InboundRouteId;
    /// Names a webhook subscription.
    WebhookSubscriptionId;
    /// Names an agent.
    AgentId;
}

impl TenantId {
    /// The tenant that exists from the first start.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

/// Names an event: `evt_` and 26 characters of lower-case unpadded base32 (RFC 4648), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId([u8; 16]);

/// The text is not `evt_` and 26 characters of base32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `evt_` followed by 26 characters of a-z and 2-7")]
pub struct InvalidEventId;

const EVENT_ID_PREFIX: &str = "evt_";

impl EventId {
    /// Derives the id from its parts: the first 16 bytes of SHA-256 over the parts, each preceded by its
    /// length in bytes as u32 big endian.
    ///
    /// For events of a provider the parts are event name, provider, instance id, the provider's message
    /// or event id, status, recipient and error code, empty where absent.
    pub fn derive(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            hash.update(length.to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Self(bytes)
    }

    /// An id from 16 bytes of the caller's: random for test events, stored ones from disk.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes behind the text.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EVENT_ID_PREFIX)?;
        f.write_str(&base32(&self.0))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let digits = text.strip_prefix(EVENT_ID_PREFIX).ok_or(InvalidEventId)?;
        decode_base32(digits).map(Self).ok_or(InvalidEventId)
    }
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Lower-case unpadded base32 (RFC 4648) of `bytes`.
pub fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for byte in bytes {
        buffer = (buffer << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(BASE32[(buffer >> bits) as usize & 31]));
        }
        buffer &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(BASE32[(buffer << (5 - bits)) as usize & 31]));
    }
    text
}

pub(crate) fn decode_base32(text: &str) -> Option<[u8; 16]> {
    let mut bytes = Vec::with_capacity(16);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for digit in text.bytes() {
        let value = match digit {
            b'a'..=b'z' => digit - b'a',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
        buffer = (buffer << 5) | u32::from(value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(buffer >> bits).ok()?);
            buffer &= (1 << bits) - 1;
        }
    }
    if buffer != 0 {
        return None;
    }
    bytes.try_into().ok().filter(|_| text.len() == 26)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids of the documented pattern are taken, everything else is refused.
    #[test]
    fn id_pattern_is_enforced() {
        for good in ["abc", "0-_", "demo-support-line", &"a".repeat(63)] {
            assert!(good.parse::<InstanceId>().is_ok(), "{good}");
        }
        for bad in ["", "ab", "-ab", "_ab", "Abc", "a b", "a.b", "é23", &"a".repeat(64)] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }

    /// The id is the base32 of the hash over length-prefixed parts: computed here in another way.
    #[test]
    fn event_id_is_length_prefixed_sha256() {
        let id = EventId::derive(&["ab", ""]);
        let expected = Sha256::digest(b"\x00\x00\x00\x02ab\x00\x00\x00\x00");
        assert_eq!(id.as_bytes(), &expected[..16]);
        assert_ne!(EventId::derive(&["a", "b"]), EventId::derive(&["ab", ""]));
    }

    /// Text and bytes convert both ways, and RFC 4648's vectors hold.
    #[test]
    fn event_id_round_trips() {
        let id = EventId::derive(&["message.received", "meta", "inst_1", "wamid.1", "", "", ""]);
        let text = id.to_string();
        assert_eq!(text.len(), 30);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
        assert_eq!(base32(b"fooba"), "mzxw6ytb");
        for bad in ["", "evt_", "evt_A", &text[..29], &format!("{text}a"), &text.to_uppercase()] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }
}
