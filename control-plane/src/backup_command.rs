//! `gateway-control-plane backup` and `restore`: what people are told.

use std::{io::Write as _, path::Path};

use gateway_control_plane::{
    backup::{self, Progress},
    config::Config,
};

const MIB: u64 = 1 << 20;

/// Writes a backup of the databases of `config` to `to`; progress goes to standard output.
#[tokio::main]
pub(crate) async fn back_up(config: &Config, to: &Path) -> anyhow::Result<()> {
    let manifest = backup::backup(&config.data_dir, to, tell).await?;
    say(&format!("backed up configuration version {} to {}", manifest.config_version, to.display()));
    say(
        "the root key, ca.key and admin.key are not in it: keep copies of root.key and ca.key elsewhere; without the \
         root key the secrets in the backup cannot be read",
    );
    Ok(())
}

/// Makes the data directory of `config` from the backup in `from`; progress goes to standard output.
#[tokio::main]
pub(crate) async fn restore(config: &Config, from: &Path) -> anyhow::Result<()> {
    let data_dir = &config.data_dir;
    let manifest = backup::restore(from, data_dir, tell).await?;
    say(&format!(
        "restored configuration version {} of {} to {}",
        manifest.config_version,
        manifest.create_time,
        data_dir.display()
    ));
    say(
        "before the start put root.key and ca.key there, unless keys are given from outside; a new admin.key is made \
         if there is none",
    );
    say(
        "what was revoked after the backup is valid again: revoke those API keys and agents once more; agents that \
         enrolled after it have to enroll again",
    );
    Ok(())
}

fn tell(progress: Progress) {
    let Progress { doing, name, done, total } = progress;
    say(&format!("{doing} {name}: {} of about {} MiB", done / MIB, total.max(done).div_ceil(MIB)));
}

fn say(line: &str) {
    // When standard output is gone the work still goes on.
    drop(writeln!(std::io::stdout(), "{line}"));
}
