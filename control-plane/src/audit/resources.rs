//! The resources whose changes are audited.

use gateway_proto::v1;
use prost::Message;

/// A resource as the audit log sees it.
pub trait Resource: Message {
    /// Its type, as fields of other resources name it: `instance`.
    const TYPE: &'static str;
    /// Its message, without the package: `Instance`.
    const MESSAGE: &'static str;
    /// The field whose fields count as the resource's own.
    const FLAT_FIELD: Option<&'static str> = None;

    /// Its id.
    fn id(&self) -> &str;

    /// Its tenant; empty when it has none or does not name it.
    fn tenant_id(&self) -> &str {
        ""
    }
}

/// Implements [`Resource`] for messages with the fields `id` and `tenant_id`.
macro_rules! owned {
    ($($message:ident $type:literal),* $(,)?) => {$(
        impl Resource for v1::$message {
            const TYPE: &'static str = $type;
            const MESSAGE: &'static str = stringify!($message);

            fn id(&self) -> &str {
                &self.id
            }

            fn tenant_id(&self) -> &str {
                &self.tenant_id
            }
        }
    )*};
}

owned! {
    Instance "instance",
    InboundRoute "inbound_route",
    OptOut "opt_out",
    ApiKey "api_key",
    Agent "agent",
}

impl Resource for v1::Tenant {
    const TYPE: &'static str = "tenant";
    const MESSAGE: &'static str = "Tenant";

    fn id(&self) -> &str {
        &self.id
    }

    fn tenant_id(&self) -> &str {
        &self.id
    }
}

impl Resource for v1::WebhookSubscriptionConfig {
    const TYPE: &'static str = "webhook_subscription";
    const MESSAGE: &'static str = "WebhookSubscriptionConfig";
    const FLAT_FIELD: Option<&'static str> = Some("webhook_subscription");

    fn id(&self) -> &str {
        self.webhook_subscription.as_ref().map_or("", |subscription| &subscription.id)
    }

    fn tenant_id(&self) -> &str {
        self.webhook_subscription.as_ref().map_or("", |subscription| &subscription.tenant_id)
    }
}

impl Resource for v1::OptOutPolicy {
    const TYPE: &'static str = "opt_out_policy";
    const MESSAGE: &'static str = "OptOutPolicy";

    fn id(&self) -> &str {
        &self.instance_id
    }
}

impl Resource for v1::SnapshotExportHeader {
    const TYPE: &'static str = "snapshot_export";
    const MESSAGE: &'static str = "SnapshotExportHeader";

    /// Exports have no id; people look for those of a region.
    fn id(&self) -> &str {
        &self.region
    }

    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

/// A join token that was made: what was asked for. Its id is not in it, and its value is a secret.
pub type NewJoinToken = v1::CreateJoinTokenRequest;

impl Resource for NewJoinToken {
    const TYPE: &'static str = "join_token";
    const MESSAGE: &'static str = "CreateJoinTokenRequest";

    fn id(&self) -> &str {
        ""
    }

    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}
