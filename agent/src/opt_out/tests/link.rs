//! Two keys of one contact.

use super::*;

/// Text messages of a contact who is named by a phone number, a user id, or both: id, number, user id, text.
fn texts_of(messages: &[(&str, &str, &str, u64, &str)]) -> Vec<u8> {
    let message = |(id, from, user_id, seconds, text): &(&str, &str, &str, u64, &str)| {
        json!({"id": id, "from": from, "from_user_id": user_id, "timestamp": seconds.to_string(), "type": "text",
            "text": {"body": text}})
    };
    in_value(json!({"messages": messages.iter().map(message).collect::<Vec<_>>()}))
}

const USER_ID: &str = "SA.13491208655302741918";

fn user(user_id: &str) -> ContactRef {
    ContactRef { phone: None, user_id: Some(user_id.into()) }
}

/// Who stopped under one key is left alone under both as soon as a callback names both, whether that comes
/// before a restart or after it. The customer was told of the contact's STOP, and is not told again.
#[test]
fn opt_outs_become_one_for_both_keys() {
    for (phone, user_id) in [(CONTACT, ""), ("", USER_ID)] {
        let mut agent = Agent::new();
        assert_eq!(agent.told(&texts_of(&[("wamid.1", phone, user_id, 100, "STOP")])), [RECEIVED, OUT]);
        assert!(agent.known(CONTACT).is_none() || agent.known_as(&user(USER_ID)).is_none());
        let body = texts_of(&[("wamid.2", CONTACT, USER_ID, 101, "hi")]);
        assert!(agent.opt_outs.concerns(&normalized(&agent.snapshot, &body), NOW.parse().unwrap()));
        assert_eq!(agent.told(&body), [RECEIVED]);
        assert_eq!((agent.known(CONTACT), agent.known_as(&user(USER_ID))), (FULL, FULL));
        let again = normalized(&agent.snapshot, &texts_of(&[("wamid.3", CONTACT, USER_ID, 102, "hi")]));
        assert!(!agent.opt_outs.concerns(&again, NOW.parse().unwrap()), "one look-up, and no turn");
        let stored = agent.opt_outs.all();
        assert_eq!((stored.len(), &*stored[0].user_id), (1, USER_ID));
        let restarted = OptOuts::new();
        restarted.load(stored);
        let instance = agent.snapshot.instance("support-line").unwrap();
        assert!(restarted.lookup(instance, &user(USER_ID)).is_some());
    }
}

/// What the customer was told of a key and is no longer so is told; a repeat of the callback decides nothing,
/// and a callback that has the pair and the STOP, in any order, counts for both keys.
#[test]
fn linking_is_told_where_it_is_news() {
    let mut agent = Agent::new();
    assert_eq!(agent.told(&texts_of(&[("wamid.1", CONTACT, "", 100, "START")])), [RECEIVED, IN]);
    assert_eq!(agent.told(&texts_of(&[("wamid.2", "", USER_ID, 101, "STOP")])), [RECEIVED, OUT]);
    let body = texts_of(&[("wamid.3", CONTACT, USER_ID, 102, "hi")]);
    let events = agent.take(&body);
    assert_eq!(events.iter().map(|(event, _)| *event).collect::<Vec<_>>(), [RECEIVED, OUT]);
    let told = &events[1].1;
    assert_eq!((&told["from"], &told["contact"]["user_id"]), (&json!("+966500000001"), &json!(USER_ID)));
    assert_eq!((&told["keyword"], &told["timestamp"]), (&json!("stop"), &json!("1970-01-01T00:01:41Z")));
    assert_eq!(agent.told(&texts_of(&[("wamid.4", CONTACT, "", 103, "START")])), [RECEIVED, IN]);
    assert_eq!(agent.told(&body), []);
    assert_eq!((agent.known(CONTACT), agent.known_as(&user(USER_ID))), (BACK, BACK));

    let (hi, stop) = (("wamid.1", CONTACT, USER_ID, 100, "hi"), ("wamid.2", "", USER_ID, 101, "STOP"));
    for batch in [[hi, stop], [stop, hi]] {
        let mut agent = Agent::new();
        assert_eq!(agent.told(&texts_of(&batch)), [RECEIVED, RECEIVED, OUT]);
        assert_eq!((agent.known(CONTACT), agent.known_as(&user(USER_ID))), (FULL, FULL));
    }
}

/// A status that names both keys of its recipient links them too.
#[test]
fn statuses_link_keys() {
    let mut agent = Agent::new();
    assert_eq!(agent.told(&texts_of(&[("wamid.1", "", USER_ID, 100, "STOP")])), [RECEIVED, OUT]);
    let status = json!({"id": "wamid.2", "status": "sent", "timestamp": "101", "recipient_id": CONTACT,
        "recipient_user_id": USER_ID});
    assert_eq!(agent.told(&in_value(json!({"statuses": [status]}))), [EventType::MessageSent]);
    assert_eq!(agent.known(CONTACT), FULL);
}
