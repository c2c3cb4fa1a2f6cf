//! Streams that go on although their caller does not read.
//!
//! The server polls a response stream only while the caller's window has room. A stream that is left in the middle
//! of a step keeps what the step holds, such as a connection to the database or a lock, from everybody else. So
//! each stream is driven by a task of its own, which begins a step only once there is room for what comes of it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Status;

/// Responses that wait to be read. With one there, no further step is begun.
const RESPONSES_MAX: usize = 1;

/// A response stream that is driven by a task. Dropping it ends the task.
pub(super) struct Driven<T> {
    /// Boxed, because a channel sets aside room for some dozens.
    responses: mpsc::Receiver<Box<Result<T, Status>>>,
    _task: JoinSet<()>,
}

/// Drives `responses`.
pub(super) fn driven<T: Send + 'static>(
    responses: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Driven<T> {
    let (sender, receiver) = mpsc::channel(RESPONSES_MAX);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut responses = std::pin::pin!(responses);
        while let Ok(room) = sender.reserve().await {
            let Some(response) = responses.next().await else { return };
            room.send(Box::new(response));
        }
    });
    Driven { responses: receiver, _task: task }
}

impl<T> Stream for Driven<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.responses.poll_recv(context).map(|response| response.map(|response| *response))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use futures_util::{FutureExt as _, stream};
    use tokio::sync::Mutex;

    use super::*;

    /// A caller reads one response and no more, just when the next step holds a lock: the step ends and gives it
    /// back. Dropping the stream drops what it is made of.
    #[tokio::test(start_paused = true)]
    async fn steps_end_without_a_reader() {
        let lock = Arc::new(Mutex::new(()));
        let held = Arc::clone(&lock);
        let steps = stream::iter(0..).then(move |number: u32| {
            let held = Arc::clone(&held);
            async move {
                let _held = held.lock().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(number)
            }
        });
        let mut driven = driven(steps);
        assert_eq!(driven.next().await.unwrap().unwrap(), 0);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(driven.next().now_or_never().is_some(), "the second step has ended");
        let taken = tokio::time::timeout(Duration::from_secs(5), lock.lock()).await;
        assert!(taken.is_ok(), "a step holds the lock for ever");
        drop((taken, driven));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&lock), 1);
    }
}
