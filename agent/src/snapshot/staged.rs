//! A snapshot that is too large for one response comes in parts, of which only the last is kept as a message: all
//! of them as messages would take several times the memory of the configuration that comes of them.

use std::borrow::Cow;

use gateway_proto::v1;
use prost::Message as _;

/// The parts of a snapshot that is not complete yet, encoded.
#[derive(Default)]
pub struct Staged {
    parts: Vec<Vec<u8>>,
}

/// A response with all its parts.
pub struct Whole {
    earlier: Vec<Vec<u8>>,
    /// The last part, or the only one. It says where the agent stands after the response.
    pub last: v1::StreamConfigResponse,
}

impl Staged {
    /// Takes what came. Ok when it is complete, otherwise the nonce of a part to ack. Using parts one by one
    /// would mean a configuration that knows an instance and not its subscriptions. All parts but the last have
    /// version 0.
    pub fn complete(&mut self, response: v1::StreamConfigResponse) -> Result<Whole, String> {
        let has_some = !response.upserts.is_empty() || !response.unreadable.is_empty();
        if response.version == 0 && has_some {
            self.parts.push(response.encode_to_vec());
            return Err(response.nonce);
        }
        Ok(Whole { earlier: std::mem::take(&mut self.parts), last: response })
    }
}

impl Whole {
    /// The parts in their order, one at a time.
    pub fn parts(&self) -> impl Iterator<Item = Cow<'_, v1::StreamConfigResponse>> {
        let earlier = self.earlier.iter().map(|part| Cow::Owned(read(part)));
        earlier.chain(std::iter::once(Cow::Borrowed(&self.last)))
    }

    /// The parts in their order, each of them forgotten when the next one is taken.
    pub fn into_parts(self) -> impl Iterator<Item = v1::StreamConfigResponse> {
        self.earlier.into_iter().map(|part| read(&part)).chain(std::iter::once(self.last))
    }

    /// Changes every part.
    pub fn change(&mut self, mut change: impl FnMut(&mut v1::StreamConfigResponse)) {
        for encoded in &mut self.earlier {
            let mut part = read(encoded);
            change(&mut part);
            *encoded = part.encode_to_vec();
        }
        change(&mut self.last);
    }
}

fn read(part: &[u8]) -> v1::StreamConfigResponse {
    v1::StreamConfigResponse::decode(part).expect("it was encoded by this process")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(version: u64, nonce: &str, ids: &[&str]) -> v1::StreamConfigResponse {
        let instance = |id: &&str| v1::ConfigResource {
            version: 1,
            resource: Some(v1::config_resource::Resource::Instance(v1::Instance {
                id: (*id).to_owned(),
                ..v1::Instance::default()
            })),
        };
        v1::StreamConfigResponse {
            version,
            nonce: nonce.to_owned(),
            snapshot: nonce == "1",
            upserts: ids.iter().map(instance).collect(),
            ..v1::StreamConfigResponse::default()
        }
    }

    /// A snapshot in parts is used only when its last part is there, and then with all of them; an empty
    /// configuration of version 0 is whole by itself.
    #[test]
    fn parts_are_used_together() {
        let mut staged = Staged::default();
        let sent = [part(0, "1", &["one"]), part(0, "2", &["two"]), part(7, "3", &["three"])];
        for (sent, nonce) in sent.iter().zip(["1", "2"]) {
            assert_eq!(staged.complete(sent.clone()).err(), Some(nonce.to_owned()));
        }
        let mut whole = staged.complete(sent[2].clone()).ok().unwrap();
        assert!(whole.parts().map(Cow::into_owned).eq(sent));
        whole.change(|part| part.upserts.clear());
        assert_eq!(whole.parts().map(|part| part.upserts.len()).sum::<usize>(), 0);
        assert_eq!(whole.into_parts().map(|part| part.nonce).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert!(staged.parts.is_empty());
        assert!(staged.complete(part(0, "1", &[])).is_ok());
    }
}
