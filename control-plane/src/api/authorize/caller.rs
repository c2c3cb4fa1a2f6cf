//! Somebody who calls a method, as the credential proves them.

use std::{fmt, net::SocketAddr};

use gateway_core::{
    api_key::{Role, Scopes},
    id::TenantId,
    tenant::TenantScope,
};
use jiff::Timestamp;
use tonic::Status;

use crate::api::status;

/// Who acts. Prints as audit entries name it: `admin_key`, `api_key:<id>`, `agent:<id>`, `gateway`,
/// `command_line:<uid>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The holder of the admin key.
    AdminKey,
    /// The holder of an API key, by its id.
    ApiKey(String),
    /// An agent, by its id.
    Agent(String),
    /// The gateway by itself.
    Gateway,
    /// A user of the control plane's machine who runs a command of its program, by the number of the user.
    CommandLine(u32),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdminKey => f.write_str("admin_key"),
            Self::ApiKey(id) => write!(f, "api_key:{id}"),
            Self::Agent(id) => write!(f, "agent:{id}"),
            Self::Gateway => f.write_str("gateway"),
            Self::CommandLine(user_id) => write!(f, "command_line:{user_id}"),
        }
    }
}

/// An operator who calls a method. In the request's extensions of operators' methods.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub actor: Actor,
    /// What they may do.
    pub role: Role,
    /// Where the call comes from, as the connection tells.
    pub source_address: Option<SocketAddr>,
    tenant: Option<TenantId>,
    scopes: Scopes,
    expire_time: Option<Timestamp>,
}

impl Caller {
    /// The holder of the admin key: a platform admin.
    pub fn admin_key(source_address: Option<SocketAddr>) -> Self {
        Self {
            actor: Actor::AdminKey,
            role: Role::PlatformAdmin,
            source_address,
            tenant: None,
            scopes: Scopes::default(),
            expire_time: None,
        }
    }

    /// The holder of an API key of a tenant; of none for a platform admin's.
    pub fn api_key(
        id: String,
        role: Role,
        tenant: Option<TenantId>,
        scopes: Scopes,
        expire_time: Option<Timestamp>,
        source_address: Option<SocketAddr>,
    ) -> Self {
        Self { actor: Actor::ApiKey(id), role, source_address, tenant, scopes, expire_time }
    }

    /// Whose resources the caller reaches; what store queries take.
    pub fn tenants(&self) -> TenantScope {
        match &self.tenant {
            Some(tenant_id) => TenantScope::One(tenant_id.clone()),
            None => TenantScope::All,
        }
    }

    /// Whether the caller is a platform admin, who belongs to no tenant.
    pub const fn is_platform(&self) -> bool {
        self.tenant.is_none()
    }

    /// The tenant that a creation is for, or a list by tenant: a platform admin's is the one they name, or else
    /// `default`; everybody else's is their own, named or not. Whether the tenant exists is not looked at.
    ///
    /// # Errors
    /// NOT_FOUND when another tenant is named than the caller's, or one that cannot exist.
    pub fn tenant_for(&self, named: &str) -> Result<TenantId, Status> {
        match &self.tenant {
            Some(own) if named.is_empty() || named == own.as_str() => Ok(own.clone()),
            None if named.is_empty() => Ok(TenantId::default_tenant()),
            None => named.parse().map_err(|_| status::not_found("tenant", named)),
            Some(_) => Err(status::not_found("tenant", named)),
        }
    }

    /// In whose name a `request_id` is kept: the tenant's, empty for platform admins. So no caller meets the
    /// answer to a request of another tenant.
    pub fn request_owner(&self) -> &str {
        self.tenant.as_ref().map_or("", TenantId::as_str)
    }

    /// Which page tokens are the caller's: those of the same tenant.
    pub fn page_owner(&self) -> &str {
        self.tenant.as_ref().map_or("*", TenantId::as_str)
    }

    /// The methods the caller's key is for, within what the role allows.
    pub const fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// When the caller's key stops working.
    pub const fn expire_time(&self) -> Option<Timestamp> {
        self.expire_time
    }

    /// Checks the role where a field, not the method alone, needs more than the method does.
    ///
    /// # Errors
    /// PERMISSION_DENIED with `what` when the role is less.
    pub fn require(&self, role: Role, what: &str) -> Result<(), Status> {
        if self.role >= role {
            return Ok(());
        }
        Err(status::permission_denied(format!("{what} needs {role}; this key has {}", self.role)))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn of(tenant: Option<&str>) -> Caller {
        let tenant = tenant.map(|id| id.parse().unwrap());
        let role = if tenant.is_some() { Role::Operator } else { Role::PlatformAdmin };
        Caller::api_key("key_1".into(), role, tenant, Scopes::default(), None, None)
    }

    /// The tenant comes from the credential; only a platform admin may name one.
    #[test]
    fn tenant_comes_from_the_credential() {
        let (own, platform) = (of(Some("acme")), of(None));
        assert_eq!(own.tenant_for("").unwrap().as_str(), "acme");
        assert_eq!(own.tenant_for("acme").unwrap().as_str(), "acme");
        assert_eq!(own.tenant_for("default").unwrap_err().code(), Code::NotFound);
        assert_eq!(platform.tenant_for("").unwrap().as_str(), "default");
        assert_eq!(platform.tenant_for("acme").unwrap().as_str(), "acme");
        assert_eq!(platform.tenant_for("Not An Id").unwrap_err().code(), Code::NotFound);
        assert!(own.tenants().contains("acme") && !own.tenants().contains("default"));
        assert_eq!(platform.tenants(), TenantScope::All);
        assert_ne!(own.request_owner(), platform.request_owner());
    }

    /// Audit entries name actors in fixed words.
    #[test]
    fn actors_print_as_documented() {
        let actors = [
            Actor::AdminKey,
            Actor::ApiKey("key_1".into()),
            Actor::Agent("agt_1".into()),
            Actor::Gateway,
            Actor::CommandLine(1000),
        ];
        assert_eq!(
            actors.map(|actor| actor.to_string()),
            ["admin_key", "api_key:key_1", "agent:agt_1", "gateway", "command_line:1000"]
        );
    }
}
