//! The signing secrets, asked for when they are needed.

use std::time::Duration;

use gateway_sdk::webhook::VerifyError;
use tokio::time::{Instant, sleep_until};

/// The least time between two questions.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How often a webhook asks at most, when there is no answer.
const ASKS_MAX: usize = 3;

/// What webhooks are verified with: `V`, of all secrets there were when it was asked for.
pub struct Secrets<V> {
    verifier: Option<V>,
    /// When it was asked for.
    asked: Option<Instant>,
    /// The last question, which perhaps was not answered.
    tried: Option<Instant>,
}

impl<V> Default for Secrets<V> {
    fn default() -> Self {
        Self { verifier: None, asked: None, tried: None }
    }
}

impl<V> Secrets<V> {
    /// What `check` says of a webhook that has `arrived`. Secrets are asked for again when no signature fits, since one
    /// may have been rotated, or a new subscription may deliver here: only with secrets that were asked for after the
    /// webhook arrived it is refused for good. A refusal costs a genuine webhook five seconds until its next attempt.
    pub async fn check<A: Future<Output = Option<V>>>(
        &mut self,
        arrived: Instant,
        mut ask: impl FnMut() -> A,
        check: impl Fn(&V) -> Result<String, VerifyError>,
    ) -> Result<String, VerifyError> {
        for _ in 0..ASKS_MAX {
            let outcome = self.outcome(&check);
            let is_final = self.asked.is_some_and(|asked| asked >= arrived);
            if is_final || outcome != Err(VerifyError::Signature) {
                return outcome;
            }
            if let Some(tried) = self.tried {
                sleep_until(tried + ASK_EVERY).await;
            }
            let now = Instant::now();
            self.tried = Some(now);
            if let Some(verifier) = ask().await {
                (self.verifier, self.asked) = (Some(verifier), Some(now));
            }
        }
        self.outcome(&check)
    }

    fn outcome(&self, check: impl Fn(&V) -> Result<String, VerifyError>) -> Result<String, VerifyError> {
        self.verifier.as_ref().map_or(Err(VerifyError::Signature), check)
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    /// Secrets are numbers, and those from 1 to the one that was asked for last are there.
    fn signed_with(secret: u32) -> impl Fn(&u32) -> Result<String, VerifyError> {
        move |newest| if secret <= *newest { Ok(secret.to_string()) } else { Err(VerifyError::Signature) }
    }

    /// The first webhook of a subscription that was made a moment ago is taken, also when secrets were asked for
    /// right before it was made; so are those that arrive with it, with the same answer.
    #[tokio::test(start_paused = true)]
    async fn first_webhooks_are_taken() {
        let (mut secrets, mut asks) = (Secrets::default(), 0);
        for secret in 1..=3 {
            tokio::time::advance(Duration::from_millis(1)).await;
            let arrived = Instant::now();
            for _ in 0..2 {
                let ask = || {
                    asks += 1;
                    ready(Some(secret))
                };
                assert_eq!(secrets.check(arrived, ask, signed_with(secret)).await, Ok(secret.to_string()));
            }
        }
        assert_eq!(asks, 3);
    }

    /// A question that is not answered is repeated; a forged webhook is refused after one answer, and asks no oftener
    /// than others; nobody waits for long where there is no answer at all.
    #[tokio::test(start_paused = true)]
    async fn questions_are_few() {
        let (mut secrets, mut asks) = (Secrets::default(), 0);
        let answers_second = || {
            asks += 1;
            ready((asks == 2).then_some(1))
        };
        let start = Instant::now();
        assert_eq!(secrets.check(start, answers_second, signed_with(1)).await, Ok("1".to_owned()));
        let arrived = Instant::now();
        let forged = async |secrets: &mut Secrets<u32>, asks: &mut u32| {
            let ask = || {
                *asks += 1;
                ready(Some(1))
            };
            secrets.check(arrived, ask, signed_with(9)).await
        };
        asks = 0;
        for _ in 0..100 {
            assert_eq!(forged(&mut secrets, &mut asks).await, Err(VerifyError::Signature));
        }
        assert!(asks <= 1, "{asks} questions");
        let before = Instant::now();
        let silent = secrets.check(before + ASK_EVERY, || ready(None), signed_with(9)).await;
        assert_eq!(silent, Err(VerifyError::Signature));
        assert!(before.elapsed() <= ASK_EVERY * 3);
    }
}
