//! What the longest bodies cost in memory, by the worst that can be written in them: a callback is refused, or its
//! memory stays within a multiple of its bytes.

use allocation_counter::measure;
use gateway_agent::{
    pipeline::normalize::{Normalizer, Origin},
    provider::{NormalizeError, provider},
};
use gateway_core::event::Provider;
use jiff::Timestamp;

#[path = "../fuzz/configuration.rs"]
mod configuration;

use configuration::{TOKEN, configuration};

/// The longest body that is taken, in bytes.
const BODY_BYTES: usize = 4 << 20;

#[test]
fn measure_all() {
    for name in Provider::ALL {
        for (what, content) in hostile(name) {
            let snapshot = configuration(name, "106540352242922");
            let mut outcome = String::new();
            let started = std::time::Instant::now();
            let info = measure(|| {
                let parts = provider(name).normalize(&content);
                match parts {
                    Err(NormalizeError::TooManyItems) => outcome = "too many".to_owned(),
                    Err(NormalizeError::Unreadable) => outcome = "unreadable".to_owned(),
                    Ok(parts) => {
                        let origin = Origin { agent_id: "agt".to_owned(), region: "here".to_owned() };
                        let normalizer = Normalizer {
                            route: snapshot.route_by_token(TOKEN).unwrap(),
                            snapshot: &snapshot,
                            origin: &origin,
                            receive_time: Timestamp::UNIX_EPOCH,
                            replay_time: None,
                        };
                        let n = parts.len();
                        let normalized = normalizer.normalize(parts);
                        outcome = format!(
                            "{n} parts {} events {} unrouted",
                            normalized.entry.events.len(),
                            normalized.entry.unrouted.len()
                        );
                    }
                }
            });
            println!(
                "{:12} {:40} in {:8} peak {:10} ({:5.1}x) {:?} {outcome}",
                name.name(),
                what,
                content.len(),
                info.bytes_max,
                info.bytes_max as f64 / content.len() as f64,
                started.elapsed()
            );
        }
    }
}

fn hostile(_name: Provider) -> Vec<(&'static str, Vec<u8>)> {
    let n = BODY_BYTES;
    let list = |item: &str| {
        let count = n / (item.len() + 1) - 1;
        format!("[{}]", vec![item; count].join(","))
    };
    let obj = |field: &str| {
        let count = n / (field.len() + 1) - 1;
        format!("{{{}}}", vec![field; count].join(","))
    };
    [
        ("open brackets", "[".repeat(n)),
        ("brackets", "[".repeat(n / 2) + &"]".repeat(n / 2)),
        ("objects", r#"{"a":"#.repeat(n / 5)),
        ("closed objects", r#"{"a":"#.repeat(n / 6) + "1" + &"}".repeat(n / 6)),
        ("list of numbers", list("0")),
        ("list of objects", list("{}")),
        ("object of fields", obj(r#""":0"#)),
        ("escaped fields", obj(r#""\n":0"#)),
        ("a long string", format!(r#"{{"a":"{}"}}"#, "x".repeat(n - 10))),
        ("escapes", format!(r#"{{"a":"{}"}}"#, r"\u0001".repeat(n / 6 - 10))),
        ("quotes", format!(r#"{{"a":"{}"}}"#, "\\\"".repeat(n / 2 - 10))),
        ("parameters", "a&".repeat(n / 2)),
        ("few parameters", "a=b&".repeat(9_990)),
        ("control chars", format!("MessageSid=SM1&From=a&To=b&Body={}", "\u{1}".repeat(n - 40))),
    ]
    .map(|(name, text)| (name, text.into_bytes()))
    .into()
}
