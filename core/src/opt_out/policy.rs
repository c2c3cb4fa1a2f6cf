//! What counts as an opt-out at one instance, and what it suppresses.

use gateway_proto::v1;

use super::{
    decision::{OptOutScope, OptOutState},
    fold::{KEYWORD_CHARS_MAX, KEYWORD_WORDS_MAX, fold_candidate},
    keywords::Language,
    record::OptOutRecord,
};
use crate::{id::InstanceId, violation::FieldViolations};

/// Most keywords of a policy's own, for each direction.
pub const KEYWORDS_MAX: usize = 100;

/// Why a message is to be sent; decides whether an opt-out suppresses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// One-time codes and log-in messages.
    Authentication,
    /// About an existing order, payment or appointment.
    Transactional,
    /// About the running of a service: outages, maintenance, changes.
    Operational,
    /// An answer to somebody who asked.
    Support,
    /// To the business's own people.
    InternalTeam,
    /// Promotions, and whatever is none of the others.
    Marketing,
}

/// The purpose is unset, or one that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be one of PURPOSE_AUTHENTICATION, PURPOSE_TRANSACTIONAL, PURPOSE_OPERATIONAL, PURPOSE_SUPPORT, \
     PURPOSE_INTERNAL_TEAM and PURPOSE_MARKETING"
)]
pub struct UnknownPurpose;

impl TryFrom<i32> for Purpose {
    type Error = UnknownPurpose;

    fn try_from(number: i32) -> Result<Self, UnknownPurpose> {
        match v1::Purpose::try_from(number) {
            Ok(v1::Purpose::Authentication) => Ok(Self::Authentication),
            Ok(v1::Purpose::Transactional) => Ok(Self::Transactional),
            Ok(v1::Purpose::Operational) => Ok(Self::Operational),
            Ok(v1::Purpose::Support) => Ok(Self::Support),
            Ok(v1::Purpose::InternalTeam) => Ok(Self::InternalTeam),
            Ok(v1::Purpose::Marketing) => Ok(Self::Marketing),
            Ok(v1::Purpose::Unspecified) | Err(_) => Err(UnknownPurpose),
        }
    }
}

impl From<Purpose> for v1::Purpose {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Authentication => Self::Authentication,
            Purpose::Transactional => Self::Transactional,
            Purpose::Operational => Self::Operational,
            Purpose::Support => Self::Support,
            Purpose::InternalTeam => Self::InternalTeam,
            Purpose::Marketing => Self::Marketing,
        }
    }
}

/// What counts as an opt-out at one instance, and what it suppresses. Whole: an empty list means none, not
/// the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptOutPolicy {
    /// Whether keywords are looked for at all; provider preferences always count.
    pub keywords_enabled: bool,
    /// Languages whose built-in keywords count, each once.
    pub languages: Vec<Language>,
    /// Whether words that also answer other questions (`cancel`, `end`, `no`) count.
    pub weak_keywords: bool,
    /// More words that opt out, as the operator wrote them.
    pub opt_out_keywords: Vec<String>,
    /// More words that opt in, as the operator wrote them.
    pub opt_in_keywords: Vec<String>,
    /// Purposes that reach somebody who opted out, each once.
    pub essential_purposes: Vec<Purpose>,
    /// Whether an opt-out at any instance of the tenant suppresses sends of this one.
    pub tenant_wide: bool,
}

impl Default for OptOutPolicy {
    fn default() -> Self {
        Self {
            keywords_enabled: true,
            languages: Language::ALL.to_vec(),
            weak_keywords: false,
            opt_out_keywords: Vec::new(),
            opt_in_keywords: Vec::new(),
            essential_purposes: vec![Purpose::Authentication, Purpose::Transactional],
            tenant_wide: false,
        }
    }
}

impl OptOutPolicy {
    /// Whether a contact's record forbids a message of this purpose. An opt-out of marketing suppresses
    /// marketing; a full one suppresses every purpose that the policy does not name essential.
    pub fn suppresses(&self, record: &OptOutRecord, purpose: Purpose) -> bool {
        record.state() == OptOutState::OptedOut
            && match record.scope() {
                OptOutScope::Marketing => purpose == Purpose::Marketing,
                OptOutScope::NonEssential => !self.essential_purposes.contains(&purpose),
            }
    }

    /// The policy of an instance on the wire; times and etag stay unset.
    pub fn to_proto(&self, instance_id: &InstanceId) -> v1::OptOutPolicy {
        v1::OptOutPolicy {
            instance_id: instance_id.to_string(),
            keywords_enabled: self.keywords_enabled,
            languages: self.languages.iter().map(|language| language.code().to_owned()).collect(),
            weak_keywords: self.weak_keywords,
            opt_out_keywords: self.opt_out_keywords.clone(),
            opt_in_keywords: self.opt_in_keywords.clone(),
            essential_purposes: self
                .essential_purposes
                .iter()
                .map(|purpose| v1::Purpose::from(*purpose).into())
                .collect(),
            tenant_wide: self.tenant_wide,
            update_time: None,
            etag: String::new(),
        }
    }
}

impl TryFrom<&v1::OptOutPolicy> for OptOutPolicy {
    type Error = FieldViolations;

    /// Reads a whole policy; `instance_id`, times and etag are the caller's. Repeated languages and
    /// purposes are kept once.
    fn try_from(policy: &v1::OptOutPolicy) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let languages = languages(&policy.languages, &mut violations);
        let essential_purposes = purposes(&policy.essential_purposes, &mut violations);
        check_keywords("opt_out_keywords", &policy.opt_out_keywords, &mut violations);
        check_keywords("opt_in_keywords", &policy.opt_in_keywords, &mut violations);
        violations.into_result(Self {
            keywords_enabled: policy.keywords_enabled,
            languages,
            weak_keywords: policy.weak_keywords,
            opt_out_keywords: policy.opt_out_keywords.clone(),
            opt_in_keywords: policy.opt_in_keywords.clone(),
            essential_purposes,
            tenant_wide: policy.tenant_wide,
        })
    }
}

fn languages(codes: &[String], violations: &mut FieldViolations) -> Vec<Language> {
    let mut languages = Vec::new();
    for (index, code) in codes.iter().enumerate() {
        match Language::from_code(code) {
            Some(language) if languages.contains(&language) => {}
            Some(language) => languages.push(language),
            None => violations.add(
                format!("languages[{index}]"),
                format!(
                    "has no built-in keywords; known are {}",
                    Language::ALL.map(Language::code).join(", ")
                ),
            ),
        }
    }
    languages
}

fn purposes(numbers: &[i32], violations: &mut FieldViolations) -> Vec<Purpose> {
    let mut purposes = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        let field = || format!("essential_purposes[{index}]");
        match Purpose::try_from(*number) {
            // An opt-out that does not even stop promotions would be no opt-out.
            Ok(Purpose::Marketing) => violations.add(field(), "marketing is never essential"),
            Ok(purpose) if purposes.contains(&purpose) => {}
            Ok(purpose) => purposes.push(purpose),
            Err(error) => violations.add(field(), error.to_string()),
        }
    }
    purposes
}

fn check_keywords(list: &str, keywords: &[String], violations: &mut FieldViolations) {
    if keywords.len() > KEYWORDS_MAX {
        violations.add(list, format!("has {} keywords, at most {KEYWORDS_MAX} are taken", keywords.len()));
        return;
    }
    for (index, keyword) in keywords.iter().enumerate() {
        if keyword.chars().count() > KEYWORD_CHARS_MAX || fold_candidate(keyword).is_none() {
            violations.add(
                format!("{list}[{index}]"),
                format!(
                    "must have a letter or digit and at most {KEYWORD_CHARS_MAX} characters in {KEYWORD_WORDS_MAX} words"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opt_out::{
        ContactRef, Decision, OptOutDirection, OptOutReason, Origin, merge, record::tests::decision,
    };

    const ALL: [Purpose; 6] = [
        Purpose::Authentication,
        Purpose::Transactional,
        Purpose::Operational,
        Purpose::Support,
        Purpose::InternalTeam,
        Purpose::Marketing,
    ];

    fn record(direction: OptOutDirection, scope: OptOutScope) -> OptOutRecord {
        let decision = Decision { direction, scope, ..decision(1) };
        merge(None, &decision, decision.event_time).record
    }

    fn suppressed(policy: &OptOutPolicy, record: &OptOutRecord) -> Vec<Purpose> {
        ALL.into_iter().filter(|purpose| policy.suppresses(record, *purpose)).collect()
    }

    /// By default a full opt-out lets codes and transactions through, a marketing opt-out everything but
    /// marketing, and an opt-in everything.
    #[test]
    fn default_policy_suppresses_what_is_not_essential() {
        let policy = OptOutPolicy::default();
        let full = record(OptOutDirection::OptOut, OptOutScope::NonEssential);
        assert_eq!(suppressed(&policy, &full), ALL[2..]);
        let marketing = record(OptOutDirection::OptOut, OptOutScope::Marketing);
        assert_eq!(suppressed(&policy, &marketing), [Purpose::Marketing]);
        let back = record(OptOutDirection::OptIn, OptOutScope::NonEssential);
        assert_eq!(suppressed(&policy, &back), []);
    }

    /// A policy that names nothing essential suppresses everything after a full opt-out.
    #[test]
    fn policy_decides_what_is_essential() {
        let strict = OptOutPolicy { essential_purposes: Vec::new(), ..OptOutPolicy::default() };
        assert_eq!(suppressed(&strict, &record(OptOutDirection::OptOut, OptOutScope::NonEssential)), ALL);
        let mild = OptOutPolicy { essential_purposes: ALL[..5].to_vec(), ..OptOutPolicy::default() };
        let full = record(OptOutDirection::OptOut, OptOutScope::NonEssential);
        assert_eq!(suppressed(&mild, &full), [Purpose::Marketing]);
    }

    /// The default survives the wire, and the wire's empty policy is taken literally.
    #[test]
    fn policy_round_trips() {
        let instance: InstanceId = "demo-support-line".parse().unwrap();
        let policy = OptOutPolicy {
            opt_out_keywords: vec!["Genug!".into()],
            opt_in_keywords: vec!["Wieder da".into()],
            tenant_wide: true,
            ..OptOutPolicy::default()
        };
        assert_eq!(OptOutPolicy::try_from(&policy.to_proto(&instance)), Ok(policy));
        let empty = OptOutPolicy::try_from(&v1::OptOutPolicy::default()).unwrap();
        assert!(!empty.keywords_enabled && empty.languages.is_empty() && empty.essential_purposes.is_empty());
    }

    /// Each bad field is named, all at once.
    #[test]
    fn bad_fields_are_named() {
        let bad = v1::OptOutPolicy {
            languages: vec!["en".into(), "xx".into(), "en".into()],
            opt_out_keywords: vec![
                "ok".into(),
                "!!!".into(),
                "a".repeat(41),
                "one two three four five six".into(),
            ],
            opt_in_keywords: vec!["ok".into(); 101],
            essential_purposes: vec![0, 1, 99, v1::Purpose::Marketing.into()],
            ..v1::OptOutPolicy::default()
        };
        let violations = OptOutPolicy::try_from(&bad).unwrap_err();
        let fields: Vec<_> = violations.0.iter().map(|violation| &*violation.field).collect();
        assert_eq!(
            fields,
            [
                "languages[1]",
                "essential_purposes[0]",
                "essential_purposes[2]",
                "essential_purposes[3]",
                "opt_out_keywords[1]",
                "opt_out_keywords[2]",
                "opt_out_keywords[3]",
                "opt_in_keywords"
            ]
        );
    }

    /// Purposes convert both ways; unset and unknown numbers are refused.
    #[test]
    fn unknown_purposes_are_refused() {
        for purpose in ALL {
            assert_eq!(Purpose::try_from(i32::from(v1::Purpose::from(purpose))), Ok(purpose));
        }
        for number in [0, 7, -1, i32::MAX] {
            assert_eq!(Purpose::try_from(number), Err(UnknownPurpose));
        }
    }

    /// A contact known only by user id is as protected as one with a phone number.
    #[test]
    fn user_ids_are_protected() {
        let decision = Decision {
            contact: ContactRef { phone: None, user_id: Some("US.1349".into()) },
            reason: OptOutReason::ProviderPreference,
            origin: Origin::Elsewhere,
            ..decision(1)
        };
        let record = merge(None, &decision, decision.event_time).record;
        assert!(OptOutPolicy::default().suppresses(&record, Purpose::Support));
    }
}
