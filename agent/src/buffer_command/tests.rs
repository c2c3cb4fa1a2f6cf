//! What the tools print, and how they end.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use clap::Parser;
use gateway_agent::{
    metrics::Metrics,
    pipeline::buffer::{Buffer, Config, Entry, NewEvent},
};
use gateway_core::{event::EventType, id::EventId};
use gateway_proto::v1;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// Runs a command line. Returns the exit code and what was printed.
fn run_line(line: &[&str]) -> (u8, String) {
    let Line { command } = Line::try_parse_from(["buffer"].iter().chain(line)).unwrap();
    let mut out = Vec::new();
    let code = run_to(&command, &mut out);
    (code, String::from_utf8(out).unwrap())
}

fn config(data_dir: &Path) -> Config {
    Config {
        directory: data_dir.join("buffer"),
        bytes_max: 64 << 20,
        destination_share: 100,
        marks_bytes_max: 1 << 30,
        marks_gather: std::time::Duration::from_millis(5),
        segment_bytes: 64 << 10,
        disk_free_bytes_min: Some(0),
    }
}

async fn open(data_dir: &Path) -> Buffer {
    Buffer::open(config(data_dir), Metrics::new()).await.unwrap()
}

/// A data directory with a buffer of three events.
async fn three_events() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    let event = |number: u32| {
        let id = EventId::derive(&[&number.to_string()]);
        let log = v1::InboundLog {
            event_id: id.to_string(),
            payload_json: format!(r#"{{"message_text":"personal {number}"}}"#),
            ..v1::InboundLog::default()
        };
        NewEvent {
            id,
            event_type: EventType::MessageReceived,
            log,
            subscriptions: vec!["sub_a".parse().unwrap()],
        }
    };
    buffer.append(Entry { events: (0..3).map(event).collect(), ..Entry::default() }).await.unwrap();
    buffer.close().await;
    directory
}

fn damage(data_dir: &Path) {
    let journal = data_dir.join("buffer").join("journal");
    let path = fs::read_dir(journal).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    bytes[250] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Verifying ends with 0 when all is sound and with 1 when something is damaged, which it names; as JSON, too.
#[tokio::test]
async fn verify_tells_sound_from_damaged() {
    let directory = three_events().await;
    let data_dir = directory.path().to_str().unwrap();
    let (code, text) = run_line(&["verify", "--data-dir", data_dir]);
    assert_eq!(code, EXIT_SOUND, "{text}");
    assert!(text.contains("3 events with 3 deliveries") && text.ends_with("\nsound\n"), "{text}");
    assert!(!text.contains("personal"), "{text}");

    damage(directory.path());
    let (code, text) = run_line(&["verify", "--data-dir", data_dir]);
    assert_eq!(code, EXIT_DAMAGED);
    assert!(text.contains("at most 1 events are lost") && text.ends_with("\ndamaged\n"), "{text}");
    let (code, text) = run_line(&["verify", "--data-dir", data_dir, "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &json["is_sound"], &json["journal"]["events_open"]),
        (EXIT_DAMAGED, &false.into(), &2.into())
    );
    assert!(json["segments"][0]["damaged"][0]["offset"].as_u64() >= Some(128), "{json}");
}

/// While the agent runs, or where there is no buffer, every tool ends with 2.
#[tokio::test]
async fn refusals_end_with_two() {
    let directory = three_events().await;
    let data_dir = directory.path().to_str().unwrap();
    let buffer = Arc::new(open(directory.path()).await);
    let to = directory.path().join("to");
    let to = to.to_str().unwrap();
    for line in [vec!["verify"], vec!["export"], vec!["salvage", "--to", to]] {
        let in_use = [&line[..], &["--data-dir", data_dir]].concat();
        assert_eq!(run_line(&in_use), (EXIT_REFUSED, String::new()), "{line:?}");
        let missing = [&line[..], &["--data-dir", to]].concat();
        assert_eq!(run_line(&missing), (EXIT_REFUSED, String::new()), "{line:?}");
    }
    assert!(!Path::new(to).exists());
    buffer.close().await;
}

/// Exported events go into a new file that only its owner can read, and never over another file.
#[tokio::test]
async fn export_makes_a_closed_file() {
    let directory = three_events().await;
    let data_dir = directory.path().to_str().unwrap();
    let path = directory.path().join("events.jsonl");
    let line = ["export", "--data-dir", data_dir, "--output", path.to_str().unwrap()];
    assert_eq!(run_line(&line), (EXIT_SOUND, String::new()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let file = fs::read_to_string(&path).unwrap();
    assert_eq!(run_line(&line).0, EXIT_REFUSED);
    let (code, text) = run_line(&["export", "--data-dir", data_dir]);
    assert_eq!((code, &text), (EXIT_SOUND, &file));
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains(r#""payload":{"message_text":"personal 2"}"#), "{text}");
}

/// What was salvaged is counted, what was lost ends with 1, and the fresh buffer opens.
#[tokio::test]
async fn salvage_makes_a_buffer() {
    let directory = three_events().await;
    damage(directory.path());
    let to = directory.path().join("to");
    let line = ["salvage", "--data-dir", directory.path().to_str().unwrap(), "--to", to.to_str().unwrap()];
    let (code, text) = run_line(&line);
    assert_eq!(code, EXIT_DAMAGED);
    assert!(text.contains("2 events with 2 open deliveries") && text.contains("mv "), "{text}");
    assert_eq!(run_line(&line).0, EXIT_REFUSED, "it is not empty");
    let buffer = open(&to).await;
    assert_eq!(buffer.stats().events, 2);
    buffer.close().await;
}
