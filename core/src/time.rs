//! Times on the wire: whole seconds in payloads, `google.protobuf.Timestamp` over gRPC, and whatever
//! providers send.

use jiff::Timestamp;
use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

/// From here on a provider's number of seconds can only be milliseconds: as seconds it would be the year
/// 33658. Meta has sent milliseconds by mistake.
const MILLISECONDS_FROM: i64 = 1_000_000_000_000;

/// A time as webhook bodies show it: RFC 3339, UTC, whole seconds, `Z`; fractions are cut.
pub fn rfc3339_seconds(time: Timestamp) -> String {
    let whole = Timestamp::from_second(time.as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
    whole.to_string()
}

/// A provider's epoch number, seconds or milliseconds. None outside of the years 1970 to 9999; 0 is none too,
/// since it stands for a time that was never set.
pub fn from_provider_number(number: i64) -> Option<Timestamp> {
    let time = if number >= MILLISECONDS_FROM {
        Timestamp::from_millisecond(number).ok()?
    } else {
        Timestamp::from_second(number).ok()?
    };
    (time > Timestamp::UNIX_EPOCH).then_some(time)
}

/// A provider's time as an integer, a float or a text, see [`from_provider_text`].
pub fn from_provider_json(value: &serde_json::Value) -> Option<Timestamp> {
    match value {
        serde_json::Value::Number(number) => {
            number.as_i64().or_else(|| number.as_f64().and_then(whole)).and_then(from_provider_number)
        }
        serde_json::Value::String(text) => from_provider_text(text),
        _ => None,
    }
}

/// A provider's time as text: a decimal number of seconds or milliseconds, or a date and time with an offset
/// (RFC 3339, and ISO 8601 with `+0000`), with or without fractions. None without an offset: it could mean any
/// of 26 hours.
pub fn from_provider_text(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if text.contains('T') || text.contains('-') && text.contains(':') {
        return text.parse::<Timestamp>().ok().filter(|time| *time > Timestamp::UNIX_EPOCH);
    }
    let number = text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().and_then(whole));
    number.and_then(from_provider_number)
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
fn whole(number: f64) -> Option<i64> {
    (number.is_finite() && (0.0..1e16).contains(&number)).then_some(number as i64)
}

/// To protobuf.
pub fn to_proto(time: Timestamp) -> ProtoTimestamp {
    let nanoseconds = time.as_nanosecond();
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    ProtoTimestamp {
        seconds: i64::try_from(seconds).expect("a Timestamp's seconds fit i64"),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).expect("a remainder below 10^9 fits i32"),
    }
}

/// From protobuf. None when it is out of range.
pub fn from_proto(time: &ProtoTimestamp) -> Option<Timestamp> {
    (0..1_000_000_000).contains(&time.nanos).then(|| Timestamp::new(time.seconds, time.nanos).ok())?
}

/// To protobuf.
pub fn duration_to_proto(duration: std::time::Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("nanoseconds below 10^9 fit i32"),
    }
}

/// From protobuf. None when it is negative or malformed.
pub fn duration_from_proto(duration: &ProtoDuration) -> Option<std::time::Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(std::time::Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Seconds, milliseconds, floats and strings of them all give the same second.
    #[test]
    fn provider_times_are_understood() {
        for value in [
            json!(1_749_416_383),
            json!("1749416383"),
            json!(1_749_416_383_000_i64),
            json!("1749416383000"),
            json!(1_749_416_383.25),
            json!("1749416383.25"),
            json!(" 1749416383 "),
        ] {
            let time = from_provider_json(&value).unwrap();
            assert_eq!(rfc3339_seconds(time), "2025-06-08T20:59:43Z", "{value}");
        }
        for value in [
            json!(null),
            json!(""),
            json!("soon"),
            json!(-5),
            json!(0),
            json!("0"),
            json!(0.5),
            json!(1e300),
            json!("NaN"),
            json!([1]),
        ] {
            assert_eq!(from_provider_json(&value), None, "{value}");
        }
    }

    /// Dates with any form of offset and any fraction give the same second; without an offset there is no time.
    #[test]
    fn provider_dates_are_understood() {
        for text in [
            "2025-06-08T20:59:43Z",
            "2025-06-08T20:59:43.999Z",
            "2025-06-08T20:59:43.123456789Z",
            "2025-06-08T22:59:43.1+02:00",
            "2025-06-08T20:59:43.000+0000",
            "2025-06-08T20:59:43+00:00",
            "2025-06-08 20:59:43Z",
            " 2025-06-08T15:29:43-0530 ",
        ] {
            let time = from_provider_text(text).map(rfc3339_seconds);
            assert_eq!(time.as_deref(), Some("2025-06-08T20:59:43Z"), "{text}");
        }
        for text in ["2025-06-08T20:59:43", "2025-06-08", "20:59:43", "T", "1969-12-31T23:59:59Z", "-:"] {
            assert_eq!(from_provider_text(text), None, "{text}");
        }
    }

    /// Times before 1970 keep a positive fraction, as protobuf demands, and everything round-trips.
    #[test]
    fn proto_round_trips() {
        for time in ["2026-05-07T10:00:00.123456789Z", "1960-01-01T00:00:00.5Z"] {
            let time: Timestamp = time.parse().unwrap();
            assert!(to_proto(time).nanos >= 0);
            assert_eq!(from_proto(&to_proto(time)), Some(time));
        }
        assert_eq!(from_proto(&ProtoTimestamp { seconds: 0, nanos: -1 }), None);
        assert_eq!(from_proto(&ProtoTimestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}
