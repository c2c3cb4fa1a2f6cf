//! Creations that carry a `request_id`: a repeat gets the first answer.

use prost::Message;
use tonic::Status;

use super::{authorize::Caller, status};
use crate::store::{
    WriteTx,
    requests::{self, REQUEST_ID_CHARS_MAX, Recalled, RequestKey},
};

/// Names a request of the caller's tenant; `parts` are what makes its body, in a fixed order and encoding (a protobuf map has
/// none).
///
/// # Errors
/// INVALID_ARGUMENT when `request_id` is too long.
pub fn key<'a>(
    caller: &'a Caller,
    method: &'static str,
    request_id: &'a str,
    parts: &[Vec<u8>],
) -> Result<RequestKey<'a>, Status> {
    if request_id.chars().count() > REQUEST_ID_CHARS_MAX {
        let description = format!("must be at most {REQUEST_ID_CHARS_MAX} characters long");
        return Err(status::invalid_field("request_id", description));
    }
    Ok(RequestKey::new(caller.request_owner(), method, request_id, parts))
}

/// The first answer, if the request is a repeat.
///
/// # Errors
/// INVALID_ARGUMENT when another request had the same `request_id`.
pub async fn answer<M: Message + Default>(
    transaction: &mut WriteTx,
    key: &RequestKey<'_>,
) -> Result<Option<M>, Status> {
    match requests::recall(transaction, key).await? {
        Recalled::New => Ok(None),
        Recalled::Answered(answer) => Ok(Some(answer)),
        Recalled::Different => {
            let description = "was used for another request within 24 hours; use a new one";
            Err(status::invalid_field("request_id", description))
        }
    }
}

/// The entries of a protobuf map in one encoding.
pub fn map_part(map: &std::collections::HashMap<String, String>) -> Vec<u8> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort();
    let mut part = Vec::new();
    for text in entries.into_iter().flat_map(|(key, value)| [key, value]) {
        part.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        part.extend_from_slice(text.as_bytes());
    }
    part
}
