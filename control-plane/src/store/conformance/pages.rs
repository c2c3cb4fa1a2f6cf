//! Pages join while others write: an entry that is there all the while comes once, and none comes twice.

use std::collections::BTreeSet;

use gateway_core::tenant::TenantScope;
use gateway_proto::v1;
use sha2::{Digest as _, Sha256};

use super::{Factory, fixtures::*};
use crate::store::{
    Connection as _, Store, agents, api_keys, inbound_routes, instances,
    opt_outs::{self, OptOutFilter, OptOutRow},
    tenants, webhook_subscriptions,
};

/// Entries that are there all the while.
const KEPT: u32 = 17;

/// A list in the order of its ids.
trait Listed {
    async fn add(&self, id: &str);

    /// Does nothing where entries of the list stay for ever.
    async fn remove(&self, id: &str);

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String>;
}

/// Reads a list page by page, in pages of several sizes, while entries come and go before, at and behind the place.
async fn check(listed: impl Listed) {
    let kept: Vec<String> = (0..KEPT).map(|number| format!("k{:03}", number * 10)).collect();
    for id in &kept {
        listed.add(id).await;
    }
    for limit in [1, 3, 7] {
        let (mut seen, mut after, mut page_number) = (Vec::new(), None::<String>, 0);
        loop {
            let page = listed.page(after.as_deref(), limit).await;
            assert!(page.len() <= usize::try_from(limit).unwrap() && page.is_sorted(), "{page:?}");
            let Some(last) = page.last().cloned() else { break };
            assert!(after.as_ref().is_none_or(|after| page[0] > *after), "{page:?} after {after:?}");
            page_number += 1;
            // Entries come before the place, right behind it, and at the end. What was read goes again, and so does
            // every second one of what was about to be read.
            listed.add(&format!("a{limit}_{page_number:03}")).await;
            listed.add(&format!("z{limit}_{page_number:03}")).await;
            if kept.contains(&last) {
                let next = format!("{last}x{limit}");
                listed.add(&next).await;
                if page_number % 2 == 0 {
                    listed.remove(&next).await;
                }
            }
            for id in page.iter().filter(|id| !kept.contains(id)) {
                listed.remove(id).await;
            }
            seen.extend(page);
            after = Some(last);
            // Otherwise the entries that come at the end would go on for ever.
            if page_number > 3 * KEPT {
                break;
            }
        }
        let unique: BTreeSet<&String> = seen.iter().collect();
        assert_eq!(unique.len(), seen.len(), "an entry came twice in pages of {limit}: {seen:?}");
        let missed: Vec<_> = kept.iter().filter(|id| !unique.contains(id)).collect();
        assert!(missed.is_empty(), "missed in pages of {limit}: {missed:?}");
    }
}

struct Instances(Store);

impl Listed for Instances {
    async fn add(&self, id: &str) {
        put_instance(&self.0, instance(id, "route_1")).await.unwrap();
    }

    async fn remove(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        instances::delete(&mut transaction, id).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let mut reader = self.0.reader().await.unwrap();
        let (scope, of) = (one("default"), Some("route_1"));
        let found = instances::list(&mut reader, &scope, of, after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn instances_page_under_writes(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    check(Instances(store)).await;
}

struct InboundRoutes(Store);

impl Listed for InboundRoutes {
    async fn add(&self, id: &str) {
        put_route(&self.0, route(id)).await;
    }

    async fn remove(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        inbound_routes::delete(&mut transaction, id).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let mut reader = self.0.reader().await.unwrap();
        let provider = Some(v1::Provider::Meta.into());
        let found =
            inbound_routes::list(&mut reader, &TenantScope::All, provider, after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn inbound_routes_page_under_writes(factory: &impl Factory) {
    check(InboundRoutes(factory.open().await)).await;
}

struct WebhookSubscriptions(Store);

impl Listed for WebhookSubscriptions {
    async fn add(&self, id: &str) {
        put_subscription(&self.0, subscription(id, "inst_1")).await;
    }

    async fn remove(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        webhook_subscriptions::delete(&mut transaction, id).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let mut reader = self.0.reader().await.unwrap();
        let (scope, of) = (one("default"), Some("inst_1"));
        let found = webhook_subscriptions::list(&mut reader, &scope, of, after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn webhook_subscriptions_page_under_writes(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    check(WebhookSubscriptions(store)).await;
}

struct OptOuts(Store);

impl Listed for OptOuts {
    async fn add(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        let record = v1::OptOut { id: id.to_owned(), ..Default::default() };
        let body = prost::Message::encode_to_vec(&record);
        let row = OptOutRow {
            id,
            tenant_id: "default",
            instance_id: "inst_1",
            phone_key: Some(id),
            user_id: None,
            state: 1,
            body: &body,
        };
        transaction.writes().put_opt_out(row).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn remove(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        transaction.writes().delete_opt_out(id).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let mut reader = self.0.reader().await.unwrap();
        let filter = OptOutFilter { instance_id: Some("inst_1"), phone_key: None, state: Some(1) };
        let found = opt_outs::list(&mut reader, &one("default"), &filter, after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn opt_outs_page_under_writes(factory: &impl Factory) {
    check(OptOuts(factory.open().await)).await;
}

struct Tenants(Store);

impl Listed for Tenants {
    async fn add(&self, id: &str) {
        put_tenant(&self.0, id).await;
    }

    async fn remove(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        tenants::delete(&mut transaction, id).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let mut reader = self.0.reader().await.unwrap();
        let found = tenants::list(&mut reader, &TenantScope::All, after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn tenants_page_under_writes(factory: &impl Factory) {
    check(Tenants(factory.open().await)).await;
}

fn hash_of(id: &str) -> [u8; 32] {
    Sha256::digest(id).into()
}

struct ApiKeys(Store);

impl Listed for ApiKeys {
    async fn add(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        let key = v1::ApiKey { id: id.to_owned(), tenant_id: "default".into(), ..Default::default() };
        api_keys::create(&mut transaction, &key, &hash_of(id)).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn remove(&self, _: &str) {}

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let mut reader = self.0.reader().await.unwrap();
        let found = api_keys::list(&mut reader, Some("default"), after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn api_keys_page_under_writes(factory: &impl Factory) {
    check(ApiKeys(factory.open().await)).await;
}

struct Agents(Store);

impl Listed for Agents {
    async fn add(&self, id: &str) {
        let mut transaction = self.0.begin_write().await.unwrap();
        let agent = agents::NewAgent {
            id: id.to_owned(),
            region: "eu".into(),
            build: "1".into(),
            credential_hash: hash_of(id),
            tenant_id: None,
            certificate_expire_time: None,
        };
        agents::create_agent(&mut transaction, &agent, at(1)).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn remove(&self, _: &str) {}

    async fn page(&self, after: Option<&str>, limit: i64) -> Vec<String> {
        let found = agents::list(&self.0, Some("eu"), after, limit).await.unwrap();
        found.into_iter().map(|found| found.id).collect()
    }
}

pub(super) async fn agents_page_under_writes(factory: &impl Factory) {
    check(Agents(factory.open().await)).await;
}

/// Who reads the opt-out log page by page while it grows gets every entry once, in its order.
pub(super) async fn opt_out_log_pages_under_writes(factory: &impl Factory) {
    let store = factory.open().await;
    let decide = async |number: i64| {
        let phone = format!("+9665000000{:02}", number % 100);
        store.record_opt_outs(agent(), vec![opt_out(&phone, number)]).await.unwrap();
    };
    for number in 0..10 {
        decide(number).await;
    }
    let (mut cursors, mut after, mut written) = (Vec::new(), 0, 10);
    loop {
        let page = store.reader().await.unwrap().rows().opt_out_log(after, 3).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = *last;
        cursors.extend(page.into_iter().map(|(cursor, _)| cursor));
        if written < 20 {
            decide(written).await;
            written += 1;
        }
    }
    let all = store.reader().await.unwrap().rows().opt_out_log(0, 1_000).await.unwrap();
    assert_eq!(cursors.len(), 20);
    assert_eq!(cursors, all.into_iter().map(|(cursor, _)| cursor).collect::<Vec<_>>());
}
