//! Reports outcomes upward: what is durable in the buffer goes to the control plane in order, a few batches
//! ahead of the acks, and is freed when acked. After an interruption it goes on from the acked sequence:
//! what the control plane has already it recognizes by its sequence.
//!
//! Each stream says itself, when it is opened, whether deliveries may be handed over on it: whoever answers the next
//! one, or another stream of this agent, may be a control plane that acks them unseen.

use std::{collections::VecDeque, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use gateway_proto::v1;
use gateway_runtime::backoff::Backoff;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    control_plane::{CallFailed, ReportClient, ReportStream, StreamEnded},
    snapshot::SnapshotHandle,
};

use super::buffer::{Buffer, Lane, ReportLimits};

#[cfg(test)]
mod tests;

/// First and longest delay between attempts to connect: short at first, so that a restarted control plane
/// is found at once.
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// Batches sent and not acked. When there are as many, reports stay in the buffer.
const BATCHES_IN_FLIGHT_MAX: usize = 8;
/// Size of one batch.
const LIMITS: ReportLimits = ReportLimits { bytes: 4 * 1024 * 1024, count: 500 };
/// How long the control plane may take to open the stream, and to ack a batch.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long reports may go on at the end. What is left is reported after the start.
const DRAIN: Duration = Duration::from_secs(3);

/// The reporter. It ends only when told to.
pub struct Reporter {
    buffer: Buffer,
    client: ReportClient,
    snapshot: SnapshotHandle,
}

/// How far a lane is on this stream.
struct Position {
    lane: Lane,
    buffer_id: String,
    sent: u64,
}

/// One connection.
struct Session {
    buffer: Buffer,
    positions: [Position; 2],
    /// Batches not acked: lane and last sequence.
    in_flight: VecDeque<(Lane, u64)>,
}

/// Why a session ended well.
enum End {
    /// Everything is reported, and the agent is stopping.
    Drained,
    /// The buffer was replaced, so positions mean nothing any more.
    NewBuffer,
}

impl Reporter {
    /// Reports what is in `buffer` over `client`, and tells the drain of `snapshot` while hand-overs are taken.
    pub const fn new(client: ReportClient, buffer: Buffer, snapshot: SnapshotHandle) -> Self {
        Self { buffer, client, snapshot }
    }

    /// Reports until `stop`, and then what is left, for a few seconds.
    ///
    /// # Errors
    /// Never; the result is for the supervisor.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
        let mut is_away = false;
        let mut retry = self.snapshot.retry();
        let work = async {
            loop {
                retry.begin();
                let ended = self.session(&stop, &mut backoff, &mut is_away).await;
                self.hold_hand_overs();
                match ended {
                    Ok(End::Drained) => return,
                    Ok(End::NewBuffer) => continue,
                    Err(ended) if ended.is::<StreamEnded>() => {
                        debug!(error = format!("{ended:#}"), "the report stream ended; opening another");
                    }
                    Err(failure) if !is_away => {
                        is_away = true;
                        warn!(
                            error = format!("{failure:#}"),
                            "failed to report to the control plane; reports stay in the buffer"
                        );
                    }
                    Err(failure) => debug!(error = format!("{failure:#}"), "failed to report again"),
                }
                if stop.is_cancelled() || !retry.wait(&mut backoff, &stop).await {
                    return;
                }
            }
        };
        let drain_is_over = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            () = work => {}
            () = drain_is_over => info!("stopping with reports unsent; they stay in the buffer"),
        }
        Ok(())
    }

    async fn session(
        &self,
        stop: &CancellationToken,
        backoff: &mut Backoff,
        is_away: &mut bool,
    ) -> anyhow::Result<End> {
        let (outgoing, requests) = mpsc::channel(BATCHES_IN_FLIGHT_MAX);
        let mut client = self.client.clone();
        let opening = client.report_logs(ReceiverStream::new(requests));
        // Cancel safe: a stream that is not open yet carries nothing.
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, opening).await.context("open report stream")?;
        let ReportStream { mut acks, takes_hand_overs } = opened.map_err(CallFailed::from)?;
        self.begin_hand_overs(takes_hand_overs);
        if std::mem::take(is_away) {
            info!("reporting to the control plane again");
        }
        let positions = Lane::ALL.map(|lane| Position {
            lane,
            buffer_id: self.buffer.buffer_id(lane),
            sent: self.buffer.acked_sequence(lane),
        });
        let mut session = Session { buffer: self.buffer.clone(), positions, in_flight: VecDeque::new() };
        let mut answer_by = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if session.is_outdated() {
                return Ok(End::NewBuffer);
            }
            session.send(&outgoing).await?;
            if stop.is_cancelled() && session.in_flight.is_empty() && !self.buffer.has_reports() {
                return Ok(End::Drained);
            }
            tokio::select! {
                ack = acks.message() => {
                    let ack = StreamEnded::check(ack)?.map_err(CallFailed::from)?;
                    backoff.reset();
                    session.take_ack(&ack);
                    answer_by = Instant::now() + ANSWER_TIMEOUT;
                }
                () = self.buffer.new_reports() => {
                    if session.in_flight.is_empty() {
                        answer_by = Instant::now() + ANSWER_TIMEOUT;
                    }
                }
                () = tokio::time::sleep_until(answer_by), if !session.in_flight.is_empty() => {
                    anyhow::bail!("wait for an ack: none came within {ANSWER_TIMEOUT:?}");
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }
}

impl Reporter {
    /// A stream was opened: hand-overs go over it, or what is on its way comes back and nothing more is given away.
    fn begin_hand_overs(&self, are_taken: bool) {
        self.buffer.control_plane_takes_hand_overs(are_taken);
        self.snapshot.drain().set_takes_hand_overs(are_taken);
    }

    /// The stream has ended: nothing more is given away, and what is on its way waits for the word of the next one.
    fn hold_hand_overs(&self) {
        self.snapshot.drain().set_takes_hand_overs(false);
        self.buffer.hold_hand_overs();
    }
}

impl Session {
    fn is_outdated(&self) -> bool {
        self.positions.iter().any(|position| position.buffer_id != self.buffer.buffer_id(position.lane))
    }

    /// Sends what there is, the urgent lane first, as far as the limit allows.
    async fn send(&mut self, outgoing: &mpsc::Sender<Bytes>) -> anyhow::Result<()> {
        for position in &mut self.positions {
            loop {
                // One batch is kept for the urgent lane.
                let limit = BATCHES_IN_FLIGHT_MAX - usize::from(position.lane == Lane::Logs);
                if self.in_flight.len() >= limit {
                    break;
                }
                let batch = self.buffer.next_reports(position.lane, position.sent, LIMITS).await?;
                if batch.last <= position.sent {
                    break;
                }
                position.sent = batch.last;
                if batch.count == 0 {
                    continue;
                }
                self.in_flight.push_back((position.lane, batch.last));
                outgoing
                    .send(batch.into_request(&position.buffer_id))
                    .await
                    .context("send reports: the stream ended")?;
            }
        }
        Ok(())
    }

    fn take_ack(&mut self, ack: &v1::ReportLogsResponse) {
        let Some(position) = self.positions.iter().find(|position| position.buffer_id == ack.buffer_id)
        else {
            return;
        };
        // More than was sent cannot be meant.
        let acked = ack.acked_sequence.min(position.sent);
        self.in_flight.retain(|(lane, last)| *lane != position.lane || *last > acked);
        self.buffer.acked(position.lane, acked);
    }
}
