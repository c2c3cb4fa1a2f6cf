//! Secrets at rest: envelope encryption of what the configuration database keeps.
//!
//! Each tenant has a data key, which seals its rows; data keys lie in the database, sealed under a root key,
//! which does not. So a copy of the database alone gives no secret away, and a change of root key touches one
//! row per tenant. What is sealed is bound to its tenant and its resource: bytes that are moved to another
//! row are refused. [`rewrap`] changes keys of both kinds.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use gateway_runtime::sealing::{Key, KeyId, OpenError};
use zeroize::Zeroizing;

pub mod root_keys;
pub mod rewrap;

pub use root_keys::RootKeys;

/// What the sealed form of a data key is bound to, beside its tenant and itself.
const DATA_KEY_PLACE: &[u8] = b"tenant data key";

/// Why secrets at rest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// A key file cannot be read.
    #[error("read root key file `{path}`")]
    ReadRootKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key file does not hold a key.
    #[error("read root key file `{path}`: it must hold 32 bytes as base64 or hexadecimal, and nothing else")]
    BadRootKey {
        /// The file.
        path: PathBuf,
    },
    /// A key file cannot be made.
    #[error("make root key file `{path}`")]
    MakeRootKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database needs a key that is nowhere.
    #[error(
        "open the secrets of the configuration database: they need root key `{needed}`, and `{path}` is not \
         there; put it back, or give the key with --root-key-file"
    )]
    NoRootKey {
        /// The name of the key.
        needed: String,
        /// Where it would be without settings.
        path: PathBuf,
    },
    /// The database needs a key that was not given.
    #[error(
        "open the secrets of the configuration database: they need root key `{needed}`, and only {given} was \
         given; give its file with one more --root-key-file, and run `gateway-control-plane rewrap` to be rid \
         of it"
    )]
    OtherRootKey {
        /// The name of the key.
        needed: String,
        /// The names of the keys that were given.
        given: String,
    },
    /// A data key was changed in the database.
    #[error(
        "open data key `{key_id}` of tenant `{tenant_id}`: restore the configuration database from a backup"
    )]
    DamagedDataKey {
        /// The data key.
        key_id: String,
        /// Its tenant.
        tenant_id: String,
        /// What is wrong.
        #[source]
        source: OpenError,
    },
    /// A row names a data key that its tenant does not have.
    #[error("open sealed {resource} of tenant `{tenant_id}`: the tenant has no data key `{key_id}`")]
    UnknownDataKey {
        /// The tenant.
        tenant_id: String,
        /// The resource.
        resource: String,
        /// The data key.
        key_id: KeyId,
    },
    /// A row was changed, or belongs to another resource.
    #[error("open sealed {resource} of tenant `{tenant_id}`: it was changed, or moved from another row")]
    Refused {
        /// The tenant.
        tenant_id: String,
        /// The resource.
        resource: String,
        /// What is wrong.
        #[source]
        source: OpenError,
    },
}

/// A data key as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// Whose data it seals; empty for what belongs to no tenant.
    pub tenant_id: String,
    /// Its name.
    pub key_id: String,
    /// The name of the root key that it is sealed under.
    pub root_key_id: String,
    /// The key, sealed.
    pub wrapped: Vec<u8>,
}

impl WrappedKey {
    /// Seals a data key under a root key.
    pub fn new(root: &Key, tenant_id: &str, key: &Key) -> Self {
        let key_id = key.id().to_string();
        let wrapped = root.seal(&data_key_place(tenant_id, &key_id), key.reveal());
        Self { tenant_id: tenant_id.to_owned(), key_id, root_key_id: root.id().to_string(), wrapped }
    }

    /// Opens the data key.
    ///
    /// # Errors
    /// When its root key is not among `root_keys`, or the row was changed.
    pub fn open(&self, root_keys: &[Key]) -> Result<Key, SealingError> {
        let Some(root) = root_keys.iter().find(|root| root.id().to_string() == self.root_key_id) else {
            let given: Vec<_> = root_keys.iter().map(|root| format!("`{}`", root.id())).collect();
            let (needed, given) = (self.root_key_id.clone(), given.join(", "));
            return Err(SealingError::OtherRootKey { needed, given });
        };
        let damaged = |source| SealingError::DamagedDataKey {
            key_id: self.key_id.clone(),
            tenant_id: self.tenant_id.clone(),
            source,
        };
        let opened =
            root.open(&data_key_place(&self.tenant_id, &self.key_id), &self.wrapped).map_err(damaged)?;
        let secret: [u8; 32] = opened.as_slice().try_into().map_err(|_| damaged(OpenError::Format))?;
        let key = Key::from_bytes(Zeroizing::new(secret));
        if key.id().to_string() == self.key_id { Ok(key) } else { Err(damaged(OpenError::NotAuthentic)) }
    }
}

fn data_key_place<'a>(tenant_id: &'a str, key_id: &'a str) -> [&'a [u8]; 3] {
    [DATA_KEY_PLACE, tenant_id.as_bytes(), key_id.as_bytes()]
}

/// The data keys of one tenant.
#[derive(Debug)]
struct TenantKeys {
    /// Seals.
    newest: Key,
    /// Whether `newest` is in the database for sure.
    is_stored: bool,
    /// The keys before it, which still open.
    older: Vec<Key>,
}

/// Seals and opens with the data keys of all tenants, which it holds in memory. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    root: Key,
    tenants: Arc<RwLock<HashMap<String, TenantKeys>>>,
}

impl Sealer {
    /// Opens the data keys that a database has, in the order in which they were made. The first root key is the
    /// newest: it seals data keys to come.
    ///
    /// # Errors
    /// When a root key is missing, or a row was changed.
    pub fn open_keys(root_keys: &[Key], wrapped: &[WrappedKey]) -> Result<Self, SealingError> {
        let mut tenants: HashMap<String, TenantKeys> = HashMap::new();
        for row in wrapped {
            let newest = row.open(root_keys)?;
            let older = tenants.remove(&row.tenant_id).map_or_else(Vec::new, |mut before| {
                before.older.push(before.newest);
                before.older
            });
            tenants.insert(row.tenant_id.clone(), TenantKeys { newest, is_stored: true, older });
        }
        let root = root_keys.first().expect("there is always a root key: one is made when none is given");
        Ok(Self { root: root.clone(), tenants: Arc::new(RwLock::new(tenants)) })
    }

    /// Seals bytes of a resource under the tenant's data key, made now if the tenant has none. A data key that
    /// the database may not have yet comes along: it must be stored in the same transaction as the bytes, and
    /// [`Sealer::stored`] called after the commit.
    pub fn seal(&self, tenant_id: &str, resource: &str, plain: &[u8]) -> (Vec<u8>, Option<WrappedKey>) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let keys = tenants.entry(tenant_id.to_owned()).or_insert_with(|| TenantKeys {
            newest: Key::generate(),
            is_stored: false,
            older: Vec::new(),
        });
        let sealed = keys.newest.seal(&place(tenant_id, resource), plain);
        let unstored = (!keys.is_stored).then(|| WrappedKey::new(&self.root, tenant_id, &keys.newest));
        (sealed, unstored)
    }

    /// Notes that the data key which seals for a tenant is in the database.
    pub fn stored(&self, tenant_id: &str) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = tenants.get_mut(tenant_id) {
            keys.is_stored = true;
        }
    }

    /// Opens what was sealed for the same tenant and resource.
    ///
    /// # Errors
    /// When the bytes were changed, or sealed for another tenant or resource.
    pub fn open(
        &self,
        tenant_id: &str,
        resource: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let refused = |source| SealingError::Refused {
            tenant_id: tenant_id.to_owned(),
            resource: resource.to_owned(),
            source,
        };
        let key_id = KeyId::of_sealed(sealed).ok_or_else(|| refused(OpenError::Format))?;
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let key = tenants.get(tenant_id).and_then(|keys| keys.named(key_id));
        let key = key.ok_or_else(|| SealingError::UnknownDataKey {
            tenant_id: tenant_id.to_owned(),
            resource: resource.to_owned(),
            key_id,
        })?;
        key.open(&place(tenant_id, resource), sealed).map_err(refused)
    }

    /// Gives a tenant a new data key, which seals from now on; those before it still open. The key comes
    /// along as in [`Sealer::seal`].
    pub fn renew(&self, tenant_id: &str) -> WrappedKey {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let older = tenants.remove(tenant_id).map_or_else(Vec::new, |mut before| {
            before.older.push(before.newest);
            before.older
        });
        let newest = Key::generate();
        let wrapped = WrappedKey::new(&self.root, tenant_id, &newest);
        tenants.insert(tenant_id.to_owned(), TenantKeys { newest, is_stored: true, older });
        wrapped
    }

    /// The name of the data key that seals for a tenant. None when it has none yet.
    pub fn newest_key(&self, tenant_id: &str) -> Option<KeyId> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant_id).map(|keys| keys.newest.id())
    }
}

impl TenantKeys {
    fn named(&self, id: KeyId) -> Option<&Key> {
        std::iter::once(&self.newest).chain(&self.older).find(|key| key.id() == id)
    }
}

fn place<'a>(tenant_id: &'a str, resource: &'a str) -> [&'a [u8]; 2] {
    [tenant_id.as_bytes(), resource.as_bytes()]
}

#[cfg(test)]
mod tests;
