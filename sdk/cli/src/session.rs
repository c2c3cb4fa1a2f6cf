//! The session file: how `gateway trigger` finds the running `gateway dev`. It holds secrets, so only its
//! owner can read it, and it goes when `gateway dev` ends.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use gateway_runtime::private;
use serde::{Deserialize, Serialize};

/// What others on this machine need to use a running `gateway dev`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// The process of `gateway dev`.
    pub process: u32,
    /// Where it keeps its state.
    pub data_dir: PathBuf,
    /// gRPC of the control plane.
    pub control_plane_url: String,
    /// The authority of its certificate, when it speaks TLS.
    #[serde(default)]
    pub control_plane_ca: Option<PathBuf>,
    /// The admin key.
    pub api_key: String,
    /// Where the provider would call.
    pub callback_url: String,
    /// Signs callbacks of the demo route.
    pub app_secret: String,
    /// The built-in receiver's list of webhooks.
    pub receiver_url: String,
    /// The demo instance.
    pub instance_id: String,
    /// Its number at the provider.
    pub provider_number_id: String,
    /// Its phone number.
    pub phone_number: String,
}

/// Keeps the session file until dropped.
pub struct SessionFile {
    path: PathBuf,
}

/// `$XDG_RUNTIME_DIR`, which only its user can enter, or else the directory for temporary files.
fn path() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| Path::new(directory).is_dir()) {
        Some(directory) => Path::new(&directory).join("whatsapp-gateway-dev.json"),
        None => {
            let user = std::env::var("USER").unwrap_or_default();
            let user: String = user.chars().filter(char::is_ascii_alphanumeric).collect();
            std::env::temp_dir().join(format!("whatsapp-gateway-dev-{user}.json"))
        }
    }
}

impl SessionFile {
    /// Writes the session file; the newest `gateway dev` of a user is the one that is found.
    pub fn write(session: &Session) -> anyhow::Result<Self> {
        let path = path();
        // Two that start at the same time both write it.
        private::write_shared_file(&path, &serde_json::to_vec_pretty(session)?)
            .with_context(|| format!("write session file `{}`", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for SessionFile {
    fn drop(&mut self) {
        let ours = load(&self.path).is_ok_and(|session| session.process == std::process::id());
        if ours {
            // What cannot be removed is overwritten by the next start.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// The running `gateway dev`, or none when there is no session file.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn find() -> anyhow::Result<Option<Session>> {
    let path = path();
    match load(&path) {
        Ok(session) => Ok(Some(session)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read session file `{}`", path.display())),
    }
}

fn load(path: &Path) -> io::Result<Session> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
}
