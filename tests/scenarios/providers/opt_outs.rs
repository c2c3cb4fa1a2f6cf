//! Opt-outs are heard at every provider: as a word, and by the means that the provider itself has.

use anyhow::ensure;
use gateway_core::event::Provider;
use gateway_proto::v1::Purpose;
use gateway_tests::{DEADLINE, World, eventually};
use serde_json::json;

use super::{
    Line, all_lines,
    dialect::{self, MORNING, form},
    each,
};

/// STOP opts out at every provider, and marketing is refused; START opts in again, and a late repeat of the STOP
/// does not undo it.
#[tokio::test]
async fn stop_suppresses_everywhere() {
    let world = World::start().await.unwrap();
    let lines = all_lines(&world).await.unwrap();
    each(&lines, async |line| {
        ensure!(line.may("+966500000001", Purpose::Marketing).await?, "suppressed before");
        let (id, stop) = line.message("Stop.");
        line.post(stop.clone()).await?;
        line.delivered("message.received", &id).await?;
        let webhook = opted(line, "recipient.opted_out", "+966500000001").await?;
        ensure!(webhook.0 == "recipient_requested_stop" && webhook.1 == "Stop.", "{webhook:?}");
        line.marketing("+966500000001", false).await?;
        ensure!(line.may("+966500000001", Purpose::Authentication).await?, "codes are suppressed");
        ensure!(line.may("+966500000002", Purpose::Marketing).await?, "others are suppressed");
        line.post(line.message("START").1).await?;
        opted(line, "recipient.opted_in", "+966500000001").await?;
        line.marketing("+966500000001", true).await?;
        line.post(stop).await?;
        recorded(line).await?;
        ensure!(line.may("+966500000001", Purpose::Marketing).await?, "a repeat undid a newer decision");
        Ok(())
    })
    .await;
}

/// Waits until the control plane knows everything that was said so far: reports come in order.
async fn recorded(line: &Line<'_>) -> anyhow::Result<()> {
    let (id, body) = line.message_of("966500000099", "the last one");
    line.post(body).await?;
    eventually(DEADLINE, async || {
        let logs = line.world.logs().await?;
        ensure!(logs.iter().any(|log| log.external_message_id == id), "the last message is not logged yet");
        Ok(())
    })
    .await
}

/// Reason and text of an opt-out or opt-in of a contact.
async fn opted(line: &Line<'_>, event: &str, phone: &str) -> anyhow::Result<(String, String)> {
    let webhook = line.told(event, |webhook| webhook.text("from") == phone).await?;
    Ok((webhook.text("reason"), webhook.text("message_text")))
}

/// A signal of the provider's own.
struct Signal {
    what: &'static str,
    contact: &'static str,
    body: Vec<u8>,
    event: &'static str,
    reason: &'static str,
    /// Whether it covers more than marketing.
    is_full: bool,
}

/// What each provider has besides words: its own list of who opted out, WhatsApp's control for marketing
/// messages, and error codes that say so. Each covers what it says and no more, and ends when the contact wants
/// messages again; a late repeat of it does not undo that.
#[tokio::test]
async fn signals_of_providers_count() {
    let world = World::start().await.unwrap();
    let lines = all_lines(&world).await.unwrap();
    each(&lines, async |line| {
        let all = signals(line.provider);
        for signal in &all {
            let phone = format!("+{}", signal.contact);
            let what = signal.what;
            line.post(signal.body.clone()).await?;
            let (reason, _) = opted(line, signal.event, &phone).await?;
            ensure!(reason == signal.reason, "{what}: the reason is {reason}");
            let opts_in = signal.event == "recipient.opted_in";
            line.marketing(&phone, opts_in).await?;
            let support = line.may(&phone, Purpose::Support).await?;
            ensure!(support == (opts_in || !signal.is_full), "{what}: support is allowed: {support}");
        }
        for opt_in in all.iter().filter(|signal| signal.event == "recipient.opted_in") {
            line.post(all[0].body.clone()).await?;
            recorded(line).await?;
            let phone = format!("+{}", opt_in.contact);
            ensure!(line.may(&phone, Purpose::Marketing).await?, "a repeat undid {}", opt_in.what);
        }
        Ok(())
    })
    .await;
}

fn signals(provider: Provider) -> Vec<Signal> {
    match provider {
        Provider::Meta | Provider::Dialog360 => of_meta(provider),
        Provider::Twilio => of_twilio(),
        Provider::Gupshup => of_gupshup(),
        Provider::Infobip => of_infobip(),
        _ => Vec::new(),
    }
}

fn of_meta(provider: Provider) -> Vec<Signal> {
    let number = dialect::number(provider);
    let preference = |value: &str, time: i64| {
        let preference = json!({"wa_id": "966500000010", "category": "marketing_messages", "value": value,
            "detail": "User changed marketing messages", "timestamp": time});
        let contacts = json!([{"wa_id": "966500000010"}]);
        let value = json!({"contacts": contacts, "user_preferences": [preference]});
        dialect::meta(number, "user_preferences", value).to_string().into_bytes()
    };
    let failed = json!({"statuses": [{
        "id": dialect::new_own_id(provider, "966500000011"), "status": "failed", "recipient_id": "966500000011",
        "timestamp": MORNING.to_string(),
        "errors": [{"code": 131_050, "title": "User has stopped marketing messages"}],
    }]});
    vec![
        Signal {
            what: "user_preferences stop",
            contact: "966500000010",
            body: preference("stop", MORNING),
            event: "recipient.opted_out",
            reason: "provider_preference",
            is_full: false,
        },
        Signal {
            what: "user_preferences resume",
            contact: "966500000010",
            body: preference("resume", MORNING + 5),
            event: "recipient.opted_in",
            reason: "provider_preference",
            is_full: false,
        },
        Signal {
            what: "131050",
            contact: "966500000011",
            body: dialect::meta(number, "messages", failed).to_string().into_bytes(),
            event: "recipient.opted_out",
            reason: "provider_error",
            is_full: false,
        },
    ]
}

fn of_twilio() -> Vec<Signal> {
    let handled = |word: &str, text: &str| {
        form(&[
            ("MessageSid", &dialect::new_id(Provider::Twilio, "")),
            ("SmsStatus", "received"),
            ("From", "whatsapp:+966500000010"),
            ("To", dialect::number(Provider::Twilio)),
            ("Body", text),
            ("OptOutType", word),
        ])
    };
    let failed = form(&[
        ("MessageSid", &dialect::new_id(Provider::Twilio, "")),
        ("MessageStatus", "failed"),
        ("From", dialect::number(Provider::Twilio)),
        ("To", "whatsapp:+966500000011"),
        ("ErrorCode", "21610"),
    ]);
    vec![
        Signal {
            what: "OptOutType STOP",
            contact: "966500000010",
            body: handled("STOP", "Fin"),
            event: "recipient.opted_out",
            reason: "provider_preference",
            is_full: true,
        },
        Signal {
            what: "OptOutType START",
            contact: "966500000010",
            body: handled("START", "Oui"),
            event: "recipient.opted_in",
            reason: "provider_preference",
            is_full: true,
        },
        Signal {
            what: "21610",
            contact: "966500000011",
            body: failed,
            event: "recipient.opted_out",
            reason: "provider_error",
            is_full: true,
        },
    ]
}

fn of_gupshup() -> Vec<Signal> {
    let user_event = |kind: &str, time: i64| {
        let payload = json!({"phone": "966500000010", "type": kind});
        let body = dialect::gupshup(dialect::number(Provider::Gupshup), "user-event", &payload, time);
        body.to_string().into_bytes()
    };
    vec![
        Signal {
            what: "user-event opted-out",
            contact: "966500000010",
            body: user_event("opted-out", MORNING),
            event: "recipient.opted_out",
            reason: "provider_preference",
            is_full: true,
        },
        Signal {
            what: "user-event opted-in",
            contact: "966500000010",
            body: user_event("opted-in", MORNING + 5),
            event: "recipient.opted_in",
            reason: "provider_preference",
            is_full: true,
        },
    ]
}

fn of_infobip() -> Vec<Signal> {
    let preference = |status: &str, time: &str| {
        let number = dialect::number(Provider::Infobip);
        let body = json!({"from": number, "createdAt": time, "content": {"sender": number, "from": "966500000010",
            "notificationMessagesStatus": status, "description": "User preference changed"}});
        body.to_string().into_bytes()
    };
    vec![
        Signal {
            what: "preference STOP",
            contact: "966500000010",
            body: preference("STOP_NOTIFICATIONS", "2026-05-08T10:00:00.251+0000"),
            event: "recipient.opted_out",
            reason: "provider_preference",
            is_full: false,
        },
        Signal {
            what: "preference RESUME",
            contact: "966500000010",
            body: preference("RESUME_NOTIFICATIONS", "2026-05-08T10:00:05.251+0000"),
            event: "recipient.opted_in",
            reason: "provider_preference",
            is_full: false,
        },
    ]
}
