use super::*;

fn policy(networks: &[&str]) -> AddressPolicy {
    AddressPolicy::new(networks.iter().map(|network| network.parse().unwrap()).collect())
}

fn blocked(text: &str) -> Result<(), InvalidDestination> {
    DestinationUrl::parse(text, &AddressPolicy::default()).map(|_| ())
}

const NOT_PUBLIC: Result<(), InvalidDestination> =
    Err(InvalidDestination::Blocked(BlockedAddress::NotPublic));
const METADATA: Result<(), InvalidDestination> = Err(InvalidDestination::Blocked(BlockedAddress::Metadata));

/// Public https destinations of every usual form are taken, and read back as they were given.
#[test]
fn public_https_is_taken() {
    for text in [
        "https://example.com",
        "https://example.com/hook?token=a%20b",
        "https://example.com:8443/",
        "https://example.com:1024/",
        "https://example.com:65535/",
        "https://EXAMPLE.com:443/",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "https://müller.example/",
        "https://169.254.169.254.nip.io/",
        "https://example.com\\@evil.example/",
    ] {
        let url = DestinationUrl::parse(text, &AddressPolicy::default()).unwrap();
        assert_eq!(url.as_str(), text);
        assert!(!url.is_http());
    }
    let url =
        DestinationUrl::parse("https://example.com\\@evil.example/", &AddressPolicy::default()).unwrap();
    assert_eq!(url.host_and_port(), (Host::Domain("example.com"), 443));
}

/// Loopback is refused in every spelling that a URL parser turns into it.
#[test]
fn loopback_is_refused_in_every_spelling() {
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "0x7f000001",
        "017700000001",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "api.localhost",
        "api.localhost.",
        "0.0.0.0",
        "0",
        "[::]",
    ] {
        assert_eq!(blocked(&format!("https://{host}/")), NOT_PUBLIC, "{host}");
    }
}

/// Private, link-local, reserved and translated addresses are refused.
#[test]
fn private_addresses_are_refused() {
    for host in [
        "10.0.0.1",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "169.254.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "0.1.2.3",
        "3232235521",
        "[fc00::1]",
        "[fd12:3456::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[64:ff9b::808:808]",
        "[64:ff9b:1::808:808]",
        "[2001::1]",
        "[2001:db8::1]",
        "[2001:1ff::1]",
        "[2002:808:808::1]",
        "[3fff::1]",
        "[3fff:fff::1]",
        "[5f00::1]",
        "[100::1]",
        "[::ffff:10.0.0.1]",
        "[::10.0.0.1]",
        "[4000::1]",
        "[1fff::1]",
    ] {
        assert_eq!(blocked(&format!("https://{host}/")), NOT_PUBLIC, "{host}");
    }
    for host in [
        "172.15.255.255",
        "172.32.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "192.0.1.1",
        "198.17.255.255",
        "198.20.0.1",
        "223.255.255.255",
        "1.1.1.1",
        "[2001:200::1]",
        "[2003::1]",
        "[2a00::1]",
        "[3ffe::1]",
    ] {
        assert_eq!(blocked(&format!("https://{host}/")), Ok(()), "{host}");
    }
}

/// Metadata services stay out of reach, whatever the operator allows and however they are written.
#[test]
fn metadata_is_never_allowed() {
    let everything = policy(&["0.0.0.0/0", "::/0"]);
    for host in [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169。254。169。254",
        "169.254.169.254.",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "[fd00:ec2::254]",
        "[fd00:ec2:0:0::254]",
        "[fd00:ec2::23]",
        "[fd20:ce::254]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[::ffff:100.100.100.200]",
        "[64:ff9b::168.63.129.16]",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata.goog",
    ] {
        for scheme in ["https", "http"] {
            let text = format!("{scheme}://{host}/");
            assert_eq!(DestinationUrl::parse(&text, &everything).map(|_| ()), METADATA, "{text}");
        }
        assert_eq!(blocked(&format!("https://{host}/")), METADATA, "{host}");
    }
}

/// What is malformed, or carries what is never sent or belongs elsewhere, is refused with its reason.
#[test]
fn malformed_urls_are_refused() {
    use InvalidDestination::{Empty, Fragment, PlainHttp, Port, Scheme, TooLong, UserInfo, Whitespace};
    let long = format!("https://example.com/{}", "a".repeat(URL_BYTES_MAX));
    for (text, reason) in [
        ("", Empty),
        (long.as_str(), TooLong),
        (" https://example.com", Whitespace),
        ("https://exa\tmple.com", Whitespace),
        ("https://example.com/a\r\nhost: evil", Whitespace),
        ("http://example.com/", PlainHttp),
        ("HTTP://example.com/", PlainHttp),
        ("http://127.0.0.1/", PlainHttp),
        ("ftp://example.com/", Scheme),
        ("file:///etc/passwd", Scheme),
        ("javascript:alert(1)", Scheme),
        ("data:text/plain,x", Scheme),
        ("https://user@example.com/", UserInfo),
        ("https://user:password@example.com/", UserInfo),
        ("https://:password@example.com/", UserInfo),
        ("https://example.com/#part", Fragment),
        ("https://example.com/#", Fragment),
        ("https://example.com:0/", Port),
        ("https://example.com:22/", Port),
        ("https://example.com:25/", Port),
        ("https://example.com:80/", Port),
        ("https://example.com:1023/", Port),
    ] {
        assert_eq!(blocked(text), Err(reason), "{text}");
    }
    for text in [
        "example.com",
        "/hook",
        "https://",
        "https://[fe80::1%25eth0]/",
        "https://exa mple.com",
        "https://example.com:99999/",
        "https://256.0.0.1/",
        "https://[::1",
        "https:// ",
    ] {
        assert!(blocked(text).is_err(), "{text}");
    }
}

/// Inside an allowed network private addresses and http are possible, outside of it neither.
#[test]
fn allowed_networks_open_private_http() {
    let policy = policy(&["10.0.0.0/8", "127.0.0.0/8", "fd00::/8"]);
    let parse = |text: &str| DestinationUrl::parse(text, &policy).map(|_| ());
    for text in [
        "http://10.1.2.3/hook",
        "https://10.1.2.3/hook",
        "http://127.0.0.1:8080/",
        "http://localhost:5678/",
        "http://[fd00::1]/",
        "http://n8n:5678/",
        "https://example.com/",
        "http://[::ffff:10.0.0.1]/",
    ] {
        assert_eq!(parse(text), Ok(()), "{text}");
    }
    assert_eq!(parse("http://192.168.0.1/"), NOT_PUBLIC);
    assert_eq!(parse("http://[::1]/"), NOT_PUBLIC);
    assert_eq!(parse("http://8.8.8.8/"), Err(InvalidDestination::Blocked(BlockedAddress::PlainHttp)));
    assert_eq!(parse("http://10.0.0.1:22/"), Err(InvalidDestination::Port));
}

/// At dial the same rules hold for what a name resolved to; http stays inside the allowed networks.
#[test]
fn addresses_are_judged_at_dial() {
    let strict = AddressPolicy::default();
    let lan = policy(&["192.168.0.0/16"]);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(strict.check(ip("93.184.216.34"), false), Ok(()));
    assert_eq!(strict.check(ip("93.184.216.34"), true), Err(BlockedAddress::PlainHttp));
    assert_eq!(strict.check(ip("192.168.1.1"), false), Err(BlockedAddress::NotPublic));
    assert_eq!(lan.check(ip("192.168.1.1"), true), Ok(()));
    assert_eq!(lan.check(ip("::ffff:192.168.1.1"), true), Ok(()));
    assert_eq!(lan.check(ip("93.184.216.34"), true), Err(BlockedAddress::PlainHttp));
    assert_eq!(lan.check(ip("10.0.0.1"), false), Err(BlockedAddress::NotPublic));
    assert_eq!(lan.check(ip("::ffff:169.254.169.254"), false), Err(BlockedAddress::Metadata));
}

/// Path and query, which often hold a token, never show in debug output.
#[test]
fn debug_hides_path_and_query() {
    let url =
        DestinationUrl::parse("https://example.com/s3cret?key=s3cret", &AddressPolicy::default()).unwrap();
    assert_eq!(format!("{url:?}"), "https://example.com/…");
}

/// Scheme, host and port make an origin, however they are written; path and query do not count, and what is no URL has
/// the origin of nothing, not even its own.
#[test]
fn origins_are_compared() {
    let own = "https://example.com/hook";
    for same in ["https://example.com", "https://EXAMPLE.com:443/x?y=1", "https://example.com/hook"] {
        assert!(is_same_origin(own, same), "{same}");
    }
    for other in [
        "http://example.com/hook",
        "https://example.com:8443/hook",
        "https://www.example.com/hook",
        "https://example.com.evil.example/hook",
        "https://evil.example\\@example.com/hook",
    ] {
        assert!(!is_same_origin(own, other), "{other}");
    }
    assert!(!is_same_origin("", "") && !is_same_origin("nonsense", "nonsense"));
}
