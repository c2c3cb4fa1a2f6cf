//! One control plane, every audited method once.

use super::*;

/// Calls that change something, and the entries that they are to leave, in order.
struct Doer {
    server: Server,
    expected: Vec<(&'static str, &'static str, String)>,
}

impl Doer {
    /// Expects an entry: method, type and id of the resource.
    fn expect(&mut self, method: &'static str, resource_type: &'static str, resource_id: impl Into<String>) {
        self.expected.push((method, resource_type, resource_id.into()));
    }

    async fn routes(&mut self) {
        let mut client = self.server.routes();
        let inbound_route = Some(route("route_1"));
        let request = v1::CreateInboundRouteRequest { inbound_route, ..Default::default() };
        client.create_inbound_route(request).await.unwrap();
        self.expect("InboundRouteService/CreateInboundRoute", "inbound_route", "route_1");
        let renamed =
            v1::InboundRoute { id: "route_1".into(), display_name: "Main".into(), ..Default::default() };
        let update_mask = mask(&["display_name"]);
        let request = v1::UpdateInboundRouteRequest { inbound_route: Some(renamed), update_mask };
        client.update_inbound_route(request).await.unwrap();
        self.expect("InboundRouteService/UpdateInboundRoute", "inbound_route", "route_1");
        let request = v1::AddInboundRouteSecretRequest {
            id: "route_1".into(),
            kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
            value: "planted-second-secret".into(),
            ..Default::default()
        };
        let added = client.add_inbound_route_secret(request).await.unwrap().into_inner().secret.unwrap();
        self.expect("InboundRouteService/AddInboundRouteSecret", "inbound_route", "route_1");
        let request = v1::RemoveInboundRouteSecretRequest { id: "route_1".into(), secret_id: added.id };
        client.remove_inbound_route_secret(request).await.unwrap();
        self.expect("InboundRouteService/RemoveInboundRouteSecret", "inbound_route", "route_1");
    }

    async fn instances(&mut self) {
        let mut inline = route("route_2");
        inline.display_name = "Second".into();
        let request = v1::CreateInstanceRequest {
            instance: Some(v1::Instance {
                inbound_route_id: "route_2".into(),
                phone_number: "+4915112345678".into(),
                ..instance("inst_1", "1001")
            }),
            inbound_route: Some(inline),
            ..Default::default()
        };
        self.server.instances().create_instance(request).await.unwrap();
        self.expect("InstanceService/CreateInstance", "inbound_route", "route_2");
        self.expect("InstanceService/CreateInstance", "instance", "inst_1");
        let moved = v1::Instance { regions: vec!["eu".into()], ..instance("inst_1", "1001") };
        let request = v1::UpdateInstanceRequest {
            instance: Some(moved),
            update_mask: mask(&["regions", "display_name"]),
        };
        self.server.instances().update_instance(request).await.unwrap();
        self.expect("InstanceService/UpdateInstance", "instance", "inst_1");
    }

    async fn subscriptions(&mut self) {
        const TYPE: &str = "webhook_subscription";
        let id = || "sub_1".to_owned();
        let mut made = subscription("sub_1");
        made.destination_url = "https://example.com/hook?token=planted-query".into();
        made.headers.insert("X-Token".into(), "planted-header".into());
        let bearer = v1::BearerAuthentication { token: "planted-bearer".into() };
        let method = Some(v1::destination_authentication::Method::Bearer(bearer));
        made.authentication = Some(v1::DestinationAuthentication { method });
        self.server.create_subscription(made).await.unwrap();
        self.expect("WebhookSubscriptionService/CreateWebhookSubscription", TYPE, "sub_1");
        update(&self.server, subscription("sub_1"), &["events", "destination_url"]).await.unwrap();
        self.expect("WebhookSubscriptionService/UpdateWebhookSubscription", TYPE, "sub_1");
        let mut client = self.server.subscriptions();
        let request = v1::PauseWebhookSubscriptionRequest { id: id(), reason: "repairs".into() };
        client.pause_webhook_subscription(request).await.unwrap();
        self.expect("WebhookSubscriptionService/PauseWebhookSubscription", TYPE, "sub_1");
        let request = v1::ResumeWebhookSubscriptionRequest { id: id() };
        client.resume_webhook_subscription(request).await.unwrap();
        self.expect("WebhookSubscriptionService/ResumeWebhookSubscription", TYPE, "sub_1");
        let request = v1::RotateSigningSecretRequest { id: id(), grace_period: None };
        client.rotate_signing_secret(request).await.unwrap();
        self.expect("WebhookSubscriptionService/RotateSigningSecret", TYPE, "sub_1");
        client.get_signing_secret(v1::GetSigningSecretRequest { id: id() }).await.unwrap();
        self.expect("WebhookSubscriptionService/GetSigningSecret", TYPE, "sub_1");
        client.send_test_event(v1::SendTestEventRequest { id: id() }).await.unwrap();
        self.expect("WebhookSubscriptionService/SendTestEvent", TYPE, "sub_1");
    }

    async fn opt_outs(&mut self) {
        let opt_out = v1::OptOut {
            instance_id: "inst_1".into(),
            phone: "+966500000001".into(),
            note: "planted-note".into(),
            ..Default::default()
        };
        let request = v1::CreateOptOutRequest { opt_out: Some(opt_out), ..Default::default() };
        let made =
            self.server.opt_outs().create_opt_out(request).await.unwrap().into_inner().opt_out.unwrap();
        self.expect("OptOutService/CreateOptOut", "opt_out", &made.id);
        for _ in 0..2 {
            let request = v1::DeleteOptOutRequest { id: made.id.clone(), ..Default::default() };
            self.server.opt_outs().delete_opt_out(request).await.unwrap();
        }
        self.expect("OptOutService/DeleteOptOut", "opt_out", &made.id);
        let policy =
            v1::OptOutPolicy { instance_id: "inst_1".into(), tenant_wide: true, ..Default::default() };
        let request = v1::UpdateOptOutPolicyRequest {
            opt_out_policy: Some(policy),
            update_mask: mask(&["tenant_wide"]),
        };
        self.server.opt_outs().update_opt_out_policy(request).await.unwrap();
        self.expect("OptOutService/UpdateOptOutPolicy", "opt_out_policy", "inst_1");
    }

    async fn tenants(&mut self) {
        let mut client = self.server.tenants();
        let tenant = |display_name: &str| {
            Some(v1::Tenant { id: "acme".into(), display_name: display_name.into(), ..Default::default() })
        };
        let request = v1::CreateTenantRequest { tenant: tenant(""), ..Default::default() };
        client.create_tenant(request).await.unwrap();
        self.expect("TenantService/CreateTenant", "tenant", "acme");
        let request =
            v1::UpdateTenantRequest { tenant: tenant("Acme"), update_mask: mask(&["display_name"]) };
        client.update_tenant(request).await.unwrap();
        self.expect("TenantService/UpdateTenant", "tenant", "acme");
        let key = v1::ApiKey {
            tenant_id: "acme".into(),
            role: v1::Role::Viewer.into(),
            display_name: "Dashboard".into(),
            ..Default::default()
        };
        let request = v1::CreateApiKeyRequest { api_key: Some(key), ..Default::default() };
        let made = client.create_api_key(request).await.unwrap().into_inner().api_key.unwrap();
        self.expect("TenantService/CreateApiKey", "api_key", &made.id);
        for _ in 0..2 {
            client
                .revoke_api_key(v1::RevokeApiKeyRequest { id: made.id.clone(), ..Default::default() })
                .await
                .unwrap();
        }
        self.expect("TenantService/RevokeApiKey", "api_key", &made.id);
        let request = v1::DeleteTenantRequest { id: "acme".into(), ..Default::default() };
        client.delete_tenant(request).await.unwrap();
        self.expect("TenantService/DeleteTenant", "tenant", "acme");
    }

    /// Gives the agent's id.
    async fn agents(&mut self) -> String {
        let mut client = AgentServiceClient::new(self.server.admin());
        let request = v1::CreateJoinTokenRequest { region: "eu".into(), ..Default::default() };
        let made = client.create_join_token(request).await.unwrap().into_inner();
        let join_token = made.join_token;
        assert!(made.id.starts_with("jt_") && made.id.len() == 19, "{}", made.id);
        self.expect("AgentService/CreateJoinToken", "join_token", made.id);
        let request = v1::EnrollAgentRequest { join_token, build: "1.0.0".into(), ..Default::default() };
        let mut open = AgentSyncServiceClient::new(self.server.channel.clone());
        let enrolled = open.enroll_agent(request).await.unwrap().into_inner();
        self.expect("AgentSyncService/EnrollAgent", "agent", &enrolled.agent_id);
        self.reports(&enrolled.credential).await;
        let id = enrolled.agent_id;
        client.drain_agent(v1::DrainAgentRequest { id: id.clone(), undo: false }).await.unwrap();
        self.expect("AgentService/DrainAgent", "agent", &id);
        client.revoke_agent(v1::RevokeAgentRequest { id: id.clone() }).await.unwrap();
        self.expect("AgentService/RevokeAgent", "agent", &id);
        id
    }

    /// An agent reports a STOP, twice, and a destination that is gone.
    async fn reports(&mut self, credential: &str) {
        let opt_out = v1::OptOut {
            instance_id: "inst_1".into(),
            phone: "+966500000002".into(),
            state: v1::OptOutState::OptedOut.into(),
            reason: v1::OptOutReason::RecipientRequestedStop.into(),
            keyword: "planted-keyword".into(),
            external_message_id: "planted-wamid".into(),
            event_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            change_number: 1,
            ..Default::default()
        };
        let gone = v1::DestinationGone {
            subscription_id: "sub_1".into(),
            destination_url: "https://example.com/hook".into(),
            ..Default::default()
        };
        let reports = [
            v1::report::Report::OptOut(opt_out.clone()),
            v1::report::Report::OptOut(opt_out),
            v1::report::Report::DestinationGone(gone),
        ];
        let numbered = (1..).zip(reports);
        let reports =
            numbered.map(|(sequence, report)| v1::Report { sequence, report: Some(report) }).collect();
        let request = v1::ReportLogsRequest { buffer_id: "buffer".into(), reports };
        let mut client = AgentSyncServiceClient::new(self.server.with(Bearer::new(credential)));
        let mut acks = client.report_logs(tokio_stream::once(request)).await.unwrap().into_inner();
        assert_eq!(acks.message().await.unwrap().unwrap().acked_sequence, 3);
        let list = v1::ListOptOutsRequest { phone: "+966500000002".into(), ..Default::default() };
        let found = self.server.opt_outs().list_opt_outs(list).await.unwrap().into_inner().opt_outs;
        self.expect("AgentSyncService/ReportLogs", "opt_out", &found[0].id);
        self.expect("PauseWebhookSubscription", "webhook_subscription", "sub_1");
    }

    async fn deletions(&mut self) {
        let request = v1::DeleteWebhookSubscriptionRequest { id: "sub_1".into(), ..Default::default() };
        self.server.subscriptions().delete_webhook_subscription(request).await.unwrap();
        self.expect("WebhookSubscriptionService/DeleteWebhookSubscription", "webhook_subscription", "sub_1");
        let request = v1::DeleteInstanceRequest { id: "inst_1".into(), ..Default::default() };
        self.server.instances().delete_instance(request).await.unwrap();
        self.expect("InstanceService/DeleteInstance", "instance", "inst_1");
        let request = v1::DeleteInboundRouteRequest { id: "route_1".into(), ..Default::default() };
        self.server.routes().delete_inbound_route(request).await.unwrap();
        self.expect("InboundRouteService/DeleteInboundRoute", "inbound_route", "route_1");
    }
}

fn change(field: &str, before: &str, after: &str) -> v1::AuditChange {
    v1::AuditChange { field: field.into(), before: before.into(), after: after.into() }
}

#[track_caller]
fn changes_of<'a>(entries: &'a [v1::AuditEntry], method: &str) -> &'a [v1::AuditChange] {
    &entries.iter().find(|entry| entry.method.ends_with(method)).unwrap().changes
}

/// Every audited method leaves exactly one entry per resource that it changed, with who, from where and what;
/// so does what the gateway does by itself. Nothing secret or personal is in any of them.
#[tokio::test]
async fn every_change_leaves_one_entry() {
    let mut doer = Doer { server: Server::start().await, expected: Vec::new() };
    doer.routes().await;
    doer.instances().await;
    doer.subscriptions().await;
    doer.opt_outs().await;
    doer.tenants().await;
    let agent_id = doer.agents().await;
    doer.deletions().await;
    let Doer { server, expected } = doer;
    let entries = server.entries().await;
    let found = entries
        .iter()
        .map(|entry| (entry.method.as_str(), entry.resource_type.as_str(), entry.resource_id.clone()));
    assert_eq!(found.collect::<Vec<_>>(), expected);
    let mut methods: Vec<_> = expected.iter().map(|(method, ..)| *method).collect();
    methods.sort_unstable();
    methods.dedup();
    methods.retain(|method| *method != "PauseWebhookSubscription");
    assert_eq!(methods, AUDITED);
    for entry in &entries {
        let by_agent = entry.method.starts_with("AgentSyncService/");
        let by_gateway = !entry.method.contains('/');
        let agent = format!("agent:{agent_id}");
        let actor = if by_gateway {
            "gateway"
        } else if by_agent {
            &agent
        } else {
            "admin_key"
        };
        assert_eq!(entry.actor, actor, "{entry:?}");
        assert_eq!(entry.source_address.starts_with("127.0.0.1:"), !by_gateway, "{entry:?}");
        let text = format!("{entry:?}");
        for secret in ["planted", "whsec_", "whsk_", "join_1", "+49151", "+9665", "BEGIN"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    for (_, resource_type, _) in &expected {
        let request =
            v1::ListAuditEntriesRequest { resource_type: (*resource_type).to_owned(), ..Default::default() };
        let listed = server.audit().list_audit_entries(request).await.unwrap().into_inner();
        assert!(!listed.audit_entries.is_empty(), "{resource_type}");
    }
    let hidden = "\"(hidden)\"";
    let created = changes_of(&entries, "/CreateWebhookSubscription");
    assert!(created.contains(&change("headers[X-Token]", "", hidden)), "{created:?}");
    assert!(created.contains(&change("authentication.bearer.token", "", hidden)), "{created:?}");
    let url = change("destination_url", "", "\"https://example.com/hook?(hidden)\"");
    assert!(created.contains(&url), "{created:?}");
    let renamed = changes_of(&entries, "/UpdateInboundRoute");
    assert_eq!(renamed, [change("display_name", "\"\"", "\"Main\"")]);
    assert_eq!(changes_of(&entries, "/UpdateInstance"), [change("regions", "[]", "[\"eu\"]")]);
    assert_eq!(changes_of(&entries, "/GetSigningSecret"), []);
    assert_eq!(changes_of(&entries, "/RotateSigningSecret").len(), 2);
    server.stop().await;
}
