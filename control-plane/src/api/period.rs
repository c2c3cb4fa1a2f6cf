//! Times in requests.

use gateway_core::time;
use jiff::Timestamp;
use tonic::Status;

use super::status;

/// A time that may be left out.
///
/// # Errors
/// INVALID_ARGUMENT when it is none.
pub(super) fn timestamp(
    field: &str,
    value: Option<&prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Status> {
    let read =
        |value| time::from_proto(value).ok_or_else(|| status::invalid_field(field, "is not a valid time"));
    value.map(read).transpose()
}

/// `start_time` and `end_time` of a list, each of which may be left out.
///
/// # Errors
/// INVALID_ARGUMENT when one is no time, or the period ends before it begins.
pub(super) fn read(
    start_time: Option<&prost_types::Timestamp>,
    end_time: Option<&prost_types::Timestamp>,
) -> Result<(Option<Timestamp>, Option<Timestamp>), Status> {
    let period = (timestamp("start_time", start_time)?, timestamp("end_time", end_time)?);
    match period {
        (Some(start), Some(end)) if start > end => {
            Err(status::invalid_field("end_time", "must not be before `start_time`"))
        }
        _ => Ok(period),
    }
}
