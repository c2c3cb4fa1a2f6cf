//! What is remembered of a group.

use crate::inbound_log::{
    sqlite::{
        event_index::IndexedRow,
        instance_index::{self, InstanceSeqs},
    },
    stage::{Stage, StagedLog},
};

/// What is remembered of a stage when its rows are on their way to disk.
pub(super) struct Staged {
    pub(super) new_rows: Vec<IndexedRow>,
    pub(super) instances: InstanceSeqs,
    pub(super) next_seq: i64,
    pub(super) next_change_seq: i64,
}

impl Staged {
    pub(super) fn of(stage: &Stage) -> Self {
        let mut instances = InstanceSeqs::new();
        for staged in stage.logs.iter().filter(|staged| staged.is_new) {
            instance_index::note(&mut instances, &staged.log.instance_id, staged.seq);
        }
        let new = stage.logs.iter().filter(|staged| staged.is_new);
        let new_rows = new.map(|&StagedLog { key, seq, receive_time, change_seq, .. }| IndexedRow {
            key,
            seq,
            receive_time,
            change_seq,
        });
        Self {
            new_rows: new_rows.collect(),
            instances,
            next_seq: stage.next_seq(),
            next_change_seq: stage.next_change_seq(),
        }
    }
}
