//! `AuditService`: who did what.

use gateway_proto::v1::{self, audit_service_server::AuditService};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{authorize, page::Page, period, status};
use crate::{
    app::State,
    audit::diff,
    store::audit::{self, AuditFilter, AuditPlace},
};

/// Types of resources that entries are of.
const RESOURCE_TYPES: [&str; 12] = [
    "instance",
    "inbound_route",
    "webhook_subscription",
    "opt_out",
    "opt_out_policy",
    "tenant",
    "api_key",
    "agent",
    "join_token",
    "snapshot_export",
    "backup",
    "root_key",
];

/// The service.
#[derive(Clone)]
pub struct AuditApi {
    state: State,
}

impl AuditApi {
    /// Answers from `state`.
    pub fn new(state: State) -> Self {
        // Reading the descriptors takes milliseconds, which the first change is not to wait for.
        diff::pool();
        Self { state }
    }
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    async fn list_audit_entries(
        &self,
        request: Request<v1::ListAuditEntriesRequest>,
    ) -> Result<Response<v1::ListAuditEntriesResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let is_of_one = !caller.is_platform() || !request.tenant_id.is_empty();
        let tenant_id = is_of_one.then(|| caller.tenant_for(&request.tenant_id)).transpose()?;
        let times = [&request.start_time, &request.end_time]
            .map(|time| time.as_ref().map_or_else(String::new, ToString::to_string));
        let filters = [
            caller.page_owner(),
            &request.tenant_id,
            &request.resource_type,
            &request.resource_id,
            &request.actor,
            &times[0],
            &times[1],
        ];
        let page = Page::read("ListAuditEntries", &filters, request.page_size, &request.page_token)?;
        let before = page.after.as_deref().map(place).transpose()?;
        check_resource_type(&request.resource_type)?;
        let (start_time, end_time) = period::read(request.start_time.as_ref(), request.end_time.as_ref())?;
        let filter = AuditFilter {
            tenant_id: tenant_id.map(|tenant_id| tenant_id.to_string()),
            start_time,
            end_time,
            resource_type: optional(request.resource_type),
            resource_id: optional(request.resource_id),
            actor: optional(request.actor),
        };
        let mut connection = self.state.store.reader().await?;
        let mut found = audit::list(&mut connection, &filter, before, page.limit()).await?;
        let key = |(AuditPlace { time, seq }, _): &_| format!("{time}:{seq}");
        let next_page_token = page.cut_by(&mut found, |(_, entry)| entry.encoded_len(), key);
        let audit_entries = found.into_iter().map(|(_, entry)| entry).collect();
        Ok(Response::new(v1::ListAuditEntriesResponse { audit_entries, next_page_token }))
    }
}

fn place(key: &str) -> Result<AuditPlace, Status> {
    let read = || {
        let (time, seq) = key.split_once(':')?;
        Some(AuditPlace { time: time.parse().ok()?, seq: seq.parse().ok()? })
    };
    read().ok_or_else(|| status::invalid_field("page_token", "must be one of this list"))
}

fn optional(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

/// No entry is of another type, so that a misspelt one would look like a quiet day.
fn check_resource_type(named: &str) -> Result<(), Status> {
    if named.is_empty() || RESOURCE_TYPES.contains(&named) {
        return Ok(());
    }
    let names = RESOURCE_TYPES.map(|known| format!("`{known}`")).join(", ");
    Err(status::invalid_field("resource_type", format!("must be one of {names}, or empty for all")))
}
