//! A watch of inbound logs that outlives broken connections.
//!
//! Every response carries a cursor. After a break the watch reconnects with the last cursor it gave out, so
//! the caller sees no gap and no repeat. Before the first response there is no cursor; a watch that began
//! "now" then goes on from the time at which it first began, by this machine's clock.

use std::time::Duration;

use futures_util::{Stream, stream};
use gateway_proto::v1;
use jiff::Timestamp;
use tonic::Streaming;

use super::{Client, Error};

/// Longest wait before the first attempt to reconnect; doubled with each failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between attempts to reconnect.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

impl Client {
    /// Streams inbound logs as they are recorded and as their deliveries change state.
    ///
    /// The stream never ends by itself: it reconnects, with full jitter and for as long as it takes, and
    /// continues after the last response it gave out. It ends after an error that reconnecting cannot mend,
    /// such as a refused key or a malformed filter.
    pub fn watch_inbound_logs(
        &self,
        filter: v1::WatchInboundLogsRequest,
    ) -> impl Stream<Item = Result<v1::WatchInboundLogsResponse, Error>> + Send + use<> {
        let watch = Watch { client: self.clone(), request: filter, began: None, open: None, failures: 0 };
        stream::try_unfold(watch, Watch::next)
    }
}

struct Watch {
    client: Client,
    /// What to ask for after the next break.
    request: v1::WatchInboundLogsRequest,
    /// When a watch without cursor and start time first began.
    began: Option<Timestamp>,
    open: Option<Streaming<v1::WatchInboundLogsResponse>>,
    /// Breaks since the last response.
    failures: u32,
}

impl Watch {
    async fn next(mut self) -> Result<Option<(v1::WatchInboundLogsResponse, Self)>, Error> {
        loop {
            match self.receive().await {
                Ok(Some(response)) => {
                    self.request.cursor.clone_from(&response.cursor);
                    self.failures = 0;
                    return Ok(Some((response, self)));
                }
                // The control plane ends streams when it drains.
                Ok(None) => self.pause(None).await,
                Err(error) if error.is_transient() => {
                    self.pause(error.call().and_then(|call| call.retry_after)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next response of the open stream, which is opened first when there is none.
    async fn receive(&mut self) -> Result<Option<v1::WatchInboundLogsResponse>, Error> {
        if self.open.is_none() {
            let request = self.resumed();
            self.open = Some(self.client.inbound_logs().watch_inbound_logs(request).await?.into_inner());
        }
        let stream = self.open.as_mut().expect("opened above");
        Ok(stream.message().await?)
    }

    fn resumed(&mut self) -> v1::WatchInboundLogsRequest {
        let mut request = self.request.clone();
        if request.cursor.is_empty() && request.start_time.is_none() {
            match self.began {
                Some(began) => request.start_time = Some(gateway_core::time::to_proto(began)),
                None => self.began = Some(Timestamp::now()),
            }
        }
        request
    }

    async fn pause(&mut self, at_least: Option<Duration>) {
        self.open = None;
        let longest = BACKOFF_MAX.min(BACKOFF_FIRST * 2_u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let wait = longest.mul_f64(rand::random::<f64>());
        tokio::time::sleep(at_least.map_or(wait, |at_least| at_least.min(BACKOFF_MAX) + wait)).await;
    }
}
