//! Agents that do not have what they should have.
//!
//! Such an agent is sent everything anew, once. That is bounded for each agent, over all its streams: what does not help
//! is said loudly and not repeated, so that an agent that always differs costs a snapshot now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::Instant;

use super::expected::Expectations;

/// Shortest time between two snapshots that an agent is sent because it differs.
const RESEND_INTERVAL: Duration = Duration::from_mins(10);

/// What is done about an agent that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is sent everything anew.
    Resend,
    /// It was sent everything, has taken it, and differs: a person must look.
    Persists,
    /// Nothing: it was said before, or what was sent is not taken yet.
    Nothing,
}

/// Labels of `gateway_config_comparisons_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Same,
    Resent,
    Persists,
    Known,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Same, Self::Resent, Self::Persists, Self::Known];
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Same => "same",
            Self::Resent => "resent",
            Self::Persists => "persists",
            Self::Known => "known",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

/// When an agent was sent everything anew.
struct Resent {
    at: Instant,
    is_taken: bool,
    is_told: bool,
}

/// What agents should have, and which did not. Cheap to clone.
#[derive(Clone, Default)]
pub struct Divergences {
    /// What they should have.
    pub expectations: Expectations,
    resent: Arc<Mutex<HashMap<String, Resent>>>,
    counts: Family<Labels, Counter>,
}

impl Divergences {
    /// Shows `gateway_config_comparisons_total{outcome}` in `registry`.
    pub fn register(&self, registry: &Mutex<Registry>) {
        for outcome in Outcome::ALL {
            drop(self.counts.get_or_create(&Labels { outcome }));
        }
        let help = "Comparisons of what an agent has with what it should have, by what came of it";
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("config_comparisons", help, self.counts.clone());
    }

    /// What is to be done about an agent that differs; `may_resend` is false where its stream has sent everything anew
    /// already. [`Self::resends`] follows when it is sent everything.
    pub fn found(&self, agent_id: &str, may_resend: bool) -> Answer {
        let mut resent = self.resent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        resent.retain(|_, resent| now.duration_since(resent.at) < RESEND_INTERVAL);
        let answer = match resent.get_mut(agent_id) {
            Some(resent) if !resent.is_taken || resent.is_told => Answer::Nothing,
            Some(resent) => {
                resent.is_told = true;
                Answer::Persists
            }
            None if may_resend => Answer::Resend,
            None => {
                resent.insert(agent_id.to_owned(), Resent { at: now, is_taken: true, is_told: true });
                Answer::Persists
            }
        };
        match answer {
            Answer::Resend => {}
            Answer::Persists => self.count(Outcome::Persists),
            Answer::Nothing => self.count(Outcome::Known),
        }
        answer
    }

    /// An agent has what it should have.
    pub fn none(&self) {
        self.count(Outcome::Same);
    }

    /// An agent that differs is about to be sent everything anew.
    pub fn resends(&self, agent_id: &str) {
        let mut resent = self.resent.lock().unwrap_or_else(PoisonError::into_inner);
        resent.insert(agent_id.to_owned(), Resent { at: Instant::now(), is_taken: false, is_told: false });
        self.count(Outcome::Resent);
    }

    /// An agent has taken everything that it was sent anew.
    pub fn taken(&self, agent_id: &str) {
        let mut resent = self.resent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resent) = resent.get_mut(agent_id) {
            resent.is_taken = true;
        }
    }

    fn count(&self, outcome: Outcome) {
        self.counts.get_or_create(&Labels { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that goes on to differ, on however many streams, is sent everything at most every ten minutes, and that
    /// it did not help is said once each time, when the agent has taken what was sent. Another agent is not held up by it.
    #[tokio::test(start_paused = true)]
    async fn resends_are_bounded() {
        let divergences = Divergences::default();
        for _ in 0..3 {
            assert_eq!(divergences.found("agt_1", true), Answer::Resend);
            divergences.resends("agt_1");
            for _ in 0..5 {
                assert_eq!(divergences.found("agt_1", true), Answer::Nothing, "it is not taken yet");
            }
            divergences.taken("agt_1");
            tokio::time::advance(RESEND_INTERVAL / 2).await;
            assert_eq!(divergences.found("agt_1", true), Answer::Persists);
            assert_eq!(divergences.found("agt_1", true), Answer::Nothing);
            assert_eq!(divergences.found("agt_1", false), Answer::Nothing);
            tokio::time::advance(RESEND_INTERVAL / 2).await;
        }
        assert_eq!(divergences.found("agt_2", true), Answer::Resend);
        divergences.resends("agt_2");
        assert_eq!(divergences.found("agt_3", false), Answer::Persists);
        assert_eq!(divergences.found("agt_3", true), Answer::Nothing);
        let count = |outcome| divergences.counts.get_or_create(&Labels { outcome }).get();
        assert_eq!((count(Outcome::Resent), count(Outcome::Persists)), (4, 4));
    }
}
