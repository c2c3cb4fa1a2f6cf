//! What an agent has of each type of resource, in a few bytes: how many, and the XOR of a hash of each. Two sides that
//! were told of the same resources in the same versions have the same digests, in whatever order they were told.
//!
//! The hash of a resource is the first 16 bytes of SHA-256 over the type and the id, each preceded by its length as u32
//! big endian, and the version in which it last changed as u64 big endian (`ConfigDigest` of the agents' protocol).
//! Resources come and go one at a time: XOR undoes itself. It tells errors from agreement; it proves nothing against
//! somebody who makes resources up, which an agent could not gain anything by.

use gateway_proto::v1::{self, config_resource::Resource};
use sha2::{Digest as _, Sha256};

/// Types of resources, as the oneof field of `ConfigResource` names them; what is referred to before what refers to it.
pub const RESOURCE_TYPES: [&str; 4] = ["inbound_route", "instance", "opt_out_policy", "webhook_subscription"];
/// Bytes of a digest.
const DIGEST_BYTES: usize = 16;

/// Type and id of a resource; None of a resource of a type that this program does not know.
pub fn name_of(resource: &v1::ConfigResource) -> Option<(&'static str, &str)> {
    Some(match resource.resource.as_ref()? {
        Resource::InboundRoute(route) => ("inbound_route", &route.id),
        Resource::Instance(instance) => ("instance", &instance.id),
        Resource::OptOutPolicy(policy) => ("opt_out_policy", &policy.instance_id),
        Resource::WebhookSubscription(config) => {
            let id = config.webhook_subscription.as_ref().map_or("", |subscription| &subscription.id);
            ("webhook_subscription", id)
        }
    })
}

/// The digest of the resources of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many there are.
    pub count: u64,
    /// The XOR of their hashes.
    bits: [u8; DIGEST_BYTES],
}

/// The digests of all types of resources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests([Digest; RESOURCE_TYPES.len()]);

/// A type of which another side says something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// The type.
    pub resource_type: &'static str,
    /// How many resources there are here.
    pub expected: u64,
    /// How many the other side says that it has.
    pub said: u64,
}

impl Digests {
    /// A resource is there now. One of a type that this program does not know counts nowhere.
    pub fn add(&mut self, resource_type: &str, id: &str, version: u64) {
        if let Some(of_type) = self.of_type(resource_type) {
            of_type.count = of_type.count.saturating_add(1);
            of_type.mix(hash(resource_type, id, version));
        }
    }

    /// A resource that was added with this version is gone.
    pub fn remove(&mut self, resource_type: &str, id: &str, version: u64) {
        if let Some(of_type) = self.of_type(resource_type) {
            of_type.count = of_type.count.saturating_sub(1);
            of_type.mix(hash(resource_type, id, version));
        }
    }

    /// Adds all resources of `others`, none of which is in these.
    pub fn merge(&mut self, others: &Self) {
        for (digest, other) in self.0.iter_mut().zip(&others.0) {
            digest.count = digest.count.saturating_add(other.count);
            digest.mix(other.bits);
        }
    }

    /// As the agents' protocol has them: every type, also those of which there is nothing.
    pub fn to_proto(&self) -> Vec<v1::ConfigDigest> {
        let of_type = |(resource_type, digest): (&&str, &Digest)| v1::ConfigDigest {
            r#type: (*resource_type).to_owned(),
            count: digest.count,
            digest: digest.bits.to_vec(),
        };
        RESOURCE_TYPES.iter().zip(&self.0).map(of_type).collect()
    }

    /// The types of which `said` says something else. What it says nothing of, and types that this program does not know,
    /// cannot be compared.
    pub fn differences(&self, said: &[v1::ConfigDigest]) -> Vec<Difference> {
        let difference = |said: &v1::ConfigDigest| {
            let place = RESOURCE_TYPES.iter().position(|resource_type| *resource_type == said.r#type)?;
            let ours = &self.0[place];
            let is_same = said.count == ours.count && said.digest == ours.bits;
            let resource_type = RESOURCE_TYPES[place];
            (!is_same).then_some(Difference { resource_type, expected: ours.count, said: said.count })
        };
        said.iter().filter_map(difference).collect()
    }

    fn of_type(&mut self, resource_type: &str) -> Option<&mut Digest> {
        let place = RESOURCE_TYPES.iter().position(|known| *known == resource_type)?;
        Some(&mut self.0[place])
    }
}

impl Digest {
    fn mix(&mut self, bits: [u8; DIGEST_BYTES]) {
        self.bits.iter_mut().zip(bits).for_each(|(bit, other)| *bit ^= other);
    }
}

fn hash(resource_type: &str, id: &str, version: u64) -> [u8; DIGEST_BYTES] {
    let mut hasher = Sha256::new();
    for text in [resource_type, id] {
        let bytes = u32::try_from(text.len()).expect("a message is shorter than 4 GiB");
        hasher.update(bytes.to_be_bytes());
        hasher.update(text);
    }
    hasher.update(version.to_be_bytes());
    *hasher.finalize().first_chunk().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The rule, by values that Python computed:
    ///
    /// ```python
    /// import hashlib, struct
    /// def h(t, i, v):
    ///     t, i = t.encode(), i.encode()
    ///     data = struct.pack('>I', len(t)) + t + struct.pack('>I', len(i)) + i + struct.pack('>Q', v)
    ///     return hashlib.sha256(data).digest()[:16]
    /// a, b = h('instance', 'inst_1', 7), h('instance', 'inst_2', 258)
    /// a.hex(); bytes(x ^ y for x, y in zip(a, b)).hex(); h('webhook_subscription', 'sub_1', 2**63 + 5).hex()
    /// ```
    #[test]
    fn digests_follow_the_written_rule() {
        let mut digests = Digests::default();
        digests.add("instance", "inst_1", 7);
        let of = |digests: &Digests, place: usize| {
            let said = &digests.to_proto()[place];
            (said.r#type.clone(), said.count, hexadecimal(&said.digest))
        };
        assert_eq!(
            of(&digests, 1),
            ("instance".to_owned(), 1, "81da8f737b506f1bcc6a5e2c5f30c10b".to_owned())
        );
        digests.add("instance", "inst_2", 258);
        assert_eq!(
            of(&digests, 1),
            ("instance".to_owned(), 2, "f3b2d28f150f9ab48d870421343776fc".to_owned())
        );
        digests.add("webhook_subscription", "sub_1", (1 << 63) + 5);
        let subscription =
            ("webhook_subscription".to_owned(), 1, "9ba83c2ed5603d2ddb33e051d89c18aa".to_owned());
        assert_eq!(of(&digests, 3), subscription);
        digests.add("of a later version", "x", 1);
        digests.remove("instance", "inst_1", 7);
        digests.remove("instance", "inst_2", 258);
        assert_eq!(of(&digests, 1), ("instance".to_owned(), 0, "0".repeat(32)));
        assert_eq!(of(&digests, 3), subscription);
    }

    /// A type that differs in a version, an id or the count is named, with both counts; one that agrees, that the other
    /// side leaves out or that nobody here knows is not.
    #[test]
    fn only_what_differs_is_named() {
        let mut ours = Digests::default();
        ours.add("instance", "inst_1", 7);
        ours.add("inbound_route", "route_1", 6);
        assert_eq!(ours.differences(&ours.to_proto()), []);
        assert_eq!(ours.differences(&[]), []);
        let mut theirs = ours;
        theirs.remove("instance", "inst_1", 7);
        theirs.add("instance", "inst_1", 8);
        theirs.add("webhook_subscription", "sub_1", 9);
        let mut said = theirs.to_proto();
        said.push(v1::ConfigDigest { r#type: "later".to_owned(), count: 5, digest: vec![1] });
        let difference = |resource_type, expected, said| Difference { resource_type, expected, said };
        let expected = [difference("instance", 1, 1), difference("webhook_subscription", 0, 1)];
        assert_eq!(ours.differences(&said), expected);
        said.retain(|said| said.r#type != "instance");
        assert_eq!(ours.differences(&said), expected[1..]);
        let cut = v1::ConfigDigest { r#type: "inbound_route".to_owned(), count: 1, digest: vec![0; 15] };
        assert_eq!(ours.differences(&[cut]), [difference("inbound_route", 1, 1)]);
    }

    proptest! {
        /// Whatever comes and goes in whatever order, the digests are those of what is there; and two halves merged are
        /// the whole.
        #[test]
        fn order_does_not_matter(
            resources in proptest::collection::btree_map((0_usize..4, "[a-c]{1,2}"), 1_u64..4, 0..20),
            gone in proptest::collection::btree_map((0_usize..4, "[d-e]{1,2}"), 1_u64..4, 0..20),
            half in 0_usize..20,
        ) {
            let add = |digests: &mut Digests, ((place, id), version): (&(usize, String), &u64)| {
                digests.add(RESOURCE_TYPES[*place], id, *version);
            };
            let mut expected = Digests::default();
            resources.iter().for_each(|resource| add(&mut expected, resource));
            let mut there = Digests::default();
            gone.iter().for_each(|resource| add(&mut there, resource));
            resources.iter().rev().for_each(|resource| add(&mut there, resource));
            for ((place, id), version) in &gone {
                there.remove(RESOURCE_TYPES[*place], id, *version);
            }
            prop_assert_eq!(there, expected);
            let (mut first, mut second) = (Digests::default(), Digests::default());
            resources.iter().take(half).for_each(|resource| add(&mut first, resource));
            resources.iter().skip(half).for_each(|resource| add(&mut second, resource));
            first.merge(&second);
            prop_assert_eq!(first, expected);
        }
    }
}
