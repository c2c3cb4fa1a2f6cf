//! Signatures that twilio/twilio-python `twilio/request_validator.py` makes, and what is refused. Its own vectors
//! are from `tests/unit/test_request_validator.py` there.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::{
    event::Provider as ProviderName,
    signature::{hmac_sha1, hmac_sha256},
    snapshot::RouteSecretKind,
};
use http::{HeaderName, HeaderValue, header};

use super::*;
use crate::provider::tests::route;

const TOKEN: &str = "12345678901234567890123456789012";
const URL: &str = "https://gw.example.com/in/twilio/abc?tenant=7";
const BODY: &str = concat!(
    "AccountSid=AC00000000000000000000000000000000&ApiVersion=2010-04-01&Body=Hola+%C3%B1+%26+1%2B1%3D2",
    "&ButtonPayload=&From=whatsapp%3A%2B16505551234&MessageSid=SM00000000000000000000000000000001&NumMedia=0",
    "&ProfileName=Zo%C3%AB&SmsStatus=received&To=whatsapp%3A%2B15550783881&WaId=16505551234"
);
const SIGNATURE: &str = "l5WwYWrQ/x54eZHVbMLXn4UIdoU=";
const SIGNATURE_WITH_PORT: &str = "HaAw94ziptJrE0PF043rGGSBcH8=";
const CALLBACK: &str = "https://gw.example.com/callbacks/twilio/token";

/// Odd requests: the URL, the form (none of a `GET`), and the library's signatures without and with a port.
const ODD: &[(&str, Option<&str>, &str, &str)] = &[
    (CALLBACK, Some(""), "cnR0gT9f7JgVwaZl3fCTYgwBoHc=", "N+C86p6A+it0LcBeiL8oJ6VgSfw="),
    (CALLBACK, Some("A=&B="), "kc3WmJooudSr6jxw0PWV8aqDbBA=", "mp5+yQE8SDSa4l42b0pgUzG1z0w="),
    (CALLBACK, Some("B=2&A=1&a=3&AA=4&A=0"), "t3S+4tBRaeX72f5ySZh0iIuhSvU=", "DKEzvh6GrsnwehAFJIIIoFh6qsM="),
    (CALLBACK, Some("A=1&A=1&A=2&A="), "gvammsQaP+RmAioJP3IQl/odVUo=", "MZZlh0gHaW6i0uMLIRgQ842KxKs="),
    (CALLBACK, Some("a+b=c+d&e%2Bf=g%2Bh"), "57ML7dsTaJPuSRaGryNIS90kv2M=", "o5/kWRqaEu6iNZY78x6sucuEAew="),
    (
        CALLBACK,
        Some("N%C3%A4me=Zo%C3%AB&%D8%A7=%F0%9F%91%8B&Z=%EF%BF%BD&%F0%9F%91%8B=1&%EF%BC%A1=2"),
        "4BBqhG7I2Y6KcOT2P0+2Eq/BDrI=",
        "fcpwuT7z6iRtSiVHPBrUzC6CQgQ=",
    ),
    (
        CALLBACK,
        Some("Bad=%FF%FEx%E2%82&Cut=%&Cut2=%4"),
        "+q48KG0D+rvK37VrxC8QXCJqiFE=",
        "dtAaCqZpjx9EyK34VWM4xRzz8CY=",
    ),
    (
        CALLBACK,
        Some("novalue&=noname&x==y&&z=1;2"),
        "WImAOUaUFUjQtNKUunNCyPk7SDU=",
        "nHfIPTwCLCvNzlXDUoSUie/qyo4=",
    ),
    (CALLBACK, Some("ab=c&a=bc"), "y+U+N1tTotXqRLpYN6fjAInQeDM=", "Xz472ThY7qvIPo0OVlWObnL/QD8="),
    (CALLBACK, Some("A%00=1&B=%0D%0A%09"), "1J8/Uzacd9E9wtIy4rBK+yjb1So=", "NcRP+o49nVK+YcGCjc7DfbgZ9HE="),
    (
        "https://gw.example.com/callbacks/twilio/token?tenant=7&x=%2f&y=a+b&z",
        Some("A=1"),
        "T1VhMX6uN22MiB1g2u78TR54Wv0=",
        "DkjR/xc7GZ8a4UYi8f8IAHzKvxk=",
    ),
    (
        "https://gw.example.com:8443/pre%20fix/callbacks/twilio/token?a=%41&A=B",
        Some("A=1"),
        "CiAQiXfvAy3GrDthKS6EktI0qyA=",
        "SVE6+zk+beaXKwr7ClcepC9VWc0=",
    ),
    (
        "http://gw.example.com/callbacks/twilio/token",
        Some("A=1"),
        "NHhPCYw7bA3z6kEdIS8k0/tNqM0=",
        "NCzKnsnSFm434OmNH3La2m2/Q/w=",
    ),
    (
        "http://gw.example.com:80/callbacks/twilio/token",
        Some("A=1"),
        "NHhPCYw7bA3z6kEdIS8k0/tNqM0=",
        "NCzKnsnSFm434OmNH3La2m2/Q/w=",
    ),
    (
        "https://gw.example.com:443/callbacks/twilio/token",
        Some("A=1"),
        "Wr185wuJjcLiDLyYeqjyFxsHBhk=",
        "78iRjqUqq7+BuJi8lOPFr7GN7iA=",
    ),
    (
        "http://127.0.0.1:8080/callbacks/twilio/token",
        Some("A=1"),
        "2v55hzGEQYdcNMtEc4x2Rw21EGA=",
        "Uzy9x5wa6cJJxiA+IJk8LwHug+w=",
    ),
    (
        "https://gw.example.com/callbacks/twilio/token?MessageSid=SM1&Body=a+b",
        None,
        "zEb8ohuX4/Lre5YmPKtIUVN9huw=",
        "pAlBFP4jwQOhxXv/SAhhNR5jwGw=",
    ),
];

/// A signed request, the public base URL being scheme and authority of `url`.
fn signed(url: &str, form: Option<&str>, signature: &str) -> CallbackRequest {
    let authority = url.find("://").unwrap() + 3;
    let target = url[authority..].find('/').unwrap() + authority;
    let mut request = request(form.unwrap_or_default().as_bytes());
    request.method = if form.is_some() { Method::POST } else { Method::GET };
    request.public_base_url = Some(url[..target].into());
    request.uri = url[target..].parse().unwrap();
    set(&mut request, "x-twilio-signature", signature);
    request
}

fn set(request: &mut CallbackRequest, name: &'static str, value: &str) {
    request.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
}

fn verify_with(tokens: &[&str], request: &CallbackRequest) -> Result<(), Refusal> {
    let secrets: Vec<_> = tokens.iter().map(|token| (RouteSecretKind::TwilioAuthToken, *token)).collect();
    Twilio.authenticate(&route(ProviderName::Twilio, &secrets), request, Timestamp::UNIX_EPOCH)
}

fn verify(request: &CallbackRequest) -> Result<(), Refusal> {
    verify_with(&[TOKEN], request)
}

/// A signature that nobody else has to have made: for what the library does not do.
fn sign(message: &str) -> String {
    STANDARD.encode(hmac_sha1(TOKEN.as_bytes(), message.as_bytes()))
}

/// A genuine form is accepted, signed with or without the port, under any of several live tokens. One that was
/// signed without its empty parameter is not.
#[test]
fn genuine_forms_are_accepted() {
    for signature in [SIGNATURE, SIGNATURE_WITH_PORT] {
        let request = signed(URL, Some(BODY), signature);
        for tokens in [&[TOKEN][..], &["another", TOKEN], &[TOKEN, "another"]] {
            assert_eq!(verify_with(tokens, &request), Ok(()));
        }
        assert_eq!(verify_with(&["another", "and another"], &request), Err(Refusal::WrongSignature));
    }
    let without_empty = "uDT448xUin2RrthHjC/sod37J8s=";
    assert_eq!(verify(&signed(URL, Some(BODY), without_empty)), Err(Refusal::WrongSignature));
    let dropped = BODY.replace("&ButtonPayload=", "");
    assert_eq!(verify(&signed(URL, Some(&dropped), without_empty)), Ok(()));
}

/// The library's own vectors, with their ports and repeated names.
#[test]
fn vectors_of_the_library_are_accepted() {
    let form =
        "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212";
    let repeated = "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234";
    for (origin, form, signature) in [
        ("https://mycompany.com", form, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        ("https://mycompany.com:443", form, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        ("https://mycompany.com", form, "kvajT1Ptam85bY51eRf/AJRuM3w="),
        ("https://mycompany.com:443", form, "kvajT1Ptam85bY51eRf/AJRuM3w="),
        ("http://mycompany.com", form, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
        ("http://mycompany.com:80", form, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
        ("https://mycompany.com", repeated, "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
    ] {
        let request = signed(&format!("{origin}/myapp.php?foo=1&bar=2"), Some(form), signature);
        assert_eq!(verify_with(&["12345"], &request), Ok(()), "{origin} {form}");
    }
}

/// What the library accepts of empty, repeated, foreign, broken and very many parameters, of queries, ports and
/// `GET`, is accepted, with a port and without.
#[test]
fn odd_requests_are_read_like_the_library_reads_them() {
    let many: Vec<_> = (0..3_000)
        .map(|number| format!("P{:05}={}{}", number % 1_500, "v".repeat(number % 7), number % 11))
        .collect();
    let many = many.join("&");
    let many = (CALLBACK, Some(&*many), "9wZsg4xNHlMNh+xZDQRia+AsBvE=", "maP27fFRtdraH0Bgtu7im1EMNQ4=");
    for (url, form, without_port, with_port) in ODD.iter().copied().chain([many]) {
        assert_eq!(verify(&signed(url, form, without_port)), Ok(()), "{url} {form:?}");
        assert_eq!(verify(&signed(url, form, with_port)), Ok(()), "{url} {form:?}");
    }
}

/// One changed byte anywhere, in the URL, the form or the signature, is refused.
#[test]
fn changed_requests_are_refused() {
    for (url, form) in [
        ("https://gw.example.org/in/twilio/abc?tenant=7", BODY),
        ("http://gw.example.com/in/twilio/abc?tenant=7", BODY),
        ("https://gw.example.com/in/twilio/abc/?tenant=7", BODY),
        ("https://gw.example.com/in/twilio/abc?tenant=%37", BODY),
        ("https://gw.example.com/in/twilio/abc?tenant=7&", BODY),
        ("https://gw.example.com/in/twilio/abc", BODY),
        ("https://gw.example.com:8443/in/twilio/abc?tenant=7", &BODY.replace("Hola", "hola")),
        (URL, &BODY.replace("Hola", "hola")),
        (URL, &BODY.replace("NumMedia=0", "NumMedia=00")),
        (URL, &BODY.replace("NumMedia", "nummedia")),
        (URL, &format!("{BODY}&Extra=1")),
        (URL, ""),
    ] {
        let request = signed(url, Some(form), SIGNATURE);
        assert_eq!(verify(&request), Err(Refusal::WrongSignature), "{url} {form}");
    }
    for without_url in [sign("A1"), sign("/callbacks/twilio/tokenA1"), sign("")] {
        assert_eq!(verify(&signed(CALLBACK, Some("A=1"), &without_url)), Err(Refusal::WrongSignature));
    }
    let mut by_get = signed(URL, Some(BODY), SIGNATURE);
    by_get.method = Method::GET;
    assert_eq!(verify(&by_get), Err(Refusal::WrongSignature));
    let wrong = SIGNATURE.replace("l5", "m5");
    assert_eq!(verify(&signed(URL, Some(BODY), &wrong)), Err(Refusal::WrongSignature));
    // The order, and whether a space is a plus sign, are not what is signed.
    let (first, rest) = BODY.split_once('&').unwrap();
    let reordered = format!("{rest}&{first}").replace('+', "%20");
    assert_eq!(verify(&signed(URL, Some(&reordered), SIGNATURE)), Ok(()));
}

/// A JSON body is proved by its hash in the URL, and only by it.
#[test]
fn json_needs_its_hash() {
    let url = concat!(
        "https://gw.example.com/in/twilio/abc?tenant=7&bodySHA256=",
        "8c9f0db71dc4a5572fb74bbd5f32748f47833e7b7ff3e9646940772ca2cdd0de"
    );
    let (json, signature) = (r#"{"a":1,"b":"ñ"}"#, "T7zaE0fPRXf5di93LxhtxmU8XWY=");
    assert_eq!(verify(&signed(url, Some(json), signature)), Ok(()));
    let others = [" {\"a\":1,\"b\":\"ñ\"}", "{\"a\":1,\"b\":\"ñ\"} ", "{\"a\":1,\"b\":\"n\"}", "[]", "", "&"];
    for changed in others {
        assert_eq!(verify(&signed(url, Some(changed), signature)), Err(Refusal::WrongBodyHash), "{changed}");
    }
    let other_hash = url.replace("8c9f", "8c9e");
    assert_eq!(verify(&signed(&other_hash, Some(json), signature)), Err(Refusal::WrongBodyHash));
    let upper_case = url.replace("8c9f", "8C9F");
    assert_eq!(verify(&signed(&upper_case, Some(json), signature)), Err(Refusal::WrongSignature));
    // Whoever has a genuine signature of a URL cannot send whatever body he likes to it.
    for (url, signature) in [(URL, sign(URL)), (CALLBACK, sign(CALLBACK))] {
        assert_eq!(verify(&signed(url, Some(json), &signature)), Err(Refusal::WrongBodyHash));
        assert_eq!(verify(&signed(url, Some("Body=Hi"), &signature)), Err(Refusal::WrongSignature));
    }
}

/// A form is never read as JSON that nobody signed, even if its signature is right.
#[test]
fn forms_cannot_pose_as_json() {
    let body = r#"{"Body":"x"}"#;
    let as_form = sign(&format!("{CALLBACK}{body}"));
    assert_eq!(verify(&signed(CALLBACK, Some(body), &as_form)), Err(Refusal::WrongBodyHash));
}

/// A shared key signs with SHA-256 where the settings say so, as the library has it; an algorithm that we do not
/// know proves nothing.
#[test]
fn shared_keys_are_accepted() {
    let form = Some("A=1&B=%C3%AB");
    for signature in
        ["6lkCFTcGF8GlKBk8LQRjdcZBHlSu9UTHvuVkpvqczqQ=", "EtX2SNdzqUDmJlwu810aYG3p1c/hnPHWj7pDqpjju18="]
    {
        for (settings, verdict) in [
            ("key=webhooks_sharedkey_1,algorithm=HMAC_SHA256", Ok(())),
            (" algorithm = hmac_sha256 , key=1", Ok(())),
            ("key=webhooks_sharedkey_1", Err(Refusal::MalformedSignature)),
            ("key=1,algorithm=HMAC_SHA1", Err(Refusal::MalformedSignature)),
            ("key=1,algorithm=HMAC_MD5", Err(Refusal::WrongAlgorithm)),
            ("key=1,algorithm=none", Err(Refusal::WrongAlgorithm)),
        ] {
            let mut request = signed(CALLBACK, form, signature);
            set(&mut request, "x-twilio-webhooks-signature-settings", settings);
            assert_eq!(verify(&request), verdict, "{settings}");
        }
        assert_eq!(verify(&signed(CALLBACK, form, signature)), Err(Refusal::MalformedSignature));
    }
    let mut weak = signed(URL, Some(BODY), SIGNATURE);
    set(&mut weak, "x-twilio-webhooks-signature-settings", "algorithm=HMAC_SHA1");
    assert_eq!(verify(&weak), Ok(()));
    set(&mut weak, "x-twilio-webhooks-signature-settings", "algorithm=HMAC_SHA256");
    assert_eq!(verify(&weak), Err(Refusal::MalformedSignature));
}

/// Behind a proxy the public base URL is what was signed, whatever the request's own host says: with its port or
/// another or none, and with its path prefix.
#[test]
fn public_base_url_is_what_was_signed() {
    let target = "/callbacks/twilio/token?a=%41&A=B";
    for (base, genuine, forged) in [
        ("https://gw.example.com", "https://gw.example.com", "https://gw.example.com/in"),
        ("https://gw.example.com", "https://gw.example.com:443", "https://gw.example.com:80"),
        ("https://gw.example.com:443", "https://gw.example.com", "https://gw.example.com:8443"),
        ("https://gw.example.com:8443", "https://gw.example.com:8443", "https://gw.example.com:443"),
        ("https://gw.example.com:8443", "https://gw.example.com", "http://gw.example.com"),
        ("http://gw.example.com", "http://gw.example.com:80", "https://gw.example.com"),
        ("https://gw.example.com/pre%20fix", "https://gw.example.com/pre%20fix", "https://gw.example.com"),
        ("https://gw.example.com:8443/in", "https://gw.example.com/in", "https://gw.example.com:443/in"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]:443", "https://[2001:db8:"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]", "https://[2001:db8::1]:443"),
    ] {
        let mut request = request(b"A=1");
        request.uri = target.parse().unwrap();
        request.public_base_url = Some(base.into());
        set(&mut request, header::HOST.as_str(), "10.0.0.1:8090");
        set(&mut request, "x-twilio-signature", &sign(&format!("{genuine}{target}A1")));
        assert_eq!(verify(&request), Ok(()), "{base} {genuine}");
        for wrong in [forged, "http://10.0.0.1:8090", "https://10.0.0.1"] {
            set(&mut request, "x-twilio-signature", &sign(&format!("{wrong}{target}A1")));
            assert_eq!(verify(&request), Err(Refusal::WrongSignature), "{base} {wrong}");
        }
    }
}

/// Without a public base URL the request's own host is what was signed, called by http or by https.
#[test]
fn own_host_is_what_was_signed() {
    let mut request = request(b"A=1");
    request.uri = "/callbacks/twilio/token".parse().unwrap();
    set(&mut request, "x-twilio-signature", &sign("https://gw.example.com/callbacks/twilio/tokenA1"));
    assert_eq!(verify(&request), Err(Refusal::MissingHost));
    for (host, called, verdict) in [
        ("gw.example.com", "https://gw.example.com", Ok(())),
        ("gw.example.com", "https://gw.example.com:443", Ok(())),
        ("gw.example.com", "http://gw.example.com", Ok(())),
        ("gw.example.com", "http://gw.example.com:80", Ok(())),
        ("gw.example.com:8090", "http://gw.example.com:8090", Ok(())),
        ("gw.example.com:8090", "https://gw.example.com", Ok(())),
        ("gw.example.com:8090", "https://gw.example.com:443", Err(Refusal::WrongSignature)),
        ("gw.example.org", "https://gw.example.com", Err(Refusal::WrongSignature)),
    ] {
        set(&mut request, header::HOST.as_str(), host);
        set(&mut request, "x-twilio-signature", &sign(&format!("{called}/callbacks/twilio/tokenA1")));
        assert_eq!(verify(&request), verdict, "{host} {called}");
    }
}

/// Missing, repeated and malformed signatures are refused, each for its reason.
#[test]
fn bad_signatures_are_refused() {
    let mut request = signed(URL, Some(BODY), SIGNATURE);
    request.headers.remove("x-twilio-signature");
    assert_eq!(verify(&request), Err(Refusal::MissingSignature));
    let as_hex: String =
        STANDARD.decode(SIGNATURE).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    for malformed in
        ["", "=", &SIGNATURE[..27], &format!("{SIGNATURE}="), &SIGNATURE.replace('/', "_"), &as_hex]
    {
        let request = signed(URL, Some(BODY), malformed);
        assert_eq!(verify(&request), Err(Refusal::MalformedSignature), "{malformed}");
    }
    let mut twice = signed(URL, Some(BODY), SIGNATURE);
    twice.headers.append("x-twilio-signature", HeaderValue::from_static(SIGNATURE));
    assert_eq!(verify(&twice), Err(Refusal::MalformedSignature));
    let mut two_settings = signed(URL, Some(BODY), SIGNATURE);
    for _ in 0..2 {
        let name = HeaderName::from_static("x-twilio-webhooks-signature-settings");
        two_settings.headers.append(name, HeaderValue::from_static("algorithm=HMAC_SHA1"));
    }
    assert_eq!(verify(&two_settings), Err(Refusal::MalformedSignature));
}

/// Without a token nothing is genuine; an empty token is none, and a secret of another kind is no token.
#[test]
fn no_token_means_no() {
    let request = signed(URL, Some(BODY), SIGNATURE);
    assert_eq!(verify_with(&[], &request), Err(Refusal::MissingSecret));
    let empty = STANDARD.encode(hmac_sha1(b"", CALLBACK.as_bytes()));
    assert_eq!(verify_with(&[""], &signed(CALLBACK, Some(""), &empty)), Err(Refusal::MissingSecret));
    let other = route(ProviderName::Twilio, &[(RouteSecretKind::MetaAppSecret, TOKEN)]);
    assert_eq!(Twilio.authenticate(&other, &request, Timestamp::UNIX_EPOCH), Err(Refusal::MissingSecret));
    let mut open = route(ProviderName::Twilio, &[]);
    open.callback_token_suffices = true;
    assert_eq!(Twilio.authenticate(&open, &request, Timestamp::UNIX_EPOCH), Err(Refusal::MissingSecret));
}

/// More parameters than anybody sends are not even sorted: they are too many, whoever signed them.
#[test]
fn too_many_parameters_are_refused() {
    let most = vec!["A=1"; parameters::PARAMETERS_MAX].join("&");
    let signature = sign(&format!("{CALLBACK}A1"));
    assert_eq!(verify(&signed(CALLBACK, Some(&most), &signature)), Ok(()));
    let more = format!("{most}&A=1");
    for signature in [&*signature, SIGNATURE] {
        assert_eq!(verify(&signed(CALLBACK, Some(&more), signature)), Err(Refusal::TooManyItems));
    }
}

/// A genuine signature of one algorithm proves nothing under the other.
#[test]
fn algorithms_are_kept_apart() {
    let long = STANDARD.encode(hmac_sha256(TOKEN.as_bytes(), format!("{CALLBACK}A1").as_bytes()));
    let mut request = signed(CALLBACK, Some("A=1"), &long);
    assert_eq!(verify(&request), Err(Refusal::MalformedSignature));
    set(&mut request, "x-twilio-webhooks-signature-settings", "algorithm=HMAC_SHA256");
    assert_eq!(verify(&request), Ok(()));
}
