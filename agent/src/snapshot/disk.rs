//! The last good configuration on disk: a log of the config stream's responses in `config.log`.
//!
//! The file begins with 8 bytes that name its format; then each response as length (u32 little endian),
//! CRC32C (u32 little endian) and the protobuf bytes. A torn or damaged frame ends the reading: what comes
//! after it is asked for again by version. When the log has grown to twice what one snapshot needs, it is
//! rewritten as one snapshot, beside and then renamed. It holds secrets, so only its owner can read it.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use gateway_proto::v1;
use prost::Message as _;
use tracing::warn;

const FILE: &str = "config.log";
const FORMAT: &[u8; 8] = b"WAGWCFG1";
const FRAME_HEADER_BYTES: usize = 8;
/// The oneof field of `ConfigResource` for webhook subscriptions.
const SUBSCRIPTION: &str = "webhook_subscription";
/// Below this size a rewrite is not worth it.
const REWRITE_BYTES_MIN: usize = 1 << 20;

/// Why the configuration cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ConfigLogError {
    /// The file cannot be read.
    #[error("read configuration log `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is of another program version.
    #[error(
        "read configuration log `{0}`: its format is not known to this version; move it away to start from the control plane"
    )]
    Format(PathBuf),
    /// The file cannot be written.
    #[error("write configuration log `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The configuration log. Cheap to clone.
#[derive(Clone)]
pub struct ConfigLog {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    path: PathBuf,
    state: State,
    log_bytes: usize,
    base_bytes: usize,
}

/// What the log adds up to, opt-outs excepted.
#[derive(Default)]
struct State {
    version: u64,
    store_epoch: String,
    resources: BTreeMap<(&'static str, String), v1::ConfigResource>,
    /// Webhook subscriptions, by id, that are not for this agent any more and may still be owed deliveries.
    departed: BTreeMap<String, v1::ConfigResource>,
    opt_out_cursor: u64,
}

/// Type, as the oneof field of `ConfigResource` names it, and id of a resource.
pub fn name_of(resource: &v1::ConfigResource) -> (&'static str, &str) {
    use v1::config_resource::Resource;
    match &resource.resource {
        Some(Resource::InboundRoute(route)) => ("inbound_route", &route.id),
        Some(Resource::Instance(instance)) => ("instance", &instance.id),
        Some(Resource::WebhookSubscription(config)) => {
            (SUBSCRIPTION, config.webhook_subscription.as_ref().map_or("", |subscription| &subscription.id))
        }
        Some(Resource::OptOutPolicy(policy)) => ("opt_out_policy", &policy.instance_id),
        None => ("unknown", ""),
    }
}

/// A resource that was removed as one that departed, when it is a webhook subscription.
fn as_departed(
    ((resource_type, id), resource): ((&'static str, String), v1::ConfigResource),
) -> Option<(String, v1::ConfigResource)> {
    (resource_type == SUBSCRIPTION).then_some((id, resource))
}

impl State {
    fn absorb(&mut self, response: &v1::StreamConfigResponse) {
        if response.snapshot {
            let resources = std::mem::take(&mut self.resources);
            self.departed.extend(resources.into_iter().filter_map(as_departed));
        }
        self.version = response.version;
        self.store_epoch.clone_from(&response.store_epoch);
        self.opt_out_cursor = response.opt_out_cursor;
        for resource in &response.upserts {
            let (resource_type, id) = name_of(resource);
            if resource_type == SUBSCRIPTION {
                self.departed.remove(id);
            }
            self.resources.insert((resource_type, id.to_owned()), resource.clone());
        }
        for removal in &response.removals {
            let is_it = |resource_type: &str, id: &str| resource_type == removal.r#type && id == removal.id;
            let removed = self.resources.extract_if(.., |(resource_type, id), _| is_it(resource_type, id));
            self.departed.extend(removed.filter_map(as_departed));
            if removal.deleted {
                self.departed.retain(|id, _| !is_it(SUBSCRIPTION, id));
            }
        }
    }

    fn as_snapshot(&self, opt_outs: Vec<v1::OptOut>) -> v1::StreamConfigResponse {
        // What is referred to before what refers to it; the control plane sends this order too.
        let order = ["inbound_route", "instance", "opt_out_policy", SUBSCRIPTION];
        let upserts = order
            .iter()
            .flat_map(|wanted| self.resources.iter().filter(move |((kind, _), _)| kind == wanted))
            .map(|(_, resource)| resource)
            .chain(self.departed.values())
            .cloned()
            .collect();
        // What departed comes and goes, so that a reader knows it as departed.
        let departed = self.departed.keys().map(|id| v1::ConfigRemoval {
            r#type: SUBSCRIPTION.to_owned(),
            id: id.clone(),
            deleted: false,
        });
        v1::StreamConfigResponse {
            nonce: String::new(),
            version: self.version,
            store_epoch: self.store_epoch.clone(),
            snapshot: true,
            upserts,
            removals: departed.collect(),
            opt_outs,
            opt_out_cursor: self.opt_out_cursor,
        }
    }
}

impl ConfigLog {
    /// Opens the log of `data_dir`, and returns the responses it holds, oldest first.
    ///
    /// # Errors
    /// When it cannot be read, or is of another version.
    pub fn open(data_dir: &Path) -> Result<(Self, Vec<v1::StreamConfigResponse>), ConfigLogError> {
        let path = data_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(ConfigLogError::Read { path, source }),
        };
        let (responses, good_bytes) = read_frames(&path, &bytes)?;
        let mut state = State::default();
        for response in &responses {
            state.absorb(response);
        }
        if good_bytes < bytes.len() {
            warn!(path = %path.display(), good_bytes, "the configuration log ends in a damaged record; using what is before it");
            truncate(&path, good_bytes)
                .map_err(|source| ConfigLogError::Write { path: path.clone(), source })?;
        }
        let inner = Inner { path, state, log_bytes: good_bytes, base_bytes: 0 };
        Ok((Self { inner: Arc::new(Mutex::new(inner)) }, responses))
    }

    /// Up to where the opt-outs of the control plane are known.
    pub fn opt_out_cursor(&self) -> u64 {
        self.lock().state.opt_out_cursor
    }

    /// The value of a resource that was stored last.
    pub fn last_good(&self, resource_type: &'static str, id: &str) -> Option<v1::ConfigResource> {
        self.lock().state.resources.get(&(resource_type, id.to_owned())).cloned()
    }

    /// Whether the next [`ConfigLog::append`] should be given all opt-outs, to rewrite the log.
    pub fn is_due_for_rewrite(&self) -> bool {
        let inner = self.lock();
        inner.log_bytes > REWRITE_BYTES_MIN.max(inner.base_bytes * 2)
    }

    /// Adds a response, durably. With `all_opt_outs`, or when the response replaces everything, the log is
    /// rewritten. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk cannot take it; the log on disk is then what it was.
    pub fn append(
        &self,
        response: v1::StreamConfigResponse,
        all_opt_outs: Option<Vec<v1::OptOut>>,
    ) -> Result<(), ConfigLogError> {
        let mut inner = self.lock();
        inner.state.absorb(&response);
        let written = match all_opt_outs {
            Some(opt_outs) => inner.rewrite(opt_outs),
            None => inner.add(&response),
        };
        written.map_err(|source| ConfigLogError::Write { path: inner.path.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, response: &v1::StreamConfigResponse) -> io::Result<()> {
        let mut bytes = Vec::new();
        if self.log_bytes == 0 {
            bytes.extend_from_slice(FORMAT);
        }
        frame(response, &mut bytes);
        let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // A half-written frame would hide every later one.
            file.set_len(u64::try_from(self.log_bytes).unwrap_or(0))?;
            return Err(error);
        }
        if self.log_bytes == 0
            && let Some(directory) = self.path.parent()
        {
            fs::File::open(directory)?.sync_all()?;
        }
        self.log_bytes += bytes.len();
        Ok(())
    }

    fn rewrite(&mut self, opt_outs: Vec<v1::OptOut>) -> io::Result<()> {
        let mut bytes = FORMAT.to_vec();
        frame(&self.state.as_snapshot(opt_outs), &mut bytes);
        crate::private::write_file(&self.path, &bytes)?;
        self.log_bytes = bytes.len();
        self.base_bytes = bytes.len();
        Ok(())
    }
}

fn truncate(path: &Path, bytes: usize) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    file.set_len(u64::try_from(bytes).unwrap_or(0))?;
    file.sync_all()
}

fn frame(response: &v1::StreamConfigResponse, bytes: &mut Vec<u8>) {
    let body = response.encode_to_vec();
    let length = u32::try_from(body.len()).expect("a response is far below 4 GiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
}

/// The whole responses at the beginning of `bytes`, and how many bytes they take.
fn read_frames(path: &Path, bytes: &[u8]) -> Result<(Vec<v1::StreamConfigResponse>, usize), ConfigLogError> {
    let Some(mut rest) = bytes.strip_prefix(FORMAT.as_slice()) else {
        // A file that was torn while its first bytes were written is an empty one.
        return if FORMAT.starts_with(bytes) {
            Ok((Vec::new(), 0))
        } else {
            Err(ConfigLogError::Format(path.into()))
        };
    };
    let mut responses = Vec::new();
    while let Some((response, after)) = read_frame(rest) {
        responses.push(response);
        rest = after;
    }
    Ok((responses, bytes.len() - rest.len()))
}

fn read_frame(bytes: &[u8]) -> Option<(v1::StreamConfigResponse, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let (length, crc) = header.split_at(4);
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    let body = rest.get(..length)?;
    let good = crc32c::crc32c(body) == u32::from_le_bytes(crc.try_into().ok()?);
    let response = v1::StreamConfigResponse::decode(body).ok().filter(|_| good)?;
    Some((response, &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(version: u64) -> v1::StreamConfigResponse {
        let instance = v1::Instance { id: format!("inst_{version}"), ..v1::Instance::default() };
        v1::StreamConfigResponse {
            version,
            store_epoch: "epoch".to_owned(),
            upserts: vec![v1::ConfigResource {
                version,
                resource: Some(v1::config_resource::Resource::Instance(instance)),
            }],
            opt_out_cursor: version,
            ..v1::StreamConfigResponse::default()
        }
    }

    fn reopen(directory: &Path) -> (ConfigLog, Vec<v1::StreamConfigResponse>) {
        ConfigLog::open(directory).unwrap()
    }

    /// What was appended is there after a restart, and a rewrite keeps what it adds up to.
    #[test]
    fn survives_restart_and_rewrite() {
        let directory = tempfile::tempdir().unwrap();
        let (log, responses) = reopen(directory.path());
        assert!(responses.is_empty());
        log.append(delta(1), None).unwrap();
        log.append(delta(2), None).unwrap();
        let (log, responses) = reopen(directory.path());
        assert_eq!(responses, [delta(1), delta(2)]);
        let opt_out = v1::OptOut { id: "opt_1".to_owned(), ..v1::OptOut::default() };
        log.append(delta(3), Some(vec![opt_out])).unwrap();
        let (log, responses) = reopen(directory.path());
        let [only] = &responses[..] else { panic!("one snapshot, not {}", responses.len()) };
        assert!(only.snapshot && only.upserts.len() == 3 && only.opt_outs.len() == 1 && only.version == 3);
        assert_eq!(log.opt_out_cursor(), 3);
    }

    /// A webhook subscription that departed is known as such after a rewrite, until it is deleted.
    #[test]
    fn departed_subscriptions_that_may_be_owed_deliveries_survive_a_rewrite() {
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = reopen(directory.path());
        let subscription = v1::WebhookSubscription { id: "sub_a".to_owned(), ..Default::default() };
        let config =
            v1::WebhookSubscriptionConfig { webhook_subscription: Some(subscription), ..Default::default() };
        let resource = Some(v1::config_resource::Resource::WebhookSubscription(config));
        let known = v1::StreamConfigResponse {
            upserts: vec![v1::ConfigResource { version: 1, resource }],
            ..Default::default()
        };
        let removed = |deleted| v1::StreamConfigResponse {
            removals: vec![v1::ConfigRemoval {
                r#type: SUBSCRIPTION.to_owned(),
                id: "sub_a".to_owned(),
                deleted,
            }],
            ..Default::default()
        };
        log.append(known, None).unwrap();
        for (deleted, left) in [(false, 1), (true, 0)] {
            log.append(removed(deleted), Some(Vec::new())).unwrap();
            // Read by a new process, and rewritten by it.
            let (log, _) = reopen(directory.path());
            assert!(log.last_good(SUBSCRIPTION, "sub_a").is_none());
            log.append(v1::StreamConfigResponse::default(), Some(Vec::new())).unwrap();
            let (_, responses) = reopen(directory.path());
            let counts = (responses[0].upserts.len(), responses[0].removals.len());
            assert_eq!(counts, (left, left));
        }
    }

    /// Cut at any byte, or with any byte flipped, the log gives a beginning of what was appended and goes on.
    #[test]
    fn damage_costs_only_what_follows_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let (log, _) = reopen(directory.path());
        log.append(delta(1), None).unwrap();
        let first_bytes = fs::read(&path).unwrap().len();
        log.append(delta(2), None).unwrap();
        let whole = fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 0x40;
            for damaged in [&whole[..place], &flipped[..]] {
                fs::write(&path, damaged).unwrap();
                if damaged.len() == whole.len() && place < FORMAT.len() {
                    assert!(matches!(ConfigLog::open(directory.path()), Err(ConfigLogError::Format(_))));
                    continue;
                }
                let (log, responses) = reopen(directory.path());
                let expected = if place < first_bytes { 0 } else { 1 };
                assert_eq!(responses.len(), expected, "{place}");
                log.append(delta(3), None).unwrap();
                assert_eq!(reopen(directory.path()).1.len(), expected + 1, "{place}");
            }
        }
    }

    /// Only the owner can read a file that holds secrets.
    #[test]
    fn file_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = reopen(directory.path());
        log.append(delta(1), None).unwrap();
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
