//! From the bytes of a callback to events with their frozen webhook bodies: one text message of each provider, and
//! more of Meta's. The signature is checked before and is not in it.
//!
//! `cargo bench -p gateway-agent --bench normalize`

use std::{fs, hint::black_box, path::Path};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_agent::{
    pipeline::normalize::{Normalizer, Origin},
    provider::provider,
};
use gateway_core::event::Provider;
use jiff::Timestamp;

#[path = "../fuzz/configuration.rs"]
mod configuration;

use configuration::{TOKEN, configuration};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What of Meta is measured beside a text message.
const MORE_OF_META: [&str; 3] = ["status_delivered", "image", "batch"];

fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("normalize");
    let texts = Provider::ALL.map(|name| (name, "text"));
    let more = MORE_OF_META.map(|fixture| (Provider::Meta, fixture));
    for (name, fixture) in texts.into_iter().chain(more) {
        let content = content(name, fixture);
        let parts = provider(name).normalize(&content).expect("it is a callback");
        let number = parts[0].target.number.clone().expect("it names a number");
        let snapshot = configuration(name, &number);
        let route = snapshot.route_by_token(TOKEN).expect("it is in the snapshot");
        let origin = Origin { agent_id: "agt_bench".to_owned(), region: "here".to_owned() };
        let normalize = || {
            let receive_time = Timestamp::UNIX_EPOCH;
            let parts = provider(name).normalize(&content).expect("it is a callback");
            let normalizer =
                Normalizer { route, snapshot: &snapshot, origin: &origin, receive_time, replay_time: None };
            normalizer.normalize(parts).entry
        };
        assert!(!normalize().events.is_empty(), "{fixture} of {} gives events", name.name());
        group.throughput(Throughput::Bytes(content.len() as u64));
        let id = BenchmarkId::new(name.name(), fixture);
        group.bench_function(id, |bench| bench.iter(|| black_box(normalize())));
    }
    group.finish();
}

/// The content of one of a provider's fixtures.
fn content(name: Provider, fixture: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name.name());
    let kind = if name == Provider::Twilio { "form" } else { "json" };
    let content = fs::read(directory.join(fixture).with_extension(kind)).expect("it is among the fixtures");
    content.trim_ascii_end().to_vec()
}

criterion_group!(benches, measure);
criterion_main!(benches);
