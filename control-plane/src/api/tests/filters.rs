//! Filters and scopes that mean nothing are refused, not taken for an empty answer.

use gateway_proto::v1::audit_service_client::AuditServiceClient;

use super::{access::world::*, *};

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// A state that no agent is ever in is refused with its place; those that there are are watched.
#[tokio::test]
async fn unknown_agent_states_are_refused() {
    let server = Server::start().await;
    let watch = async |states: Vec<i32>| {
        let request = v1::WatchAgentsRequest { states, ..Default::default() };
        AgentServiceClient::new(server.admin()).watch_agents(request).await.map(|_| ())
    };
    let online = i32::from(v1::AgentState::Online);
    assert_eq!(bad_fields(watch(vec![online, 99, 0]).await), ["states[1]", "states[2]"]);
    watch(vec![online, v1::AgentState::Drained.into()]).await.unwrap();
    server.stop().await;
}

/// A list of audit entries of an unknown type of resource is refused, and one of a period that ends before it begins.
#[tokio::test]
async fn audit_filters_are_checked() {
    let server = Server::start().await;
    let list = async |request| AuditServiceClient::new(server.admin()).list_audit_entries(request).await;
    let misspelt = v1::ListAuditEntriesRequest { resource_type: "instances".into(), ..Default::default() };
    assert_eq!(bad_fields(list(misspelt).await), ["resource_type"]);
    let between =
        |start_time, end_time| v1::ListAuditEntriesRequest { start_time, end_time, ..Default::default() };
    assert_eq!(bad_fields(list(between(at(2), at(1))).await), ["end_time"]);
    list(between(at(1), at(1))).await.unwrap();
    list(between(at(2), None)).await.unwrap();
    server.stop().await;
}

/// Inbound logs are found by `webhook.test` alone and beside other events; a period that ends before it begins is
/// refused, and an unknown event with its place.
#[tokio::test]
async fn log_filters_are_checked() {
    let server = Server::start().await.with_instance().await;
    let test = |event_id: &str| match event("inst_1", event_id) {
        v1::report::Report::Event(mut report) => {
            report.inbound_log.as_mut().unwrap().event = "webhook.test".into();
            v1::report::Report::Event(report)
        }
        other => other,
    };
    server.report(vec![event("inst_1", "evt_1"), test("evt_2")]).await;
    let list = async |request| logs(server.admin()).list_inbound_logs(request).await;
    let found = async |events: &[&str]| {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        let listed = list(v1::ListInboundLogsRequest { events, ..Default::default() }).await?.into_inner();
        let mut ids: Vec<_> = listed.inbound_logs.into_iter().map(|log| log.event_id).collect();
        ids.sort();
        Ok::<_, Status>(ids)
    };
    assert_eq!(found(&["webhook.test"]).await.unwrap(), ["evt_2"]);
    assert_eq!(found(&["message.*"]).await.unwrap(), ["evt_1"]);
    assert_eq!(found(&["webhook.test", "message.received"]).await.unwrap(), ["evt_1", "evt_2"]);
    assert_eq!(bad_fields(found(&["webhook.test", "webhook.*"]).await), ["events[1]"]);
    let backwards = v1::ListInboundLogsRequest { start_time: at(2), end_time: at(1), ..Default::default() };
    assert_eq!(bad_fields(list(backwards).await), ["end_time"]);
    let watch = v1::WatchInboundLogsRequest { events: vec!["webhook.test".into()], ..Default::default() };
    logs(server.admin()).watch_inbound_logs(watch).await.unwrap();
    server.stop().await;
}

/// A scope that opens nothing to the role of its key is refused with its place, beside other bad fields; a service of
/// which the role may do something is taken.
#[tokio::test]
async fn scopes_beyond_the_role_are_refused() {
    let server = Server::start().await;
    let create = async |role, scopes: &[&str], display_name: &str| {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let key = v1::ApiKey { scopes, display_name: display_name.into(), ..key_of("default", role) };
        create_key(server.admin(), key).await
    };
    let beyond = ["TenantService/GetTenant", "TenantService/DeleteTenant", "AgentService"];
    let refused = create(v1::Role::Viewer, &beyond, "test").await;
    assert!(refused.as_ref().unwrap_err().message().contains("ROLE_VIEWER"));
    assert_eq!(bad_fields(refused), ["api_key.scopes[1]", "api_key.scopes[2]"]);
    let refused = create(v1::Role::TenantAdmin, &["Nonsense", beyond[1]], "").await;
    assert_eq!(bad_fields(refused), ["api_key.display_name", "api_key.scopes[0]", "api_key.scopes[1]"]);
    create(v1::Role::Viewer, &["TenantService"], "test").await.unwrap();
    server.stop().await;
}
