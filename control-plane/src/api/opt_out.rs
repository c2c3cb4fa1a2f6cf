//! `OptOutService`.

use gateway_core::{
    id::{InstanceId, InvalidId, TenantId},
    opt_out::{ContactRef, Decision, OptOutPolicy, OptOutRecord, Purpose},
    phone::normalize_phone,
    tenant::TenantScope,
    time,
    violation::FieldViolations,
};
use gateway_proto::v1::{self, opt_out_service_server::OptOutService, work::Work};
use gateway_runtime::clock;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    authorize::{self, Caller},
    field_mask, instance,
    page::Page,
    repeat, status,
};
use crate::{
    app::State,
    audit::Audited,
    store::{
        Connection, WriteTx,
        damaged::{Found, Head},
        opt_out_policies,
        opt_outs::{self, OptOutFilter, OptOutRecorded},
        requests,
    },
    work::WorkQueue,
};

const POLICY_FIELDS: [&str; 7] = [
    "keywords_enabled",
    "languages",
    "weak_keywords",
    "opt_out_keywords",
    "opt_in_keywords",
    "essential_purposes",
    "tenant_wide",
];

/// Who asked to stop, and whether a message may be sent.
pub struct OptOutApi {
    state: State,
}

impl OptOutApi {
    /// The service over `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }

    /// The policy of an instance as callers see it; the default one when none was set.
    async fn policy_of(&self, connection: &mut dyn Connection, id: &str) -> Result<v1::OptOutPolicy, Status> {
        if let Some(policy) = opt_out_policies::find(connection, id).await? {
            return Ok(policy);
        }
        let instance_id: InstanceId = id.parse().map_err(|_| status::not_found("instance", id))?;
        let policy = OptOutPolicy::default().to_proto(&instance_id);
        Ok(v1::OptOutPolicy { etag: self.state.store.etag(0), ..policy })
    }
}

#[tonic::async_trait]
impl OptOutService for OptOutApi {
    async fn check_suppression(
        &self,
        request: Request<v1::CheckSuppressionRequest>,
    ) -> Result<Response<v1::CheckSuppressionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let mut connection = self.state.store.reader().await?;
        let instance =
            instance::find(&mut connection, &caller.tenants(), "instance_id", &request.instance_id).await?;
        let tenant_id = tenant_of(&instance)?;
        let mut violations = FieldViolations::new();
        let contact = read_contact(&mut violations, "", &request.phone, &request.user_id);
        let purpose = Purpose::try_from(request.purpose);
        if let Err(error) = &purpose {
            violations.add("purpose", error.to_string());
        }
        let (Some(contact), Ok(purpose)) = (contact, purpose) else {
            return Err(status::invalid(violations));
        };
        let policy = self.policy_of(&mut connection, &request.instance_id).await?;
        let policy = OptOutPolicy::try_from(&policy).map_err(|violations| status::internal(&violations))?;
        let scope = (!policy.tenant_wide).then_some(request.instance_id.as_str());
        let records = opt_outs::of_contact(&mut connection, &tenant_id, scope, &contact).await?;
        Ok(Response::new(decide(&policy, purpose, &request.instance_id, records)?))
    }

    async fn create_opt_out(
        &self,
        request: Request<v1::CreateOptOutRequest>,
    ) -> Result<Response<v1::CreateOptOutResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let wanted = request.opt_out.ok_or_else(|| status::missing_field("opt_out"))?;
        let mut transaction = self.state.store.begin_write().await?;
        let parts = [wanted.encode_to_vec()];
        let key = repeat::key(&caller, "CreateOptOut", &request.request_id, &parts)?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let field = "opt_out.instance_id";
        let instance =
            instance::find(&mut transaction, &caller.tenants(), field, &wanted.instance_id).await?;
        let tenant_id = tenant_of(&instance)?;
        let decision = operator_opt_out(&mut transaction, &tenant_id, &wanted).await?;
        let recorded = opt_outs::record(&mut transaction, &decision).await?;
        tell(&mut transaction, &instance.regions, &recorded).await?;
        audit(&mut transaction, &caller, "OptOutService/CreateOptOut", &recorded).await?;
        let response = v1::CreateOptOutResponse { opt_out: Some(recorded.opt_out) };
        requests::remember(&mut transaction, &key, &response).await?;
        transaction.commit().await?;
        self.state.work.wake();
        Ok(Response::new(response))
    }

    async fn get_opt_out(
        &self,
        request: Request<v1::GetOptOutRequest>,
    ) -> Result<Response<v1::GetOptOutResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let opt_out = find(&mut connection, &caller.tenants(), &id).await?;
        Ok(Response::new(v1::GetOptOutResponse { opt_out: Some(opt_out) }))
    }

    async fn list_opt_outs(
        &self,
        request: Request<v1::ListOptOutsRequest>,
    ) -> Result<Response<v1::ListOptOutsResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let state = request.state.to_string();
        let filters = [caller.page_owner(), request.instance_id.as_str(), &request.phone, &state];
        let page = Page::read("ListOptOuts", &filters, request.page_size, &request.page_token)?;
        let phone_key = match normalize_phone(&request.phone) {
            Some(phone) => Some(phone.match_key()),
            None if request.phone.is_empty() => None,
            None => {
                return Err(status::invalid_field(
                    "phone",
                    "must be a phone number in E.164, or empty for all",
                ));
            }
        };
        let state = match v1::OptOutState::try_from(request.state) {
            Ok(v1::OptOutState::Unspecified) => None,
            Ok(state) => Some(state.into()),
            Err(_) => return Err(status::invalid_field("state", "must be a known state, or unset for all")),
        };
        let instance_id = Some(request.instance_id.as_str()).filter(|id| !id.is_empty());
        let filter = OptOutFilter { instance_id, phone_key: phone_key.as_deref(), state };
        let mut connection = self.state.store.reader().await?;
        let after = page.after.as_deref();
        let mut found =
            opt_outs::list(&mut connection, &caller.tenants(), &filter, after, page.limit()).await?;
        let next_page_token = page.cut(&mut found, |opt_out| &opt_out.id);
        Ok(Response::new(v1::ListOptOutsResponse { opt_outs: found, next_page_token }))
    }

    async fn delete_opt_out(
        &self,
        request: Request<v1::DeleteOptOutRequest>,
    ) -> Result<Response<v1::DeleteOptOutResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::DeleteOptOutRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let opt_out = match find_even_damaged(&mut transaction, &caller.tenants(), &id).await? {
            Found::Whole(opt_out) => opt_out,
            Found::Damaged(head) => {
                opt_outs::delete_unread(&mut transaction, &id).await?;
                let audited = Audited::deleted_unread::<v1::OptOut>("OptOutService/DeleteOptOut", &head);
                transaction.audit(&caller, audited).await?;
                transaction.commit().await?;
                return Ok(Response::new(v1::DeleteOptOutResponse {}));
            }
        };
        status::check_etag("opt-out", &id, &etag, &opt_out.etag)?;
        if opt_out.state() == v1::OptOutState::OptedIn {
            return Ok(Response::new(v1::DeleteOptOutResponse {}));
        }
        let record = OptOutRecord::try_from(&opt_out).map_err(|violations| status::internal(&violations))?;
        let decision = Decision::operator_opt_in(&record, clock::now());
        let recorded = opt_outs::record(&mut transaction, &decision).await?;
        // The instance may be gone; then nobody is left to be told.
        if let Ok(instance) =
            instance::find(&mut transaction, &caller.tenants(), "id", &opt_out.instance_id).await
        {
            tell(&mut transaction, &instance.regions, &recorded).await?;
        }
        audit(&mut transaction, &caller, "OptOutService/DeleteOptOut", &recorded).await?;
        transaction.commit().await?;
        self.state.work.wake();
        Ok(Response::new(v1::DeleteOptOutResponse {}))
    }

    async fn get_opt_out_policy(
        &self,
        request: Request<v1::GetOptOutPolicyRequest>,
    ) -> Result<Response<v1::GetOptOutPolicyResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().instance_id;
        let mut connection = self.state.store.reader().await?;
        instance::find(&mut connection, &caller.tenants(), "instance_id", &id).await?;
        let policy = self.policy_of(&mut connection, &id).await?;
        Ok(Response::new(v1::GetOptOutPolicyResponse { opt_out_policy: Some(policy) }))
    }

    async fn update_opt_out_policy(
        &self,
        request: Request<v1::UpdateOptOutPolicyRequest>,
    ) -> Result<Response<v1::UpdateOptOutPolicyResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let wanted = request.opt_out_policy.ok_or_else(|| status::missing_field("opt_out_policy"))?;
        let id = wanted.instance_id.clone();
        let mut transaction = self.state.store.begin_write().await?;
        let instance =
            instance::find(&mut transaction, &caller.tenants(), "opt_out_policy.instance_id", &id).await?;
        let tenant_id = tenant_of(&instance)?;
        let fields = field_mask::read(request.update_mask.as_ref(), &POLICY_FIELDS)?;
        let damaged = match opt_out_policies::find_even_damaged(&mut transaction, &id).await? {
            Some(Found::Damaged(head)) if fields.len() == POLICY_FIELDS.len() => Some(head),
            _ => None,
        };
        let mut policy = match damaged {
            // Nothing of it is needed.
            Some(Head { id: instance_id, etag, .. }) => {
                v1::OptOutPolicy { instance_id, etag, ..Default::default() }
            }
            None => self.policy_of(&mut transaction, &id).await?,
        };
        status::check_etag("opt-out policy", &id, &wanted.etag, &policy.etag)?;
        let before = policy.clone();
        apply(&mut policy, wanted, &fields);
        let checked = OptOutPolicy::try_from(&policy).map_err(under_policy)?;
        let instance_id: InstanceId = id.parse().map_err(|_| status::not_found("instance", &id))?;
        let mut policy = checked.to_proto(&instance_id);
        policy.update_time = Some(time::to_proto(clock::now()));
        opt_out_policies::put(&mut transaction, &tenant_id, &mut policy).await?;
        let audited = Audited::changed("OptOutService/UpdateOptOutPolicy", &before, &policy);
        transaction.audit(&caller, audited.of_tenant(&tenant_id)).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::UpdateOptOutPolicyResponse { opt_out_policy: Some(policy) }))
    }
}

async fn find(connection: &mut dyn Connection, scope: &TenantScope, id: &str) -> Result<v1::OptOut, Status> {
    if id.is_empty() {
        return Err(status::missing_field("id"));
    }
    let found = opt_outs::find(connection, scope, id).await?;
    found.ok_or_else(|| status::not_found("opt-out", id))
}

async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Found<v1::OptOut>, Status> {
    if id.is_empty() {
        return Err(status::missing_field("id"));
    }
    let found = opt_outs::find_even_damaged(connection, scope, id).await?;
    found.ok_or_else(|| status::not_found("opt-out", id))
}

/// The tenant of a stored instance: opt-outs belong to it, whoever asks.
fn tenant_of(instance: &v1::Instance) -> Result<TenantId, Status> {
    instance.tenant_id.parse().map_err(|error: InvalidId| status::internal(&error))
}

/// Reads the keys of a contact. `prefix` is the path of the message that holds them, with its dot.
fn read_contact(
    violations: &mut FieldViolations,
    prefix: &str,
    phone: &str,
    user_id: &str,
) -> Option<ContactRef> {
    let normalized = normalize_phone(phone);
    if normalized.is_none() && !phone.is_empty() {
        violations.add(format!("{prefix}phone"), "must be a phone number in E.164: `+` and 7 to 15 digits");
        return None;
    }
    let user_id = (!user_id.is_empty()).then(|| user_id.into());
    let contact = ContactRef { phone: normalized, user_id };
    if contact.is_empty() {
        violations.add(format!("{prefix}phone"), "`phone` or `user_id` is required");
        return None;
    }
    Some(contact)
}

/// Whether a message may be sent, and the record that decides: one that suppresses, those of the instance
/// itself first; otherwise what is known at the instance.
fn decide(
    policy: &OptOutPolicy,
    purpose: Purpose,
    instance_id: &str,
    mut records: Vec<v1::OptOut>,
) -> Result<v1::CheckSuppressionResponse, Status> {
    records.sort_by_key(|record| record.instance_id != instance_id);
    for opt_out in &records {
        let record = OptOutRecord::try_from(opt_out).map_err(|violations| status::internal(&violations))?;
        if policy.suppresses(&record, purpose) {
            return Ok(v1::CheckSuppressionResponse { allowed: false, opt_out: Some(opt_out.clone()) });
        }
    }
    let own = records.into_iter().find(|record| record.instance_id == instance_id);
    Ok(v1::CheckSuppressionResponse { allowed: true, opt_out: own })
}

async fn operator_opt_out(
    transaction: &mut WriteTx,
    tenant_id: &TenantId,
    wanted: &v1::OptOut,
) -> Result<Decision, Status> {
    // Bad keys are reported with all the other fields, below.
    let contact = read_contact(&mut FieldViolations::new(), "", &wanted.phone, &wanted.user_id);
    let existing = match (contact, wanted.instance_id.parse()) {
        (Some(contact), Ok(instance_id)) => {
            opt_outs::known(transaction, tenant_id, &instance_id, &contact).await?
        }
        _ => None,
    };
    Decision::operator_opt_out(wanted, tenant_id.clone(), existing.as_ref(), clock::now())
        .map_err(status::invalid)
}

/// Queues, in the same transaction, that an agent tells the customer of a change.
async fn tell(
    transaction: &mut WriteTx,
    regions: &[String],
    recorded: &OptOutRecorded,
) -> Result<(), Status> {
    if recorded.is_news {
        WorkQueue::enqueue_in(transaction, regions, Work::OptOut(recorded.opt_out.clone())).await?;
    }
    Ok(())
}

/// Audits what a decision changed, if it did.
async fn audit(
    transaction: &mut WriteTx,
    caller: &Caller,
    method: &'static str,
    recorded: &OptOutRecorded,
) -> Result<(), Status> {
    if recorded.changed {
        let audited = Audited::written(method, recorded.before.as_ref(), &recorded.opt_out);
        transaction.audit(caller, audited).await?;
    }
    Ok(())
}

fn apply(policy: &mut v1::OptOutPolicy, wanted: v1::OptOutPolicy, fields: &[&str]) {
    for field in fields {
        match *field {
            "keywords_enabled" => policy.keywords_enabled = wanted.keywords_enabled,
            "languages" => policy.languages.clone_from(&wanted.languages),
            "weak_keywords" => policy.weak_keywords = wanted.weak_keywords,
            "opt_out_keywords" => policy.opt_out_keywords.clone_from(&wanted.opt_out_keywords),
            "opt_in_keywords" => policy.opt_in_keywords.clone_from(&wanted.opt_in_keywords),
            "essential_purposes" => policy.essential_purposes.clone_from(&wanted.essential_purposes),
            "tenant_wide" => policy.tenant_wide = wanted.tenant_wide,
            other => unreachable!("the mask allows only known fields, not `{other}`"),
        }
    }
}

fn under_policy(violations: FieldViolations) -> Status {
    let mut all = FieldViolations::new();
    for violation in violations.0 {
        all.add(format!("opt_out_policy.{}", violation.field), violation.description);
    }
    status::invalid(all)
}
