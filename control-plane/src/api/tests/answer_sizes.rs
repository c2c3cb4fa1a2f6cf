//! No answer is too large for a client with the default limit of gRPC, whatever is stored.

use std::collections::HashSet;

use gateway_proto::v1::report::Report;
use prost_reflect::{DynamicMessage, Kind, MethodDescriptor, ReflectMessage as _, Value};

use super::{access::world::*, *};
use crate::{
    api::page::PAGE_BYTES_MAX,
    audit::{Audited, AuditedBy},
    store::{
        Store,
        agents::{self, NewAgent},
        api_keys,
        conformance::fixtures,
        inbound_routes::{self, StoredRoute},
        instances, tenants, webhook_subscriptions,
    },
};

/// What clients take by default (<https://github.com/grpc/grpc/blob/master/include/grpc/impl/channel_arg_names.h>,
/// `GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH`).
const CLIENT_BYTES_MAX: usize = 4 << 20;
/// Large entries of each kind. All of them are more than a client takes.
const ENTRIES: u8 = 4;
const EVENT: &str = "evt_aaaaaaaaaaaaaaaaaaaaaaaaaa";

fn large() -> String {
    "x".repeat(1_200_000)
}

fn store(server: &Server) -> &Store {
    &server.running.as_ref().unwrap().store
}

/// Stores what no request could make: each of it is far larger than its checks allow, so that a few are enough.
async fn put_resources(store: &Store) {
    let mut tx = store.begin_write().await.unwrap();
    for place in 0..ENTRIES {
        let mut tenant =
            v1::Tenant { id: format!("tenant-{place}"), display_name: large(), ..Default::default() };
        tenants::put(&mut tx, &mut tenant).await.unwrap();
        let StoredRoute { route, config } = fixtures::route(&format!("route_{place}"));
        let route = v1::InboundRoute { display_name: large(), ..route };
        inbound_routes::put(&mut tx, &mut StoredRoute { route, config }).await.unwrap();
        let id = format!("inst_{place}");
        let instance = fixtures::instance(&id, &format!("route_{place}"));
        let mut instance = v1::Instance { display_name: large(), ..instance };
        instances::put(&mut tx, &mut instance, &format!("number{place}")).await.unwrap();
        let mut config = fixtures::subscription(&format!("sub_{place}"), &id);
        config.webhook_subscription.as_mut().unwrap().pause_reason = large();
        webhook_subscriptions::put(&mut tx, &mut config).await.unwrap();
        let key = v1::ApiKey { id: format!("key_{place}"), ..key_of("default", v1::Role::Viewer) };
        let key = v1::ApiKey { display_name: large(), ..key };
        api_keys::create(&mut tx, &key, &[place; 32]).await.unwrap();
        let agent = NewAgent {
            id: format!("agt_{place}"),
            region: "eu-1".into(),
            build: large(),
            credential_hash: [100 + place; 32],
            tenant_id: None,
            certificate_expire_time: None,
        };
        agents::create_agent(&mut tx, &agent, gateway_runtime::clock::now()).await.unwrap();
        let change = v1::AuditChange { field: "display_name".into(), before: large(), after: String::new() };
        let audited =
            Audited { changes: vec![change], ..Audited::seen("TenantService/UpdateTenant", &tenant) };
        tx.audit(AuditedBy::agent("agt_1", None), audited).await.unwrap();
    }
    tx.commit().await.unwrap();
    let opt_out = |place: u8| v1::OptOut {
        external_message_id: large(),
        ..fixtures::opt_out(&format!("+96650000000{place}"), 1_700_000_000)
    };
    let opt_outs = (0..ENTRIES).map(opt_out).collect();
    store.record_opt_outs(AuditedBy::agent("agt_1", None), opt_outs).await.unwrap();
}

fn log_with(event_id: &str, change: impl FnOnce(&mut v1::EventReport)) -> Report {
    let Report::Event(mut report) = event("inst_0", event_id) else { unreachable!("it is an event") };
    change(&mut report);
    Report::Event(report)
}

/// Reports many logs of the largest size that lists show, one of them with many attempts, and large callbacks that
/// nobody claims.
async fn put_logs(server: &Server) {
    let log = |place: u8| {
        log_with(&format!("evt_{place}"), |report| {
            report.inbound_log.as_mut().unwrap().payload_json = "x".repeat(200_000);
        })
    };
    server.report((0..25).map(log).collect()).await;
    let attempts = log_with(EVENT, |report| {
        let attempt = |number| v1::DeliveryAttempt {
            attempt_id: format!("attempt_{number}"),
            attempt_number: number,
            error: "x".repeat(60_000),
            ..report.attempts[0].clone()
        };
        report.attempts = (1..=80).map(attempt).collect();
    });
    server.report(vec![attempts]).await;
    let callback = |place: u8| unrouted("route_0", &format!("{place}{}", large()));
    server.report((0..ENTRIES).map(callback).collect()).await;
}

/// The entries of a page, and the token of the next one.
fn read(method: &MethodDescriptor, answer: &[u8]) -> (Vec<Vec<u8>>, String) {
    let page = DynamicMessage::decode(method.output(), answer).unwrap();
    let lists = page.descriptor();
    let mut lists =
        lists.fields().filter(|field| field.is_list() && matches!(field.kind(), Kind::Message(_)));
    let list = lists.next().expect("a list");
    assert_eq!(lists.next(), None, "{} has two lists", name(method));
    let entries = page.get_field(&list);
    let entries = entries.as_list().unwrap().iter();
    let entries = entries.map(|entry| prost::Message::encode_to_vec(entry.as_message().unwrap())).collect();
    let token = page.get_field_by_name("next_page_token").unwrap().as_str().unwrap().to_owned();
    (entries, token)
}

/// Every List method of the contract, with more entries than a client takes at once and the largest page asked for:
/// its pages end before they are too large, and give every entry once. A List method that has no large entries here
/// fails.
#[tokio::test]
async fn every_list_fits_into_answers() {
    let server = Server::start().await;
    put_resources(store(&server)).await;
    put_logs(&server).await;
    let methods = operators_methods().into_iter();
    let lists: Vec<_> =
        methods.filter(|method| method.output().get_field_by_name("next_page_token").is_some()).collect();
    assert!(lists.len() >= 11, "the lists are found");
    for method in lists {
        let name = name(&method);
        let (mut entries, mut bytes, mut pages, mut token) = (HashSet::new(), 0, 0, String::new());
        loop {
            let mut request = DynamicMessage::new(method.input());
            request.set_field_by_name("page_size", Value::I32(1_000));
            request.set_field_by_name("page_token", Value::String(token));
            if name == "InboundLogService/ListDeliveryAttempts" {
                request.set_field_by_name("event_id", Value::String(EVENT.into()));
            }
            let request = prost::Message::encode_to_vec(&request);
            let answer = call(server.admin(), &method, request).await;
            let answer = answer.unwrap_or_else(|status| panic!("{name}: {status:?}"));
            assert!(answer.len() <= PAGE_BYTES_MAX + 1_024, "{name}: {} bytes", answer.len());
            let (given, next) = read(&method, &answer);
            assert!(!given.is_empty(), "{name} gives an empty page");
            for entry in given {
                bytes += entry.len();
                assert!(entries.insert(entry), "{name} gives an entry twice");
            }
            pages += 1;
            token = next;
            if token.is_empty() {
                break;
            }
        }
        assert!(
            bytes > CLIENT_BYTES_MAX && pages > 1,
            "{name} has only {bytes} bytes here: store larger ones"
        );
    }
    server.stop().await;
}

/// A diagnosis shows as many webhook subscriptions as fit, and says that there are more.
#[tokio::test]
async fn a_diagnosis_fits_into_an_answer() {
    let server = Server::start().await.with_instance().await;
    let mut tx = store(&server).begin_write().await.unwrap();
    for place in 0..60 {
        let mut config = fixtures::subscription(&format!("sub_{place:02}"), "inst_1");
        config.webhook_subscription.as_mut().unwrap().extra_ca_pem = "x".repeat(80_000);
        webhook_subscriptions::put(&mut tx, &mut config).await.unwrap();
    }
    tx.commit().await.unwrap();
    let request = v1::DiagnoseInstanceRequest { id: "inst_1".into() };
    let diagnosis = server.instances().diagnose_instance(request).await.unwrap().into_inner();
    let shown = diagnosis.webhook_subscriptions;
    assert!(diagnosis.has_more_webhook_subscriptions);
    assert!((20..60).contains(&shown.len()) && shown[0].id == "sub_00", "{}", shown.len());
    server.stop().await;
}

/// What is larger than any answer all the same is refused with a reason, on a call and in the middle of nothing else:
/// the next call on the connection works.
#[tokio::test]
async fn an_answer_that_is_too_large_has_a_reason() {
    let server = Server::start().await;
    let mut tx = store(&server).begin_write().await.unwrap();
    let mut tenant =
        v1::Tenant { id: "huge".into(), display_name: "x".repeat(CLIENT_BYTES_MAX), ..Default::default() };
    tenants::put(&mut tx, &mut tenant).await.unwrap();
    tx.commit().await.unwrap();
    let get = |id: &str| v1::GetTenantRequest { id: id.into() };
    let refused = refusal(tenants_of(&server).get_tenant(get("huge")).await);
    assert_eq!(refused, (Code::ResourceExhausted, "ANSWER_TOO_LARGE".to_owned()));
    tenants_of(&server).get_tenant(get("default")).await.unwrap();
    server.stop().await;
}

fn tenants_of(server: &Server) -> gateway_proto::v1::tenant_service_client::TenantServiceClient<Client> {
    access::world::tenants(server.admin())
}

/// A log with a body that no list shows is listed and watched without it, says so, and hides nothing behind it; Get has
/// the body.
#[tokio::test]
async fn a_large_log_hides_no_other() {
    let server = Server::start().await.with_instance().await;
    let with_body = |id: &str, bytes: usize| {
        log_with(id, |report| {
            report.inbound_log.as_mut().unwrap().payload_json = "x".repeat(bytes);
        })
    };
    server
        .report(vec![with_body("evt_1", 10), with_body("evt_2", 3_500_000), with_body("evt_3", 300_000)])
        .await;
    server.report(vec![with_body("evt_4", 5_000_000), with_body("evt_5", 10)]).await;
    let mut client = logs(server.admin());
    let listed = client.list_inbound_logs(v1::ListInboundLogsRequest::default()).await.unwrap().into_inner();
    let told: Vec<_> =
        listed.inbound_logs.iter().map(|log| (log.event_id.as_str(), log.payload_omitted)).collect();
    let expected = [("evt_5", false), ("evt_4", true), ("evt_3", true), ("evt_2", true), ("evt_1", false)];
    assert_eq!((told.as_slice(), listed.next_page_token.as_str()), (expected.as_slice(), ""));
    let start_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    let request = v1::WatchInboundLogsRequest { start_time, ..Default::default() };
    let mut watch = client.watch_inbound_logs(request).await.unwrap().into_inner();
    for (id, omitted) in expected.iter().rev() {
        for _ in ["recorded", "delivered"] {
            let told = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
            let log = told.inbound_log.unwrap();
            assert_eq!((log.event_id.as_str(), log.payload_omitted), (*id, *omitted));
            assert_eq!(log.payload_json.is_empty(), *omitted);
        }
    }
    for (id, bytes) in [("evt_2", 3_500_000), ("evt_3", 300_000), ("evt_4", 0)] {
        let request = v1::GetInboundLogRequest { event_id: id.into() };
        let log = client.get_inbound_log(request).await.unwrap().into_inner().inbound_log.unwrap();
        assert_eq!((log.payload_json.len(), log.payload_omitted), (bytes, bytes == 0), "{id}");
    }
    server.stop().await;
}
