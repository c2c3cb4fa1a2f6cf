//! Who is nobody is nobody at every provider.

use gateway_core::{event::Provider as ProviderName, opt_out::ContactRef};
use serde_json::Value;

use super::{Corpus, fixtures};
use crate::opt_out::WishKind;

/// What providers were seen to send, or could, where they know no sender.
const NOBODY: [&str; 9] = ["", " ", "+", "-", "0", "\u{200b}", "null", "undefined", "\u{3164}"];

/// Each provider with its name of the number in its fixtures.
const NUMBERS: [(ProviderName, &str); 10] = [
    (ProviderName::Meta, "106540352242922"),
    (ProviderName::Dialog360, "106540352242922"),
    (ProviderName::Twilio, "+15550783881"),
    (ProviderName::Vonage, "15550783881"),
    (ProviderName::Infobip, "15550783881"),
    (ProviderName::Gupshup, "SupportLineApp"),
    (ProviderName::MessageBird, "619747f69cf940a98fb443140ce9aed2"),
    (ProviderName::Bird, "52ad151f-f7b4-46f9-a5c6-d3318e650c84"),
    (ProviderName::Waha, "support"),
    (ProviderName::Evolution, "support"),
];

/// The person's number in every fixture named `text`.
const PERSON: &str = "16505551234";

/// A sender that is blank, a sign or a word for nobody gives a message without a sender, and its STOP decides
/// nothing: otherwise all such people would share one opt-out. Where the provider has an id of its own for
/// the contact, that one counts.
#[test]
fn nobody_is_nobody_at_every_provider() {
    for (provider, number) in NUMBERS {
        let text = fixtures(provider).into_iter().find(|fixture| fixture.name == "text").unwrap();
        let text = String::from_utf8(text.content).unwrap();
        assert!(text.contains(PERSON), "{}", provider.name());
        let corpus = Corpus { provider, number, phone: "+15550783881", account: "", second: None };
        let snapshot = corpus.configuration(&["*"]);
        for nobody in NOBODY {
            let body = stop(&text.replace(&format!(": {PERSON}"), ": 0").replace(PERSON, nobody));
            let told = corpus.normalize(&snapshot, body.as_bytes()).unwrap();
            let context = format!("{} {nobody:?}", provider.name());
            assert_eq!(told.entry.events.len(), 1, "{context}");
            let event: Value = serde_json::from_str(&told.entry.events[0].log.payload_json).unwrap();
            assert_eq!(
                (&event["event"], &event["from"]),
                (&"message.received".into(), &Value::Null),
                "{context}"
            );
            let user_id = event["contact"]["user_id"].as_str();
            assert!(
                user_id.is_none_or(|id| body.contains(&format!("\"id\": \"{id}\""))),
                "{context}: {event}"
            );
            assert_eq!(told.wishes.len(), 1, "{context}: {event}");
            let WishKind::Decide(decision) = &told.wishes[0].kind else { panic!("{context}") };
            let expected = ContactRef { phone: None, user_id: user_id.map(Box::from) };
            assert!(decision.contact == expected, "{context}");
        }
    }
}

/// The body with another text, whatever the provider's field for it is.
fn stop(body: &str) -> String {
    const TEXTS: [&str; 4] = [
        "Does it come in another color?",
        "Is+the+blue+one+still+there%3F",
        "Hello, is my parcel on its way?",
        "Where is my order?",
    ];
    match TEXTS.iter().find(|text| body.contains(**text)) {
        Some(text) => body.replacen(text, "STOP", 1),
        None => panic!("the text is another one: {body}"),
    }
}
