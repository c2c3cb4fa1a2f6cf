//! The newest webhooks that came.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::value::RawValue;

/// How many webhooks are remembered; the oldest go first.
const WEBHOOKS_MAX: usize = 1_000;
/// How many bytes of bodies are remembered; the oldest go first.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// One webhook that came.
pub struct Webhook {
    /// `webhook-id`.
    pub event_id: String,
    /// When it came last.
    pub receive_time: String,
    /// How often it came.
    pub receive_count: u32,
    /// The headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, byte for byte.
    pub body: Box<RawValue>,
}

/// One webhook, as the receiver shows it.
#[derive(Serialize)]
pub struct Shown<'a> {
    event_id: &'a str,
    receive_time: &'a str,
    receive_count: u32,
    headers: &'a BTreeMap<String, String>,
    body: &'a RawValue,
    /// The same byte for byte, which is what the signature covers.
    raw_body: &'a str,
}

impl<'a> From<&'a Webhook> for Shown<'a> {
    fn from(webhook: &'a Webhook) -> Self {
        Self {
            event_id: &webhook.event_id,
            receive_time: &webhook.receive_time,
            receive_count: webhook.receive_count,
            headers: &webhook.headers,
            body: &webhook.body,
            raw_body: webhook.body.get(),
        }
    }
}

/// The newest webhooks that came, each event once.
#[derive(Default)]
pub struct Kept {
    oldest_first: VecDeque<Webhook>,
    bytes: usize,
}

impl Kept {
    /// Remembers a webhook; whether its event had come before.
    pub fn insert(&mut self, mut webhook: Webhook) -> bool {
        let before = self.oldest_first.iter().position(|kept| kept.event_id == webhook.event_id);
        let before = before.and_then(|position| self.oldest_first.remove(position));
        let repeated = before.is_some();
        if let Some(before) = before {
            self.bytes -= before.body.get().len();
            webhook.receive_count += before.receive_count;
        }
        self.bytes += webhook.body.get().len();
        self.oldest_first.push_back(webhook);
        while self.oldest_first.len() > WEBHOOKS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.oldest_first.pop_front() else { break };
            self.bytes -= oldest.body.get().len();
        }
        repeated
    }

    /// All of them.
    pub fn newest_first(&self) -> impl Iterator<Item = &Webhook> {
        self.oldest_first.iter().rev()
    }

    /// The one of an event.
    pub fn get(&self, event_id: &str) -> Option<&Webhook> {
        self.newest_first().find(|webhook| webhook.event_id == event_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(event_id: usize, body_bytes: usize) -> Webhook {
        Webhook {
            event_id: event_id.to_string(),
            receive_time: String::new(),
            receive_count: 1,
            headers: BTreeMap::new(),
            body: RawValue::from_string(format!("\"{}\"", "x".repeat(body_bytes))).unwrap(),
        }
    }

    /// The newest 1,000 stay; a repeated event moves to the front and counts.
    #[test]
    fn the_newest_stay() {
        let mut kept = Kept::default();
        for number in 0..WEBHOOKS_MAX + 2 {
            assert!(!kept.insert(webhook(number, 1)));
        }
        assert!(kept.get("1").is_none() && kept.get("2").is_some());
        assert!(kept.insert(webhook(2, 5)));
        let newest = kept.newest_first().next().unwrap();
        assert_eq!((newest.event_id.as_str(), newest.receive_count), ("2", 2));
        assert_eq!(kept.newest_first().count(), WEBHOOKS_MAX);
    }

    /// Large bodies make room by bytes.
    #[test]
    fn bytes_are_bounded() {
        let mut kept = Kept::default();
        for number in 0..40 {
            kept.insert(webhook(number, 4 * 1024 * 1024));
        }
        assert!(kept.bytes <= BYTES_MAX);
        assert_eq!(kept.newest_first().count(), 15);
    }
}
