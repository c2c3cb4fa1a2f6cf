use super::*;
use crate::provider::{
    Item,
    tests::{Corpus, corpus, request},
};

mod signature;

/// Each payload gives the events of its snapshot, and a kept one gives them again.
#[test]
fn payloads_give_the_expected_events() {
    corpus(&Corpus {
        provider: gateway_core::event::Provider::Twilio,
        number: "whatsapp:+15550783881",
        phone: "+15550783881",
        account: "AC00000000000000000000000000000001",
        second: Some(("MG000000000000000000000000000000aa", "+15550783998")),
    });
}

/// A message is answered with TwiML that does nothing, so that the contact gets no answer; all else with nothing.
#[test]
fn messages_are_answered_in_twiml() {
    for (content, is_message) in [
        ("MessageSid=SM1&SmsStatus=received&Body=Hi", true),
        ("MessageSid=SM1&NumMedia=1&Body=", true),
        (r#" {"MessageSid":"SM1","Body":"Hi"}"#, true),
        ("MessageSid=SM1&MessageStatus=sent&SmsStatus=sent", false),
        ("MessageSid=SM1&MessageStatus=sent&Body=Hi", false),
        ("CallSid=CA1", false),
        ("", false),
        ("[]", false),
        ("{", false),
    ] {
        let reply = Twilio.reply(content.as_bytes());
        if is_message {
            assert_eq!(reply.content_type, "text/xml", "{content}");
            assert_eq!(reply.body, r#"<?xml version="1.0" encoding="UTF-8"?><Response/>"#);
        } else {
            assert_eq!(reply, Reply::EMPTY, "{content}");
        }
    }
}

/// By `GET` the query is what is read; by `POST` the body is, and the query is not.
#[test]
fn content_is_where_the_method_puts_it() {
    let mut request = request(b"A=body");
    request.uri = "/callbacks/twilio/token?A=query".parse().unwrap();
    assert_eq!(Twilio.content(&request), b"A=body");
    request.method = Method::GET;
    assert_eq!(Twilio.content(&request), b"A=query");
    assert!(Twilio.calls_by_get());
    assert!(Twilio.accepts("application/x-www-form-urlencoded") && Twilio.accepts("application/json"));
    assert!(!Twilio.accepts("text/plain"));
}

/// A form and the JSON object that it is kept as say the same, whatever is in them.
#[test]
fn kept_forms_say_the_same() {
    for form in [
        "Body=%22%5C%08%00%F0%9F%91%8B%ED%A0%BD&MessageSid=SM1&SmsStatus=received&From=whatsapp%3A%2B16505551234",
        "A=1&A=2&=&A",
        "%7B=%7D",
        "a%ff=%ff",
        "MessageStatus=odd&MessageStatus=",
    ] {
        let parts = Twilio.normalize(form.as_bytes()).unwrap();
        let kept = parts[0].original.concat();
        serde_json::from_str::<serde_json::Value>(&kept).unwrap();
        let again = Twilio.normalize(kept.as_bytes()).unwrap();
        assert_eq!((parts.len(), again.len()), (1, 1));
        assert_eq!(again[0].original.concat(), kept);
        assert_eq!(identities(&again), identities(&parts), "{form}");
        assert!(again[0].target == parts[0].target);
    }
}

fn identities(parts: &[Part<'_>]) -> Vec<Box<str>> {
    let identity = |item: &Item| match item {
        Item::Message(item) => item.identity.clone(),
        Item::Status(item) => item.identity.clone(),
        Item::Notice(item) => item.identity.clone(),
        Item::Preference(_) | Item::ContactChange(_) => Box::default(),
    };
    parts.iter().flat_map(|part| part.items.iter().map(identity)).collect()
}

/// Every form can be read, and so can JSON however deep; broken JSON and endless lists are refused.
#[test]
fn what_cannot_be_read_is_refused() {
    for nothing in ["", "&", "&&&"] {
        assert!(Twilio.normalize(nothing.as_bytes()).unwrap().is_empty());
    }
    for readable in [&b"a"[..], b"\xff\xfe", b"<xml/>", b"{}", b"[{}]", b"\"a\"", b"5"] {
        assert_eq!(Twilio.normalize(readable).unwrap().len(), 1, "{readable:?}");
    }
    for unreadable in [&b"{"[..], b"{}x", b"{'a':1}", b"[1,]", b"{\"a\":\"\xff\"}", b"[NaN]"] {
        let error = Twilio.normalize(unreadable).err();
        assert_eq!(error, Some(NormalizeError::Unreadable), "{unreadable:?}");
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(Twilio.normalize(deep.as_bytes()).unwrap().len(), 1);
    let too_many = parameters::PARAMETERS_MAX + 1;
    let fields = vec!["\"a\":1"; too_many].join(",");
    for endless in
        [vec!["a=b"; too_many].join("&"), format!("{{{fields}}}"), format!("[{}0]", "0,".repeat(too_many))]
    {
        assert_eq!(Twilio.normalize(endless.as_bytes()).err(), Some(NormalizeError::TooManyItems));
    }
    let most = vec!["a=b"; parameters::PARAMETERS_MAX].join("&");
    assert_eq!(Twilio.normalize(most.as_bytes()).unwrap().len(), 1);
}

/// A file's id is read from its address only where that is Twilio's.
#[test]
fn media_id_is_the_one_in_the_address() {
    for (url, id) in [
        ("https://api.twilio.com/2010-04-01/Accounts/AC1/Messages/MM1/Media/ME1", Some("ME1")),
        ("https://api.twilio.com/2010-04-01/Accounts/AC1/Messages/MM1/Media/ME1/more", None),
        ("https://files.example.com/Media/other", None),
        ("https://files.example.com/ME1", None),
    ] {
        let form = format!("MessageSid=SM1&SmsStatus=received&NumMedia=1&MediaUrl0={url}");
        let parts = Twilio.normalize(form.as_bytes()).unwrap();
        let Item::Message(item) = &parts[0].items[0] else { panic!("a message") };
        let media = item.message.media.as_ref().unwrap();
        assert_eq!((media.id.as_deref(), media.url.as_deref()), (id, Some(url)));
    }
}
