//! What each method needs: the one table of it.

use gateway_core::api_key::Role;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody: it needs no credential, or checks one of its own.
    Open,
    /// Agents, with their own credential.
    Agent,
    /// Any operator, whatever the scopes of the key: it tells what the API is.
    Reflection,
    /// Operators with at least this role.
    Operator(Role),
}

use Access::{Agent, Open, Operator};
use Role::{PlatformAdmin, TenantAdmin, Viewer};

/// What is changed from day to day.
const CHANGE: Access = Operator(Role::Operator);
/// What shows no secret.
const READ: Access = Operator(Viewer);
/// What decides who gets in, or shows what proves it.
const ADMINISTER: Access = Operator(TenantAdmin);
/// What concerns more than one tenant.
const PLATFORM: Access = Operator(PlatformAdmin);

/// Every method of package `whatsapp_gateway.v1`; a test fails while one is missing. A missing one needs a
/// platform admin.
const METHODS: &[(&str, Access)] = &[
    ("InstanceService/CreateInstance", CHANGE),
    ("InstanceService/GetInstance", READ),
    ("InstanceService/ListInstances", READ),
    ("InstanceService/UpdateInstance", CHANGE),
    ("InstanceService/DeleteInstance", CHANGE),
    ("InstanceService/DiagnoseInstance", READ),
    ("InboundRouteService/CreateInboundRoute", ADMINISTER),
    ("InboundRouteService/GetInboundRoute", READ),
    ("InboundRouteService/ListInboundRoutes", READ),
    ("InboundRouteService/UpdateInboundRoute", ADMINISTER),
    ("InboundRouteService/DeleteInboundRoute", ADMINISTER),
    ("InboundRouteService/AddInboundRouteSecret", ADMINISTER),
    ("InboundRouteService/RemoveInboundRouteSecret", ADMINISTER),
    ("InboundRouteService/ListUnroutedCallbacks", READ),
    ("WebhookSubscriptionService/CreateWebhookSubscription", CHANGE),
    ("WebhookSubscriptionService/GetWebhookSubscription", READ),
    ("WebhookSubscriptionService/ListWebhookSubscriptions", READ),
    ("WebhookSubscriptionService/UpdateWebhookSubscription", CHANGE),
    ("WebhookSubscriptionService/DeleteWebhookSubscription", CHANGE),
    ("WebhookSubscriptionService/PauseWebhookSubscription", CHANGE),
    ("WebhookSubscriptionService/ResumeWebhookSubscription", CHANGE),
    ("WebhookSubscriptionService/RotateSigningSecret", ADMINISTER),
    ("WebhookSubscriptionService/GetSigningSecret", ADMINISTER),
    ("WebhookSubscriptionService/SendTestEvent", CHANGE),
    ("OptOutService/CheckSuppression", READ),
    ("OptOutService/CreateOptOut", CHANGE),
    ("OptOutService/GetOptOut", READ),
    ("OptOutService/ListOptOuts", READ),
    ("OptOutService/DeleteOptOut", CHANGE),
    ("OptOutService/GetOptOutPolicy", READ),
    ("OptOutService/UpdateOptOutPolicy", CHANGE),
    ("InboundLogService/ListInboundLogs", READ),
    ("InboundLogService/GetInboundLog", READ),
    ("InboundLogService/WatchInboundLogs", READ),
    ("InboundLogService/ListDeliveryAttempts", READ),
    ("TenantService/CreateTenant", PLATFORM),
    ("TenantService/GetTenant", READ),
    ("TenantService/ListTenants", READ),
    ("TenantService/UpdateTenant", ADMINISTER),
    ("TenantService/DeleteTenant", PLATFORM),
    ("TenantService/CreateApiKey", ADMINISTER),
    ("TenantService/ListApiKeys", ADMINISTER),
    ("TenantService/RevokeApiKey", ADMINISTER),
    ("AuditService/ListAuditEntries", ADMINISTER),
    ("AgentService/ListAgents", PLATFORM),
    ("AgentService/GetAgent", PLATFORM),
    ("AgentService/WatchAgents", PLATFORM),
    ("AgentService/DrainAgent", PLATFORM),
    ("AgentService/CreateJoinToken", PLATFORM),
    ("AgentService/RevokeAgent", PLATFORM),
    ("AgentSyncService/EnrollAgent", Open),
    ("AgentSyncService/RenewAgentCertificate", Agent),
    ("AgentSyncService/StreamConfig", Agent),
    ("AgentSyncService/ReportLogs", Agent),
    ("AgentSyncService/StreamWork", Agent),
];

const PACKAGE: &str = "/whatsapp_gateway.v1.";
const AGENTS: &str = "AgentSyncService/";
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: [&str; 2] =
    ["/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// The method that an HTTP path names, as the table has it: `InstanceService/GetInstance`.
pub fn method(path: &str) -> &str {
    path.strip_prefix(PACKAGE).unwrap_or_else(|| path.trim_start_matches('/'))
}

/// Who may call the method that an HTTP path names. What is not known needs the most, and is then
/// UNIMPLEMENTED.
pub fn of(path: &str) -> Access {
    if path.starts_with(HEALTH) {
        return Open;
    }
    if REFLECTION.iter().any(|prefix| path.starts_with(prefix)) {
        return Access::Reflection;
    }
    let Some(method) = path.strip_prefix(PACKAGE) else { return PLATFORM };
    match find(method) {
        Some(access) => access,
        None if method.starts_with(AGENTS) => Agent,
        None => PLATFORM,
    }
}

/// Who may call a method such as `InstanceService/GetInstance`, if the table has it.
pub fn find(method: &str) -> Option<Access> {
    METHODS.iter().find(|(name, _)| *name == method).map(|(_, access)| *access)
}

/// Whether a key can be for this: a service of operators, or one of its methods.
pub fn is_scope(text: &str) -> bool {
    METHODS.iter().any(|(name, access)| {
        let is_named = *name == text || name.split_once('/').is_some_and(|(service, _)| service == text);
        is_named && matches!(access, Operator(_))
    })
}

/// Whether a scope opens anything to a role.
pub fn serves(scope: &str, role: Role) -> bool {
    METHODS.iter().any(|(name, access)| {
        let is_named = *name == scope || name.split_once('/').is_some_and(|(service, _)| service == scope);
        is_named && matches!(access, Operator(needed) if *needed <= role)
    })
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    /// Every method of the contract is in the table once, and nothing else is.
    #[test]
    fn every_method_is_in_the_table() {
        let pool = DescriptorPool::decode(gateway_proto::DESCRIPTORS).unwrap();
        let mut methods: Vec<_> = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| format!("{}/{}", method.parent_service().name(), method.name()))
            .collect();
        let mut listed: Vec<_> = METHODS.iter().map(|(name, _)| (*name).to_owned()).collect();
        methods.sort();
        listed.sort();
        assert_eq!(listed, methods);
    }

    /// What is not in the table is never open.
    #[test]
    fn unknown_methods_need_the_most() {
        assert_eq!(of("/whatsapp_gateway.v1.InstanceService/Invented"), PLATFORM);
        assert_eq!(of("/whatsapp_gateway.v1.AgentSyncService/Invented"), Agent);
        assert_eq!(of("/other.Service/Method"), PLATFORM);
        assert_eq!(of("/whatsapp_gateway.v1.InstanceService/GetInstance"), READ);
        assert_eq!(of("/grpc.health.v1.Health/Check"), Open);
    }

    /// Scopes name services and methods of operators.
    #[test]
    fn scopes_are_operators_methods() {
        for good in ["InstanceService", "OptOutService/CheckSuppression", "AuditService"] {
            assert!(is_scope(good), "{good}");
        }
        for bad in ["", "Instance", "InstanceService/", "AgentSyncService", "AgentSyncService/EnrollAgent"] {
            assert!(!is_scope(bad), "{bad}");
        }
    }
}
