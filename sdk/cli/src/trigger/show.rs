//! Showing the steps to people, as they come. Programs get one JSON object at the end instead.

use std::io;

use gateway_sdk::v1;

use super::{CallbackReport, SuppressionReport, follow::EventReport, provider::ProofArg, sample::Sample};
use crate::{
    json,
    output::{Look, Output},
};

/// Shows steps, unless programs read.
pub struct Show<'a> {
    pub output: &'a Output,
    pub json: bool,
}

impl Show<'_> {
    fn step(&self, name: &str, milliseconds: f64, what: &str) -> io::Result<()> {
        let name = self.output.look(Look::Good, format!("{name:<10}"));
        self.output.line(format_args!("  {name} {milliseconds:>8.1} ms  {what}"))
    }

    /// The callback and the agent's answer.
    pub fn callback(&self, callback: &CallbackReport, sample: &Sample, proof: ProofArg) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        self.output.line(format_args!(
            "{} POST {} ({} bytes, {})",
            self.output.look(Look::Strong, "callback"),
            callback.url,
            sample.body.len(),
            proof.describe()
        ))?;
        self.step("accepted", callback.accepted_ms, &format!("HTTP {}", callback.status_code))?;
        self.output.gap()
    }

    /// An event, its deliveries and its webhook.
    pub fn event(&self, event: &EventReport) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let title = self.output.look(Look::Strong, "event");
        self.output.line(format_args!("{title} {} {}", event.event, event.event_id))?;
        self.step(
            "logged",
            event.logged_ms,
            &format!("instance {}, agent {}", event.instance_id, event.agent_id),
        )?;
        for delivery in &event.deliveries {
            let last = delivery.attempts.last();
            let what = match last {
                Some(attempt) if attempt.error.is_empty() => format!(
                    "{}: attempt {}, HTTP {} in {:.1} ms",
                    delivery.subscription_id, attempt.number, attempt.status_code, attempt.duration_ms
                ),
                Some(attempt) => {
                    format!(
                        "{}: attempt {} failed: {}",
                        delivery.subscription_id, attempt.number, attempt.error
                    )
                }
                None => format!("{}: no attempt", delivery.subscription_id),
            };
            self.step(&delivery.state.to_lowercase(), event.delivered_ms, &what)?;
        }
        self.webhook(event)?;
        self.output.gap()
    }

    fn webhook(&self, event: &EventReport) -> io::Result<()> {
        let output = self.output;
        let body = match &event.webhook {
            Some(webhook) => {
                output.line(format_args!(
                    "  {} POST {}",
                    output.look(Look::Good, "webhook   "),
                    webhook.url
                ))?;
                for (name, value) in &webhook.headers {
                    output
                        .line(format_args!("    {} {value}", output.look(Look::Faint, format!("{name}:"))))?;
                }
                &webhook.body
            }
            None => {
                output.line("  the webhook did not go to the built-in receiver; its body, as recorded:")?;
                &event.payload
            }
        };
        for line in json::pretty(body.get()).lines() {
            output.line(format_args!("    {line}"))?;
        }
        Ok(())
    }

    /// What the gateway now says about marketing to the contact.
    pub fn suppression(&self, suppression: &SuppressionReport, known: Option<&v1::OptOut>) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        if known.is_some() {
            self.output.line(
                "the contact had opted out before, so nothing changed and no recipient.opted_out follows \
                 (choose another contact with --from)",
            )?;
        }
        self.output.line(self.output.look(Look::Strong, "suppression"))?;
        let what = format!("CheckSuppression refuses marketing because of {}", suppression.opt_out_id);
        self.step("suppressed", suppression.after_ms, &what)?;
        self.output.gap()
    }
}
