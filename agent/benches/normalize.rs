//! From the bytes of a Meta callback to events with their frozen webhook bodies; the signature is checked before and is
//! not in it.
//!
//! `cargo bench -p gateway-agent --bench normalize`

use std::{fs, hint::black_box, path::Path};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_agent::{
    pipeline::normalize::{Normalizer, Origin},
    provider::provider,
};
use gateway_core::snapshot::Snapshot;
use gateway_proto::v1::{self, config_resource::Resource};
use jiff::Timestamp;

/// One route, one number, and one webhook subscription to everything.
fn snapshot() -> Snapshot {
    let route = v1::InboundRouteConfig {
        id: "route-meta".to_owned(),
        provider: v1::Provider::Meta.into(),
        callback_token: "token".to_owned(),
        secrets: vec![v1::InboundRouteSecretValue {
            id: "secret-1".to_owned(),
            kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
            value: "an app secret".to_owned(),
        }],
        ..v1::InboundRouteConfig::default()
    };
    let instance = v1::Instance {
        id: "support-line".to_owned(),
        tenant_id: "default".to_owned(),
        display_name: "Support Line".to_owned(),
        inbound_route_id: "route-meta".to_owned(),
        provider_number_id: "106540352242922".to_owned(),
        phone_number: "+15550783881".to_owned(),
        ..v1::Instance::default()
    };
    let subscription = v1::WebhookSubscription {
        id: "sub-all".to_owned(),
        instance_id: "support-line".to_owned(),
        destination_url: "https://hooks.example.com/".to_owned(),
        events: vec!["*".to_owned()],
        ..v1::WebhookSubscription::default()
    };
    let secret = v1::SigningSecret {
        value: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        ..v1::SigningSecret::default()
    };
    let subscription = v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription),
        signing_secrets: vec![secret],
        ..v1::WebhookSubscriptionConfig::default()
    };
    let resources = [
        Resource::InboundRoute(route),
        Resource::Instance(instance),
        Resource::WebhookSubscription(subscription),
    ];
    let upserts = resources.map(|resource| v1::ConfigResource { version: 1, resource: Some(resource) });
    let response = v1::StreamConfigResponse {
        snapshot: true,
        version: 1,
        upserts: upserts.to_vec(),
        ..v1::StreamConfigResponse::default()
    };
    let (snapshot, refused) = Snapshot::default().apply(&response);
    assert!(refused.is_empty(), "{refused:?}");
    snapshot
}

fn measure(criterion: &mut Criterion) {
    let snapshot = snapshot();
    let route = snapshot.route("route-meta").expect("it is in the snapshot");
    let origin = Origin { agent_id: "agt_bench".to_owned(), region: "here".to_owned() };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/meta");
    let mut group = criterion.benchmark_group("normalize");
    for name in ["text", "status_delivered", "image", "batch"] {
        let body = fs::read(fixtures.join(format!("{name}.json"))).expect("it is among the fixtures");
        let normalize = || {
            let receive_time = Timestamp::UNIX_EPOCH;
            let parts = provider(route.provider).normalize(&body).expect("it is a callback");
            let normalizer =
                Normalizer { route, snapshot: &snapshot, origin: &origin, receive_time, replay_time: None };
            normalizer.normalize(parts).entry
        };
        assert!(!normalize().events.is_empty(), "{name} gives events");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group
            .bench_function(BenchmarkId::from_parameter(name), |bench| bench.iter(|| black_box(normalize())));
    }
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
