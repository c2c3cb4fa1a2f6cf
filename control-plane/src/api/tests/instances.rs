use super::*;

async fn update(server: &Server, instance: v1::Instance, paths: &[&str]) -> Result<v1::Instance, Status> {
    let request = v1::UpdateInstanceRequest { instance: Some(instance), update_mask: mask(paths) };
    Ok(server.instances().update_instance(request).await?.into_inner().instance.unwrap())
}

/// An instance is created with what was given, and reads back the same; ids are made when missing.
#[tokio::test]
async fn instance_is_created_and_read_back() {
    let server = Server::start().await.with_route().await;
    let given = v1::Instance {
        phone_number: "966 11 000 0000".into(),
        regions: vec!["eu-1".into()],
        labels: [("team".to_owned(), "support".to_owned())].into(),
        ..instance("", "1001")
    };
    let created = server.create_instance(given).await.unwrap();
    assert!(created.id.starts_with("inst_") && created.tenant_id == "default");
    assert_eq!(created.phone_number, "+966110000000");
    assert!(created.create_time.is_some() && !created.etag.is_empty());
    let request = v1::GetInstanceRequest { id: created.id.clone() };
    let read = server.instances().get_instance(request).await.unwrap().into_inner().instance;
    assert_eq!(read, Some(created));
    server.stop().await;
}

/// A bad field is INVALID_ARGUMENT with its path; the parent is looked for first.
#[tokio::test]
async fn bad_instances_are_refused() {
    let server = Server::start().await.with_route().await;
    assert_eq!(bad_fields(server.create_instance(instance("Bad Id", "1")).await), ["instance.id"]);
    assert_eq!(bad_fields(server.create_instance(instance("in", "1")).await), ["instance.id"]);
    let no_route = v1::Instance { inbound_route_id: String::new(), ..instance("inst_1", "1") };
    assert_eq!(bad_fields(server.create_instance(no_route).await), ["instance.inbound_route_id"]);
    let nameless = v1::Instance { display_name: String::new(), ..instance("inst_1", "") };
    let fields = bad_fields(server.create_instance(nameless).await);
    assert_eq!(fields, ["instance.display_name", "instance.provider_number_id"]);
    let blank = v1::Instance { display_name: "  ".into(), ..instance("inst_1", "1") };
    assert_eq!(bad_fields(server.create_instance(blank).await), ["instance.display_name"]);
    let orphan = v1::Instance { inbound_route_id: "route_9".into(), ..instance("Bad Id", "1") };
    assert_eq!(refusal(server.create_instance(orphan).await).0, Code::NotFound);
    let nothing = server.instances().create_instance(v1::CreateInstanceRequest::default()).await;
    assert_eq!(bad_fields(nothing), ["instance"]);
    server.stop().await;
}

/// An id is given once, and a number once per route: phone-like numbers compare as digits.
#[tokio::test]
async fn ids_and_numbers_are_unique() {
    let server = Server::start().await.with_instance().await;
    let same_id = server.create_instance(instance("inst_1", "1002")).await;
    assert_eq!(refusal(same_id), (Code::AlreadyExists, "ALREADY_EXISTS".into()));
    server.create_instance(instance("inst_2", "+966110000000")).await.unwrap();
    let same_number = server.create_instance(instance("inst_3", "966110000000")).await;
    assert!(same_number.as_ref().unwrap_err().message().contains("inst_2"));
    assert_eq!(refusal(same_number), (Code::AlreadyExists, "NUMBER_TAKEN".into()));
    let moved = update(&server, instance("inst_1", "00966110000000"), &["provider_number_id"]).await;
    assert_eq!(refusal(moved).1, "NUMBER_TAKEN");
    let same = update(&server, instance("inst_2", "966110000000"), &["provider_number_id"]).await;
    assert_eq!(same.unwrap().provider_number_id, "966110000000");
    server.stop().await;
}

/// An inline route is created together with the instance, or neither is.
#[tokio::test]
async fn inline_route_is_created_with_the_instance() {
    let server = Server::start().await;
    let create = async |instance: v1::Instance, route: v1::InboundRoute| {
        let request = v1::CreateInstanceRequest {
            instance: Some(instance),
            inbound_route: Some(route),
            request_id: String::new(),
        };
        server.instances().create_instance(request).await.map(tonic::Response::into_inner)
    };
    let bad = create(instance("Bad", "1"), route("route_1")).await;
    assert_eq!(bad_fields(bad), ["instance.id"]);
    let get = v1::GetInboundRouteRequest { id: "route_1".into() };
    assert_eq!(refusal(server.routes().get_inbound_route(get).await).0, Code::NotFound);
    let contradiction = create(instance("inst_1", "1"), route("route_2")).await;
    assert_eq!(bad_fields(contradiction), ["instance.inbound_route_id"]);
    let unnamed = v1::Instance { inbound_route_id: String::new(), ..instance("inst_1", "1") };
    let created = create(unnamed, route("")).await.unwrap();
    let made = created.inbound_route.unwrap();
    assert!(made.id.starts_with("route_"));
    assert_eq!(created.instance.unwrap().inbound_route_id, made.id);
    server.stop().await;
}

/// Only fields of the mask change; an unknown, immutable or empty mask is refused with its name.
#[tokio::test]
async fn update_follows_the_mask() {
    let server = Server::start().await.with_instance().await;
    let wanted = v1::Instance { display_name: "New".into(), ..instance("inst_1", "9999") };
    let updated = update(&server, wanted.clone(), &["displayName"]).await.unwrap();
    assert_eq!((updated.display_name.as_str(), updated.provider_number_id.as_str()), ("New", "1001"));
    for paths in [&["nickname"][..], &["id"], &["etag"], &["labels.team"], &[]] {
        assert_eq!(bad_fields(update(&server, wanted.clone(), paths).await), ["update_mask"]);
    }
    let all = update(&server, wanted.clone(), &["*"]).await.unwrap();
    assert_eq!(all.provider_number_id, "9999");
    let unnamed = v1::Instance { display_name: String::new(), ..wanted };
    assert_eq!(bad_fields(update(&server, unnamed, &["display_name"]).await), ["instance.display_name"]);
    let orphaned = v1::Instance { inbound_route_id: "route_9".into(), ..instance("inst_1", "1") };
    assert_eq!(refusal(update(&server, orphaned, &["inbound_route_id"]).await).0, Code::NotFound);
    assert_eq!(refusal(update(&server, instance("inst_9", "1"), &["nickname"]).await).0, Code::NotFound);
    server.stop().await;
}

/// An etag that is not the current one is ABORTED, on update and on delete; the current one goes through.
#[tokio::test]
async fn stale_etag_is_aborted() {
    let server = Server::start().await.with_instance().await;
    let request = v1::GetInstanceRequest { id: "inst_1".into() };
    let first = server.instances().get_instance(request).await.unwrap().into_inner().instance.unwrap();
    let changed = v1::Instance { display_name: "Second".into(), ..first.clone() };
    let second = update(&server, changed, &["display_name"]).await.unwrap();
    assert_ne!(first.etag, second.etag);
    let stale = (Code::Aborted, "STALE_ETAG".to_owned());
    assert_eq!(refusal(update(&server, first.clone(), &["display_name"]).await), stale);
    let delete = async |etag: String| {
        let request = v1::DeleteInstanceRequest { id: "inst_1".into(), etag };
        server.instances().delete_instance(request).await
    };
    assert_eq!(refusal(delete(first.etag).await), stale);
    delete(second.etag).await.unwrap();
    assert_eq!(refusal(delete(String::new()).await).0, Code::NotFound);
    server.stop().await;
}

/// Pages go through all instances in order; a token of another list, other filters or nonsense is refused.
#[tokio::test]
async fn lists_page() {
    let server = Server::start().await.with_route().await;
    for number in 1..=5 {
        server.create_instance(instance(&format!("inst_{number}"), &number.to_string())).await.unwrap();
    }
    let list = async |page_size, page_token: &str, route: &str| {
        let request = v1::ListInstancesRequest {
            page_size,
            page_token: page_token.to_owned(),
            inbound_route_id: route.to_owned(),
        };
        server.instances().list_instances(request).await.map(tonic::Response::into_inner)
    };
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = list(2, &token, "").await.unwrap();
        seen.extend(page.instances.into_iter().map(|instance| instance.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["inst_1", "inst_2", "inst_3", "inst_4", "inst_5"]);
    assert_eq!(list(0, "", "route_1").await.unwrap().instances.len(), 5);
    assert!(list(0, "", "route_9").await.unwrap().instances.is_empty());
    let token = list(2, "", "").await.unwrap().next_page_token;
    assert_eq!(bad_fields(list(2, &token, "route_1").await), ["page_token"]);
    assert_eq!(bad_fields(list(2, "nonsense", "").await), ["page_token"]);
    assert_eq!(bad_fields(list(-1, "", "").await), ["page_size"]);
    let request = v1::ListInboundRoutesRequest { page_token: token, ..Default::default() };
    assert_eq!(bad_fields(server.routes().list_inbound_routes(request).await), ["page_token"]);
    server.stop().await;
}

/// A repeated request_id gives the first answer and creates nothing; with another body it is refused.
#[tokio::test]
async fn request_id_makes_creation_repeatable() {
    let server = Server::start().await.with_route().await;
    let create = async |instance: v1::Instance, request_id: &str| {
        let request = v1::CreateInstanceRequest {
            instance: Some(instance),
            inbound_route: None,
            request_id: request_id.to_owned(),
        };
        server.instances().create_instance(request).await.map(tonic::Response::into_inner)
    };
    let labels = (0..20).map(|number| (format!("k{number}"), "v".to_owned())).collect();
    let wanted = v1::Instance { labels, ..instance("", "1001") };
    let first = create(wanted.clone(), "once").await.unwrap();
    for _ in 0..5 {
        assert_eq!(create(wanted.clone(), "once").await.unwrap(), first);
    }
    let list = server.instances().list_instances(v1::ListInstancesRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().instances.len(), 1);
    assert_eq!(bad_fields(create(instance("", "1002"), "once").await), ["request_id"]);
    assert_eq!(bad_fields(create(instance("", "1002"), &"x".repeat(129)).await), ["request_id"]);
    server.stop().await;
}

/// What others refer to stays, with their names in the answer.
#[tokio::test]
async fn referenced_resources_are_not_deleted() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let in_use = (Code::FailedPrecondition, "IN_USE".to_owned());
    let delete_instance = async || {
        let request = v1::DeleteInstanceRequest { id: "inst_1".into(), ..Default::default() };
        server.instances().delete_instance(request).await
    };
    let delete_route = async || {
        let request = v1::DeleteInboundRouteRequest { id: "route_1".into(), ..Default::default() };
        server.routes().delete_inbound_route(request).await
    };
    let kept = delete_instance().await;
    assert!(kept.as_ref().unwrap_err().message().contains("sub_1"));
    assert_eq!(refusal(kept), in_use);
    let kept = delete_route().await;
    assert!(kept.as_ref().unwrap_err().message().contains("inst_1"));
    assert_eq!(refusal(kept), in_use);
    let request = v1::DeleteWebhookSubscriptionRequest { id: "sub_1".into(), ..Default::default() };
    server.subscriptions().delete_webhook_subscription(request).await.unwrap();
    delete_instance().await.unwrap();
    delete_route().await.unwrap();
    server.stop().await;
}

/// A fresh instance is diagnosed: no agent, no callback, nobody to deliver to, and the path to register.
#[tokio::test]
async fn diagnosis_names_what_is_missing() {
    let server = Server::start().await.with_instance().await;
    let request = v1::DiagnoseInstanceRequest { id: "inst_1".into() };
    let diagnosis = server.instances().diagnose_instance(request).await.unwrap().into_inner();
    let reasons: Vec<_> = diagnosis.findings.iter().map(|finding| finding.reason.as_str()).collect();
    assert_eq!(reasons, ["NO_AGENT_ONLINE", "NO_CALLBACK_YET", "NO_WEBHOOK_SUBSCRIPTION"]);
    assert!(diagnosis.callback_path.starts_with("/callbacks/meta/"));
    let request = v1::DiagnoseInstanceRequest { id: "inst_9".into() };
    assert_eq!(refusal(server.instances().diagnose_instance(request).await).0, Code::NotFound);
    server.stop().await;
}
