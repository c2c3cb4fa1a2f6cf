//! Table `webhook_subscriptions`. `config` is the form that agents get, sealed.

use sqlx::{QueryBuilder, Sqlite};
use tonic::async_trait;

use super::{
    Rows, StoreError,
    inbound_routes::{Row, sealed_row},
    to_sql,
};
use crate::store::{
    inbound_routes::SealedRow,
    webhook_subscriptions::{SubscriptionRow, WebhookSubscriptionReads, WebhookSubscriptionWrites},
};

/// The table.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS webhook_subscriptions (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    instance_id TEXT NOT NULL REFERENCES instances (id),
    config BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS webhook_subscriptions_version ON webhook_subscriptions (version);
CREATE INDEX IF NOT EXISTS webhook_subscriptions_instance ON webhook_subscriptions (instance_id, id);
";

type SubscriptionColumns = (i64, String, String, Vec<u8>, String);

fn subscription((version, id, tenant_id, sealed, instance_id): SubscriptionColumns) -> SubscriptionRow {
    SubscriptionRow { row: sealed_row((version, id, tenant_id, sealed)), instance_id }
}

#[async_trait]
impl WebhookSubscriptionReads for Rows {
    async fn webhook_subscription(
        &mut self,
        tenant_id: Option<&str>,
        id: &str,
    ) -> Result<Option<SealedRow>, StoreError> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT version, id, tenant_id, config FROM webhook_subscriptions
             WHERE id = ?1 AND (?2 IS NULL OR tenant_id = ?2)",
        )
        .bind(id)
        .bind(tenant_id)
        .fetch_optional(self.connection())
        .await?;
        Ok(row.map(sealed_row))
    }

    async fn webhook_subscriptions(
        &mut self,
        tenant_id: Option<&str>,
        instance_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<SubscriptionRow>, StoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT version, id, tenant_id, config, instance_id FROM webhook_subscriptions WHERE id > ",
        );
        sql.push_bind(after);
        if let Some(tenant_id) = tenant_id {
            sql.push(" AND tenant_id = ").push_bind(tenant_id);
        }
        if let Some(instance_id) = instance_id {
            sql.push(" AND instance_id = ").push_bind(instance_id);
        }
        sql.push(" ORDER BY id LIMIT ").push_bind(limit);
        let rows = sql.build_query_as().fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(subscription).collect())
    }

    async fn webhook_subscriptions_of_instance(
        &mut self,
        instance_id: &str,
    ) -> Result<Vec<SubscriptionRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT version, id, tenant_id, config, instance_id FROM webhook_subscriptions
             WHERE instance_id = ?1 ORDER BY id",
        );
        let rows = rows.bind(instance_id).fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(subscription).collect())
    }

    async fn has_webhook_subscription(&mut self, instance_id: &str) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM webhook_subscriptions WHERE instance_id = ?1)";
        Ok(sqlx::query_scalar(sql).bind(instance_id).fetch_one(self.connection()).await?)
    }

    async fn subscribed_instances_of_route(
        &mut self,
        inbound_route_id: &str,
    ) -> Result<Vec<String>, StoreError> {
        let ids = sqlx::query_scalar(
            "SELECT id FROM instances WHERE inbound_route_id = ?1
             AND EXISTS (SELECT 1 FROM webhook_subscriptions WHERE instance_id = instances.id)
             ORDER BY id",
        );
        Ok(ids.bind(inbound_route_id).fetch_all(self.connection()).await?)
    }

    async fn webhook_subscriptions_changed_since(
        &mut self,
        version: u64,
    ) -> Result<Vec<SubscriptionRow>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT version, id, tenant_id, config, instance_id FROM webhook_subscriptions WHERE version > ?1
             ORDER BY version, id",
        );
        let rows = rows.bind(to_sql(version)).fetch_all(self.connection()).await?;
        Ok(rows.into_iter().map(subscription).collect())
    }
}

#[async_trait]
impl WebhookSubscriptionWrites for Rows {
    async fn put_webhook_subscription(
        &mut self,
        SubscriptionRow { row, instance_id }: &SubscriptionRow,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO webhook_subscriptions (id, tenant_id, version, instance_id, config)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET version = excluded.version, config = excluded.config",
        )
        .bind(&row.id)
        .bind(&row.tenant_id)
        .bind(to_sql(row.version))
        .bind(instance_id)
        .bind(&row.sealed)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn delete_webhook_subscription(&mut self, id: &str) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM webhook_subscriptions WHERE id = ?1").bind(id);
        delete.execute(self.connection()).await?;
        Ok(())
    }
}
