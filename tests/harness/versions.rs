//! What programs of earlier versions said to each other and left on their disks: `tests/versions`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::{
    programs::workspace_root,
    proxy::Way,
    relay::{self, Recorded},
};

/// Where recorded subscriptions deliver to: a loopback address that nothing else uses.
pub const RECEIVER: &str = "127.31.71.1:20443";

/// What was recorded of one version.
pub struct Version {
    directory: PathBuf,
    /// The conversation from enrolling on.
    pub first: Vec<Recorded>,
    /// The conversation after both programs were started again.
    pub second: Vec<Recorded>,
}

impl Version {
    /// What was recorded of the version of this name.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        let directory = workspace_root().join("tests/versions").join(name);
        let [first, second] = ["first.bin", "second.bin"].map(|file| relay::read(&directory.join(file)));
        Ok(Self { first: first?, second: second?, directory })
    }

    /// Copies the data directory `agent` or `control-plane` to where the harness starts a program on it.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy_data(&self, program: &str, directory: &Path) -> anyhow::Result<PathBuf> {
        let target = directory.join(program);
        copy(&self.directory.join(program), &target)?;
        Ok(target)
    }
}

/// The messages of a method that went this way, decoded.
///
/// # Errors
/// When one cannot be decoded.
pub fn decoded<M: prost::Message + Default>(
    messages: &[Recorded],
    method: &str,
    way: Way,
) -> anyhow::Result<Vec<M>> {
    let of_method = messages.iter().filter(|message| message.method == method && message.way == way);
    let decode = |message: &Recorded| M::decode(message.bytes.clone());
    of_method.map(decode).collect::<Result<_, _>>().with_context(|| format!("decode {method}"))
}

/// The messages of a method that went down, decoded: each is the same bytes when it is encoded again.
///
/// # Errors
/// When one cannot be decoded, or is not the same: then today's contract has lost something.
pub fn replayable<M: prost::Message + Default>(
    messages: &[Recorded],
    method: &str,
) -> anyhow::Result<Vec<M>> {
    let decoded: Vec<M> = decoded(messages, method, Way::Down)?;
    let recorded = messages.iter().filter(|message| message.method == method && message.way == Way::Down);
    for (message, recorded) in decoded.iter().zip(recorded) {
        ensure!(message.encode_to_vec() == recorded.bytes, "a message of {method} is not what it was");
    }
    Ok(decoded)
}

/// Copies a directory with all that is in it.
///
/// # Errors
/// When it cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read `{}`", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
