//! The whole collection of callback bodies, through the real programs.

use std::fs;

use anyhow::{Context as _, ensure};
use gateway_core::event::Provider;
use gateway_tests::{DEADLINE, World, eventually, programs::workspace_root, schemas::Schemas};

use super::{Line, all_lines, each};

/// Every body of the collection, signed by the provider's library: answered 200, and each of its events delivered
/// once, in a form that fits its schema and that the log repeats byte for byte.
#[tokio::test]
async fn every_known_callback_of_every_provider_gives_valid_webhooks() {
    let world = World::start().await.unwrap();
    // Meta's are sent by another scenario.
    let mut lines = all_lines(&world).await.unwrap();
    lines.retain(|line| line.provider != Provider::Meta);
    let schemas = Schemas::load().unwrap();
    each(&lines, async |line| {
        send_all(line).await?;
        let (id, body) = line.message("the last one");
        line.post(body).await?;
        line.delivered("message.received", &id).await?;
        let path = format!("/{}", line.instance_id);
        let logs = eventually(DEADLINE, async || {
            let logs = line.world.logs().await?;
            let of_line = logs.into_iter().filter(|log| log.instance_id == line.instance_id);
            let logs: Vec<_> = of_line.collect();
            ensure!(logs.iter().any(|log| log.external_message_id == id), "the last event is not logged yet");
            let open =
                logs.iter().flat_map(|log| &log.deliveries).find(|delivery| delivery.last_status_code != 200);
            ensure!(open.is_none(), "{open:?}");
            ensure!(
                logs.iter().all(|log| !log.deliveries.is_empty()),
                "not every log shows its delivery yet"
            );
            Ok(logs)
        });
        let (logs, webhooks) = (logs.await?, line.world.receiver.by_id());
        ensure!(logs.len() > 20, "only {} events", logs.len());
        for log in logs {
            let webhooks = webhooks.get(&log.event_id).with_context(|| format!("find {}", log.event_id))?;
            ensure!(webhooks.len() == 1, "{} was delivered more than once", log.event_id);
            ensure!(webhooks[0].path == path, "{} went to {}", log.event_id, webhooks[0].path);
            ensure!(log.payload_json.as_bytes() == webhooks[0].body.as_ref(), "{}", log.payload_json);
            schemas.check(&webhooks[0])?;
        }
        Ok(())
    })
    .await;
}

async fn send_all(line: &Line<'_>) -> anyhow::Result<()> {
    let directory = workspace_root().join("tests/fixtures").join(line.provider.name());
    let mut count = 0;
    for entry in fs::read_dir(&directory).context("open the collection")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json" || extension == "form") {
            line.post(fs::read(&path)?).await.with_context(|| path.display().to_string())?;
            count += 1;
        }
    }
    ensure!(count > 20, "only {count} bodies");
    Ok(())
}
