//! Retry policy, rate, ordering, credentials and certificates.

use gateway_proto::v1::destination_authentication::Method;

use super::*;

const DAY: i64 = 86_400;
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

fn retrying(seconds: &[i64]) -> v1::WebhookSubscription {
    let delays =
        seconds.iter().map(|seconds| prost_types::Duration { seconds: *seconds, nanos: 0 }).collect();
    v1::WebhookSubscription { retry_policy: Some(v1::RetryPolicy { delays }), ..valid() }
}

fn authenticated(method: Method) -> v1::WebhookSubscription {
    let authentication = Some(v1::DestinationAuthentication { method: Some(method) });
    v1::WebhookSubscription { authentication, ..valid() }
}

fn header(name: &str, value: &str) -> v1::WebhookSubscription {
    authenticated(Method::Header(v1::HeaderAuthentication { name: name.into(), value: value.into() }))
}

fn basic(username: &str, password: &str) -> v1::WebhookSubscription {
    let basic = v1::BasicAuthentication { username: username.into(), password: password.into() };
    authenticated(Method::Basic(basic))
}

fn bearer(token: &str) -> v1::WebhookSubscription {
    authenticated(Method::Bearer(v1::BearerAuthentication { token: token.into() }))
}

fn oauth2() -> v1::OAuth2Authentication {
    v1::OAuth2Authentication {
        token_url: "https://login.example.com/token".into(),
        client_id: "crm".into(),
        client_secret: "planted secret".into(),
        scopes: vec!["webhooks:write".into()],
    }
}

fn with_oauth2(change: impl Fn(&mut v1::OAuth2Authentication)) -> v1::WebhookSubscription {
    let mut oauth2 = oauth2();
    change(&mut oauth2);
    authenticated(Method::Oauth2(oauth2))
}

fn certificate(chain: &str, key: &str) -> v1::WebhookSubscription {
    let certificate =
        v1::ClientCertificate { certificate_chain_pem: chain.into(), private_key_pem: key.into() };
    v1::WebhookSubscription { client_certificate: Some(certificate), ..valid() }
}

#[track_caller]
fn assert_bad(proto: &v1::WebhookSubscription, field: &str) {
    let violations = read(proto).unwrap_err();
    assert!(!violations.to_string().contains("planted"), "{violations}");
    let named: Vec<_> = violations.0.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(named, [format!("webhook_subscription.{field}")], "{violations}");
}

/// Without a policy the default schedule holds; with one its limits are those documented.
#[test]
fn retry_policies_are_bounded() {
    assert_eq!(read(&valid()).unwrap().retry_delays, None);
    for good in [vec![1], vec![DAY; 7], vec![1; 20], vec![DAY, 1, 60]] {
        let delays = read(&retrying(&good)).unwrap().retry_delays.unwrap();
        let seconds: Vec<_> = delays.iter().map(|delay| i64::try_from(delay.as_secs()).unwrap()).collect();
        assert_eq!(seconds, good);
    }
    for (bad, field) in [
        (vec![], "retry_policy.delays"),
        (vec![1; 21], "retry_policy.delays"),
        (vec![0], "retry_policy.delays[0]"),
        (vec![5, -1], "retry_policy.delays[1]"),
        (vec![5, DAY + 1], "retry_policy.delays[1]"),
        (vec![i64::MAX], "retry_policy.delays[0]"),
        ([vec![DAY; 7], vec![1]].concat(), "retry_policy.delays"),
    ] {
        assert_bad(&retrying(&bad), field);
    }
    let mut malformed = retrying(&[5]);
    malformed.retry_policy.as_mut().unwrap().delays[0].nanos = -1;
    assert_bad(&malformed, "retry_policy.delays[0]");
}

/// The rate and the ordering take their documented values, and nothing else.
#[test]
fn rate_and_ordering_are_bounded() {
    let rate = |rate_per_second_max| v1::WebhookSubscription { rate_per_second_max, ..valid() };
    assert_eq!(read(&rate(0)).unwrap().rate_per_second_max, None);
    for good in [1, 10, 1_000] {
        let limit = read(&rate(good)).unwrap().rate_per_second_max.unwrap();
        assert_eq!(i64::from(limit.get()), i64::from(good));
    }
    for bad in [-1, 1_001, i32::MAX] {
        assert_bad(&rate(bad), "rate_per_second_max");
    }
    let ordered = |ordering: i32, ordering_attempts_max| v1::WebhookSubscription {
        ordering,
        ordering_attempts_max,
        ..valid()
    };
    let contact = v1::DeliveryOrdering::Contact.into();
    for (proto, expected) in [
        (ordered(0, 0), Ordering::None),
        (ordered(v1::DeliveryOrdering::None.into(), 7), Ordering::None),
        (ordered(contact, 0), Ordering::Contact { attempts_max: 5 }),
        (ordered(contact, 1), Ordering::Contact { attempts_max: 1 }),
        (ordered(contact, 20), Ordering::Contact { attempts_max: 20 }),
    ] {
        assert_eq!(read(&proto).unwrap().ordering, expected);
    }
    for bad in [-1, 21] {
        assert_bad(&ordered(contact, bad), "ordering_attempts_max");
    }
    assert_bad(&ordered(99, 0), "ordering");
}

/// Each way to authenticate is taken as given, and prints masked.
#[test]
fn good_credentials_are_taken() {
    for proto in [
        header("X-API-Key", "planted\t1"),
        header("Authorization", "planted"),
        basic("crm", "planted: pass wörd"),
        basic("crm", ""),
        bearer("planted.a-b_c/d=="),
        with_oauth2(|_| ()),
        with_oauth2(|oauth2| oauth2.scopes.clear()),
    ] {
        let subscription = read(&proto).unwrap();
        assert!(subscription.authentication.is_some());
        assert!(!format!("{subscription:?}").contains("planted"));
    }
    let Some(Authentication::Header { name, .. }) = read(&header("X-API-Key", "v")).unwrap().authentication
    else {
        panic!("not a header")
    };
    assert_eq!(&*name, "x-api-key");
}

/// What could break out of its header, cannot be encoded, is missing or is too long is refused by name.
#[test]
fn bad_credentials_are_named() {
    let long = "planted".repeat(1_000);
    for name in ["", "Host", "content-type", "webhook-id", "a b", "x:\r\ny"] {
        assert_bad(&header(name, "v"), "authentication.header.name");
    }
    for value in ["", "planted\r\nx: y", "planted\0", "plantéd", &long] {
        assert_bad(&header("x-api-key", value), "authentication.header.value");
    }
    for name in ["", "planted:1", "planted\n", "planted\0", &long] {
        assert_bad(&basic(name, "p"), "authentication.basic.username");
    }
    for password in ["planted\r\n", "planted\0", "planted\u{7f}", &long] {
        assert_bad(&basic("crm", password), "authentication.basic.password");
    }
    for token in ["", "planted 1", "planted\r\nx: y", "planted\0", "plantéd", &long] {
        assert_bad(&bearer(token), "authentication.bearer.token");
    }
    for url in
        ["", "http://login.example.com/", "https://planted:pw@example.com/", "https://169.254.169.254/"]
    {
        assert_bad(&with_oauth2(|oauth2| oauth2.token_url = url.into()), "authentication.oauth2.token_url");
    }
    for bad in ["", "plantéd", "planted\n", &long] {
        assert_bad(&with_oauth2(|oauth2| oauth2.client_id = bad.into()), "authentication.oauth2.client_id");
        let field = "authentication.oauth2.client_secret";
        assert_bad(&with_oauth2(|oauth2| oauth2.client_secret = bad.into()), field);
    }
    for scope in ["", "two words", "quo\"te", "back\\slash", "plantéd", &long] {
        let proto = with_oauth2(|oauth2| oauth2.scopes.push(scope.into()));
        assert_bad(&proto, "authentication.oauth2.scopes[1]");
    }
    let many = with_oauth2(|oauth2| oauth2.scopes = vec!["a".into(); 33]);
    assert_bad(&many, "authentication.oauth2.scopes");
    let none = Some(v1::DestinationAuthentication { method: None });
    assert_bad(&v1::WebhookSubscription { authentication: none, ..valid() }, "authentication");
}

/// Two settings cannot both set one header.
#[test]
fn credentials_and_custom_headers_cannot_collide() {
    let own = |name: &str, proto: v1::WebhookSubscription| v1::WebhookSubscription {
        headers: [(name.to_owned(), "v".to_owned())].into(),
        ..proto
    };
    for proto in [basic("crm", "p"), bearer("t"), with_oauth2(|_| ())] {
        assert_bad(&own("Authorization", proto.clone()), "headers[authorization]");
        assert!(read(&own("x-a", proto)).is_ok());
    }
    assert_bad(&own("X-Api-Key", header("x-api-key", "v")), "authentication.header.name");
    assert!(read(&own("authorization", header("x-api-key", "v"))).is_ok());
}

/// Certificates and keys are PEM, in the field where they belong, and not too many.
#[test]
fn pem_is_checked() {
    let chain = CERTIFICATE.repeat(8);
    let subscription = read(&certificate(&chain, KEY)).unwrap();
    assert!(subscription.client_certificate.is_some());
    assert!(!format!("{subscription:?}").contains("BEGIN"));
    for label in ["RSA PRIVATE KEY", "EC PRIVATE KEY"] {
        assert!(read(&certificate(CERTIFICATE, &KEY.replace("PRIVATE KEY", label))).is_ok(), "{label}");
    }
    let cut = &CERTIFICATE[..40];
    let big = format!("{}{CERTIFICATE}", " ".repeat(PEM_BYTES_MAX));
    for bad in ["", "planted", cut, KEY, &CERTIFICATE.replace("AAAA", "A\0A!"), &CERTIFICATE.repeat(9), &big]
    {
        assert_bad(&certificate(bad, KEY), "client_certificate.certificate_chain_pem");
    }
    let with_key = format!("{CERTIFICATE}{KEY}");
    assert_bad(&certificate(&with_key, KEY), "client_certificate.certificate_chain_pem");
    let encrypted = KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
    for bad in ["", "planted", CERTIFICATE, &KEY[..30], &encrypted] {
        assert_bad(&certificate(CERTIFICATE, bad), "client_certificate.private_key_pem");
    }
    let trusting = |pem: &str| v1::WebhookSubscription { extra_ca_pem: pem.into(), ..valid() };
    assert!(read(&trusting(&CERTIFICATE.repeat(16))).is_ok());
    for bad in ["planted", cut, KEY, &with_key, &CERTIFICATE.repeat(17), &big] {
        assert_bad(&trusting(bad), "extra_ca_pem");
    }
}
