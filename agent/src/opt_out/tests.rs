use gateway_core::{
    event::{EventType, Provider},
    opt_out::{OptOutScope, OptOutState},
    phone::normalize_phone,
};
use serde_json::{Value, json};

mod link;

use super::*;
use crate::{
    pipeline::{
        normalize::Normalizer,
        tests::{TOKEN, buffer, configuration, fixture, origin},
    },
    provider::provider,
};

const NOW: &str = "2026-05-08T10:00:30Z";
const CONTACT: &str = "966500000001";

fn normalized(snapshot: &Snapshot, body: &[u8]) -> Normalized {
    let origin = origin();
    let route = snapshot.route_by_token(TOKEN).unwrap();
    let receive_time = NOW.parse().unwrap();
    let normalizer = Normalizer { route, snapshot, origin: &origin, receive_time, replay_time: None };
    normalizer.normalize(provider(Provider::Meta).normalize(body).unwrap())
}

/// A callback of text messages: id, sender, seconds, text.
fn texts(messages: &[(&str, &str, u64, &str)]) -> Vec<u8> {
    let messages: Vec<Value> = messages
        .iter()
        .map(|(id, from, seconds, text)| {
            json!({"id": id, "from": from, "timestamp": seconds.to_string(), "type": "text", "text": {"body": text}})
        })
        .collect();
    in_value(json!({"messages": messages}))
}

fn in_value(mut value: Value) -> Vec<u8> {
    value["metadata"] = json!({"phone_number_id": "106540352242922", "display_phone_number": "15550783881"});
    let field = if value.get("user_preferences").is_some() { "user_preferences" } else { "messages" };
    let change = json!({"field": field, "value": value});
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [change]}]});
    body.to_string().into_bytes()
}

/// An agent whose disk takes everything: what it wrote so far, and what it knows.
struct Agent {
    snapshot: Snapshot,
    opt_outs: OptOuts,
    written: Vec<EventId>,
}

impl Agent {
    fn new() -> Self {
        Self { snapshot: configuration(&[]), opt_outs: OptOuts::new(), written: Vec::new() }
    }

    /// Takes a callback; the names and bodies of the new events.
    fn take(&mut self, body: &[u8]) -> Vec<(EventType, Value)> {
        let normalized = normalized(&self.snapshot, body);
        let is_known = |id: &EventId| self.written.contains(id);
        let (entry, records) =
            self.opt_outs.decide(normalized, is_known, &self.snapshot, &origin(), NOW.parse().unwrap());
        self.opt_outs.remember(&records);
        self.written.extend(entry.marks);
        let mut new = Vec::new();
        for event in entry.events {
            if !self.written.contains(&event.id) {
                self.written.push(event.id);
                new.push((event.event_type, serde_json::from_str(&event.log.payload_json).unwrap()));
            }
        }
        new
    }

    fn told(&mut self, body: &[u8]) -> Vec<EventType> {
        self.take(body).into_iter().map(|(event_type, _)| event_type).collect()
    }

    fn known(&self, phone: &str) -> Option<(OptOutState, OptOutScope)> {
        let contact = ContactRef { phone: normalize_phone(phone), user_id: None };
        self.known_as(&contact)
    }

    fn known_as(&self, contact: &ContactRef) -> Option<(OptOutState, OptOutScope)> {
        let instance = self.snapshot.instance("support-line").unwrap();
        self.opt_outs.lookup(instance, contact).map(|record| (record.state(), record.scope()))
    }
}

const RECEIVED: EventType = EventType::MessageReceived;
const OUT: EventType = EventType::RecipientOptedOut;
const IN: EventType = EventType::RecipientOptedIn;
const FULL: Option<(OptOutState, OptOutScope)> = Some((OptOutState::OptedOut, OptOutScope::NonEssential));
const BACK: Option<(OptOutState, OptOutScope)> = Some((OptOutState::OptedIn, OptOutScope::NonEssential));
const MARKETING: Option<(OptOutState, OptOutScope)> = Some((OptOutState::OptedOut, OptOutScope::Marketing));

/// STOP gives the message and then one opt-out, with the documented body; START ends it.
#[test]
fn stop_and_start_are_told_once_each() {
    let mut agent = Agent::new();
    let events = agent.take(&texts(&[("wamid.1", CONTACT, 1_778_234_400, "STOP")]));
    assert_eq!(events.iter().map(|(event, _)| *event).collect::<Vec<_>>(), [RECEIVED, OUT]);
    let mut body = events[1].1.clone();
    let event_id = body["event_id"].take();
    assert_eq!(
        body,
        json!({
            "event": "recipient.opted_out", "instance_id": "support-line", "instance_name": "Support Line",
            "from": "+966500000001", "reason": "recipient_requested_stop", "message_text": "STOP",
            "timestamp": "2026-05-08T10:00:00Z", "event_id": null, "to": "+15550783881",
            "external_message_id": "wamid.1", "scope": "non_essential", "keyword": "stop",
        })
    );
    let expected = EventId::derive(&["recipient.opted_out", "support-line", "+966500000001", "1"]);
    assert_eq!(event_id, expected.to_string());
    assert_eq!(agent.known(CONTACT), FULL);

    assert_eq!(
        agent.told(&texts(&[("wamid.2", CONTACT, 1_778_234_401, "🛑 stop!!!")])),
        [RECEIVED],
        "a second STOP"
    );
    let events = agent.take(&texts(&[("wamid.3", CONTACT, 1_778_234_402, "Start")]));
    assert_eq!(events.iter().map(|(event, _)| *event).collect::<Vec<_>>(), [RECEIVED, IN]);
    assert_eq!(events[1].1["reason"], "recipient_requested_start");
    assert_eq!(agent.known(CONTACT), BACK);
    assert_eq!(agent.told(&texts(&[("wamid.4", CONTACT, 1_778_234_403, "إيقاف")])), [RECEIVED, OUT]);
}

/// The provider's retry of an old STOP undoes no newer START, not even one of the same second.
#[test]
fn repeated_callbacks_decide_nothing() {
    for start in [100, 101] {
        let mut agent = Agent::new();
        let stop = texts(&[("wamid.1", CONTACT, 100, "STOP")]);
        assert_eq!(agent.told(&stop), [RECEIVED, OUT]);
        assert_eq!(agent.told(&texts(&[("wamid.2", CONTACT, start, "START")])), [RECEIVED, IN]);
        assert_eq!(agent.told(&stop), []);
        assert_eq!(agent.known(CONTACT), BACK);
    }
}

fn preference(value: &str, time: &Value) -> Vec<u8> {
    let mut preference = json!({"wa_id": CONTACT, "category": "marketing_messages", "value": value});
    if !time.is_null() {
        preference["timestamp"] = time.clone();
    }
    in_value(json!({"user_preferences": [preference]}))
}

/// The provider's retry of a preference undoes no newer decision, of the same second or a later one, and is
/// told once; the same wish at another time is another one.
#[test]
fn repeated_preferences_decide_nothing() {
    for (first, second, told) in [("resume", "stop", [IN, OUT]), ("stop", "resume", [OUT, IN])] {
        for later in [100, 101] {
            let mut agent = Agent::new();
            let [first, second] = [preference(first, &json!(100)), preference(second, &json!(later))];
            assert_eq!(agent.told(&first), told[..1]);
            assert_eq!(agent.told(&second), told[1..]);
            let known = agent.known(CONTACT);
            for _ in 0..2 {
                assert_eq!(agent.told(&first), []);
                assert_eq!(agent.told(&second), []);
            }
            assert_eq!(agent.known(CONTACT), known);
        }
    }
    let mut agent = Agent::new();
    for second in [100, 102, 104] {
        assert_eq!(agent.told(&preference("stop", &json!(second))), [OUT]);
        assert_eq!(agent.told(&preference("resume", &json!((second + 1).to_string()))), [IN]);
    }
}

/// Without a time, a preference to stop counts every time and one to resume only once: when a repeat cannot
/// be told from a new wish, the contact is left alone.
#[test]
fn preferences_without_time_leave_the_contact_alone() {
    let mut agent = Agent::new();
    assert_eq!(agent.told(&preference("stop", &Value::Null)), [OUT]);
    let events = agent.take(&preference("resume", &Value::Null));
    assert_eq!((events[0].0, &events[0].1["timestamp_source"]), (IN, &json!("receive_time")));
    assert_eq!(agent.told(&preference("stop", &Value::Null)), [OUT]);
    assert_eq!(agent.told(&preference("resume", &Value::Null)), []);
    assert_eq!(agent.known(CONTACT), MARKETING);
}

/// A preference beside messages and statuses is its own, not that of the item before it.
#[test]
fn preferences_beside_messages_count() {
    let mut agent = Agent::new();
    let stop = json!({"wa_id": CONTACT, "category": "marketing_messages", "value": "stop", "timestamp": 100});
    let text = |id: &str| json!({"id": id, "from": CONTACT, "timestamp": "100", "type": "text", "text": {"body": "hi"}});
    let body = |id: &str| in_value(json!({"user_preferences": [stop], "messages": [text(id)]}));
    assert_eq!(agent.told(&body("wamid.1")), [RECEIVED, OUT]);
    assert_eq!(agent.told(&preference("resume", &json!(100))), [IN]);
    assert_eq!(agent.told(&body("wamid.1")), []);
    assert_eq!(agent.told(&body("wamid.2")), [RECEIVED]);
    assert_eq!(agent.known(CONTACT), Some((OptOutState::OptedIn, OptOutScope::Marketing)));
}

/// A START whose time is ahead, or missing, ends with the STOP that follows it, also within its second.
#[test]
fn start_from_the_future_does_not_outlast_a_stop() {
    let now = NOW.parse::<Timestamp>().unwrap().as_second();
    for start in [json!((now + 20 * 3_600).to_string()), json!("4102444800"), json!("0"), Value::Null] {
        for stop in [now, now + 5] {
            let mut agent = Agent::new();
            let message = json!({"id": "wamid.1", "from": CONTACT, "timestamp": start, "type": "text", "text": {"body": "START"}});
            assert_eq!(agent.told(&in_value(json!({"messages": [message]}))), [RECEIVED, IN]);
            let stop = texts(&[("wamid.2", CONTACT, stop.try_into().unwrap(), "STOP")]);
            assert_eq!(agent.told(&stop), [RECEIVED, OUT], "{start}");
            assert_eq!(agent.known(CONTACT), FULL);
        }
    }
}

/// A STOP after an opt-out of marketing is told: the customer learns that it now covers more. Once, under an
/// id of its own.
#[test]
fn wider_opt_outs_are_told() {
    let mut agent = Agent::new();
    assert_eq!(agent.told(&preference("stop", &json!(100))), [OUT]);
    let events = agent.take(&texts(&[("wamid.1", CONTACT, 101, "STOP")]));
    assert_eq!(events.iter().map(|(event, _)| *event).collect::<Vec<_>>(), [RECEIVED, OUT]);
    assert_eq!(events[1].1["scope"], "non_essential");
    let expected = EventId::derive(&["recipient.opted_out", "support-line", "+966500000001", "2"]);
    assert_eq!(events[1].1["event_id"], expected.to_string());
    assert_eq!(agent.told(&texts(&[("wamid.2", CONTACT, 102, "STOP")])), [RECEIVED]);
    assert_eq!(agent.told(&preference("stop", &json!(103))), []);
    assert_eq!(agent.told(&texts(&[("wamid.3", CONTACT, 104, "START")])), [RECEIVED, IN]);
}

/// An error that says stop counts wherever it stands among the errors.
#[test]
fn any_error_of_a_status_opts_out() {
    let mut agent = Agent::new();
    let told = agent.told(&fixture("errors_several"));
    assert_eq!(told.iter().filter(|event| **event == OUT).count(), 1);
    assert_eq!(agent.known("16505551234"), MARKETING);
}

/// A STOP that arrives late, with an older time than the START that is known, changes nothing.
#[test]
fn late_stop_does_not_win() {
    let mut agent = Agent::new();
    assert_eq!(agent.told(&texts(&[("wamid.2", CONTACT, 101, "START")])), [RECEIVED, IN]);
    assert_eq!(agent.told(&texts(&[("wamid.1", CONTACT, 100, "STOP")])), [RECEIVED]);
    assert_eq!(agent.known(CONTACT), BACK);
}

/// Wishes of one batch are decided in their order, also within one second, and an id that comes twice
/// counts once.
#[test]
fn wishes_of_one_batch_are_decided_in_order() {
    let mut agent = Agent::new();
    let batch = texts(&[
        ("wamid.1", CONTACT, 100, "STOP"),
        ("wamid.1", CONTACT, 100, "STOP"),
        ("wamid.2", CONTACT, 100, "START"),
        ("wamid.3", "966500000002", 100, "stop"),
    ]);
    assert_eq!(agent.told(&batch), [RECEIVED, RECEIVED, RECEIVED, OUT, IN, OUT]);
    assert_eq!((agent.known(CONTACT), agent.known("966500000002")), (BACK, FULL));
}

/// Nothing but the contact's own, present and whole message is a wish.
#[test]
fn what_is_no_wish_decides_nothing() {
    let mut agent = Agent::new();
    for text in ["don't stop", "stop it, I like it", "stopping", "", "cancel", "وقف السيارة عند المحل؟"]
    {
        assert_eq!(
            agent.told(&texts(&[(&format!("wamid.{text}"), CONTACT, 100, text)])),
            [RECEIVED],
            "{text}"
        );
    }
    for name in [
        "text_forwarded",
        "text_in_group",
        "edit",
        "echo",
        "history",
        "history_media",
        "reaction",
        "revoke",
        "status_failed_not_an_opt_out",
        "status_failed",
        "preference_unknown",
        "contact_nobody",
        "reaction_removed",
        "system_number_changed",
    ] {
        let told = agent.told(&fixture(name));
        assert!(!told.contains(&OUT) && !told.contains(&IN), "{name}: {told:?}");
    }
    let unreadable = |kind: &str, of_kind: &Value| {
        let text = json!({"body": "STOP"});
        let message = json!({"id": "wamid.1", "from": CONTACT, "type": kind, kind: of_kind, "text": text});
        in_value(json!({"messages": [message]}))
    };
    for kind in ["reaction", "edit", "revoke", "system"] {
        let told = agent.told(&unreadable(kind, &json!(null)));
        assert!(!told.contains(&OUT), "{kind}: {told:?}");
    }
    assert!(agent.opt_outs.all().is_empty());
}

/// A caption, a button's text and payload, an interactive title and id, and the text of a message of any other type,
/// known or not, count like a text.
#[test]
fn buttons_and_captions_count() {
    let told = |content: Value| {
        let mut message = json!({"id": "wamid.1", "from": CONTACT, "timestamp": "100"});
        message.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        let mut agent = Agent::new();
        let told = agent.told(&in_value(json!({"messages": [message]})));
        (told.contains(&OUT), agent.known(CONTACT))
    };
    let button =
        |text: &str, payload: &str| json!({"type": "button", "button": {"text": text, "payload": payload}});
    assert_eq!(told(button("Unsubscribe", "Unsubscribe")), (true, FULL));
    assert_eq!(told(button("No more of this", "STOP")), (true, FULL));
    assert_eq!(told(button("Unsubscribe from Promos", "x")), (true, MARKETING));
    assert_eq!(told(button("Track my order", "TRACK")), (false, None));
    assert_eq!(told(json!({"type": "image", "image": {"id": "1", "caption": "Stop"}})), (true, FULL));
    assert_eq!(told(json!({"type": "order", "order": {"text": "Stop"}})), (true, FULL));
    assert_eq!(told(json!({"type": "location", "location": {"latitude": 1, "name": "Stop"}})), (true, FULL));
    assert_eq!(told(json!({"type": "hologram", "text": {"body": "Stop"}})), (true, FULL));
    assert_eq!(told(json!({"type": "image", "image": null, "text": {"body": "Stop"}})), (true, FULL));
    let reply = |id: &str, title: &str| json!({"type": "interactive", "interactive": {"type": "list_reply", "list_reply": {"id": id, "title": title}}});
    assert_eq!(told(reply("unsubscribe", "No thanks")), (true, FULL));
    assert_eq!(told(reply("row-1", "Darme de baja")), (true, FULL));
    assert_eq!(told(json!({"type": "document", "document": {"id": "1", "filename": "stop"}})), (false, None));
}

/// WhatsApp's own control and the send error that tells of it stop marketing only; a full STOP stays
/// through `resume`, and START ends both.
#[test]
fn preferences_stop_marketing_only() {
    let mut agent = Agent::new();
    let preference = |value: &str, seconds: u64| preference(value, &json!(seconds));
    let events = agent.take(&preference("stop", 100));
    assert_eq!(events[0].1["reason"], "provider_preference");
    assert_eq!(events[0].1["scope"], "marketing");
    assert_eq!(events[0].1["message_text"], Value::Null);
    assert_eq!(agent.known(CONTACT), MARKETING);
    assert_eq!(agent.told(&preference("stop", 100)), [], "the provider repeats itself");
    assert_eq!(agent.told(&preference("resume", 101)), [IN]);
    assert_eq!(agent.told(&texts(&[("wamid.1", CONTACT, 102, "STOP")])), [RECEIVED, OUT]);
    assert_eq!(agent.told(&preference("signup", 103)), []);
    assert_eq!(agent.known(CONTACT), FULL);

    let failed = fixture("status_failed_stopped_marketing");
    let events = agent.take(&failed);
    assert_eq!((events[0].0, events[1].0), (EventType::MessageFailed, OUT));
    assert_eq!(events[1].1["reason"], "provider_error");
    assert_eq!(events[1].1["external_message_id"], "wamid.OURS");
    assert_eq!(agent.known("16505551234"), MARKETING);
    assert_eq!(agent.told(&failed), []);
}

/// An opt-out holds for the national variant of a number, and for either key of a contact with two.
#[test]
fn one_contact_has_one_record() {
    let mut agent = Agent::new();
    assert_eq!(agent.told(&texts(&[("wamid.1", "5511987654321", 100, "SAIR")])), [RECEIVED, OUT]);
    assert_eq!(agent.told(&texts(&[("wamid.2", "551187654321", 101, "stop")])), [RECEIVED]);
    let both = json!({"messages": [{"id": "wamid.3", "from": CONTACT, "from_user_id": "SA.1", "timestamp": "100", "type": "text", "text": {"body": "stop"}}]});
    assert_eq!(agent.told(&in_value(both)), [RECEIVED, OUT]);
    let by_user_id = json!({"messages": [{"id": "wamid.4", "from_user_id": "SA.1", "timestamp": "101", "type": "text", "text": {"body": "stop"}}]});
    assert_eq!(agent.told(&in_value(by_user_id)), [RECEIVED]);
    assert_eq!(agent.known(CONTACT), FULL);
}

/// An opt-out follows the contact to a new number and a new user id, and stays with the old ones.
#[test]
fn opt_out_follows_the_contact() {
    let mut agent = Agent::new();
    let stop = String::from_utf8(fixture("text_escaped")).unwrap();
    assert_eq!(agent.told(stop.as_bytes()), [RECEIVED, OUT]);
    assert_eq!(agent.told(&fixture("system_number_changed")), [RECEIVED]);
    assert_eq!((agent.known("16505551234"), agent.known("12195555358")), (FULL, FULL));
    let user_id = |id: &str| ContactRef { phone: None, user_id: Some(id.into()) };
    assert_eq!(agent.known_as(&user_id("US.222")), FULL);

    let mut agent = Agent::new();
    let stop = json!({"messages": [{"id": "wamid.1", "from_user_id": "US.13491208655302741918", "timestamp": "100", "type": "text", "text": {"body": "stop"}}]});
    assert_eq!(agent.told(&in_value(stop.clone())), [RECEIVED, OUT]);
    assert_eq!(agent.told(&fixture("system_user_id_changed")), [RECEIVED]);
    assert_eq!(agent.known_as(&user_id("US.222")), FULL);

    let mut agent = Agent::new();
    assert_eq!(agent.told(&in_value(stop)), [RECEIVED, OUT]);
    assert_eq!(agent.told(&fixture("system_without_sender")), [RECEIVED, RECEIVED]);
    assert_eq!((agent.known_as(&user_id("US.333")), agent.known("12195555358")), (FULL, FULL));
    assert_eq!(Agent::new().told(&fixture("system_number_changed")), [RECEIVED], "nothing to follow");
}

/// What the control plane and the disk know counts; a record that cannot be read is skipped.
#[test]
fn records_from_elsewhere_count() {
    let mut first = Agent::new();
    first.take(&texts(&[("wamid.1", CONTACT, 100, "STOP")]));
    let mut second = Agent::new();
    let mut all = first.opt_outs.all();
    all.push(v1::OptOut::default());
    second.opt_outs.merge_from_stream(all.clone());
    second.opt_outs.load(all);
    assert_eq!(second.known(CONTACT), FULL);
    assert_eq!(second.told(&texts(&[("wamid.2", CONTACT, 101, "STOP")])), [RECEIVED]);
}

/// What was recorded through the API becomes an event for the instance's customers, under the id that every
/// agent gives it.
#[test]
fn recorded_opt_outs_are_told() {
    let opt_out = v1::OptOut {
        tenant_id: "default".to_owned(),
        instance_id: "support-line".to_owned(),
        phone: "+966500000001".to_owned(),
        state: v1::OptOutState::OptedOut.into(),
        scope: v1::OptOutScope::NonEssential.into(),
        reason: v1::OptOutReason::Operator.into(),
        event_time: Some(gateway_core::time::to_proto(NOW.parse().unwrap())),
        change_number: 3,
        ..v1::OptOut::default()
    };
    let snapshot = configuration(&[("sub-one", &["recipient.*"])]);
    let event = notice(&opt_out, &snapshot, &origin(), NOW.parse().unwrap()).unwrap();
    let expected = EventId::derive(&["recipient.opted_out", "support-line", "+966500000001", "3"]);
    assert_eq!((event.id, event.event_type, event.subscriptions.len()), (expected, OUT, 1));
    let body: Value = serde_json::from_str(&event.log.payload_json).unwrap();
    assert_eq!((&body["reason"], &body["from"]), (&json!("operator"), &json!("+966500000001")));
    let gone = v1::OptOut { instance_id: "gone-line".to_owned(), ..opt_out };
    assert!(notice(&gone, &snapshot, &origin(), NOW.parse().unwrap()).is_none());
}

/// STOPs that race become one opt-out; what is refused by the disk is not decided.
#[tokio::test]
async fn decisions_are_durable_before_they_hold() {
    let (buffer, _directory) = buffer().await;
    let snapshot = configuration(&[]);
    let opt_outs = OptOuts::new();
    let now: Timestamp = NOW.parse().unwrap();
    let take = async |buffer: &Buffer, id: &str, text: &str| {
        let normalized = normalized(&snapshot, &texts(&[(id, CONTACT, 100, text)]));
        opt_outs.append(buffer, normalized, &snapshot, &origin(), now).await
    };
    let (one, two) = tokio::join!(take(&buffer, "wamid.1", "STOP"), take(&buffer, "wamid.2", "STOP"));
    assert_eq!(one.unwrap().stored + two.unwrap().stored, 3);
    assert_eq!(buffer.local_opt_outs().len(), 1);
    let repeated = take(&buffer, "wamid.1", "STOP").await.unwrap();
    assert_eq!((repeated.stored, repeated.duplicates), (0, 1));
    let prefer = async || {
        let normalized = normalized(&snapshot, &preference("stop", &json!(101)));
        opt_outs.append(&buffer, normalized, &snapshot, &origin(), now).await.unwrap()
    };
    assert_eq!(prefer().await, Receipt { stored: 0, duplicates: 0 });
    assert_eq!(prefer().await, Receipt { stored: 0, duplicates: 1 });

    buffer.close().await;
    assert!(take(&buffer, "wamid.3", "START").await.is_err());
    let contact = ContactRef { phone: normalize_phone(CONTACT), user_id: None };
    let known = opt_outs.lookup(snapshot.instance("support-line").unwrap(), &contact).unwrap();
    assert_eq!(known.state(), OptOutState::OptedOut);
}

/// A keyword counts however much padding a text of up to 4,096 characters has.
#[test]
fn padding_hides_no_keyword() {
    let texts_padded = [
        format!("stop{}", " ".repeat(1_021)),
        format!("stop{}", "\u{200b}".repeat(341)),
        format!("stop{}", "😀".repeat(4_092)),
        format!("{}stop", "!".repeat(1_021)),
    ];
    for text in texts_padded {
        let mut agent = Agent::new();
        assert_eq!(agent.told(&texts(&[("wamid.1", CONTACT, 100, &text)])), [RECEIVED, OUT]);
    }
}
