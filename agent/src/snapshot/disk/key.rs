//! The key of the configuration log: given, or kept in `config.key` beside it.

use std::{fs, io, path::Path};

use gateway_runtime::sealing::Key;
use tracing::info;
use zeroize::Zeroizing;

use super::ConfigLogError;
use crate::private;

/// Name of the file in the data directory that keeps the key when none is given.
pub const FILE: &str = "config.key";
/// The environment variable that gives the key.
pub const ENV: &str = "GATEWAY_AGENT_CONFIG_KEY";

/// The key that was given, or else the one of `data_dir`, made when there is none.
///
/// # Errors
/// When the key file cannot be read or made, or holds no key.
pub fn load(data_dir: &Path, given: Option<&Key>) -> Result<Key, ConfigLogError> {
    if let Some(key) = given {
        return Ok(key.clone());
    }
    let path = data_dir.join(FILE);
    private::warn_if_open(&path);
    match fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => {
            Key::parse(&text).map_err(|source| ConfigLogError::BadKeyFile { path: path.clone(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = Key::generate();
            let text = Zeroizing::new(format!("{}\n", *key.to_base64()));
            private::write_file(&path, text.as_bytes())
                .map_err(|source| ConfigLogError::KeyFile { path: path.clone(), source })?;
            info!(path = %path.display(), "made the key of the configuration log");
            Ok(key)
        }
        Err(source) => Err(ConfigLogError::KeyFile { path, source }),
    }
}
