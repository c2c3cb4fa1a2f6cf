//! What a file of a snapshot export says of itself, and who may start from it.

use gateway_proto::v1;
use jiff::Timestamp;

use crate::{id::TenantId, instance::is_region, time, violation::FieldViolations};

/// What a file of an export begins with, before the number of its format.
pub const FILE_NAME: &[u8; 7] = b"WAGWEXP";
/// What the key begins with that agents are given.
pub const KEY_PREFIX: &str = "wagw_snapshot_key_";
/// What the key begins with that signs exports, and that stays with the control plane.
pub const SIGNING_KEY_PREFIX: &str = "wagw_snapshot_signing_key_";

/// A validated header of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportHeader {
    /// The region whose agents may start from it.
    pub region: String,
    /// The tenant whose agents may; None for agents of the platform.
    pub tenant_id: Option<TenantId>,
    /// The configuration version in it.
    pub version: u64,
    /// The store that the version belongs to.
    pub store_epoch: String,
    /// Up to where the opt-out log is in it.
    pub opt_out_cursor: u64,
    /// When it was made.
    pub create_time: Timestamp,
    /// From when on no agent starts from it.
    pub expire_time: Timestamp,
    /// The program that made it.
    pub build: String,
}

/// Why an agent does not start from an export.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportRefusal {
    /// It is too old.
    #[error(
        "use the export of {create_time}: it expired at {expire_time}; make a new one with `gateway-control-plane \
         export-snapshot`"
    )]
    Expired {
        /// When it was made.
        create_time: Timestamp,
        /// When it expired.
        expire_time: Timestamp,
    },
    /// It is for another region.
    #[error("use the export: it is for region `{exported}`, and this agent runs in `{region}`")]
    Region {
        /// The export's region.
        exported: String,
        /// The agent's region.
        region: String,
    },
    /// It is for another tenant, or one of them is of the platform.
    #[error("use the export: it is for {}, and this agent works for {}", whom(exported), whom(tenant_id))]
    Tenant {
        /// The export's tenant, empty for the platform.
        exported: String,
        /// The agent's tenant, empty for the platform.
        tenant_id: String,
    },
}

fn whom(tenant_id: &str) -> String {
    if tenant_id.is_empty() { "the platform".to_owned() } else { format!("tenant `{tenant_id}`") }
}

impl ExportHeader {
    /// Whether an agent may start from it at `now`. `region` is where the agent runs, and `tenant_id` whom it works for
    /// (empty for the platform), if it was told.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(
        &self,
        region: Option<&str>,
        tenant_id: Option<&str>,
        now: Timestamp,
    ) -> Result<(), ExportRefusal> {
        if let Some(region) = region.filter(|region| *region != self.region) {
            return Err(ExportRefusal::Region { exported: self.region.clone(), region: region.to_owned() });
        }
        let exported = self.tenant_id.as_ref().map_or("", TenantId::as_str);
        if let Some(tenant_id) = tenant_id.filter(|tenant_id| *tenant_id != exported) {
            let (exported, tenant_id) = (exported.to_owned(), tenant_id.to_owned());
            return Err(ExportRefusal::Tenant { exported, tenant_id });
        }
        if now >= self.expire_time {
            let (create_time, expire_time) = (self.create_time, self.expire_time);
            return Err(ExportRefusal::Expired { create_time, expire_time });
        }
        Ok(())
    }
}

impl TryFrom<&v1::SnapshotExportHeader> for ExportHeader {
    type Error = FieldViolations;

    fn try_from(header: &v1::SnapshotExportHeader) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        if !is_region(&header.region) {
            violations.add("region", "must match [a-z0-9][a-z0-9_-]{0,62}");
        }
        if header.store_epoch.is_empty() {
            violations.add("store_epoch", "must be set");
        }
        let tenant_id = (!header.tenant_id.is_empty()).then(|| header.tenant_id.parse()).transpose();
        if tenant_id.is_err() {
            violations.add("tenant_id", "must be the id of a tenant");
        }
        let mut time = |field: &str, value: &Option<_>| {
            value.as_ref().and_then(time::from_proto).unwrap_or_else(|| {
                violations.add(field, "must be a time");
                Timestamp::UNIX_EPOCH
            })
        };
        let create_time = time("create_time", &header.create_time);
        let expire_time = time("expire_time", &header.expire_time);
        violations.into_result(Self {
            region: header.region.clone(),
            tenant_id: tenant_id.ok().flatten(),
            version: header.version,
            store_epoch: header.store_epoch.clone(),
            opt_out_cursor: header.opt_out_cursor,
            create_time,
            expire_time,
            build: header.build.clone(),
        })
    }
}

impl From<&ExportHeader> for v1::SnapshotExportHeader {
    fn from(header: &ExportHeader) -> Self {
        Self {
            region: header.region.clone(),
            tenant_id: header.tenant_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            version: header.version,
            store_epoch: header.store_epoch.clone(),
            opt_out_cursor: header.opt_out_cursor,
            create_time: Some(time::to_proto(header.create_time)),
            expire_time: Some(time::to_proto(header.expire_time)),
            build: header.build.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ExportHeader {
        ExportHeader {
            region: "eu".to_owned(),
            tenant_id: Some("acme".parse().unwrap()),
            version: 7,
            store_epoch: "epoch".to_owned(),
            opt_out_cursor: 3,
            create_time: "2026-11-01T00:00:00Z".parse().unwrap(),
            expire_time: "2026-11-08T00:00:00Z".parse().unwrap(),
            build: "1.0.0".to_owned(),
        }
    }

    /// A header is the same after it was written and read; one that lacks what is needed is refused with the
    /// fields that are missing.
    #[test]
    fn headers_round_trip() {
        let of_platform = ExportHeader { tenant_id: None, ..header() };
        for header in [header(), of_platform] {
            assert_eq!(ExportHeader::try_from(&v1::SnapshotExportHeader::from(&header)).unwrap(), header);
        }
        let empty = ExportHeader::try_from(&v1::SnapshotExportHeader::default()).unwrap_err();
        let fields: Vec<_> = empty.0.into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, ["region", "store_epoch", "create_time", "expire_time"]);
    }

    /// An export is for its region, until it expires.
    #[test]
    fn exports_are_for_one_region_and_expire() {
        let check = |region, now: &str| header().check(region, None, now.parse().unwrap());
        let last = "2026-11-07T23:59:59Z";
        assert_eq!(check(None, last), Ok(()));
        assert_eq!(check(Some("eu"), last), Ok(()));
        assert!(matches!(check(Some("us"), last), Err(ExportRefusal::Region { .. })));
        assert!(matches!(check(None, "2026-11-08T00:00:00Z"), Err(ExportRefusal::Expired { .. })));
    }
}
