use serde_json::Value;

use super::*;

const NUMBER: Number<'_> =
    Number { provider_number_id: "demo", phone_number: "+15550783881", account_id: None };
const HAPPENINGS: [Happening<'_>; 5] = [
    Happening::Text("hello"),
    Happening::Status(Status::Sent),
    Happening::Status(Status::Delivered),
    Happening::Status(Status::Read),
    Happening::Status(Status::Failed),
];

fn sample(provider: Provider, happening: Happening<'_>) -> Sample {
    let scene =
        Scene { number: NUMBER, contact: default_phone(), now: "2026-05-07T10:00:00Z".parse().unwrap() };
    Sample::new(provider, scene, happening)
}

/// Every sample is about a message of its own, so that the gateway does not take it for a repeat, and names it.
#[test]
fn samples_are_unique() {
    for provider in Provider::ALL {
        for happening in HAPPENINGS {
            let (first, second) = (sample(provider, happening), sample(provider, happening));
            assert_ne!(first.message_id, second.message_id);
            let id = first.message_id.replace('@', "%40");
            assert!(first.body.contains(&first.message_id) || first.body.contains(&id), "{}", first.body);
            assert!(first.body.contains("966500000001"), "{}", first.body);
            if provider != Provider::Twilio {
                assert!(serde_json::from_str::<Value>(&first.body).unwrap().is_object());
            }
        }
    }
}

/// A sample of Meta is routed by its number.
#[test]
fn meta_s_samples_name_the_number() {
    let body: Value = serde_json::from_str(&sample(Provider::Meta, HAPPENINGS[0]).body).unwrap();
    let value = &body["entry"][0]["changes"][0]["value"];
    assert_eq!(value["metadata"]["display_phone_number"], "15550783881");
    assert_eq!(value["metadata"]["phone_number_id"], "demo");
}

/// Providers that sign give headers with a signature, the others none; credentials must have their form.
#[test]
fn proofs_become_headers() {
    let now = Timestamp::UNIX_EPOCH;
    for provider in Provider::ALL {
        let sample = sample(provider, HAPPENINGS[0]);
        let headers =
            |proof| sample.headers(provider, proof, NUMBER, "https://gw.example.com/callbacks", now);
        let signs = !matches!(provider, Provider::Dialog360 | Provider::Infobip | Provider::Gupshup);
        assert_eq!(headers(Proof::Signature("key")).is_some(), signs, "{}", provider.name());
        assert_eq!(headers(Proof::Token), Some(Vec::new()));
        let basic = headers(Proof::Basic("hook-user:p@ss:wörd")).unwrap();
        assert_eq!(basic, [("authorization".into(), "Basic aG9vay11c2VyOnBAc3M6d8O2cmQ=".into())]);
        let header = headers(Proof::Header("x-hook: secret")).unwrap();
        assert_eq!(header, [("x-hook".into(), "secret".into())]);
        assert!(headers(Proof::Basic("no colon")).is_none() && headers(Proof::Header("x")).is_none());
    }
}
