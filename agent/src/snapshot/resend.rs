//! Opt-outs that go back to the control plane when it turns out to be another store: one that was restored
//! from an older backup, or made anew. It has forgotten what contacts decided after the backup; this agent has
//! not.
//!
//! Such a control plane sends its whole opt-out log. Every record in which it and this agent agree is
//! confirmed; what is left at the end it does not have, or has an older decision of. That goes into the buffer
//! and is reported like an opt-out that was seen here, and merges there as between agents: the later decision
//! wins, on a tie the opt-out. A file keeps the intention from before the new store's name is stored until
//! everything is in the buffer: after a crash the agent asks for the whole log again.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use gateway_core::opt_out::{OptOutId, OptOutRecord};
use gateway_proto::v1;
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::{opt_out::OptOuts, pipeline::buffer::Buffer};

/// The file that is there while opt-outs are to be sent back.
const FILE: &str = "opt-outs-to-resend";
/// Opt-outs of one entry in the buffer.
const ENTRY_OPT_OUTS: usize = 100;
/// Pause when the buffer refuses.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be sent back.
pub(super) struct Resend {
    file: PathBuf,
    /// Records that the control plane has as well; None while nothing is compared.
    confirmed: Option<HashSet<OptOutId>>,
    sending: JoinSet<()>,
}

impl Resend {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, confirmed: None, sending: JoinSet::new() }
    }

    /// The file in a data directory.
    pub(super) fn file_in(data_dir: &std::path::Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// Whether the whole opt-out log is to be asked for. A new connection begins the comparison anew.
    pub(super) fn begins_anew(&mut self) -> bool {
        let is_open = self.file.exists();
        self.confirmed = is_open.then(HashSet::new);
        is_open
    }

    /// The control plane is another store than before, and will send its whole log: what this agent knows is
    /// compared with it.
    pub(super) fn begin(&mut self) {
        info!("the control plane was restored or made anew: comparing opt-outs with it");
        if let Err(error) = crate::private::write_file(&self.file, b"") {
            error!(%error, "failed to write down that opt-outs are to be sent back; a crash now would forget it");
        }
        self.confirmed = Some(HashSet::new());
    }

    /// Merges what the control plane sent.
    pub(super) fn merge(&mut self, opt_outs: &OptOuts, received: Vec<v1::OptOut>) {
        match &mut self.confirmed {
            Some(confirmed) => opt_outs.merge_and_confirm(received, confirmed),
            None => opt_outs.merge_from_stream(received),
        }
    }

    /// The control plane has sent its whole log: sends back what it does not have, in a task of its own.
    pub(super) fn send(&mut self, opt_outs: &OptOuts, buffer: &Buffer) {
        let Some(confirmed) = self.confirmed.take() else { return };
        let missing = opt_outs.all_but(&confirmed);
        // A comparison that was begun anew knows better.
        self.sending.abort_all();
        self.sending.spawn(send(opt_outs.clone(), buffer.clone(), missing, self.file.clone()));
    }
}

async fn send(opt_outs: OptOuts, buffer: Buffer, missing: Vec<OptOutRecord>, file: PathBuf) {
    info!(count = missing.len(), "sending back opt-outs that the control plane does not have");
    for records in missing.chunks(ENTRY_OPT_OUTS) {
        while let Err(error) = opt_outs.report_again(&buffer, records).await {
            error!(%error, "failed to buffer opt-outs that are to be sent back; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }
    if let Err(error) = fs::remove_file(&file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        error!(%error, "failed to remove the file that says that opt-outs are to be sent back");
    }
}

#[cfg(test)]
mod tests;
