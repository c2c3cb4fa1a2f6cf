use super::*;

async fn create(server: &Server, opt_out: v1::OptOut) -> Result<v1::OptOut, Status> {
    let request = v1::CreateOptOutRequest { opt_out: Some(opt_out), ..Default::default() };
    Ok(server.opt_outs().create_opt_out(request).await?.into_inner().opt_out.unwrap())
}

async fn check(
    server: &Server,
    instance_id: &str,
    phone: &str,
    purpose: v1::Purpose,
) -> Result<v1::CheckSuppressionResponse, Status> {
    let request = v1::CheckSuppressionRequest {
        instance_id: instance_id.to_owned(),
        phone: phone.to_owned(),
        purpose: purpose.into(),
        ..Default::default()
    };
    Ok(server.opt_outs().check_suppression(request).await?.into_inner())
}

async fn update_policy(
    server: &Server,
    policy: v1::OptOutPolicy,
    paths: &[&str],
) -> Result<v1::OptOutPolicy, Status> {
    let request = v1::UpdateOptOutPolicyRequest { opt_out_policy: Some(policy), update_mask: mask(paths) };
    Ok(server.opt_outs().update_opt_out_policy(request).await?.into_inner().opt_out_policy.unwrap())
}

fn of(phone: &str) -> v1::OptOut {
    v1::OptOut { instance_id: "inst_1".into(), phone: phone.into(), ..Default::default() }
}

fn policy() -> v1::OptOutPolicy {
    v1::OptOutPolicy { instance_id: "inst_1".into(), ..Default::default() }
}

/// An opt-out suppresses what is not essential, for every national variant of the number, until it is
/// deleted; the record stays as an opt-in.
#[tokio::test]
async fn opt_out_suppresses_until_deleted() {
    let server = Server::start().await.with_instance().await;
    let unknown = check(&server, "inst_1", "+5511987654321", v1::Purpose::Marketing).await.unwrap();
    assert_eq!(unknown, v1::CheckSuppressionResponse { allowed: true, opt_out: None });
    let created = create(&server, of("+5511987654321")).await.unwrap();
    assert_eq!(created.state(), v1::OptOutState::OptedOut);
    assert_eq!((created.reason(), created.change_number), (v1::OptOutReason::Operator, 1));
    assert_eq!(created.event_time.unwrap().nanos, 0, "as coarse as providers' clocks");
    for (purpose, allowed) in [
        (v1::Purpose::Authentication, true),
        (v1::Purpose::Transactional, true),
        (v1::Purpose::Operational, false),
        (v1::Purpose::Support, false),
        (v1::Purpose::InternalTeam, false),
        (v1::Purpose::Marketing, false),
    ] {
        let answer = check(&server, "inst_1", "551187654321", purpose).await.unwrap();
        assert_eq!(answer.allowed, allowed, "{purpose:?}");
        assert_eq!(answer.opt_out.as_ref(), Some(&created));
    }
    let delete = async |etag: &str| {
        let request = v1::DeleteOptOutRequest { id: created.id.clone(), etag: etag.to_owned() };
        server.opt_outs().delete_opt_out(request).await
    };
    assert_eq!(refusal(delete("stale").await), (Code::Aborted, "STALE_ETAG".into()));
    delete(&created.etag).await.unwrap();
    delete("").await.unwrap();
    let request = v1::GetOptOutRequest { id: created.id.clone() };
    let ended = server.opt_outs().get_opt_out(request).await.unwrap().into_inner().opt_out.unwrap();
    assert_eq!((ended.state(), ended.change_number), (v1::OptOutState::OptedIn, 2));
    assert!(check(&server, "inst_1", "+5511987654321", v1::Purpose::Marketing).await.unwrap().allowed);
    server.stop().await;
}

/// Instance first, then contact and purpose: what is missing or unknown is named.
#[tokio::test]
async fn bad_opt_out_requests_are_refused() {
    let server = Server::start().await.with_instance().await;
    let marketing = v1::Purpose::Marketing;
    assert_eq!(refusal(check(&server, "inst_9", "", marketing).await).0, Code::NotFound);
    assert_eq!(bad_fields(check(&server, "", "", marketing).await), ["instance_id"]);
    assert_eq!(bad_fields(check(&server, "inst_1", "", marketing).await), ["phone"]);
    assert_eq!(bad_fields(check(&server, "inst_1", "abc", marketing).await), ["phone"]);
    let unspecified = check(&server, "inst_1", "+966500000001", v1::Purpose::Unspecified).await;
    assert_eq!(bad_fields(unspecified), ["purpose"]);
    let elsewhere = v1::OptOut { instance_id: "inst_9".into(), ..of("+966500000001") };
    assert_eq!(refusal(create(&server, elsewhere).await).0, Code::NotFound);
    assert_eq!(bad_fields(create(&server, of("")).await), ["opt_out.phone"]);
    let long = v1::OptOut { note: "x".repeat(501), ..of("+966500000001") };
    assert_eq!(bad_fields(create(&server, long).await), ["opt_out.note"]);
    let request = v1::GetOptOutRequest { id: "opt_unknown".into() };
    assert_eq!(refusal(server.opt_outs().get_opt_out(request).await).0, Code::NotFound);
    server.stop().await;
}

/// An opt-out counts at its own instance only, unless the policy of another one looks at the whole tenant.
#[tokio::test]
async fn policy_can_widen_to_the_tenant() {
    let server = Server::start().await.with_instance().await;
    server.create_instance(instance("inst_2", "1002")).await.unwrap();
    create(&server, of("+966500000001")).await.unwrap();
    let allowed =
        async || check(&server, "inst_2", "+966500000001", v1::Purpose::Marketing).await.unwrap().allowed;
    assert!(allowed().await);
    let wide = v1::OptOutPolicy { instance_id: "inst_2".into(), tenant_wide: true, ..policy() };
    update_policy(&server, wide, &["tenant_wide"]).await.unwrap();
    assert!(!allowed().await);
    server.stop().await;
}

/// Every instance has the default policy until it is updated; the mask, the etag and the values are
/// checked.
#[tokio::test]
async fn policy_is_default_until_updated() {
    let server = Server::start().await.with_instance().await;
    let get = async |id: &str| {
        let request = v1::GetOptOutPolicyRequest { instance_id: id.to_owned() };
        let response = server.opt_outs().get_opt_out_policy(request).await?;
        Ok::<_, Status>(response.into_inner().opt_out_policy.unwrap())
    };
    let default = get("inst_1").await.unwrap();
    assert!(default.keywords_enabled && default.languages.len() == 10 && default.update_time.is_none());
    assert_eq!(refusal(get("inst_9").await).0, Code::NotFound);
    let wanted = v1::OptOutPolicy { opt_out_keywords: vec!["genug".into()], ..default.clone() };
    let updated = update_policy(&server, wanted.clone(), &["opt_out_keywords"]).await.unwrap();
    assert!(updated.keywords_enabled && updated.opt_out_keywords == ["genug"]);
    assert_eq!(get("inst_1").await.unwrap(), updated);
    let stale = update_policy(&server, wanted, &["opt_out_keywords"]).await;
    assert_eq!(refusal(stale), (Code::Aborted, "STALE_ETAG".into()));
    assert_eq!(bad_fields(update_policy(&server, policy(), &["etag"]).await), ["update_mask"]);
    let odd = v1::OptOutPolicy { languages: vec!["tlh".into()], ..policy() };
    let fields = bad_fields(update_policy(&server, odd, &["languages"]).await);
    assert!(fields[0].starts_with("opt_out_policy.languages"), "{fields:?}");
    server.stop().await;
}

/// Lists filter by instance, phone and state; tokens are bound to the filters.
#[tokio::test]
async fn opt_outs_are_listed() {
    let server = Server::start().await.with_instance().await;
    for number in 1..=3 {
        create(&server, of(&format!("+96650000000{number}"))).await.unwrap();
    }
    let list = async |request: v1::ListOptOutsRequest| {
        server.opt_outs().list_opt_outs(request).await.map(tonic::Response::into_inner)
    };
    let first = list(v1::ListOptOutsRequest { page_size: 2, ..Default::default() }).await.unwrap();
    assert_eq!(first.opt_outs.len(), 2);
    let page_token = first.next_page_token;
    let rest = v1::ListOptOutsRequest { page_size: 2, page_token: page_token.clone(), ..Default::default() };
    assert_eq!(list(rest).await.unwrap().opt_outs.len(), 1);
    let other = v1::ListOptOutsRequest { page_token, state: 1, ..Default::default() };
    assert_eq!(bad_fields(list(other).await), ["page_token"]);
    let by_phone = v1::ListOptOutsRequest { phone: "966500000002".into(), ..Default::default() };
    assert_eq!(list(by_phone).await.unwrap().opt_outs[0].phone, "+966500000002");
    let opted_in = v1::ListOptOutsRequest { state: 2, ..Default::default() };
    assert!(list(opted_in).await.unwrap().opt_outs.is_empty());
    let bad = v1::ListOptOutsRequest { phone: "x".into(), ..Default::default() };
    assert_eq!(bad_fields(list(bad).await), ["phone"]);
    server.stop().await;
}

/// A repeated request_id gives the first answer, whatever happened since.
#[tokio::test]
async fn request_id_repeats_the_answer() {
    let server = Server::start().await.with_instance().await;
    let request = v1::CreateOptOutRequest { opt_out: Some(of("+966500000001")), request_id: "once".into() };
    let first = server.opt_outs().create_opt_out(request.clone()).await.unwrap().into_inner();
    let id = first.opt_out.as_ref().unwrap().id.clone();
    let delete = v1::DeleteOptOutRequest { id, ..Default::default() };
    server.opt_outs().delete_opt_out(delete).await.unwrap();
    assert_eq!(server.opt_outs().create_opt_out(request).await.unwrap().into_inner(), first);
    assert!(check(&server, "inst_1", "+966500000001", v1::Purpose::Marketing).await.unwrap().allowed);
    server.stop().await;
}
