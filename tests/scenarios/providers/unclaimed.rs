//! Nothing unknown is dropped at any provider: it is kept until an instance claims its number.

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use gateway_core::event::Provider;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Within as _, World, eventually,
    world::{add_instance, subscribe_instance},
};
use serde_json::Value;

use super::{
    Line, all_lines,
    dialect::{self, Said},
    each,
    line::{FROM, NAME},
};

async fn unrouted(line: &Line<'_>) -> anyhow::Result<Vec<v1::UnroutedCallback>> {
    let request =
        v1::ListUnroutedCallbacksRequest { inbound_route_id: line.route.id.clone(), ..Default::default() };
    Ok(line.world.client().list(request).try_collect().await?)
}

/// A message for a number that no instance claims is answered as any other, listed once as JSON, and delivered
/// as the same event once an instance claims the number; then the list is empty.
#[tokio::test]
async fn unclaimed_numbers_are_delivered_once_claimed() {
    let world = World::start().await.unwrap();
    let lines = all_lines(&world).await.unwrap();
    each(&lines, async |line| {
        let (provider, number) = (line.provider, dialect::other_number(line.provider));
        let id = dialect::new_id(provider, FROM);
        let text = "anybody there? ça va & 100 %";
        let body = dialect::message(provider, Said { number, id: &id, from: FROM, name: NAME, text });
        line.post(body.clone()).await?;
        line.post(body).await?;
        let kept = eventually(DEADLINE, async || {
            unrouted(line).await?.into_iter().next().context("nothing is listed")
        });
        let kept = kept.await?;
        let json: Value = serde_json::from_str(&kept.payload_json)?;
        ensure!(json.to_string().contains(&id), "the payload is {json}");
        ensure!(same_number(provider, &kept.provider_number_id), "{:?}", kept.provider_number_id);
        ensure!(!line.heard(&id), "delivered to somebody else");

        let second = format!("{}-second", line.instance_id);
        add_instance(world.client(), &second, &line.route.id, number).await?;
        let path = format!("/{second}");
        subscribe_instance(world.client(), &second, &world.receiver.url(&path), &["*"]).await?;
        let found = world.receiver.find(|webhook| webhook.path == path);
        let webhook = found.within(DEADLINE).await.context("receive what was kept")?;
        for (key, expected) in [
            ("event", "message.received"),
            ("instance_id", second.as_str()),
            ("external_message_id", &id),
            ("from", "+966500000001"),
            ("message_text", text),
        ] {
            ensure!(webhook.text(key) == expected, "`{key}` is {:?}", webhook.text(key));
        }
        eventually(DEADLINE, async || {
            let left = unrouted(line).await?.len();
            ensure!(left == 0, "{left} still listed");
            Ok(())
        })
        .await
    })
    .await;
}

/// Numbers are listed as the adapter reads them: Twilio's without its channel.
fn same_number(provider: Provider, listed: &str) -> bool {
    dialect::other_number(provider).trim_start_matches("whatsapp:") == listed
}
