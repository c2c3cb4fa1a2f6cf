//! What signing a webhook costs: `v1` (HMAC-SHA256) and `v1a` (ed25519), with bodies of 600 bytes and 10 kB.
//!
//! `cargo bench -p gateway-agent --bench sign`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::signature::{SigningKey, WebhookSecret};

const ID: &str = "evt_2zxqxm4o4zq3vyy7qjv2hqkq5e";
const TIMESTAMP: i64 = 1_778_148_000;

fn measure(criterion: &mut Criterion) {
    let secret = WebhookSecret::from_key(&[7; 32]).expect("32 bytes are a secret");
    let key = SigningKey::from_seed(&[7; 32]);
    let mut group = criterion.benchmark_group("sign");
    for bytes in [600, 10_000] {
        let body = vec![b'x'; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("v1", bytes), |bench| {
            bench.iter(|| secret.sign(ID, TIMESTAMP, black_box(&body)));
        });
        group.bench_function(BenchmarkId::new("v1a", bytes), |bench| {
            bench.iter(|| key.sign(ID, TIMESTAMP, black_box(&body)));
        });
    }
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
