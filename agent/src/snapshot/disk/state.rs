//! What the configuration log adds up to, opt-outs excepted.
//!
//! Resources are kept encoded: as messages they would take several times the memory, and they are only read
//! again for a new base or when a change of one is refused.
//!
//! Of a refused resource the last good value is kept, if there is one, and the version that was sent: the control plane
//! counts it among what this agent has.

use std::collections::{BTreeMap, BTreeSet};

use gateway_core::snapshot::{
    Refused,
    digest::{self, Digests, RESOURCE_TYPES},
};
use gateway_proto::v1;
use prost::Message as _;

/// The oneof field of `ConfigResource` for webhook subscriptions.
pub const SUBSCRIPTION: &str = "webhook_subscription";
/// A part of a base is finished when it is longer, in bytes.
const PART_BYTES: usize = 1 << 20;

/// Type, as the oneof field of `ConfigResource` names it, and id of a resource.
pub fn name_of(resource: &v1::ConfigResource) -> (&'static str, &str) {
    digest::name_of(resource).unwrap_or(("unknown", ""))
}

/// Encoded resources of one type, by id.
type Resources = BTreeMap<Box<str>, Box<[u8]>>;

#[derive(Default)]
pub struct State {
    pub version: u64,
    pub store_epoch: String,
    pub opt_out_cursor: u64,
    resources: BTreeMap<&'static str, Resources>,
    /// Webhook subscriptions that are not for this agent any more and may still be owed deliveries.
    departed: Resources,
    /// Webhook subscriptions that were deleted, and may still be owed deliveries, which are cancelled.
    deleted: BTreeSet<Box<str>>,
    /// The versions in which resources were sent and refused, which their values in `resources` do not have.
    refused: BTreeMap<(&'static str, Box<str>), u64>,
    digests: Digests,
}

impl State {
    /// Whether nothing was ever stored.
    pub fn is_empty(&self) -> bool {
        self.store_epoch.is_empty() && self.version == 0 && self.resources.is_empty()
    }

    /// The value of a resource.
    pub fn resource(&self, resource_type: &str, id: &str) -> Option<v1::ConfigResource> {
        let encoded = self.resources.get(resource_type)?.get(id)?;
        Some(read_resource(encoded))
    }

    /// What was sent and is not to be removed, refused resources included.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Takes what a response brings; in the place of what was refused it has the last good value, or nothing. What was
    /// refused itself is told to [`Self::refuse`] afterwards.
    pub fn absorb(&mut self, response: &v1::StreamConfigResponse) {
        if response.snapshot {
            self.refused.clear();
            self.digests = Digests::default();
            let mut resources = std::mem::take(&mut self.resources);
            self.departed.append(&mut resources.remove(SUBSCRIPTION).unwrap_or_default());
        }
        self.version = response.version;
        self.store_epoch.clone_from(&response.store_epoch);
        self.opt_out_cursor = response.opt_out_cursor;
        for resource in &response.upserts {
            let (resource_type, id) = name_of(resource);
            if resource_type == SUBSCRIPTION {
                self.departed.remove(id);
                self.deleted.remove(id);
            }
            let encoded = resource.encode_to_vec().into_boxed_slice();
            let before = self.resources.entry(resource_type).or_default().insert(id.into(), encoded);
            self.discount(resource_type, id, before.as_deref());
            self.digests.add(resource_type, id, resource.version);
        }
        for removal in &response.removals {
            let of_type = self.resources.get_mut(removal.r#type.as_str());
            let removed = of_type.and_then(|of_type| of_type.remove_entry(removal.id.as_str()));
            if let Some(resource_type) = known(&removal.r#type) {
                self.discount(resource_type, &removal.id, removed.as_ref().map(|(_, before)| &**before));
            }
            if removal.r#type != SUBSCRIPTION {
                continue;
            }
            if removal.deleted {
                self.departed.remove(removal.id.as_str());
                self.deleted.insert(removal.id.as_str().into());
            } else {
                self.departed.extend(removed);
            }
        }
    }

    /// These resources were sent in these versions and refused.
    pub fn refuse(&mut self, refused: &Refusals) {
        for v1::RefusedResource { r#type, id, version, .. } in &refused.resources {
            let Some(resource_type) = known(r#type) else { continue };
            let of_type = self.resources.get(resource_type);
            let kept = of_type.and_then(|of_type| of_type.get(id.as_str())).map(|kept| version_of(kept));
            let key = (resource_type, id.as_str().into());
            if let Some(counted) = self.refused.insert(key, *version).or(kept) {
                self.digests.remove(resource_type, id, counted);
            }
            self.digests.add(resource_type, id, *version);
        }
    }

    /// A resource is another one now, or gone; `before` is the value that it had.
    fn discount(&mut self, resource_type: &'static str, id: &str, before: Option<&[u8]>) {
        // Nearly always there is none.
        let refused = match self.refused.is_empty() {
            true => None,
            false => self.refused.remove(&(resource_type, id.into())),
        };
        if let Some(counted) = refused.or_else(|| before.map(version_of)) {
            self.digests.remove(resource_type, id, counted);
        }
    }

    /// The state in parts: the first replaces everything, the last has what departed and what was refused.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.parts_with(Vec::new())
    }

    /// The state in parts, with these opt-outs.
    pub fn parts_with(&self, opt_outs: Vec<v1::OptOut>) -> impl Iterator<Item = Part> {
        let mut upserts = RESOURCE_TYPES
            .iter()
            .filter_map(|resource_type| self.resources.get(resource_type))
            .flat_map(BTreeMap::values)
            // What departed comes and goes, so that a reader knows it as departed.
            .chain(self.departed.values());
        let mut opt_outs = opt_outs.into_iter();
        let (mut is_first, mut is_last) = (true, false);
        std::iter::from_fn(move || {
            if is_last {
                return None;
            }
            let mut part = EncodedResponse {
                version: self.version,
                store_epoch: self.store_epoch.clone(),
                snapshot: std::mem::take(&mut is_first),
                opt_out_cursor: self.opt_out_cursor,
                ..EncodedResponse::default()
            };
            let mut bytes = 0;
            while bytes < PART_BYTES {
                if let Some(upsert) = upserts.next() {
                    bytes += upsert.len();
                    part.upserts.push(upsert.to_vec());
                } else if let Some(opt_out) = opt_outs.next() {
                    let encoded = opt_out.encode_to_vec();
                    bytes += encoded.len();
                    part.opt_outs.push(encoded);
                } else {
                    is_last = true;
                    part.removals = self.removals();
                    break;
                }
            }
            let refused = if is_last { self.refusals() } else { Refusals::default() };
            Some(Part { message: part, refused, is_last })
        })
    }

    fn refusals(&self) -> Refusals {
        let refusal =
            |((resource_type, id), version): (&(&'static str, Box<str>), &u64)| v1::RefusedResource {
                r#type: (*resource_type).to_owned(),
                id: id.to_string(),
                version: *version,
                error: String::new(),
            };
        Refusals { resources: self.refused.iter().map(refusal).collect() }
    }

    fn removals(&self) -> Vec<v1::ConfigRemoval> {
        let removal = |id: &str, deleted| v1::ConfigRemoval {
            r#type: SUBSCRIPTION.to_owned(),
            id: id.to_owned(),
            deleted,
        };
        let departed = self.departed.keys().map(|id| removal(id, false));
        departed.chain(self.deleted.iter().map(|id| removal(id, true))).collect()
    }
}

/// The same type, if this program knows it.
fn known(resource_type: &str) -> Option<&'static str> {
    RESOURCE_TYPES.into_iter().find(|known| *known == resource_type)
}

/// The version of an encoded resource.
fn version_of(encoded: &[u8]) -> u64 {
    /// A `ConfigResource` without its resource.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Versioned {
        #[prost(uint64, tag = "1")]
        version: u64,
    }
    Versioned::decode(encoded).expect("it was encoded by this process").version
}

/// Which resources were refused, or could not be read by the control plane, in which version: what a record of the log has
/// beside a response. Earlier programs, which do not know the field, read the response all the same.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refusals {
    /// The resources, without the reasons.
    #[prost(message, repeated, tag = "1000")]
    pub resources: Vec<v1::RefusedResource>,
}

impl Refusals {
    /// What was refused, as the log keeps it.
    pub fn of(refused: &[Refused]) -> Self {
        let resource = |refused: &Refused| v1::RefusedResource {
            r#type: refused.resource_type.to_owned(),
            id: refused.id.clone(),
            version: refused.version,
            error: String::new(),
        };
        Self { resources: refused.iter().map(resource).collect() }
    }
}

fn read_resource(encoded: &[u8]) -> v1::ConfigResource {
    v1::ConfigResource::decode(encoded).expect("it was encoded by this process")
}

/// A part of a base.
#[derive(Default)]
pub struct Part {
    /// What it brings.
    pub message: EncodedResponse,
    /// What was refused of all parts; in the last one only.
    pub refused: Refusals,
    /// Whether the base ends with it.
    pub is_last: bool,
}

/// A `StreamConfigResponse` whose resources are encoded: on the wire an embedded message looks like bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedResponse {
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(string, tag = "3")]
    store_epoch: String,
    #[prost(bool, tag = "4")]
    snapshot: bool,
    #[prost(bytes = "vec", repeated, tag = "5")]
    upserts: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "6")]
    removals: Vec<v1::ConfigRemoval>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    opt_outs: Vec<Vec<u8>>,
    #[prost(uint64, tag = "8")]
    opt_out_cursor: u64,
}

impl Part {
    /// The part as a response.
    pub fn read(&self) -> v1::StreamConfigResponse {
        v1::StreamConfigResponse::decode(self.message.encode_to_vec().as_slice())
            .expect("it has the fields of a response, and resources that were encoded by this process")
    }
}
