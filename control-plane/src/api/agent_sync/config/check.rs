//! Whether the agent at the other end of a stream has what it should have.
//!
//! What it says that it has counts for the version it says it of. It is compared only while that is the version that the
//! stream has brought it to: an agent that is behind has no more to have, and one that was just sent something says again what it
//! has when that is in use.

use std::{sync::Arc, time::Duration};

use gateway_core::snapshot::digest::Difference;
use gateway_proto::v1;
use tokio::{sync::watch, time::Instant};

use crate::publish::{Expectations, Expected};

/// Shortest time between two comparisons on a stream.
const COMPARE_INTERVAL: Duration = Duration::from_mins(1);

/// What an agent says, and what was done about it on this stream.
pub(super) struct Check {
    expectations: Expectations,
    expected: watch::Receiver<Option<Arc<Expected>>>,
    said: Option<Said>,
    /// From when on it is compared again.
    due_at: Instant,
    resend: Resend,
}

/// What the agent said last.
struct Said {
    version: u64,
    digests: Vec<v1::ConfigDigest>,
}

/// How far sending everything anew has come.
#[derive(Debug, PartialEq, Eq)]
enum Resend {
    Never,
    /// It is being sent.
    Begun,
    /// It was sent; the verdict on this nonce is awaited.
    Sent(String),
    Taken,
    /// It was taken, and the agent had what it should have.
    Healed,
}

/// What came of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// It could not be made yet.
    Not,
    /// The agent has what it should have; true when it has so again.
    Same(bool),
    /// It has not.
    Differs(Vec<Difference>),
}

impl Check {
    pub(super) fn new(expectations: &Expectations) -> Self {
        Self {
            expectations: expectations.clone(),
            expected: expectations.watch(),
            said: None,
            due_at: Instant::now(),
            resend: Resend::Never,
        }
    }

    /// The agent says what it has at a version. Earlier agents say nothing.
    pub(super) fn said(&mut self, version: u64, digests: Vec<v1::ConfigDigest>) {
        // Between two versions, or from before it has taken all of it.
        let is_under_way = matches!(self.resend, Resend::Begun | Resend::Sent(_));
        if !digests.is_empty() && !is_under_way {
            self.said = Some(Said { version, digests });
        }
    }

    /// Waits until more is known of what agents should have. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // The sender is in `self`, so the wait does not fail.
        drop(self.expected.changed().await);
    }

    /// Compares what an agent of this region and tenant said with what it should have at `version`, to which the stream has
    /// brought it. Asks for what it should have when that is not known yet.
    pub(super) fn compare(&mut self, version: u64, region: &str, tenant_id: Option<&str>) -> Compared {
        if Instant::now() < self.due_at {
            return Compared::Not;
        }
        let Some(said) = self.said.take_if(|said| said.version == version) else { return Compared::Not };
        let expected = self.expected.borrow_and_update().clone();
        let Some(expected) = expected.filter(|expected| expected.version >= version) else {
            self.expectations.want(version);
            self.said = Some(said);
            return Compared::Not;
        };
        if expected.version > version {
            // A change is on its way; the agent will say what it has after that.
            return Compared::Not;
        }
        let differences = expected.of(region, tenant_id).differences(&said.digests);
        self.due_at = Instant::now() + COMPARE_INTERVAL;
        if !differences.is_empty() {
            return Compared::Differs(differences);
        }
        let is_healed = self.resend == Resend::Taken;
        if is_healed {
            self.resend = Resend::Healed;
        }
        Compared::Same(is_healed)
    }

    /// The comparison did not count: what the agent says next is compared.
    pub(super) fn again(&mut self) {
        self.due_at = Instant::now();
    }

    /// Whether everything may be sent anew: once on a stream.
    pub(super) fn may_resend(&self) -> bool {
        self.resend == Resend::Never
    }

    /// Everything is about to be sent anew.
    pub(super) fn begin_resend(&mut self) {
        self.resend = Resend::Begun;
        self.said = None;
    }

    /// The last part of changes was sent under this nonce.
    pub(super) fn sent(&mut self, nonce: &str) {
        if self.resend == Resend::Begun {
            self.resend = Resend::Sent(nonce.to_owned());
        }
    }

    /// A verdict came. True when it says that everything that was sent anew is taken: what the agent says from here on counts
    /// again, at once.
    pub(super) fn is_taken(&mut self, nonce: &str) -> bool {
        let is_taken = matches!(&self.resend, Resend::Sent(sent) if sent == nonce);
        if is_taken {
            self.resend = Resend::Taken;
            self.again();
        }
        is_taken
    }
}

#[cfg(test)]
mod tests;
