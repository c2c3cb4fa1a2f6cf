//! No address that the policy forbids is ever connected to: by number in any spelling, by name, or by a name
//! that changes its mind.

use std::net::IpAddr;

use v1::AttemptFailure as Kind;

use super::{
    bench::{Scripted, impatient, owed, policy, settings},
    receiver::{Raw, respond},
    *,
};
use crate::pipeline::deliver::attempt::Verdict;

/// Hosts in URLs that are addresses, in every spelling that a URL parser reads.
const LITERALS: [&str; 60] = [
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0x7f.0.0.1",
    "017700000001",
    "0177.0.0.1",
    "0177.0.0.01",
    "127.0.0.1.",
    "①②⑦.0.0.1",
    "127。0。0。1",
    "%31%32%37.0.0.1",
    "0.0.0.0",
    "0",
    "0x0",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:7f00:1::1]",
    "[2001:0:7f00:1::]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "[fd00:ec2::254]",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "169.254.0.1",
    "[fe80::1]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "198.18.0.1",
    "[fc00::1]",
    "[fd12:3456:789a::1]",
    "[fec0::1]",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "[ff02::1]",
    "[5f00::1]",
];

/// Names, and what they resolve to.
const NAMES: [(&str, &[&str]); 14] = [
    ("localhost", &["127.0.0.1"]),
    ("localhost.", &["127.0.0.1"]),
    ("LOCALHOST", &["::1"]),
    ("api.localhost", &["127.0.0.1"]),
    ("metadata.google.internal", &["169.254.169.254"]),
    ("169.254.169.254.nip.io", &["169.254.169.254"]),
    ("private.example", &["10.0.0.1"]),
    ("mapped.example", &["::ffff:127.0.0.1"]),
    ("translated.example", &["64:ff9b::7f00:1"]),
    ("mixed.example", &["93.184.215.14", "127.0.0.1"]),
    ("mixed-v6.example", &["2606:4700::1111", "::1"]),
    ("private-first.example", &["192.168.0.1", "93.184.215.14"]),
    ("many.example", &["1.1.1.1", "8.8.8.8", "9.9.9.9", "1.0.0.1", "8.8.4.4", "9.9.9.10", "127.0.0.1"]),
    ("multicast.example", &["224.0.0.251"]),
];

fn resolved(name: &str, _before: usize) -> Vec<IpAddr> {
    let (_, addresses) = NAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .unwrap_or_else(|| panic!("{name} is no address after all"));
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

/// A listener on loopback that counts who comes, and answers as a destination would.
async fn trap() -> Raw {
    Raw::start(|stream, _| async move {
        respond(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await
}

/// None of the vectors makes a connection, with http or https, without allowed networks or with another one,
/// and the report does not say what was found.
#[tokio::test]
async fn no_vector_connects() {
    let trap = trap().await;
    let port = trap.address.port();
    for allowed in [&[][..], &["203.0.113.0/24"]] {
        let attempter =
            Attempter::with_resolver(policy(allowed), "agt_1", Metrics::new(), Scripted::new(resolved))
                .unwrap();
        for host in LITERALS.into_iter().chain(NAMES.iter().map(|(name, _)| *name)) {
            for scheme in ["http", "https"] {
                let url = format!("{scheme}://{host}:{port}/");
                let made = attempter.attempt(&owed(), &settings(impatient(&url))).await;
                assert_eq!(made.attempt.failure(), Kind::BlockedAddress, "{url}");
                let error = made.attempt.error;
                assert!(!error.bytes().any(|byte| byte.is_ascii_digit()), "{error}");
                let unmade =
                    Verdict::Failed { retry_after: None, slow_down: false, quick: false, ours: false };
                assert_eq!(made.verdict, unmade);
            }
        }
        assert_eq!(attempter.dialled(), 0);
    }
    assert_eq!(trap.accepted(), 0);
}

/// Metadata addresses stay out of reach even when everything is allowed.
#[tokio::test]
async fn metadata_is_never_reached() {
    let resolver = Scripted::new(resolved);
    let everything = policy(&["0.0.0.0/0", "::/0"]);
    let attempter = Attempter::with_resolver(everything, "agt_1", Metrics::new(), resolver).unwrap();
    for host in [
        "169.254.169.254",
        "2852039166",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "metadata.google.internal",
        "169.254.169.254.nip.io",
    ] {
        let made = attempter.attempt(&owed(), &settings(impatient(&format!("http://{host}/")))).await;
        assert_eq!(made.attempt.failure(), Kind::BlockedAddress, "{host}");
    }
    assert_eq!(attempter.dialled(), 0);
}

/// A name that is public at first and private later, or both at once, never reaches the private address: a
/// thousand tries, each of which resolves anew, and once only. The part of the public address is played by
/// one of loopback that the policy allows alone.
#[tokio::test]
async fn rebinding_names_gain_nothing() {
    const TRIES: usize = 1_000;
    let public = Raw::start_at("127.0.0.2:0", |stream, _| async move {
        // Closed after each answer, so that every try needs a new connection.
        respond(stream, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let port = public.address.port();
    let private = Raw::start_at(&format!("127.0.0.1:{port}"), |stream, _| async move { drop(stream) }).await;
    let (good, bad): (IpAddr, IpAddr) = ("127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap());
    let resolver = Scripted::new(move |_, before| match before % 4 {
        0 => vec![good],
        1 => vec![bad],
        2 => vec![good, bad],
        _ => vec![bad, good],
    });
    let attempter = Attempter::with_resolver(
        policy(&["127.0.0.2/32"]),
        "agt_1",
        Metrics::new(),
        Arc::clone(&resolver) as Arc<dyn crate::pipeline::deliver::dial::Resolve>,
    )
    .unwrap();
    let config = settings(impatient(&format!("http://rebinding.example:{port}/")));
    for number in 0..TRIES {
        let made = attempter.attempt(&owed(), &config).await;
        if number % 4 == 0 {
            assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        } else {
            assert_eq!(made.attempt.failure(), Kind::BlockedAddress, "try {number}");
        }
    }
    assert_eq!((private.accepted(), public.accepted()), (0, TRIES / 4));
    assert_eq!((resolver.lookups(), attempter.dialled()), (TRIES, TRIES / 4));
}

/// A connection that is kept stays with the address it was made to, whatever the name says meanwhile.
#[tokio::test]
async fn kept_connections_stay_with_their_address() {
    let receiver = Receiver::start(ok).await;
    let (good, bad): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap());
    let resolver = Scripted::new(move |_, before| if before == 0 { vec![good] } else { vec![bad] });
    let attempter =
        Attempter::with_resolver(policy(&["127.0.0.0/8"]), "agt_1", Metrics::new(), resolver).unwrap();
    let config = settings(impatient(&format!("http://moving.example:{}/", receiver.address.port())));
    for _ in 0..3 {
        let made = attempter.attempt(&owed(), &config).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
    }
    assert_eq!(attempter.dialled(), 1);
}

/// What opens connections or looks names up.
const WAYS_OUT: [&str; 12] = [
    "reqwest",
    "client::conn",
    "client::legacy",
    "TcpStream::connect",
    "TcpSocket",
    "UdpSocket",
    "UnixStream::connect",
    "lookup_host",
    "to_socket_addrs",
    "ToSocketAddrs",
    "tonic::transport",
    "TlsConnector",
];

/// Nothing in the agent dials out but the dialer, and the connection to the control plane: whatever else
/// wants to reach a customer's server has to go through the dialer.
#[test]
fn nothing_else_dials_out() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    let mut ways_of_dialer = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if !name.ends_with("tests") {
                    folders.push(path);
                }
                continue;
            }
            if name.ends_with("tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let found: Vec<&str> = WAYS_OUT.into_iter().filter(|way| code.contains(way)).collect();
            if name.starts_with("pipeline/deliver/dial") {
                ways_of_dialer += found.len();
            } else if name == "control_plane/link.rs" {
                let ours = ["client::legacy", "tonic::transport", "TlsConnector"];
                assert!(found.iter().all(|way| ours.contains(way)), "{name} has {found:?}");
            } else if name.starts_with("control_plane") || name == "app.rs" {
                assert!(found.iter().all(|way| *way == "tonic::transport"), "{name} has {found:?}");
            } else {
                assert!(found.is_empty(), "{name} dials out by {found:?}");
            }
        }
    }
    assert!(ways_of_dialer >= 4, "the dialer is not where this test looks for it");
}
