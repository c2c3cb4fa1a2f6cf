//! An API key: what its holder may do, and the form of its secret.
//!
//! The form follows GitHub's (<https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/>):
//! a prefix that secret scanners find, random letters and digits, and a checksum by which a mistyped key is
//! told from a real one without asking anybody.

use std::fmt;

use gateway_proto::v1;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};

use crate::{
    id::TenantId,
    instance::{DISPLAY_NAME_CHARS_MAX, check_text},
    time,
    violation::FieldViolations,
};

/// What every secret begins with.
pub const SECRET_PREFIX: &str = "wagw_live_";
/// Random characters of a secret: 178 bits.
pub const RANDOM_CHARS: usize = 30;
/// Characters of a secret's checksum, which is its end.
pub const CHECKSUM_CHARS: usize = 6;
/// Characters of a secret that are kept to tell keys apart: the prefix and four random ones.
pub const SHOWN_CHARS: usize = SECRET_PREFIX.len() + 4;
/// Most scopes of one key.
pub const SCOPES_MAX: usize = 32;
/// How far ahead a key may expire, in years.
pub const EXPIRE_YEARS_MAX: i16 = 10;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a caller may do. Each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads everything of its tenant but secrets, and checks suppression.
    Viewer,
    /// Also changes instances, webhook subscriptions and opt-outs.
    Operator,
    /// Also changes inbound routes, reveals and rotates secrets, and manages the tenant's API keys.
    TenantAdmin,
    /// Also manages tenants and agents, and reaches the resources of every tenant.
    PlatformAdmin,
}

impl Role {
    /// All of them, from the least to the most.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::TenantAdmin, Self::PlatformAdmin];

    /// The role of a number in protobuf; None for unset and unknown ones.
    pub fn from_proto(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|role| i32::from(role.to_proto()) == number)
    }

    /// The role in protobuf.
    pub const fn to_proto(self) -> v1::Role {
        match self {
            Self::Viewer => v1::Role::Viewer,
            Self::Operator => v1::Role::Operator,
            Self::TenantAdmin => v1::Role::TenantAdmin,
            Self::PlatformAdmin => v1::Role::PlatformAdmin,
        }
    }
}

/// Prints the name in protobuf, `ROLE_VIEWER`.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_proto().as_str_name())
    }
}

/// Which methods a key is for, within what its role allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes(Vec<String>);

impl Scopes {
    /// Reads scopes, each a service (`InstanceService`) or a method (`OptOutService/CheckSuppression`). None
    /// at all stand for everything.
    pub fn new(scopes: &[String]) -> Self {
        Self(scopes.to_vec())
    }

    /// Whether a method such as `InstanceService/GetInstance` is among them.
    pub fn allow(&self, method: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|scope| covers(scope, method))
    }

    /// Whether these allow everything that `others` allow.
    pub fn include(&self, others: &Self) -> bool {
        self.0.is_empty()
            || (!others.0.is_empty()
                && others.0.iter().all(|other| self.0.iter().any(|scope| covers(scope, other))))
    }
}

/// Whether a scope covers a method, or another scope.
fn covers(scope: &str, other: &str) -> bool {
    other.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A validated API key as somebody asks for it, before it has an id and a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The tenant whose resources it opens; None for a platform admin's, which opens all.
    pub tenant_id: Option<TenantId>,
    /// What its holder may do.
    pub role: Role,
    /// Who or what uses it.
    pub display_name: String,
    /// The methods it is for.
    pub scopes: Scopes,
    /// When it stops working.
    pub expire_time: Option<Timestamp>,
}

impl ApiKey {
    /// Checks a key that is asked for at `now`; `is_method` tells whether a scope names a service or method
    /// of operators. `tenant_id` is taken as it is: whose it may be depends on who asks.
    ///
    /// # Errors
    /// The fields that break a rule of `tenant.proto`.
    pub fn from_proto(
        proto: &v1::ApiKey,
        now: Timestamp,
        is_method: impl Fn(&str) -> bool,
    ) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let role = Role::from_proto(proto.role);
        if role.is_none() {
            let names = Role::ALL.map(|role| role.to_string()).join(", ");
            violations.add("api_key.role", format!("must be one of {names}"));
        }
        let tenant_id = match (role, proto.tenant_id.as_str()) {
            (Some(Role::PlatformAdmin), "") => None,
            (Some(Role::PlatformAdmin), _) => {
                violations.add("api_key.tenant_id", "must be empty: a platform admin belongs to no tenant");
                None
            }
            (_, named) => named
                .parse()
                .map_err(|error: crate::id::InvalidId| {
                    violations.add("api_key.tenant_id", error.to_string());
                })
                .ok(),
        };
        check_text(&mut violations, "api_key.display_name", &proto.display_name, 1, DISPLAY_NAME_CHARS_MAX);
        check_scopes(&mut violations, &proto.scopes, is_method);
        let expire_time = check_expiry(&mut violations, proto.expire_time.as_ref(), now);
        let Some(role) = role else { return Err(violations) };
        violations.into_result(Self {
            tenant_id,
            role,
            display_name: proto.display_name.clone(),
            scopes: Scopes::new(&proto.scopes),
            expire_time,
        })
    }
}

fn check_scopes(violations: &mut FieldViolations, scopes: &[String], is_method: impl Fn(&str) -> bool) {
    if scopes.len() > SCOPES_MAX {
        violations.add("api_key.scopes", format!("must have at most {SCOPES_MAX} values"));
    }
    for (index, scope) in scopes.iter().enumerate().take(SCOPES_MAX) {
        if !is_method(scope) {
            let description = "must name a service such as `InstanceService`, or a method such as `OptOutService/CheckSuppression`";
            violations.add(format!("api_key.scopes[{index}]"), description);
        }
    }
}

fn check_expiry(
    violations: &mut FieldViolations,
    expire_time: Option<&prost_types::Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    let expire_time = expire_time?;
    let latest = now.to_zoned(TimeZone::UTC).checked_add(EXPIRE_YEARS_MAX.years());
    let latest = latest.map_or(Timestamp::MAX, |latest| latest.timestamp());
    let valid = time::from_proto(expire_time).filter(|time| *time > now && *time <= latest);
    if valid.is_none() {
        let description =
            format!("must be in the future, at most {EXPIRE_YEARS_MAX} years ahead, or unset for never");
        violations.add("api_key.expire_time", description);
    }
    valid
}

/// A secret with its checksum, from [`RANDOM_CHARS`] random letters and digits.
pub fn secret(random: &str) -> String {
    let text = format!("{SECRET_PREFIX}{random}");
    let checksum = checksum(&text);
    text + &checksum
}

/// Whether the text looks like an API key at all, whatever its checksum.
pub fn is_api_key(text: &str) -> bool {
    text.starts_with(SECRET_PREFIX)
}

/// Whether the text has the form of a secret, its checksum included: if not, no key has it.
pub fn is_well_formed(text: &str) -> bool {
    let length = SECRET_PREFIX.len() + RANDOM_CHARS + CHECKSUM_CHARS;
    text.len() == length
        && text.starts_with(SECRET_PREFIX)
        && text[SECRET_PREFIX.len()..].bytes().all(|byte| byte.is_ascii_alphanumeric())
        && text[length - CHECKSUM_CHARS..] == checksum(&text[..length - CHECKSUM_CHARS])
}

/// CRC-32 of what is before it, in base62, padded with zeros: 62⁶ is more than 2³².
fn checksum(text: &str) -> String {
    let mut rest = crc32(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[usize::try_from(rest % 62).expect("a digit fits usize")];
        rest /= 62;
    }
    digits.map(char::from).iter().collect()
}

/// CRC-32 as in IEEE 802.3 and zlib: reflected, polynomial 0xEDB88320. Forty bytes need no table.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests;
