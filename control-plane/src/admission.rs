//! Which process speaks for an agent, and the end of its streams: at once when the agent is revoked, and when
//! another process with the same identity takes over.
//!
//! The newest process wins, as after a restart whose old connection is still half open. One that comes back
//! after another has taken over is a twin: a copied data directory. Both use the same sequences, so that the
//! reports of one would be taken for repeats of the other's; the twin is refused as long as the other is
//! connected, which also keeps the two from driving each other out for ever.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Processes remembered per agent; more twins than that may take turns.
const EARLIER_MAX: usize = 8;
/// For how long a twin is shown after it was seen.
const TWIN_SHOWN: SignedDuration = SignedDuration::from_mins(5);
/// How often a twin is logged.
const TWIN_LOG_INTERVAL: SignedDuration = SignedDuration::from_mins(1);

/// The processes of all agents. Cheap to clone.
#[derive(Clone, Default)]
pub struct Admissions {
    agents: Arc<Mutex<HashMap<String, Entry>>>,
}

struct Entry {
    current: Process,
    /// Start ids of processes that others took over from, newest last.
    earlier: VecDeque<String>,
    twin: Option<Twin>,
}

struct Process {
    start_id: String,
    address: Option<SocketAddr>,
    streams: usize,
    cut: Cut,
}

struct Twin {
    address: Option<SocketAddr>,
    seen: Timestamp,
    logged: Timestamp,
}

/// Why a stream ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The agent was revoked.
    Revoked,
    /// Another process with its identity has taken over.
    TakenOver,
}

#[derive(Clone, Default)]
struct Cut {
    token: CancellationToken,
    why: Arc<OnceLock<Ended>>,
}

impl Cut {
    fn make(&self, why: Ended) {
        // The first reason stays.
        self.why.get_or_init(|| why);
        self.token.cancel();
    }
}

/// Another process with the agent's identity is connected and stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use the identity of an agent: another process that uses it is connected")]
pub struct IsTwin;

/// An open stream of an agent.
pub struct Admitted {
    admissions: Admissions,
    agent_id: String,
    start_id: String,
    cut: Cut,
}

impl Admissions {
    /// A stream of the process `start_id` (made at random at each start; empty for agents that do not say) of
    /// an agent is to be opened.
    ///
    /// # Errors
    /// When the process is a twin.
    pub fn enter(
        &self,
        agent_id: &str,
        start_id: &str,
        address: Option<SocketAddr>,
        now: Timestamp,
    ) -> Result<Admitted, IsTwin> {
        let mut agents = self.lock();
        let process = || Process { start_id: start_id.to_owned(), address, streams: 0, cut: Cut::default() };
        let entry = agents.entry(agent_id.to_owned()).or_insert_with(|| Entry {
            current: process(),
            earlier: VecDeque::new(),
            twin: None,
        });
        if entry.current.start_id != start_id {
            let came_back = entry.earlier.iter().any(|earlier| earlier == start_id);
            if came_back && entry.current.streams > 0 {
                entry.note_twin(agent_id, address, now);
                return Err(IsTwin);
            }
            let before = std::mem::replace(&mut entry.current, process());
            before.cut.make(Ended::TakenOver);
            entry.earlier.retain(|earlier| earlier != start_id && *earlier != before.start_id);
            entry.earlier.push_back(before.start_id);
            if entry.earlier.len() > EARLIER_MAX {
                entry.earlier.pop_front();
            }
        } else if entry.current.cut.token.is_cancelled() {
            entry.current = process();
        }
        entry.current.streams += 1;
        entry.current.address = address;
        let (agent_id, start_id) = (agent_id.to_owned(), start_id.to_owned());
        Ok(Admitted { admissions: self.clone(), agent_id, start_id, cut: entry.current.cut.clone() })
    }

    /// Ends every open stream of an agent.
    pub fn revoke(&self, agent_id: &str) {
        if let Some(entry) = self.lock().get(agent_id) {
            entry.current.cut.make(Ended::Revoked);
        }
    }

    /// Address of a twin of the agent that was seen lately.
    pub fn twin(&self, agent_id: &str, now: Timestamp) -> Option<String> {
        let agents = self.lock();
        let twin = agents.get(agent_id)?.twin.as_ref()?;
        let is_recent = now.duration_since(twin.seen) < TWIN_SHOWN;
        is_recent.then(|| show(twin.address))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn note_twin(&mut self, agent_id: &str, address: Option<SocketAddr>, now: Timestamp) {
        let logged = self.twin.as_ref().map(|twin| twin.logged);
        let is_due = logged.is_none_or(|logged| now.duration_since(logged) >= TWIN_LOG_INTERVAL);
        if is_due {
            warn!(
                gateway.agent.id = agent_id,
                connected = show(self.current.address),
                refused = show(address),
                "two processes use the identity of one agent: a data directory was copied; revoke the agent, or \
                 empty one data directory and enroll it anew"
            );
        }
        let logged = logged.filter(|_| !is_due).unwrap_or(now);
        self.twin = Some(Twin { address, seen: now, logged });
    }
}

fn show(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

impl Admitted {
    /// Resolves when the stream is to end. Cancel safe.
    pub fn ended(&self) -> impl Future<Output = Ended> + Send + 'static {
        let cut = self.cut.clone();
        async move {
            cut.token.cancelled().await;
            cut.why.get().copied().unwrap_or(Ended::Revoked)
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut agents = self.admissions.lock();
        let entry = agents.get_mut(&self.agent_id);
        if let Some(entry) = entry.filter(|entry| entry.current.start_id == self.start_id) {
            entry.current.streams = entry.current.streams.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// A restarted agent takes over from its old connection at once; the process that comes back after that is
    /// a twin and is refused, however often it tries, until the other has left.
    #[test]
    fn the_newest_process_wins_and_twins_wait() {
        let admissions = Admissions::default();
        let enter = |start_id, second| admissions.enter("agt_1", start_id, None, at(second));
        let first = enter("one", 0).ok().unwrap();
        let _again = enter("one", 0).ok().unwrap();
        let second = enter("two", 1).ok().unwrap();
        assert_eq!((first.cut.why.get(), second.cut.why.get()), (Some(&Ended::TakenOver), None));
        for tried in 2..9 {
            assert_eq!(enter("one", tried).err(), Some(IsTwin));
        }
        assert!(second.cut.why.get().is_none() && admissions.twin("agt_1", at(9)).is_some());
        assert_eq!(admissions.twin("agt_1", at(600)), None);
        drop(second);
        let _back = enter("one", 10).ok().unwrap();
        assert_eq!(enter("two", 11).err(), Some(IsTwin));
        assert!(admissions.enter("agt_2", "two", None, at(11)).is_ok());
    }

    /// Revoking ends every stream of the agent, and of no other.
    #[tokio::test]
    async fn revoking_ends_all_streams() {
        let admissions = Admissions::default();
        let enter = |agent_id, start_id| admissions.enter(agent_id, start_id, None, at(0)).ok().unwrap();
        let (one, two, other) = (enter("agt_1", "x"), enter("agt_1", "x"), enter("agt_2", ""));
        admissions.revoke("agt_1");
        admissions.revoke("agt_3");
        assert_eq!((one.ended().await, two.ended().await), (Ended::Revoked, Ended::Revoked));
        assert!(!other.cut.token.is_cancelled());
    }
}
