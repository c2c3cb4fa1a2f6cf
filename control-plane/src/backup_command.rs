//! `gateway-control-plane backup` and `restore`: what people are told.

use std::{io::Write as _, path::Path};

use gateway_control_plane::{
    backup::{self, Credential, CredentialKind, Credentials, Progress, Restored},
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

/// Makes the data directory of `config` from the backup in `from`; progress goes to standard output. `previous` is the
/// data directory that was in use until now.
#[tokio::main]
pub(crate) async fn restore(config: &Config, from: &Path, previous: Option<&Path>) -> anyhow::Result<()> {
    let data_dir = &config.data_dir;
    let Restored { manifest, credentials } = backup::restore(from, data_dir, previous, tell).await?;
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
    say("agents that enrolled after the backup have to enroll again");
    tell_credentials(&credentials, previous.is_some());
    Ok(())
}

/// Says who gets in now, so that nobody does who should not.
fn tell_credentials(Credentials { revoked, working }: &Credentials, is_compared: bool) {
    if is_compared {
        say(&format!(
            "{} API keys and agents were revoked after the backup, and are revoked again:",
            revoked.len()
        ));
        revoked.iter().for_each(show);
        say(&format!("{} API keys and agents work", working.len()));
        return;
    }
    say(&format!(
        "{} API keys and agents work now, also those that were revoked after the backup: look through them and revoke \
         those once more, or restore again with --previous-data-dir:",
        working.len()
    ));
    working.iter().for_each(show);
}

fn show(credential: &Credential) {
    let Credential { kind, id, name, tenant_id } = credential;
    let tenant = if tenant_id.is_empty() { "platform".to_owned() } else { format!("tenant {tenant_id}") };
    // A name is anybody's text: no line of it may pass for one of ours.
    say(&match kind {
        CredentialKind::ApiKey => format!("  API key {id} of {tenant}: {name:?}"),
        CredentialKind::Agent => format!("  agent {id} of {tenant} in region {name}"),
    });
}

fn tell(progress: Progress) {
    let Progress { doing, name, done, total } = progress;
    say(&format!("{doing} {name}: {} of about {} MiB", done / MIB, total.max(done).div_ceil(MIB)));
}

fn say(line: &str) {
    // When standard output is gone the work still goes on.
    drop(writeln!(std::io::stdout(), "{line}"));
}
