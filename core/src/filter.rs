//! Compiled match rules over event names. An absent rule matches nothing.

use crate::event::EventType;

/// Most patterns one filter may have.
pub const PATTERNS_MAX: usize = 64;

/// Which events are selected. Built from names as in the payload, `message.*`, `recipient.*` or `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventFilter(u16);

/// A pattern that names no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` names no event; use one of {}, `message.*`, `recipient.*` or `*`", EventType::SELECTABLE.map(|event| event.name()).join(", "))]
pub struct UnknownEvent {
    /// The pattern.
    pub pattern: String,
    /// Its place in the list.
    pub index: usize,
}

impl EventFilter {
    /// Selects every event.
    pub const ALL: Self = Self(u16::MAX);

    /// Compiles `patterns`; an empty list selects nothing.
    ///
    /// # Errors
    /// The first pattern that names no event.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Self, UnknownEvent> {
        let mut filter = Self::default();
        for (index, pattern) in patterns.iter().enumerate() {
            let selected = Self::one(pattern.as_ref()).ok_or_else(|| UnknownEvent {
                pattern: pattern.as_ref().chars().take(64).collect(),
                index,
            })?;
            filter.0 |= selected;
        }
        Ok(filter)
    }

    /// Selects this event and no other, also one that no pattern selects.
    pub const fn only(event: EventType) -> Self {
        Self(event.bit())
    }

    /// Selects what one of the two selects.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn one(pattern: &str) -> Option<u16> {
        let prefix = match pattern {
            "*" => "",
            "message.*" | "recipient.*" => pattern.trim_end_matches('*'),
            name => {
                return EventType::SELECTABLE
                    .iter()
                    .find(|event| event.name() == name)
                    .map(|event| event.bit());
            }
        };
        let selected = EventType::SELECTABLE.iter().filter(|event| event.name().starts_with(prefix));
        Some(selected.fold(0, |bits, event| bits | event.bit()))
    }

    /// Whether the event is selected.
    pub fn matches(self, event: EventType) -> bool {
        self.0 & event.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wildcard selects its family, a name only itself, and nothing selects nothing.
    #[test]
    fn patterns_select_events() {
        let messages = EventFilter::parse(&["message.*"]).unwrap();
        assert!(
            messages.matches(EventType::MessageReceived) && messages.matches(EventType::MessageStatusUpdated)
        );
        assert!(
            !messages.matches(EventType::RecipientOptedOut) && !messages.matches(EventType::ProviderEvent)
        );
        let all = EventFilter::parse(&["*"]).unwrap();
        assert!(EventType::SELECTABLE.iter().all(|event| all.matches(*event)));
        assert!(!EventFilter::parse::<&str>(&[]).unwrap().matches(EventType::MessageReceived));
    }

    /// An unknown name is refused with its place and what would be right.
    #[test]
    fn unknown_names_are_refused() {
        for bad in ["message", "message.recieved", "", "MESSAGE.RECEIVED", "mess*", "webhook.test"] {
            let error = EventFilter::parse(&["message.sent", bad]).unwrap_err();
            assert_eq!(error.index, 1);
            assert!(error.to_string().contains("message.received"), "{error}");
        }
    }

    /// A filter of one event selects nothing else, and filters add up.
    #[test]
    fn filters_add_up() {
        let test = EventFilter::only(EventType::WebhookTest);
        assert!(test.matches(EventType::WebhookTest) && !test.matches(EventType::MessageReceived));
        let both = EventFilter::parse(&["message.received"]).unwrap().or(test);
        assert!(both.matches(EventType::WebhookTest) && both.matches(EventType::MessageReceived));
        assert!(!both.matches(EventType::MessageSent));
    }
}
