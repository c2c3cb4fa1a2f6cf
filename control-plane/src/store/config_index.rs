//! What there is of the configuration and in which version, without opening what is sealed.

use gateway_proto::v1;

use super::{Connection as _, Reader, Store, StoreError, body};

/// Webhook subscriptions that are read at a time: their rows bring the sealed configuration along.
const READ_AT_A_TIME: i64 = 500;
/// Instances that are looked at without a pause.
const INSTANCES_AT_A_TIME: usize = 200;

/// Takes what there is, in no order. All of it is of one version.
pub trait IndexVisitor: Send {
    /// An inbound route.
    fn inbound_route(&mut self, id: &str, tenant_id: &str, version: u64);
    /// An instance; after all inbound routes.
    fn instance(&mut self, instance: &v1::Instance, version: u64);
    /// What hangs on an instance: its type, its id, the id of the instance; after all instances.
    fn dependent(&mut self, resource_type: &'static str, id: &str, instance_id: &str, version: u64);
}

impl Store {
    /// Shows `visitor` all resources of the configuration, and gives their version. None when an instance cannot be read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn visit_config(&self, visitor: &mut dyn IndexVisitor) -> Result<Option<u64>, StoreError> {
        let mut snapshot = Reader::new(self.inner.engine.snapshot().await?, self.clone());
        let version = snapshot.rows().version().await?;
        for row in snapshot.rows().inbound_routes_changed_since(0).await? {
            visitor.inbound_route(&row.id, &row.tenant_id, row.version);
        }
        for (number, row) in snapshot.rows().instances_changed_since(0).await?.into_iter().enumerate() {
            if number % INSTANCES_AT_A_TIME == 0 {
                // Others have their turn.
                tokio::task::yield_now().await;
            }
            let instance: v1::Instance = match body::read(&row) {
                Ok(instance) => instance,
                Err(failure) if failure.is_damage() => return Ok(None),
                Err(failure) => return Err(failure),
            };
            visitor.instance(&instance, row.version);
        }
        for row in snapshot.rows().opt_out_policies_changed_since(0).await? {
            visitor.dependent("opt_out_policy", &row.id, &row.id, row.version);
        }
        let mut after = String::new();
        loop {
            let rows = snapshot.rows().webhook_subscriptions(None, None, &after, READ_AT_A_TIME).await?;
            let Some(last) = rows.last() else { break };
            after.clone_from(&last.row.id);
            for row in &rows {
                visitor.dependent("webhook_subscription", &row.row.id, &row.instance_id, row.row.version);
            }
            tokio::task::yield_now().await;
        }
        snapshot.finish().await?;
        Ok(Some(version))
    }
}
