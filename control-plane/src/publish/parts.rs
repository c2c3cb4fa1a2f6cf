//! Changes, cut into the responses of one config stream.

use std::{collections::HashSet, sync::Arc};

use gateway_proto::v1;
use prost::Message as _;

use super::{Changes, Content, Fate, Item, fate, resource_key};
use crate::{
    fleet::ResourceKey,
    store::{REMOVAL_ORDER, webhook_subscriptions},
};

/// Longest response, some way under the 4 MiB that gRPC clients take by default.
pub(super) const RESPONSE_BYTES_MAX: usize = 3 * 1_024 * 1_024;

/// Changes on their way to an agent, cut into responses.
pub struct Parts {
    changes: Arc<Changes>,
    region: String,
    next_item: usize,
    removals: Vec<v1::ConfigRemoval>,
    /// Webhook subscriptions whose id was another one's, sent by now.
    sent_again: HashSet<String>,
    is_first: bool,
    is_done: bool,
}

/// One response's share of the changes.
pub struct Part {
    /// Resources that the agent is to have.
    pub upserts: Vec<v1::ConfigResource>,
    /// Resources that the agent is not to have; on the last part only.
    pub removals: Vec<v1::ConfigRemoval>,
    /// Resources that are not sent because they cannot be read, and that the agent keeps if it has them; each with its
    /// instance, which is empty for inbound routes.
    pub unreadable: Vec<(String, v1::ConfigUnreadable)>,
    /// Whether it begins a snapshot: what the agent had before is gone.
    pub begins_snapshot: bool,
    /// After the last part the agent has the version of the changes, before it the one it had.
    pub is_last: bool,
}

impl Part {
    /// What the part speaks of.
    pub fn keys(&self) -> Vec<ResourceKey> {
        let removed = self.removals.iter().map(|removal| (removal.r#type.clone(), removal.id.clone()));
        self.upserts.iter().filter_map(resource_key).chain(removed).collect()
    }
}

impl Parts {
    /// `changes` for an agent of `region`.
    pub fn new(changes: Arc<Changes>, region: &str) -> Self {
        let removals = changes.removals.clone();
        Self {
            changes,
            region: region.to_owned(),
            next_item: 0,
            removals,
            sent_again: HashSet::new(),
            is_first: true,
            is_done: false,
        }
    }

    /// The version of the changes.
    pub fn version(&self) -> u64 {
        self.changes.version
    }

    fn is_snapshot(&self) -> bool {
        self.changes.since == 0
    }

    /// Notes what takes the place of one that was deleted: it is not removed after it.
    fn note_reused(&mut self, item: &Item) {
        if self.changes.reused.is_empty() {
            return;
        }
        if let Some((kind, id)) = item.content.key()
            && kind == webhook_subscriptions::TYPE
            && self.changes.reused.contains(&id)
        {
            self.sent_again.insert(id);
        }
    }

    /// The next group that starts at `next_item`, and whether it has to be removed where it is not for: a route,
    /// or what hangs on an instance that is part of the changes.
    fn group(&self) -> (&[Item], bool) {
        let items = &self.changes.items[self.next_item..];
        let Some(first) = items.first() else { return (&[], false) };
        // Routes do not need each other, so each is a group of its own.
        let is_route = first.group.is_empty();
        let end = items.iter().position(|item| is_route || item.group != first.group);
        let end = if is_route { 1 } else { end.unwrap_or(items.len()) };
        (&items[..end], is_route || first.content.instance().is_some())
    }
}

impl Iterator for Parts {
    type Item = Part;

    /// At least one part, even when nothing concerns the agent: it learns the version.
    fn next(&mut self) -> Option<Part> {
        if self.is_done {
            return None;
        }
        let mut part = Part {
            upserts: Vec::new(),
            removals: Vec::new(),
            unreadable: Vec::new(),
            begins_snapshot: self.is_first && self.is_snapshot(),
            is_last: false,
        };
        self.is_first = false;
        let mut bytes = 0;
        while self.next_item < self.changes.items.len() {
            let changes = Arc::clone(&self.changes);
            let (group, is_whole) = self.group();
            let group = &changes.items[self.next_item..self.next_item + group.len()];
            let fate = fate(&group[0].reach, &self.region);
            if fate == Fate::Left {
                if is_whole && !self.is_snapshot() {
                    let keys = group.iter().filter_map(|item| item.content.key());
                    let left = keys.map(|(r#type, id)| v1::ConfigRemoval { r#type, id, deleted: false });
                    self.removals.extend(left);
                }
                self.next_item += group.len();
                continue;
            }
            // Of what is not sent the name is.
            let length = |item: &Item| {
                let unread = || item.content.unread().map_or(0, |named| named.encoded_len());
                8 + if fate == Fate::Sent { item.content.encoded_len() } else { unread() }
            };
            let size: usize = group.iter().map(length).sum();
            if bytes > 0 && bytes + size > RESPONSE_BYTES_MAX {
                return Some(part);
            }
            for item in group {
                let size = length(item);
                if bytes > 0 && bytes + size > RESPONSE_BYTES_MAX {
                    return Some(part);
                }
                bytes += size;
                match &item.content {
                    Content::Whole(resource) if fate == Fate::Sent => {
                        self.note_reused(item);
                        part.upserts.push((**resource).clone());
                    }
                    content => {
                        part.unreadable.extend(content.unread().map(|named| (item.group.clone(), named)))
                    }
                }
                self.next_item += 1;
            }
        }
        self.is_done = true;
        part.is_last = true;
        part.removals = std::mem::take(&mut self.removals);
        let is_sent_again = |removal: &v1::ConfigRemoval| {
            removal.r#type == webhook_subscriptions::TYPE && self.sent_again.contains(&removal.id)
        };
        part.removals.retain(|removal| !is_sent_again(removal));
        // What refers to others goes before what is referred to.
        part.removals.sort_by_key(|removal| REMOVAL_ORDER.iter().position(|known| *known == removal.r#type));
        Some(part)
    }
}
