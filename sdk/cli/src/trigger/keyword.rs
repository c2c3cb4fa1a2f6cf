//! Whether a text opts out at an instance, asked before anybody waits for an opt-out that cannot come.

use anyhow::Context as _;
use gateway_core::opt_out::{KeywordSet, OptOutDirection, OptOutPolicy};
use gateway_sdk::{Client, Error, v1};

use crate::BadConfig;

/// The text of a message that is to opt out.
pub struct Keyword<'a> {
    pub client: &'a Client,
    pub text: &'a str,
}

impl Keyword<'_> {
    /// Fails when the text is no keyword of the instance's policy that opts out.
    pub async fn check(&self, instance_id: &str) -> anyhow::Result<()> {
        let request = v1::GetOptOutPolicyRequest { instance_id: instance_id.to_owned() };
        let answer = self.client.opt_outs().get_opt_out_policy(request).await.map_err(Error::from);
        let policy = answer.context("get the opt-out policy")?.into_inner().opt_out_policy;
        let policy = policy.context("get the opt-out policy: the answer is empty")?;
        // A newer control plane may know languages that this build does not: then the agent decides.
        let Ok(policy) = OptOutPolicy::try_from(&policy) else { return Ok(()) };
        if opts_out(&policy, self.text) {
            return Ok(());
        }
        anyhow::bail!(BadConfig(format!(
            "the text is no keyword that opts out at the instance `{instance_id}` (see \
             OptOutService/GetOptOutPolicy): give one with --text, as STOP, or send the text with \
             `gateway trigger message.received`"
        )))
    }
}

fn opts_out(policy: &OptOutPolicy, text: &str) -> bool {
    KeywordSet::of(policy).lookup(text).is_some_and(|found| found.direction == OptOutDirection::OptOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy decides: a word that opts in, or that is none, does not opt out.
    #[test]
    fn only_keywords_opt_out() {
        let usual = OptOutPolicy::default();
        assert!(opts_out(&usual, "STOP") && opts_out(&usual, " baja "));
        assert!(!opts_out(&usual, "Hi") && !opts_out(&usual, "START"));
        let own = OptOutPolicy { opt_out_keywords: vec!["Hi".to_owned()], ..usual.clone() };
        assert!(opts_out(&own, "hi"));
        assert!(!opts_out(&OptOutPolicy { keywords_enabled: false, ..usual }, "STOP"));
    }
}
