use gateway_core::{event::Provider as ProviderName, id::EventId};

use super::MessageBird;
use crate::provider::{
    NormalizeError, Provider as _,
    tests::{Corpus, corpus},
};

mod signature;

const CORPUS: Corpus = Corpus {
    provider: ProviderName::MessageBird,
    number: "619747f69cf940a98fb443140ce9aed2",
    phone: "+15550783881",
    account: "",
    second: Some(("15550783882", "+15550783882")),
};

/// Every payload gives the events of its snapshot.
#[test]
fn payloads_give_their_events() {
    corpus(&CORPUS);
}

/// The events of a status with this word: name, `status` and id.
fn events(word: &str) -> Vec<(String, String, EventId)> {
    let snapshot = CORPUS.configuration(&["message.*"]);
    let body = format!(
        r#"{{"type":"message.updated","message":{{"id":"1","channelId":"{}","to":"+16505551234","direction":"sent","status":"{word}"}}}}"#,
        CORPUS.number
    );
    let events = CORPUS.normalize(&snapshot, body.as_bytes()).unwrap().entry.events;
    let described = events.into_iter().map(|event| {
        let body: serde_json::Value = serde_json::from_str(&event.log.payload_json).unwrap();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        (text("event"), text("status"), event.id)
    });
    described.collect()
}

/// Where MessageBird has two words for what happens to a message once, it is one event, whose `status` is its own
/// name; each word is told apart by `message.status_updated`.
#[test]
fn two_words_for_one_event_are_one_event() {
    for (one, other, name, status) in [
        ("sent", "transmitted", "message.sent", "sent"),
        ("failed", "delivery_failed", "message.failed", "failed"),
    ] {
        let (one_events, other_events) = (events(one), events(other));
        assert_eq!((one_events.len(), other_events.len()), (2, 2), "{one}");
        assert_eq!((&*one_events[0].0, &*one_events[0].1), (name, status));
        assert_eq!(one_events[0], other_events[0], "{other}");
        assert_eq!((&*other_events[1].0, &*other_events[1].1), ("message.status_updated", other));
        assert_ne!(one_events[1].2, other_events[1].2, "{other}");
    }
    assert_ne!(events("sent")[0].2, events("delivered")[0].2);
}

/// What is not JSON in UTF-8 is refused; everything else is read, however deep, without recursion.
#[test]
fn only_json_is_read() {
    for bad in [&b""[..], b"{", b"{}x", b"hello", b"[1,]", b"\xff\xfe", b"\"\xff\"", b"{\"type\":NaN}"] {
        assert_eq!(MessageBird.normalize(bad).err(), Some(NormalizeError::Unreadable), "{bad:?}");
    }
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    let inside = format!(
        r#"{{"type":"message.created","message":{{"direction":"received","type":"text","content":{deep}}}}}"#
    );
    for body in [deep, inside] {
        assert_eq!(MessageBird.normalize(body.as_bytes()).unwrap()[0].items.len(), 1);
    }
    assert!(MessageBird.accepts("application/json") && !MessageBird.accepts("text/plain"));
}
