//! A tenant, the owner of instances, and whose resources a caller may reach.

use gateway_proto::v1;

use crate::{
    id::TenantId,
    instance::{DISPLAY_NAME_CHARS_MAX, check_text},
    violation::FieldViolations,
};

/// Whose resources a caller may reach. Every query of the control plane's store takes one, so that what is
/// another tenant's is not there at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantScope {
    /// What belongs to one tenant.
    One(TenantId),
    /// What belongs to any tenant or, like a platform route, to none: a platform admin.
    All,
}

impl TenantScope {
    /// Whether a resource with this `tenant_id` is within reach. Empty, a resource of no tenant, is so for
    /// [`TenantScope::All`] only.
    pub fn contains(&self, tenant_id: &str) -> bool {
        self.only().is_none_or(|only| only == tenant_id)
    }

    /// The one tenant; None for all.
    pub fn tenant_id(&self) -> Option<TenantId> {
        match self {
            Self::One(tenant_id) => Some(tenant_id.clone()),
            Self::All => None,
        }
    }

    /// The id of the one tenant; None for all.
    pub fn only(&self) -> Option<&str> {
        match self {
            Self::One(tenant_id) => Some(tenant_id.as_str()),
            Self::All => None,
        }
    }
}

/// A validated tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Shown to people.
    pub display_name: String,
}

impl TryFrom<&v1::Tenant> for Tenant {
    type Error = FieldViolations;

    fn try_from(proto: &v1::Tenant) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let id = proto.id.parse::<TenantId>();
        if let Err(error) = &id {
            violations.add("tenant.id", error.to_string());
        }
        check_text(&mut violations, "tenant.display_name", &proto.display_name, 0, DISPLAY_NAME_CHARS_MAX);
        let Ok(id) = id else { return Err(violations) };
        violations.into_result(Self { id, display_name: proto.display_name.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tenant's scope holds that tenant's resources only, not those of no tenant.
    #[test]
    fn scope_of_one_tenant_holds_nothing_else() {
        let one = TenantScope::One("acme".parse().unwrap());
        assert!(one.contains("acme") && !one.contains("acme2") && !one.contains(""));
        assert!(TenantScope::All.contains("acme") && TenantScope::All.contains(""));
        assert_eq!((one.only(), TenantScope::All.only()), (Some("acme"), None));
    }

    /// Bad fields are named by their paths.
    #[test]
    fn bad_tenants_are_refused() {
        let tenant = |id: &str, display_name: &str| v1::Tenant {
            id: id.into(),
            display_name: display_name.into(),
            ..Default::default()
        };
        assert!(Tenant::try_from(&tenant("acme", "")).is_ok());
        let refused = Tenant::try_from(&tenant("A", &"x".repeat(101))).unwrap_err();
        let fields: Vec<_> = refused.0.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["tenant.id", "tenant.display_name"]);
    }
}
