//! Whether this agent drains: refuses new callbacks, and delivers and reports what it has until nothing is
//! left; what it cannot deliver now it gives away, while a report stream is open whose control plane takes that. The control
//! plane says so; a file in the data directory keeps it over a restart, so that a drained agent stays drained while the
//! control plane is away. A revoked agent refuses callbacks in the same way, until it
//! enrolls anew: nobody sees what it would take.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::watch;

/// The file that is there while the agent drains.
const FILE: &str = "draining";
/// The file that is there once the agent was revoked.
const REVOKED_FILE: &str = "revoked";

/// Whether the agent drains, and how many callbacks are being taken.
#[derive(Debug, Default)]
pub struct Drain {
    is_on: AtomicBool,
    takes_hand_overs: AtomicBool,
    /// Whether both are so.
    hands_over: watch::Sender<bool>,
    is_revoked: AtomicBool,
    taking: Arc<AtomicUsize>,
    data_dir: OnceLock<PathBuf>,
}

/// A callback that is being taken. Dropping it says that it is not any more.
#[derive(Debug)]
pub struct Taking(Arc<AtomicUsize>);

impl Drain {
    /// Goes on with what `data_dir` says, and keeps it there from now on.
    pub fn keep_in(&self, data_dir: &Path) {
        let flags = [(FILE, &self.is_on), (REVOKED_FILE, &self.is_revoked)];
        for (file, flag) in flags {
            if data_dir.join(file).exists() {
                flag.store(true, Ordering::SeqCst);
            }
        }
        // Of earlier versions, which believe it after a restart.
        drop(fs::remove_file(data_dir.join("takes-hand-overs")));
        self.data_dir.get_or_init(|| data_dir.to_owned());
        self.tell();
    }

    /// Whether the agent drains.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    /// Whether the agent gives away what it cannot deliver now: it drains, and the control plane takes hand-overs.
    pub fn hands_over(&self) -> bool {
        *self.hands_over.borrow()
    }

    /// Waits until [`Self::hands_over`]. Cancel safe.
    pub async fn begins_to_hand_over(&self) {
        let mut hands_over = self.hands_over.subscribe();
        // The sender is in `self`, so the wait does not fail.
        drop(hands_over.wait_for(|hands_over| *hands_over).await);
    }

    fn tell(&self) {
        // Asked inside, one at a time: two tasks tell it, and the one that is last knows both.
        self.hands_over.send_if_modified(|before| {
            let hands_over = self.is_on() && self.takes_hand_overs.load(Ordering::SeqCst);
            std::mem::replace(before, hands_over) != hands_over
        });
    }

    /// Whether the agent was revoked.
    pub fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::SeqCst)
    }

    /// Begins to take a callback; None while the agent drains, and when it was revoked.
    pub fn admit(&self) -> Option<Taking> {
        // Counted before it is asked: whoever turns the drain on and then sees nothing being taken can be sure
        // that nothing more will be.
        let taking = self.hold();
        (!self.is_on() && !self.is_revoked()).then_some(taking)
    }

    /// Counts what goes on for a callback that was admitted.
    pub fn hold(&self) -> Taking {
        self.taking.fetch_add(1, Ordering::SeqCst);
        Taking(Arc::clone(&self.taking))
    }

    /// Whether the agent drains and no callback is being taken any more.
    pub fn is_quiet(&self) -> bool {
        self.is_on() && self.taking.load(Ordering::SeqCst) == 0
    }

    /// Turns it on or off, at once; then the disk is told. True when it was otherwise before.
    ///
    /// # Errors
    /// When the disk refuses: a restart would forget it until the control plane is reached.
    pub fn set(&self, on: bool) -> io::Result<bool> {
        self.write(&self.is_on, FILE, on)
    }

    /// Notes whether a report stream is open whose control plane takes hand-overs. A restart forgets it: the next
    /// stream says it anew.
    pub fn set_takes_hand_overs(&self, takes: bool) {
        self.takes_hand_overs.store(takes, Ordering::SeqCst);
        self.tell();
    }

    /// The agent was revoked: refuses callbacks at once; then the disk is told. True when it was not known before.
    ///
    /// # Errors
    /// When the disk refuses: a restart would forget it until the control plane is reached.
    pub fn revoke(&self) -> io::Result<bool> {
        self.write(&self.is_revoked, REVOKED_FILE, true)
    }

    /// Who was revoked, or asked to drain, is no more: the agent is about to enroll, or to serve until it can.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin_anew(&self) -> io::Result<()> {
        self.write(&self.is_on, FILE, false)?;
        self.write(&self.is_revoked, REVOKED_FILE, false).map(drop)
    }

    fn write(&self, flag: &AtomicBool, file: &str, on: bool) -> io::Result<bool> {
        if flag.swap(on, Ordering::SeqCst) == on {
            return Ok(false);
        }
        self.tell();
        let Some(file) = self.data_dir.get().map(|data_dir| data_dir.join(file)) else { return Ok(true) };
        if on {
            crate::private::write_file(&file, b"")?;
        } else {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While it is on no callback is admitted; it is quiet when those admitted before are done; and a restart
    /// finds it as it was left.
    #[test]
    fn drains_until_told_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let drain = Drain::default();
        drain.keep_in(directory.path());
        let taking = drain.admit().unwrap();
        let goes_on = drain.hold();
        assert!(drain.set(true).unwrap() && !drain.set(true).unwrap());
        assert!(drain.admit().is_none());
        drop(taking);
        assert!(!drain.is_quiet());
        drop(goes_on);
        assert!(drain.is_quiet());
        let restarted = Drain::default();
        restarted.keep_in(directory.path());
        assert!(restarted.is_on() && restarted.admit().is_none());
        assert!(restarted.set(false).unwrap());
        assert!(restarted.admit().is_some() && !restarted.is_quiet());
        let restarted = Drain::default();
        restarted.keep_in(directory.path());
        assert!(!restarted.is_on());
    }

    /// Deliveries are given away only while it drains and the control plane says that it takes them; after a restart
    /// it has to say so again.
    #[tokio::test]
    async fn hands_over_to_who_takes_it() {
        let directory = tempfile::tempdir().unwrap();
        let restarted = || {
            let drain = Drain::default();
            drain.keep_in(directory.path());
            drain
        };
        let drain = restarted();
        assert!(drain.set(true).unwrap() && !drain.hands_over());
        let (begun, ()) = tokio::join!(
            tokio::time::timeout(std::time::Duration::from_secs(20), drain.begins_to_hand_over()),
            async { drain.set_takes_hand_overs(true) }
        );
        assert!(begun.is_ok() && drain.hands_over());
        assert!(restarted().is_on() && !restarted().hands_over());
        drain.set(false).unwrap();
        assert!(!drain.hands_over());
        drain.set(true).unwrap();
        assert!(drain.hands_over());
        drain.set_takes_hand_overs(false);
        assert!(!drain.hands_over() && drain.is_on());
    }

    /// A revoked agent admits no callback, also after a restart and when it does not drain, until it enrolls anew.
    #[test]
    fn revoked_until_enrolled_anew() {
        let directory = tempfile::tempdir().unwrap();
        let restarted = || {
            let drain = Drain::default();
            drain.keep_in(directory.path());
            drain
        };
        let drain = restarted();
        assert!(drain.admit().is_some() && !drain.is_revoked());
        assert!(drain.revoke().unwrap() && !drain.revoke().unwrap());
        assert!(drain.admit().is_none());
        let drain = restarted();
        assert!(drain.is_revoked() && !drain.set(false).unwrap() && drain.admit().is_none());
        drain.begin_anew().unwrap();
        assert!(drain.admit().is_some() && restarted().admit().is_some());
        drain.set(true).unwrap();
        drain.begin_anew().unwrap();
        assert!(drain.admit().is_some() && restarted().admit().is_some());
    }
}
