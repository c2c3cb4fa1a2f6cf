use super::*;
use crate::event::EventType;

fn valid() -> v1::WebhookSubscription {
    v1::WebhookSubscription {
        id: "sub_1".into(),
        tenant_id: "default".into(),
        instance_id: "inst_1".into(),
        destination_url: "https://example.com/hook".into(),
        events: vec!["message.received".into()],
        ..Default::default()
    }
}

fn read(proto: &v1::WebhookSubscription) -> Result<WebhookSubscription, FieldViolations> {
    WebhookSubscription::from_proto(proto, &AddressPolicy::default())
}

fn fields(proto: &v1::WebhookSubscription) -> Vec<String> {
    read(proto).unwrap_err().0.into_iter().map(|violation| violation.field).collect()
}

fn with_header(name: &str, value: &str) -> v1::WebhookSubscription {
    v1::WebhookSubscription { headers: [(name.to_owned(), value.to_owned())].into(), ..valid() }
}

/// Unset limits take their documented defaults.
#[test]
fn defaults_are_applied() {
    let subscription = read(&valid()).unwrap();
    assert_eq!(subscription.attempt_timeout, Duration::from_secs(15));
    assert_eq!(subscription.concurrency_max, 8);
    assert_eq!(subscription.state, SubscriptionState::Active);
    assert!(subscription.filter.matches(EventType::MessageReceived));
    assert!(!subscription.filter.matches(EventType::MessageSent));
}

/// Every bad field is named.
#[test]
fn each_bad_field_is_named() {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    for (proto, field) in [
        (v1::WebhookSubscription { id: "x".into(), ..valid() }, "id"),
        (v1::WebhookSubscription { instance_id: "I".into(), ..valid() }, "instance_id"),
        (v1::WebhookSubscription { display_name: "a".repeat(101), ..valid() }, "display_name"),
        (
            v1::WebhookSubscription { destination_url: "http://example.com".into(), ..valid() },
            "destination_url",
        ),
        (v1::WebhookSubscription { events: vec![], ..valid() }, "events"),
        (v1::WebhookSubscription { events: vec!["*".into(); 65], ..valid() }, "events"),
        (
            v1::WebhookSubscription { events: vec!["*".into(), "message.recieved".into()], ..valid() },
            "events[1]",
        ),
        (v1::WebhookSubscription { attempt_timeout: seconds(0), ..valid() }, "attempt_timeout"),
        (v1::WebhookSubscription { attempt_timeout: seconds(31), ..valid() }, "attempt_timeout"),
        (v1::WebhookSubscription { attempt_timeout: seconds(-1), ..valid() }, "attempt_timeout"),
        (v1::WebhookSubscription { concurrency_max: 65, ..valid() }, "concurrency_max"),
        (v1::WebhookSubscription { concurrency_max: -1, ..valid() }, "concurrency_max"),
    ] {
        assert_eq!(fields(&proto), [format!("webhook_subscription.{field}")]);
    }
}

/// Headers that HTTP, proxies or the gateway own are refused in any case; others, cookies too, are taken.
#[test]
fn owned_headers_are_refused() {
    for name in [
        "Host",
        "connection",
        "Content-Length",
        "content-type",
        "Content-Encoding",
        "transfer-encoding",
        "TE",
        "trailer",
        "upgrade",
        "expect",
        "User-Agent",
        "traceparent",
        "webhook-id",
        "Webhook-Signature",
        "proxy-authorization",
        "X-Forwarded-For",
        "",
        "a b",
        "a:b",
        "ä",
        "a\r\nb",
    ] {
        assert_eq!(fields(&with_header(name, "v")).len(), 1, "{name}");
    }
    for name in ["Authorization", "Cookie", "x-api-key", "X-Custom_1", "te-x", "hosts"] {
        let subscription = read(&with_header(name, "v")).unwrap();
        assert_eq!(&*subscription.headers[0].0, name.to_ascii_lowercase());
    }
    let twice = [("X-A".to_owned(), "1".to_owned()), ("x-a".to_owned(), "2".to_owned())].into();
    assert_eq!(
        fields(&v1::WebhookSubscription { headers: twice, ..valid() }),
        ["webhook_subscription.headers[x-a]"]
    );
    let many = (0..33).map(|index| (format!("x-{index}"), String::new())).collect();
    assert_eq!(
        fields(&v1::WebhookSubscription { headers: many, ..valid() }),
        ["webhook_subscription.headers"]
    );
}

/// Header values cannot smuggle a line break, and never show in errors or debug output.
#[test]
fn header_values_are_checked_and_masked() {
    for value in ["planted\r\nx: y", "planted\n", "planted\0", "plantéd", &"planted".repeat(1000)] {
        let violations = read(&with_header("x-a", value)).unwrap_err();
        assert!(!violations.to_string().contains("plant"), "{violations}");
    }
    let subscription = read(&with_header("authorization", "Bearer planted\t1")).unwrap();
    assert!(!format!("{subscription:?}").contains("planted"));
}

mod delivery;
