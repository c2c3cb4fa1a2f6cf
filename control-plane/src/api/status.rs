//! The only place where a domain error becomes a [`tonic::Status`].
//!
//! Every status carries `ErrorInfo` with a stable reason; bad input also carries `BadRequest` with the
//! fields, and what may go better later `RetryInfo` (<https://google.aip.dev/193>).

use std::{borrow::Cow, collections::HashMap, error::Error, time::Duration};

use gateway_core::violation::{FieldViolation, FieldViolations};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::error;

use crate::{
    inbound_log::LogStoreError,
    store::{StoreError, Trouble, damaged::remedy},
};

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "whatsapp-gateway";

/// When to try again what failed because the control plane is away, restarting or busy.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// When to try again what failed because its disk is full or broken: somebody must act first.
const RETRY_DELAY_BROKEN: Duration = Duration::from_secs(30);

// A status travels in headers, and most clients take 8 KiB of them: a larger one is to them another error.
/// Longest id that is told back; none that exists is longer.
const ECHO_BYTES_MAX: usize = 100;
/// Longest message.
pub const MESSAGE_BYTES_MAX: usize = 1_000;
/// Longest path of a bad field.
const FIELD_BYTES_MAX: usize = 200;
/// Fields and descriptions of all violations.
const VIOLATIONS_BYTES_MAX: usize = 4_000;

/// The text, or its beginning when it is too long.
pub fn cut(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(bytes_max)]))
}

/// An id in a text.
fn quoted(id: &str) -> String {
    format!("`{}`", cut(id, ECHO_BYTES_MAX))
}

fn with_reason(code: Code, reason: &str, message: impl Into<String>, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), cut(value, ECHO_BYTES_MAX).into_owned()))
        .collect();
    let message = message.into();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, cut(&message, MESSAGE_BYTES_MAX), details)
}

/// INVALID_ARGUMENT for all bad fields of a request; of very many, the first that have room.
pub fn invalid(violations: FieldViolations) -> Status {
    let message = violations.to_string();
    let mut details = ErrorDetails::with_error_info("INVALID_FIELD", DOMAIN, HashMap::new());
    let mut room = VIOLATIONS_BYTES_MAX;
    for FieldViolation { field, description } in violations.0 {
        let field = cut(&field, FIELD_BYTES_MAX);
        let description = cut(&description, MESSAGE_BYTES_MAX);
        let Some(left) = room.checked_sub(field.len() + description.len()) else { break };
        room = left;
        details.add_bad_request_violation(field, description);
    }
    Status::with_error_details(Code::InvalidArgument, cut(&message, MESSAGE_BYTES_MAX), details)
}

/// INVALID_ARGUMENT for one bad field.
pub fn invalid_field(field: impl Into<String>, description: impl Into<String>) -> Status {
    invalid(FieldViolations(vec![FieldViolation::new(field, description)]))
}

/// INVALID_ARGUMENT for a field that must be set.
pub fn missing_field(field: &str) -> Status {
    invalid_field(field, "must be set")
}

/// NOT_FOUND: absent, or another tenant's. `resource` is a word such as `instance`.
pub fn not_found(resource: &str, id: &str) -> Status {
    let message = format!("{resource} {} does not exist", quoted(id));
    with_reason(Code::NotFound, "NOT_FOUND", message, &[("resource", resource), ("id", id)])
}

/// DATA_LOSS: the resource is stored, but cannot be read. `delete` is the method that removes it.
pub fn damaged(resource: &str, id: &str, delete: &str) -> Status {
    let message = format!(
        "{resource} {} is stored but cannot be read: restore a backup that has it, or remove it with {delete} and \
         create it anew",
        quoted(id)
    );
    with_reason(Code::DataLoss, "DAMAGED_RESOURCE", message, &[("resource", resource), ("id", id)])
}

/// DATA_LOSS: a row is stored, but cannot be read. Says what can be done about it.
fn damaged_row(resource_type: &str, id: &str) -> Status {
    let resource = resource_type.replace('_', " ");
    let message = format!("{resource} `{id}` is stored but cannot be read: {}", remedy(resource_type));
    with_reason(Code::DataLoss, "DAMAGED_RESOURCE", message, &[("resource", &resource), ("id", id)])
}

/// ALREADY_EXISTS for an id that is taken.
pub fn already_exists(resource: &str, id: &str) -> Status {
    let message = format!("{resource} {} exists already; choose another id or leave it empty", quoted(id));
    with_reason(Code::AlreadyExists, "ALREADY_EXISTS", message, &[("resource", resource), ("id", id)])
}

/// ALREADY_EXISTS for something unique other than the id.
pub fn conflict(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::AlreadyExists, reason, message, &[])
}

/// FAILED_PRECONDITION: the resource is in the wrong state.
pub fn failed_precondition(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::FailedPrecondition, reason, message, &[])
}

/// ABORTED: the resource changed since the caller read it.
pub fn stale_etag(resource: &str, id: &str) -> Status {
    let message =
        format!("{resource} `{id}` has changed since that etag; read it again and repeat the change");
    with_reason(Code::Aborted, "STALE_ETAG", message, &[("resource", resource), ("id", id)])
}

/// FAILED_PRECONDITION: others refer to the resource. `by` is a plural such as `instances`.
pub fn in_use(resource: &str, id: &str, by: &str, names: impl Iterator<Item = String>) -> Status {
    let names = names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    failed_precondition("IN_USE", format!("{resource} `{id}` is used by {by}, delete them first: {names}"))
}

/// Checks the caller's etag, if any, against the current one.
///
/// # Errors
/// ABORTED when they differ.
pub fn check_etag(resource: &str, id: &str, given: &str, current: &str) -> Result<(), Status> {
    if given.is_empty() || given == current { Ok(()) } else { Err(stale_etag(resource, id)) }
}

/// RESOURCE_EXHAUSTED: a limit is reached.
pub fn exhausted(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::ResourceExhausted, reason, message, &[])
}

/// RESOURCE_EXHAUSTED: a limit is reached; trying again can help once others have let go.
pub fn exhausted_until(reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// RESOURCE_EXHAUSTED: `subject` has as many of something as it may, until it gives some up.
pub fn quota_exceeded(reason: &str, subject: &str, description: String) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    let description = cut(&description, MESSAGE_BYTES_MAX);
    details.add_quota_failure_violation(subject, description.as_ref());
    Status::with_error_details(Code::ResourceExhausted, description, details)
}

/// DEADLINE_EXCEEDED: the call did not have its answer in time.
pub fn deadline_exceeded() -> Status {
    let message = "the call had no answer in time; it may have taken effect: repeat it, creations with their `request_id`";
    with_reason(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message, &[])
}

/// UNAUTHENTICATED: no credential, or one that nobody has.
pub fn unauthenticated(message: impl Into<String>) -> Status {
    with_reason(Code::Unauthenticated, "UNAUTHENTICATED", message, &[])
}

/// UNAUTHENTICATED: the agent was revoked. It takes the reason for a command to refuse callbacks.
pub fn agent_revoked() -> Status {
    let message = "the agent was revoked; to use it again, enroll it with a new join token";
    with_reason(Code::Unauthenticated, "AGENT_REVOKED", message, &[])
}

/// PERMISSION_DENIED: the credential may not do this.
pub fn permission_denied(message: impl Into<String>) -> Status {
    with_reason(Code::PermissionDenied, "PERMISSION_DENIED", message, &[])
}

/// UNAVAILABLE: trying again can help.
pub fn unavailable(reason: &str, message: impl Into<String>) -> Status {
    unavailable_until(reason, message, RETRY_DELAY)
}

/// UNAVAILABLE: trying again can help, but not before `retry_after`.
pub fn unavailable_until(reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// UNAUTHENTICATED: the credential is good, but a valid client certificate is missing beside it.
pub fn certificate_needed(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::Unauthenticated, reason, message, &[])
}

/// INTERNAL, without detail for the caller; the whole chain goes to the log, once.
pub fn internal(cause: &(dyn Error + 'static)) -> Status {
    log(cause);
    with_reason(Code::Internal, "INTERNAL", "internal error; the control plane's log has the cause", &[])
}

fn log(cause: &(dyn Error + 'static)) {
    let mut chain = cause.to_string();
    let mut next = cause.source();
    while let Some(cause) = next {
        chain.push_str(": ");
        chain.push_str(&cause.to_string());
        next = cause.source();
    }
    error!(error = chain, "failed to answer a request");
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let help = match &error {
            StoreError::Database { trouble, .. } => help(*trouble),
            StoreError::Damaged { resource_type, id, .. } => {
                log(&error);
                return damaged_row(resource_type, id);
            }
            damage if damage.is_damage() => {
                log(&error);
                let message = "a stored resource cannot be read; the control plane's log says which: restore a backup \
                               that has it, or delete it and create it anew";
                return with_reason(Code::DataLoss, "DAMAGED_RESOURCE", message, &[]);
            }
            _ => None,
        };
        let Some((delay, reason, message)) = help else { return internal(&error) };
        log(&error);
        unavailable_until(reason, message, delay)
    }
}

/// The reason that callers are told of a failure that lies around the database; None of any other.
pub fn trouble_of(error: &StoreError) -> Option<&'static str> {
    match error {
        StoreError::Database { trouble, .. } => help(*trouble).map(|(_, reason, _)| reason),
        _ => None,
    }
}

/// What is wrong around the database and not with the request: trying again helps once that is mended.
const fn help(trouble: Trouble) -> Option<(Duration, &'static str, &'static str)> {
    match trouble {
        Trouble::Busy => {
            Some((RETRY_DELAY, "STORE_BUSY", "the configuration database is busy or locked; try again"))
        }
        Trouble::NotWritable => {
            let message =
                "the configuration database cannot be written; its disk or its permissions must be mended";
            Some((RETRY_DELAY_BROKEN, "STORE_NOT_WRITABLE", message))
        }
        Trouble::Full => {
            let message = "the disk of the configuration database is full; nothing was changed";
            Some((RETRY_DELAY_BROKEN, "STORE_FULL", message))
        }
        Trouble::Conflict | Trouble::Other => None,
    }
}

impl From<LogStoreError> for Status {
    fn from(error: LogStoreError) -> Self {
        match error {
            LogStoreError::Closed => unavailable("SHUTTING_DOWN", "the control plane is shutting down"),
            LogStoreError::UnknownCursor => invalid_field(
                "cursor",
                "is of another inbound log; start again without it, or from `start_time`",
            ),
            other => internal(&other),
        }
    }
}

#[cfg(test)]
mod tests;
