//! `AuditService`: who did what.

use gateway_core::time;
use gateway_proto::v1::{self, audit_service_server::AuditService};
use jiff::Timestamp;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{authorize, page::Page, status};
use crate::{
    app::State,
    audit::diff,
    store::audit::{self, AuditFilter, AuditPlace},
};

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
        let filter = AuditFilter {
            tenant_id: tenant_id.map(|tenant_id| tenant_id.to_string()),
            start_time: timestamp("start_time", request.start_time.as_ref())?,
            end_time: timestamp("end_time", request.end_time.as_ref())?,
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

fn timestamp(field: &str, value: Option<&prost_types::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let read =
        |value| time::from_proto(value).ok_or_else(|| status::invalid_field(field, "is not a valid time"));
    value.map(read).transpose()
}
