//! `gateway-control-plane backup` and `restore`: what people are told.

use std::{io::Write as _, path::Path};

use gateway_control_plane::{
    backup::{self, Credential, CredentialKind, Credentials, Progress, Restored, Unit, Verified},
    config::Config,
    store::damaged,
};

const MIB: u64 = 1 << 20;
/// Damaged rows that are told one by one.
const ROWS_TOLD_MAX: usize = 100;
/// Exit code of a backup that is written and has something damaged in it.
pub(crate) const EXIT_DAMAGED: u8 = 2;

/// A backup that was written has something damaged in it.
#[derive(Debug, thiserror::Error)]
#[error(
    "verify the backup in `{directory}`: {what}; it is kept, and what can be read of it can be restored: keep earlier \
     backups until this is mended"
)]
pub(crate) struct Damaged {
    directory: String,
    what: String,
}

/// Writes a backup of the databases of `config` to `to`, and looks through it; progress goes to standard output. Fails
/// with [`Damaged`] when something in it is.
#[tokio::main]
pub(crate) async fn back_up(config: &Config, to: &Path) -> anyhow::Result<()> {
    let manifest = backup::backup(&config.data_dir, to, tell).await?;
    say(&format!("backed up configuration version {} to {}", manifest.config_version, to.display()));
    say(
        "the root key, ca.key and admin.key are not in it: keep copies of root.key and ca.key elsewhere; without the \
         root key the secrets in the backup cannot be read",
    );
    let verified = backup::verify(to, &config.root_keys, tell).await?;
    conclude(to, &verified)
}

/// Says what is damaged, and what was not looked at.
fn conclude(to: &Path, verified: &Verified) -> anyhow::Result<()> {
    if let Some(reason) = &verified.not_opened {
        say(&format!(
            "{} rows with secrets were not looked at, since their key is not here: {reason}",
            verified.rows_not_opened
        ));
    }
    for finding in &verified.structure {
        say(&format!("damaged: {finding}"));
    }
    for row in verified.damaged.iter().take(ROWS_TOLD_MAX) {
        say(&format!("damaged: {row}: {}", damaged::remedy(row.resource_type)));
    }
    if verified.is_whole() {
        say(&format!("verified {} rows: nothing is damaged", verified.rows));
        return Ok(());
    }
    let structure =
        (!verified.structure.is_empty()).then(|| "the structure of a database is damaged".to_owned());
    let count = verified.damaged.len();
    let rows = (count > 0).then(|| format!("{count} of {} rows cannot be read", verified.rows));
    let what = structure.into_iter().chain(rows).collect::<Vec<_>>().join(", and ");
    Err(Damaged { directory: to.display().to_string(), what }.into())
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
    let Progress { doing, name, unit, done, total } = progress;
    say(&match unit {
        Unit::Bytes => {
            format!("{doing} {name}: {} of about {} MiB", done / MIB, total.max(done).div_ceil(MIB))
        }
        Unit::Rows => format!("{doing} {name}: {done} rows"),
        Unit::Seconds => format!("{doing} {name}: {done} s"),
    });
}

fn say(line: &str) {
    // When standard output is gone the work still goes on.
    drop(writeln!(std::io::stdout(), "{line}"));
}
