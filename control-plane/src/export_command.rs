//! `gateway-control-plane export-snapshot`: what it is given, and what people are told.

use std::{io::Write as _, path::PathBuf, time::Duration};

use gateway_control_plane::{
    config::Config,
    export::{self, ExportRequest, Exported, LIVES, Named, SIGNING_KEY_FILE},
};
use gateway_core::{id::TenantId, instance::is_region};
use gateway_runtime::config::Span;

/// What to export.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Region of the agents that are to start from it.
    #[arg(long, value_name = "REGION", value_parser = region)]
    region: String,
    /// Tenant of these agents, when they are bound to one; without it, it is for agents of the platform.
    #[arg(long, value_name = "TENANT", value_parser = tenant)]
    tenant: Option<TenantId>,
    /// File to write; one that is there is replaced when the new one is whole.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// File with the key of the agents; made the first time, used again afterwards. Give a copy to each agent, once.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// How long new agents may start from it, 1m to 90d.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = expires_in)]
    expires_in: Duration,
    /// Export the rest when resources cannot be read; without it there is no export then, and the one before stays.
    #[arg(long)]
    leave_out_damaged: bool,
}

fn region(text: &str) -> Result<String, &'static str> {
    if is_region(text) { Ok(text.to_owned()) } else { Err("must match [a-z0-9][a-z0-9_-]{0,62}") }
}

fn tenant(text: &str) -> Result<TenantId, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn expires_in(text: &str) -> Result<Duration, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    if LIVES.contains(&span.0) { Ok(span.0) } else { Err("must be between 1m and 90d".to_owned()) }
}

/// Writes an export of the store of `config`, and tells standard output about it.
#[tokio::main]
pub(crate) async fn export_snapshot(config: &Config, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { region, tenant, output, key_file, expires_in, leave_out_damaged } = arguments;
    let request =
        ExportRequest { region, tenant_id: tenant, output, key_file, expires_in, leave_out_damaged };
    let exported = export::export(&config.data_dir, &config.root_keys, &request).await?;
    let told = tell(&request, &exported);
    // When standard output is gone the export is written all the same.
    drop(std::io::stdout().write_all(told.as_bytes()));
    Ok(())
}

fn tell(request: &ExportRequest, exported: &Exported) -> String {
    let Exported { header, counts, bytes, signer, is_signing_key_new, is_key_file_new, left_out } = exported;
    let mut lines = vec![
        format!("wrote {}: {bytes} bytes", request.output.display()),
        format!(
            "for: agents of region {}, {}",
            header.region,
            header.tenant_id.as_ref().map_or("of the platform".to_owned(), |id| format!("of tenant {id}"))
        ),
        format!(
            "holds: configuration version {}: {}, {}, {}, {}; {}",
            header.version,
            count(counts.inbound_routes, "inbound route"),
            count(counts.instances, "instance"),
            count(counts.webhook_subscriptions, "webhook subscription"),
            match counts.opt_out_policies {
                1 => "1 opt-out policy".to_owned(),
                policies => format!("{policies} opt-out policies"),
            },
            count(counts.opt_outs, "opt-out decision"),
        ),
        format!("expires: {}", gateway_core::time::rfc3339_seconds(header.expire_time)),
        format!("signed by: key {signer}"),
    ];
    if !left_out.is_empty() {
        lines.push(format!(
            "left out: {}, which cannot be read: restore a backup, or delete it and create it anew, then export again",
            Named(left_out.clone())
        ));
    }
    if *is_signing_key_new {
        lines.push(format!(
            "made {SIGNING_KEY_FILE} in the data directory, which signs exports: it is in no backup, so keep a copy of it with \
             those of root.key and ca.key"
        ));
    }
    if *is_key_file_new {
        lines.push(format!(
            "made key file {}: give each agent a copy, and --snapshot-key-file. Whoever has it can read exports, with all \
             secrets in them; exports to come use it too",
            request.key_file.display()
        ));
    }
    lines.join("\n") + "\n"
}

fn count(number: u64, of_what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {of_what}{plural}")
}
