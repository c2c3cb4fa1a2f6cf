//! An opt-out is heard, told to the customer, answered to whoever asks, and kept.

use anyhow::ensure;
use gateway_proto::v1::{self, Purpose};
use gateway_tests::{
    DEADLINE, Reply, Webhook, Within as _, World, eventually,
    meta::{status, text_message_at, unique_wamid},
    world::INSTANCE_ID,
};
use serde_json::json;
use std::sync::Arc;

const FROM: &str = "966500000001";
const NOON: i64 = 1_778_241_600;

async fn check(world: &World, phone: &str, purpose: Purpose) -> anyhow::Result<v1::CheckSuppressionResponse> {
    let request = v1::CheckSuppressionRequest {
        instance_id: INSTANCE_ID.to_owned(),
        phone: phone.to_owned(),
        purpose: purpose.into(),
        ..Default::default()
    };
    Ok(world.client().opt_outs().check_suppression(request).await?.into_inner())
}

/// Waits until marketing to `phone` is allowed or not.
async fn marketing(
    world: &World,
    phone: &str,
    allowed: bool,
) -> anyhow::Result<v1::CheckSuppressionResponse> {
    eventually(DEADLINE, async || {
        let answer = check(world, phone, Purpose::Marketing).await?;
        ensure!(
            answer.allowed == allowed,
            "marketing is {}",
            if answer.allowed { "allowed" } else { "suppressed" }
        );
        Ok(answer)
    })
    .await
}

async fn write(world: &World, from: &str, text: &str, timestamp: i64) -> String {
    let wamid = unique_wamid();
    let callback = world.provider.messages(&[text_message_at(&wamid, from, text, timestamp)]);
    assert_eq!(world.provider.post(&callback).await.unwrap().status, 200);
    wamid
}

async fn told(world: &World, event: &str, phone: &str) -> Arc<Webhook> {
    let webhook = world.receiver.find(|webhook| webhook.event() == event && webhook.text("from") == phone);
    webhook.within(DEADLINE).await.unwrap()
}

/// How many different events of a name were told. A crash may tell one of them again.
fn count(world: &World, event: &str) -> usize {
    world.receiver.by_id().values().filter(|webhooks| webhooks[0].event() == event).count()
}

/// STOP gives `message.received` and one `recipient.opted_out`; CheckSuppression refuses marketing and
/// lets authentication through; a second STOP changes nothing; START opts in again. All of it outlives a
/// crash of the agent.
#[tokio::test]
async fn stop_suppresses_and_start_ends_it() {
    let mut world = World::start().await.unwrap();
    assert!(check(&world, "+966500000001", Purpose::Marketing).await.unwrap().allowed);
    let wamid = write(&world, FROM, "STOP", NOON).await;
    let received = world.receiver.find(|webhook| {
        webhook.event() == "message.received" && webhook.text("external_message_id") == wamid
    });
    received.within(DEADLINE).await.unwrap().verify(&world.secret).unwrap();
    let webhook = told(&world, "recipient.opted_out", "+966500000001").await;
    webhook.verify(&world.secret).unwrap();
    assert_eq!(webhook.text("reason"), "recipient_requested_stop");
    assert_eq!(webhook.text("message_text"), "STOP");
    let refused = marketing(&world, "+966500000001", false).await.unwrap().opt_out.unwrap();
    assert_eq!(refused.state(), v1::OptOutState::OptedOut);
    assert_eq!(refused.reason(), v1::OptOutReason::RecipientRequestedStop);
    assert_eq!((refused.keyword.as_str(), refused.external_message_id.as_str()), ("stop", wamid.as_str()));
    for (purpose, allowed) in [
        (Purpose::Authentication, true),
        (Purpose::Transactional, true),
        (Purpose::Operational, false),
        (Purpose::Support, false),
        (Purpose::InternalTeam, false),
    ] {
        let answer = check(&world, "966500000001", purpose).await.unwrap();
        assert_eq!(answer.allowed, allowed, "{purpose:?}");
    }
    world.agent.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    let second = write(&world, FROM, "stop!!", NOON + 60).await;
    world.delivered(&second).await.unwrap();
    let start = write(&world, FROM, "START", NOON + 120).await;
    world.delivered(&start).await.unwrap();
    told(&world, "recipient.opted_in", "+966500000001").await;
    marketing(&world, "+966500000001", true).await.unwrap();
    assert_eq!((count(&world, "recipient.opted_out"), count(&world, "recipient.opted_in")), (1, 1));
    // A late repeat of the first STOP must not undo the newer START.
    let late = write(&world, FROM, "STOP", NOON + 30).await;
    world.delivered(&late).await.unwrap();
    assert!(check(&world, "+966500000001", Purpose::Marketing).await.unwrap().allowed);
    assert_eq!(count(&world, "recipient.opted_out"), 1);
}

/// The default keyword set works in ten languages and in the disguises that phones and people add, and
/// whole messages only.
#[tokio::test]
async fn keywords_of_many_languages_count() {
    const OUT: [&str; 16] = [
        "STOP",
        "🛑 Stop!!!",
        "ＳＴＯＰ",
        "opt-out",
        "unsubscribe",
        "إيقاف",
        "إِلْغَاءُ الاِشْتِرَاكِ",
        "darme de baja",
        "SAIR",
        "Désabonner",
        "abmelden",
        "रोकें",
        "بند کریں",
        "İPTAL",
        "çıkış",
        "berhenti",
    ];
    const NOT_OUT: [&str; 4] = ["don't stop", "stop it, I like it", "وقف السيارة عند المحل؟", "cancel"];
    let world = World::start().await.unwrap();
    let texts: Vec<&str> = OUT.into_iter().chain(NOT_OUT).collect();
    for (index, text) in texts.iter().enumerate() {
        write(&world, &format!("9665000001{index:02}"), text, NOON).await;
    }
    for (index, text) in texts.iter().enumerate() {
        let phone = format!("+9665000001{index:02}");
        if index < OUT.len() {
            let answer = marketing(&world, &phone, false).await;
            assert!(answer.is_ok(), "{text} did not opt out: {answer:?}");
            assert_eq!(told(&world, "recipient.opted_out", &phone).await.text("message_text"), *text);
        }
    }
    for (index, text) in texts.iter().enumerate().skip(OUT.len()) {
        let answer = check(&world, &format!("+9665000001{index:02}"), Purpose::Marketing).await.unwrap();
        assert!(answer.allowed, "{text} opted out");
    }
    assert_eq!(count(&world, "recipient.opted_out"), OUT.len());
}

/// WhatsApp's own control and the error code that says so count as opt-outs of marketing; a button labelled
/// like a keyword counts too; reactions and echoes do not.
#[tokio::test]
async fn provider_signals_count() {
    let world = World::selecting(&["*"]).await.unwrap();
    let provider = &world.provider;
    let mut failed = status("wamid.marketing", "966500000011", "failed");
    failed["errors"] = json!([{"code": 131_050, "title": "User has stopped marketing messages"}]);
    let button = json!({
        "from": "966500000012", "id": unique_wamid(), "timestamp": NOON.to_string(),
        "type": "button", "button": {"text": "Unsubscribe", "payload": "Unsubscribe"},
    });
    let reaction = json!({
        "from": "966500000013", "id": unique_wamid(), "timestamp": NOON.to_string(),
        "type": "reaction", "reaction": {"message_id": "wamid.1", "emoji": "STOP"},
    });
    for callback in [
        provider.preference("966500000010", "stop", NOON),
        provider.statuses(&[failed]),
        provider.messages(&[button, reaction]),
    ] {
        assert_eq!(provider.post(&callback).await.unwrap().status, 200);
    }
    for (phone, reason) in [
        ("+966500000010", "provider_preference"),
        ("+966500000011", "provider_error"),
        ("+966500000012", "recipient_requested_stop"),
    ] {
        assert_eq!(told(&world, "recipient.opted_out", phone).await.text("reason"), reason);
        marketing(&world, phone, false).await.unwrap();
    }
    let answer = check(&world, "+966500000010", Purpose::Support).await.unwrap();
    assert!(answer.allowed, "WhatsApp's control covers marketing only");
    assert!(check(&world, "+966500000013", Purpose::Marketing).await.unwrap().allowed);
    assert_eq!(
        provider.post(&provider.preference("966500000010", "resume", NOON + 5)).await.unwrap().status,
        200
    );
    told(&world, "recipient.opted_in", "+966500000010").await;
    marketing(&world, "+966500000010", true).await.unwrap();
}

/// An operator records an opt-out and ends it: the customer is told of both, the agents know, and a STOP
/// that follows tells nothing new.
#[tokio::test]
async fn operator_opt_out_is_told_to_the_customer() {
    let world = World::start().await.unwrap();
    let request = v1::CreateOptOutRequest {
        opt_out: Some(v1::OptOut {
            instance_id: INSTANCE_ID.to_owned(),
            phone: "+966500000020".to_owned(),
            note: "asked by phone".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let opt_out =
        world.client().opt_outs().create_opt_out(request).await.unwrap().into_inner().opt_out.unwrap();
    assert!(!check(&world, "+966500000020", Purpose::Marketing).await.unwrap().allowed);
    assert_eq!(told(&world, "recipient.opted_out", "+966500000020").await.text("reason"), "operator");
    let stop = write(&world, "966500000020", "STOP", jiff::Timestamp::now().as_second()).await;
    world.delivered(&stop).await.unwrap();
    assert_eq!(count(&world, "recipient.opted_out"), 1);
    let request = v1::DeleteOptOutRequest { id: opt_out.id.clone(), etag: String::new() };
    world.client().opt_outs().delete_opt_out(request).await.unwrap();
    told(&world, "recipient.opted_in", "+966500000020").await;
    marketing(&world, "+966500000020", true).await.unwrap();
    let request = v1::GetOptOutRequest { id: opt_out.id };
    let kept = world.client().opt_outs().get_opt_out(request).await.unwrap().into_inner().opt_out.unwrap();
    assert_eq!(kept.state(), v1::OptOutState::OptedIn);
}

/// The policy of an instance decides: more keywords, weak ones, other essential purposes; in use on the
/// running agent. National variants of a number are one contact.
#[tokio::test]
async fn policy_and_number_variants_are_heeded() {
    let world = World::start().await.unwrap();
    let request = v1::UpdateOptOutPolicyRequest {
        opt_out_policy: Some(v1::OptOutPolicy {
            instance_id: INSTANCE_ID.to_owned(),
            weak_keywords: true,
            opt_out_keywords: vec!["Lass Mich!".to_owned()],
            essential_purposes: vec![Purpose::Support.into()],
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: ["weak_keywords", "opt_out_keywords", "essential_purposes"].map(str::to_owned).to_vec(),
        }),
    };
    world.client().opt_outs().update_opt_out_policy(request).await.unwrap();
    world.config_applied().await.unwrap();
    write(&world, "966500000030", "cancel", NOON).await;
    write(&world, "966500000031", "lass mich", NOON).await;
    write(&world, "551187654321", "STOP", NOON).await;
    for phone in ["+966500000030", "+966500000031", "+5511987654321"] {
        marketing(&world, phone, false).await.unwrap();
    }
    assert!(check(&world, "+966500000030", Purpose::Support).await.unwrap().allowed);
    assert!(!check(&world, "+966500000030", Purpose::Authentication).await.unwrap().allowed);
}

/// With the customer's endpoint down the opt-out counts all the same, and the customer hears of it later.
#[tokio::test]
async fn opt_out_counts_while_the_customer_is_away() {
    let world = World::start().await.unwrap();
    world.receiver.answer_with(|webhook| Reply::Status(if webhook.nth == 1 { 500 } else { 200 }));
    write(&world, "966500000040", "STOP", NOON).await;
    marketing(&world, "+966500000040", false).await.unwrap();
    let told = world.receiver.find(|webhook| webhook.event() == "recipient.opted_out" && webhook.nth == 2);
    told.within(DEADLINE).await.unwrap();
}
