//! Messages and statuses of every provider become the same events.

use anyhow::{Context as _, ensure};
use gateway_core::event::Provider;
use gateway_proto::v1;
use gateway_tests::{DEADLINE, World, eventually, meta::Answer, schemas::Schemas, signer};

use super::{
    Line, all_lines,
    dialect::{self, MORNING_TEXT},
    each,
    line::{FROM, NAME},
};

const TEXT: &str = "Ça va? 1 + 1 = 2 & 100 % 👋 \u{625}\u{64a}";

/// The script that signs, and through it the providers' libraries, meet the published vectors to the byte.
#[tokio::test]
async fn libraries_meet_the_vectors() {
    assert_eq!(signer::check_vectors().await.unwrap(), 16);
}

/// A text message that the provider's library signed is answered as the provider wants it, and becomes one
/// `message.received` with the right people and text, logged once, also when the provider repeats itself.
#[tokio::test]
async fn signed_message_is_delivered_once() {
    let world = World::start().await.unwrap();
    let lines = all_lines(&world).await.unwrap();
    let schemas = Schemas::load().unwrap();
    each(&lines, async |line| {
        let (id, body) = line.message(TEXT);
        let answer = line.post(body.clone()).await?;
        check_answer(line.provider, &answer)?;
        line.post(body).await?;
        let webhook = line.delivered("message.received", &id).await?;
        schemas.check(&webhook)?;
        let timestamp = if dialect::has_time(line.provider) {
            MORNING_TEXT.to_owned()
        } else {
            webhook.text("timestamp")
        };
        for (key, expected) in [
            ("instance_id", line.instance_id.as_str()),
            ("from", "+966500000001"),
            ("to", "+15550783881"),
            ("message_text", TEXT),
            ("message_type", "text"),
            ("timestamp", &timestamp),
        ] {
            ensure!(webhook.text(key) == expected, "`{key}` is {:?}, not {expected:?}", webhook.text(key));
        }
        ensure!(webhook.json()["contact"]["name"] == NAME, "the contact is {}", webhook.json()["contact"]);
        check_log(line, &id).await?;
        let count =
            world.receiver.all().iter().filter(|webhook| webhook.text("external_message_id") == id).count();
        ensure!(count == 1, "{count} webhooks");
        Ok(())
    })
    .await;
}

/// Twilio reads the answer to a message as TwiML; all others want an empty one.
fn check_answer(provider: Provider, answer: &Answer) -> anyhow::Result<()> {
    let media_type =
        answer.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let expected = match provider {
        Provider::Twilio => ("text/xml", r#"<?xml version="1.0" encoding="UTF-8"?><Response/>"#),
        _ => ("", ""),
    };
    let found = (media_type, std::str::from_utf8(&answer.body)?);
    ensure!(found == expected, "answered {found:?}");
    Ok(())
}

/// One log of the message, delivered, with one repeat counted.
async fn check_log(line: &Line<'_>, id: &str) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let logs = line.world.logs().await?;
        let logs: Vec<_> = logs.into_iter().filter(|log| log.external_message_id == id).collect();
        let log = logs.first().context("the message is not logged yet")?;
        ensure!(logs.len() == 1, "{} logs", logs.len());
        ensure!(log.duplicate_count == 1, "{} repeats counted", log.duplicate_count);
        ensure!(log.from_phone == "+966500000001" && log.message_text == TEXT, "{log:?}");
        let delivered =
            log.deliveries.iter().all(|delivery| delivery.state() == v1::DeliveryState::Delivered);
        ensure!(delivered, "{:?}", log.deliveries);
        Ok(())
    })
    .await
}

/// What became of a message of the business is told as `message.delivered` or `message.failed`, the latter with
/// the provider's code. Their `status` is one word for all providers; `message.status_updated` has the provider's.
/// The answer is empty at every provider.
#[tokio::test]
async fn statuses_are_told() {
    let world = World::start().await.unwrap();
    let lines = all_lines(&world).await.unwrap();
    let schemas = Schemas::load().unwrap();
    each(&lines, async |line| {
        let code = dialect::failure_code(line.provider);
        let failed = (Some(code.unwrap_or_default()), "failed", dialect::failed_word(line.provider));
        for (failure, ours, theirs) in [(None, "delivered", "delivered"), failed] {
            let event = format!("message.{ours}");
            let (id, body) = line.status(failure);
            let answer = line.post(body.clone()).await?;
            ensure!(answer.body.is_empty(), "answered {:?}", answer.body);
            line.post(body).await?;
            for (event, word) in [(event.as_str(), ours), ("message.status_updated", theirs)] {
                let webhook = line.delivered(event, &id).await?;
                schemas.check(&webhook)?;
                ensure!(webhook.text("to") == format!("+{FROM}"), "`to` is {:?}", webhook.text("to"));
                ensure!(webhook.text("status") == word, "{event} with status {:?}", webhook.text("status"));
                let told = webhook.json()["error"]["code"].as_i64();
                ensure!(told == failure.and(code), "{event} with error code {told:?}");
            }
        }
        Ok(())
    })
    .await;
    for webhooks in world.receiver.by_id().values() {
        assert_eq!(webhooks.len(), 1, "delivered more than once: {}", webhooks[0].json());
    }
}
